/** Starts the gateway on Node: settings, database, admin key, server, orderly end. Prints one JSON line when it serves. */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import { readFile, rename, writeFile } from 'node:fs/promises';
import type { Server } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { serve } from '@hono/node-server';
import type { Logger } from 'pino';
import { Agent, EnvHttpProxyAgent, fetch as undiciFetch } from 'undici';
import { createKey, type LogKey, loadKey } from '../daemon/evidence.ts';
import { type App, createApp } from './app.ts';
import { type Config, ConfigError, readConfig } from './config.ts';
import type { Fetch } from './daemons/client.ts';
import type { Post } from './daemons/post.ts';
import { undiciPost } from './daemons/undici-post.ts';
import { processIngester } from './datanets/contributions/process-ingester.ts';
import { openDatabase } from './db/open.ts';
import { diskStorage } from './factory/files/storage.ts';
import { limits } from './limits.ts';
import { createLog } from './log.ts';
import { nodeAddress } from './node-address.ts';
import { nodeStream } from './node-stream.ts';
import { cookieKey } from './people/oidc/cookie-key.ts';
import type { OidcOptions } from './people/oidc/oidc.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Keep-alive connections to the daemons; silence is judged by the generation itself, so there is no body time-out here. */
function daemonConnections(): { fetch: Fetch; post: Post; close: () => Promise<void> } {
  const agent = new Agent({
    connections: 512,
    keepAliveTimeout: 30_000,
    headersTimeout: 0,
    bodyTimeout: 0,
    connect: { timeout: 3_000 },
  });
  const fetch = (url: string, init?: RequestInit) =>
    undiciFetch(url, { ...(init as object), dispatcher: agent }) as unknown as Promise<Response>;
  return { fetch, post: undiciPost(agent), close: () => agent.destroy() };
}

/** Signs rows and versions of Datanets; made at the first start. */
function datanetKey(path: string): LogKey {
  return loadKey(path) ?? createKey(path);
}

/** The provider is reached as browsers reach it: through a proxy where the environment names one. */
function oidcOptions({ oidc, dataDir }: Config): OidcOptions | null {
  if (oidc === null) return null;
  const agent = new EnvHttpProxyAgent();
  const fetch = (url: string, init?: RequestInit) =>
    undiciFetch(url, { ...(init as object), dispatcher: agent }) as unknown as Promise<Response>;
  return { settings: oidc, cookieKey: cookieKey(join(dataDir, 'keys', 'oidc.key')), fetch };
}

/** `admin.key` holds the key and nothing else. Made when there is none, or when the database does not know the one there. */
async function ensureAdminKey(app: App, dataDir: string): Promise<string> {
  const path = join(dataDir, 'admin.key');
  const held = await readFile(path, 'utf8').catch(() => '');
  const principal = await app.services.keys.authenticate(held.trim());
  if (principal?.scopes.has('admin')) return path;
  const { credential } = await app.services.keys.create({ name: 'admin (made at start)', scopes: ['admin'] });
  const draft = `${path}.${process.pid}.tmp`;
  await writeFile(draft, credential, { mode: 0o600, flag: 'wx' });
  await rename(draft, path);
  return path;
}

/** Reservations of the process before this one, then the overdue ones, and sessions that are over, for ever. */
function startSweeping(app: App, createdBefore: number, log: Logger): () => void {
  let delayMs = 500;
  let timer: NodeJS.Timeout;
  const sweep = async () => {
    let waiting = 0;
    try {
      waiting = await app.services.settler.sweep(createdBefore);
    } catch (error) {
      log.error({ err: error }, 'the sweep of reservations failed');
    }
    await app.services.people.prune().catch((error: unknown) => {
      log.error({ err: error }, 'ended sessions and old links could not be removed');
    });
    delayMs = waiting > 0 ? Math.min(delayMs * 2, limits.sweepEveryMs) : limits.sweepEveryMs;
    timer = setTimeout(sweep, delayMs);
    timer.unref();
  };
  timer = setTimeout(sweep, delayMs);
  timer.unref();
  return () => clearTimeout(timer);
}

async function main(config: Config): Promise<void> {
  const startedAt = Date.now();
  mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
  const log = createLog({
    level: config.logLevel,
    secrets: [config.daemonToken, config.databaseToken ?? '', config.oidc?.clientSecret ?? ''],
  });
  const opened = await openDatabase({
    url: config.databaseUrl,
    ...(config.databaseToken === undefined ? {} : { authToken: config.databaseToken }),
    migrationsFolder: join(root, 'migrations/gateway'),
  });
  const daemons = daemonConnections();
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };
  const statePath = config.supervisorStatePath;
  const app = createApp({
    db: opened.db,
    exclusiveDatabase: opened.exclusive,
    daemons: { urls: config.daemonUrls, token: config.daemonToken, fetch: daemons.fetch, post: daemons.post },
    direct: nodeStream,
    price: config.price,
    factory: {
      storage: diskStorage(join(config.dataDir, 'files')),
      trainingMicrosPerMillion: config.trainingMicrosPerMillion,
      organization: config.organization,
    },
    datanets: {
      key: datanetKey(join(config.dataDir, 'keys', 'datanets.key')),
      storage: diskStorage(join(config.dataDir, 'contributions')),
      ingester: processIngester({
        url: config.databaseUrl,
        ...(config.databaseToken === undefined ? {} : { authToken: config.databaseToken }),
      }),
      ...(config.contributionBytesPerDay === null ? {} : { bytesPerDay: config.contributionBytesPerDay }),
    },
    people: {
      addressOf: nodeAddress({ trustProxy: config.trustProxy }),
      publicUrl: config.publicUrl,
      trustProxy: config.trustProxy,
      auditKeptMs: config.auditKeptMs,
    },
    oidc: oidcOptions(config),
    log,
    metrics: config.metrics,
    sha256Hex: (text) => createHash('sha256').update(text).digest('hex'),
    version,
    supervisor: async () => (statePath === undefined ? null : JSON.parse(await readFile(statePath, 'utf8'))),
  });
  const adminKeyPath = await ensureAdminKey(app, config.dataDir);
  await app.services.datanets.start({ exclusive: opened.exclusive });
  await app.services.factory.start({ exclusive: opened.exclusive });
  const stopSweeping = startSweeping(app, opened.exclusive ? startedAt : 0, log);

  const server = serve({
    fetch: app.fetch,
    hostname: config.host,
    port: config.port,
    // The app itself answers 431 in OpenAI's shape below Node's limit. Slow headers are cut off; bodies may be large uploads.
    serverOptions: {
      maxHeaderSize: 2 * limits.headerBytesMax,
      headersTimeout: 20_000,
      requestTimeout: 0,
      keepAliveTimeout: 65_000,
    },
  }) as Server;
  server.on('error', (error) => {
    log.fatal({ err: error }, 'the gateway cannot listen');
    process.exitCode = 1;
    setTimeout(() => process.exit(1), 50);
  });
  server.on('listening', () => {
    const address = server.address();
    const port = typeof address === 'object' && address !== null ? address.port : config.port;
    const host = config.host.includes(':') ? `[${config.host}]` : config.host;
    process.stdout.write(
      `${JSON.stringify({ ready: true, service: 'gateway', url: `http://${host}:${port}`, adminKeyPath })}\n`,
    );
  });

  let stopping = false;
  const stop = (signal: string) => {
    if (stopping) return;
    stopping = true;
    log.info({ signal }, 'stopping: no new requests, those in flight are finished');
    stopSweeping();
    const stopped = Promise.all([app.services.factory.stop(), app.services.datanets.stop()]);
    const force = setTimeout(() => server.closeAllConnections(), limits.shutdownMs);
    // Kept-alive connections become idle one by one as their last answers end.
    const idle = setInterval(() => server.closeIdleConnections(), 50);
    server.close(async () => {
      clearInterval(idle);
      clearTimeout(force);
      await Promise.race([app.services.settler.idle(), new Promise((resolve) => setTimeout(resolve, 2_000))]);
      await stopped;
      await daemons.close();
      opened.close();
      log.flush();
      process.exit(0);
    });
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
}

/** A daemon on this machine that was given no token has made one, in a file that only its user can read. */
function localDaemonToken(dataDir: string): string | undefined {
  try {
    return readFileSync(join(dataDir, 'keys', 'daemon.token'), 'utf8').trim();
  } catch {
    return undefined;
  }
}

/** sysexits.h: wrong configuration. The supervisor does not try again after it. */
const EXIT_CONFIG = 78;

try {
  await main(
    readConfig({
      MODELFACTORY_DAEMON_TOKEN: localDaemonToken(process.env.MODELFACTORY_DATA || './data'),
      ...process.env,
    }),
  );
} catch (error) {
  const misconfigured = error instanceof ConfigError;
  const detail = error instanceof Error ? error.stack : String(error);
  process.stderr.write(misconfigured ? `gateway: ${error.message}\n` : `gateway: could not start: ${detail}\n`);
  process.exit(misconfigured ? EXIT_CONFIG : 1);
}
