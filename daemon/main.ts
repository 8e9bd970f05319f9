/** Starts the daemon: configuration → base model → adapters → receipt log → engine → HTTP, and ends them in reverse. */
import { stat } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { createAdaptorServer } from '@hono/node-server';
import { Hono } from 'hono';
import { pino } from 'pino';
import { openVocabulary } from '../addon/index.ts';
import { adapterRoutes } from './adapter-routes.ts';
import { exportRoutes } from './adapters/export/routes.ts';
import { AdapterRegistry } from './adapters/registry.ts';
import { ConfigError, type DaemonConfig, readConfig } from './config.ts';
import { EngineClient } from './engine/client.ts';
import { exactScheduler } from './engine/exact.ts';
import { DaemonError } from './errors.ts';
import { ReportStore } from './evaluation/report-store.ts';
import { evaluationRoutes } from './evaluation/routes.ts';
import { lockInstance } from './instance-lock.ts';
import { ENGINE_LIMITS, SERVER_LIMITS } from './limits.ts';
import { Metrics } from './metrics.ts';
import { modelDigest } from './models/digest.ts';
import { ensureBaseModel, FetchError } from './models/fetch.ts';
import { ModelFileError } from './models/gguf-errors.ts';
import { hubEndpoint, hubToken } from './models/hub.ts';
import { inspectModel } from './models/inspect.ts';
import type { BaseModel, DaemonHealth } from './protocol.ts';
import { ReceiptLogClient } from './receipts/client.ts';
import { LogError } from './receipts/errors.ts';
import { FullAudit } from './receipts/full-audit.ts';
import { receiptRoutes } from './receipts/routes.ts';
import { createServer, type DaemonEnv, type DaemonServer } from './server.ts';
import { noTrainingRoutes, trainingRoutes } from './training/routes.ts';
import { startTraining, type TrainingService } from './training/service.ts';
import { VERSION } from './version.ts';

/** sysexits.h: the configuration is wrong; starting again would not help. */
const EXIT_CONFIG = 78;
/** sysexits.h: internal software error; the supervisor starts the daemon again. */
const EXIT_SOFTWARE = 70;

/** Reports that an adapter's card shows, newest first. */
const CARD_REPORTS_MAX = 10;

const startedMs = Date.now();

async function main(): Promise<void> {
  const config = readConfig();
  const log = pino({
    name: 'daemon',
    level: config.logLevel,
    redact: ['authorization', 'token', 'headers.authorization', 'config.token'],
  });
  const unlock = lockInstance(config.dataDir);
  process.on('exit', unlock);

  const state: { status: DaemonHealth['status']; detail: string } = {
    status: 'starting',
    detail: 'The daemon is starting.',
  };
  let server: DaemonServer | null = null;
  let engine: EngineClient | null = null;
  let receipts: ReceiptLogClient | null = null;
  let audit: FullAudit | null = null;
  let training: TrainingService | null = null;

  const health = (): DaemonHealth => {
    const logHealth = receipts?.health();
    const trouble =
      logHealth !== undefined && logHealth.status !== 'ok'
        ? logHealth.detail
        : audit?.report.status === 'failed'
          ? audit.report.detail
          : null;
    const degraded = state.status === 'ready' && trouble !== null;
    return {
      status: degraded ? 'degraded' : state.status,
      detail: degraded ? trouble : state.detail,
      version: VERSION,
      uptimeSeconds: Math.round((Date.now() - startedMs) / 1000),
      queue: { running: engine?.gauges.running ?? 0, waiting: engine?.waitingCount ?? 0 },
      logSize: receipts?.size ?? 0,
      ...(audit === null ? {} : { logAudit: audit.report }),
    };
  };

  const waiting = waitingRoom(health);
  const http = createAdaptorServer({
    fetch: (request, env) => (server?.app ?? waiting).fetch(request, env as DaemonEnv['Bindings']),
  });
  if ('keepAliveTimeout' in http) {
    http.keepAliveTimeout = SERVER_LIMITS.keepAliveMs;
    http.requestTimeout = SERVER_LIMITS.requestMs;
  }
  await new Promise<void>((resolve, reject) => {
    http.once('error', (error: NodeJS.ErrnoException) => {
      const taken = error.code === 'EADDRINUSE' || error.code === 'EACCES' || error.code === 'EADDRNOTAVAIL';
      const why = `The daemon cannot listen on ${config.host} port ${config.port} (${error.code}). Choose another with MODELFACTORY_DAEMON_PORT.`;
      reject(taken ? new ConfigError(why) : error);
    });
    http.listen(config.port, config.host, resolve);
  });
  const address = http.address() as AddressInfo;

  let stopping: Promise<void> | null = null;
  const stop = (why: string, code: number): Promise<void> => {
    stopping ??= (async () => {
      state.status = 'stopping';
      state.detail = why;
      log.info({ why }, 'stopping');
      server?.refuse();
      http.close();
      const idle = server?.idle() ?? Promise.resolve();
      // Within a micro-batch; meanwhile what is served goes on. A worker that does not answer loses what it had since it last saved.
      await Promise.race([training?.close(), sleep(SERVER_LIMITS.drainMs)]);
      await Promise.race([idle, sleep(SERVER_LIMITS.drainMs)]);
      // Whoever is still in flight is told, and what was generated is receipted before the log closes.
      await engine?.close();
      await Promise.race([idle, sleep(SERVER_LIMITS.drainMs)]);
      audit?.stop();
      await receipts?.close();
      unlock();
      log.flush();
      process.exit(code);
    })();
    return stopping;
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(signal, () => void stop(`received ${signal}`, 0));

  const { path, id } = await ensureBaseModel(config.base, {
    dataDir: config.dataDir,
    onNotice: (line) => log.warn(line),
  });
  const inspected = inspectModel(path);
  const digest = await modelDigest(path, join(config.dataDir, 'models', 'digests.json'));
  const { size: modelBytes, mtimeMs: modelModifiedMs } = await stat(path);
  receipts = await ReceiptLogClient.open({ dataDir: config.dataDir });
  const registry = await AdapterRegistry.open({
    root: join(config.dataDir, 'adapters'),
    base: inspected.shape,
    hub: { endpoint: hubEndpoint(), token: hubToken() },
    placeOf: (adapter) => engine?.place(adapter),
    inUse: (adapter) => engine?.uses(adapter) ?? false,
  });
  for (const { name, message } of registry.broken) log.warn({ adapter: name, cause: message }, 'an adapter is damaged');
  // The same weights may have several names.
  const names = new Map<string, Set<string>>();
  const addName = (adapter: string, name: string) => names.set(adapter, (names.get(adapter) ?? new Set()).add(name));
  const dropName = (adapter: string, name: string) => {
    names.get(adapter)?.delete(name);
    if (names.get(adapter)?.size === 0) names.delete(adapter);
  };
  for (const adapter of registry.list()) addName(adapter.digest, adapter.name);

  const metrics = new Metrics();
  const started = await EngineClient.start(engineSettings(config, path), ENGINE_LIMITS, {
    step: (report, gauges) => metrics.step(report, gauges),
    places: (places, counters, loads) => metrics.places(places, counters, loads, (adapter) => names.get(adapter)),
    loadFailed: (adapter, cause) =>
      log.error(
        { adapters: [...(names.get(adapter) ?? [])], digest: adapter, cause },
        'an adapter could not be loaded',
      ),
    released: (adapter) => registry.released(adapter),
    crash: (message) => {
      log.fatal({ cause: message }, 'the engine failed');
      void stop('The engine failed; the daemon starts again.', EXIT_SOFTWARE);
    },
  });
  engine = started.client;
  const running = started.client;
  const namesOf = (digests: Set<string>) =>
    [...digests].flatMap((adapter) => [...(names.get(adapter) ?? [adapter.slice(0, 12)])]);
  metrics.watchLora(() => {
    const inUse = running.adaptersInUse();
    return { max: started.slots, running: namesOf(inUse.running), waiting: namesOf(inUse.waiting) };
  });
  registry.on('added', (adapter, replaced) => {
    if (replaced !== null) dropName(replaced, adapter.name);
    addName(adapter.digest, adapter.name);
    running.remember(adapter.digest);
  });
  registry.on('removed', (name, adapter) => dropName(adapter, name));
  registry.on('unreferenced', (adapter) => running.forget(adapter));
  const pin = (adapter: string, pinned: boolean) =>
    running.pin(adapter, pinned).catch((error) => log.warn({ err: error, adapter }, 'an adapter could not be pinned'));
  registry.on('pinned', pin);
  for (const adapter of registry.pinnedDigests()) void pin(adapter, true);

  const model: BaseModel = {
    id,
    digest,
    architecture: inspected.architecture,
    contextTokens: Math.min(inspected.contextTrained, started.kvCells),
    vocabulary: inspected.vocabulary,
    embedding: started.model.embedding,
    weightBytes: inspected.weightBytes,
    device: started.model.device.name,
    created: Math.floor(startedMs / 1000),
  };
  const book = receipts;
  if (config.training) {
    training = await startTraining({
      dataDir: config.dataDir,
      base: { id, digest, modelPath: path, contextTokens: model.contextTokens },
      threads: config.threads,
      share: config.trainingShare,
      registry,
      log,
    });
    const { runs } = training;
    metrics.watchTraining(() => ({ queued: runs.queueLength, running: runs.current }));
  }
  const reports = await ReportStore.open(config.dataDir);
  const vocabulary = openVocabulary(path);
  const resolveAdapter = async (name: string) => ({ handle: await registry.handle(name), fingerprint: null });
  const blocked = () => {
    const { status, detail } = book.health();
    return status === 'ok' ? null : detail;
  };
  server = createServer({
    token: config.token,
    engine: running,
    vocabulary,
    model,
    receipts: book,
    resolveAdapter,
    metrics,
    log,
    version: VERSION,
    health,
    blocked,
    parts: [
      adapterRoutes(registry, running),
      exportRoutes(
        {
          registry,
          model: { path, id, digest, bytes: modelBytes, modifiedMs: modelModifiedMs },
          base: inspected.shape,
          cores: { threads: config.threads ?? availableParallelism(), share: config.trainingShare },
          reportsOf: (adapter) => reports.list(adapter, CARD_REPORTS_MAX),
        },
        log,
      ),
      receiptRoutes(() => book) as unknown as Hono<DaemonEnv>,
      evaluationRoutes({
        model,
        prepare: { vocabulary, contextTokens: model.contextTokens, resolveAdapter },
        context: { engine: running, vocabulary, receipts: book, baseDigest: digest, engineVersion: VERSION },
        reports,
        datasetPath: (dataset) => {
          if (training !== null) return training.datasets.source(dataset);
          throw new DaemonError('not_found', 'this daemon keeps no datasets, since it does not train', 'dataset');
        },
        digestOf: (name) => registry.digestOf(name),
        blocked,
        onGenerated: (kind, outcome) => metrics.request(kind, outcome),
        log,
      }),
      training === null
        ? noTrainingRoutes('this daemon does not train (MODELFACTORY_TRAINING is off); ask another, or turn it on')
        : trainingRoutes(training),
    ],
  });
  if (stopping !== null) return;
  state.status = 'ready';
  state.detail = '';
  const whole = new FullAudit({
    log: book,
    idle: () => running.jobCount === 0,
    onEnd: ({ status, leaves, detail }) => {
      if (status === 'ok') log.info({ leaves }, 'the whole receipt log was audited');
      else log.error({ leaves, cause: detail }, 'the audit of the receipt log failed');
    },
  });
  audit = whole;
  metrics.watchAudit(() => whole.report);
  const { device } = started.model;
  log.info(
    {
      ready: true,
      host: config.host,
      port: address.port,
      model: id,
      digest,
      device: device.name,
      deviceDescription: device.description,
      exact: config.exact,
      kvCells: started.kvCells,
      slots: started.slots,
    },
    'ready',
  );
}

function engineSettings(config: DaemonConfig, modelPath: string) {
  const { device, exact, threads, kvCells, slots, slotRankMax, adapterHostBytes, prefixCacheShare } = config;
  const usual = { ...ENGINE_LIMITS, prefixCacheShare };
  const scheduler = exact ? exactScheduler(usual) : usual;
  return { modelPath, device, exact, threads, kvCells, slots, slotRankMax, hostBytesMax: adapterHostBytes, scheduler };
}

/** Answers until everything is there. */
function waitingRoom(health: () => DaemonHealth): Hono<DaemonEnv> {
  const app = new Hono<DaemonEnv>();
  app.get('/health', (c) => c.json(health(), 503));
  app.notFound((c) =>
    c.json(new DaemonError('overloaded', 'the daemon is starting; try again in a moment').body(), 503),
  );
  return app;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref());
}

/** Errors that a person can do something about are one sentence on stderr; the others keep their stack. */
function fail(error: unknown): never {
  const known =
    error instanceof ConfigError ||
    error instanceof FetchError ||
    error instanceof ModelFileError ||
    error instanceof LogError;
  const addon = (error as { name?: string }).name === 'AddonError';
  process.stderr.write(
    known || addon
      ? `error: ${(error as Error).message}\n`
      : `${error instanceof Error ? error.stack : String(error)}\n`,
  );
  process.exit(known || addon ? EXIT_CONFIG : EXIT_SOFTWARE);
}

process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);
main().catch(fail);
