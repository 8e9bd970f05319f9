/** A tiny generated model behind a real engine thread, a real adapter registry, and the daemon's HTTP face with evaluations. */
import { mkdtempSync, rmSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { createAdaptorServer } from '@hono/node-server';
import { Hono } from 'hono';
import { openVocabulary, type Vocabulary } from '../../../addon/index.ts';
import { adapterRoutes } from '../../../daemon/adapter-routes.ts';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import { EngineClient } from '../../../daemon/engine/client.ts';
import { ReportStore } from '../../../daemon/evaluation/report-store.ts';
import { evaluationRoutes } from '../../../daemon/evaluation/routes.ts';
import { ENGINE_LIMITS } from '../../../daemon/limits.ts';
import { Metrics } from '../../../daemon/metrics.ts';
import { inspectModel } from '../../../daemon/models/inspect.ts';
import type { BaseModel, EvaluationEvent, TrainingExample } from '../../../daemon/protocol.ts';
import { createServer, type DaemonEnv } from '../../../daemon/server.ts';
import { buildDataset } from '../../../daemon/training/dataset-build.ts';
import { DatasetStore } from '../../../daemon/training/dataset-store.ts';
import { type PeftAdapterOptions, writePeftAdapter } from '../../support/safetensors-writer.ts';
import { writeTinyModel } from '../../support/tiny-models.ts';
import { CALLER, DoubleReceipts, TOKEN } from '../engine/rig.ts';

export { CALLER };
export const BASE_ID = 'tiny';

export interface EvaluationRig {
  url: string;
  folder: string;
  modelPath: string;
  engine: EngineClient;
  receipts: DoubleReceipts;
  registry: AdapterRegistry;
  vocabulary: Vocabulary;
  contextTokens: number;
  /** Stores a data set and answers its digest. */
  dataset(examples: TrainingExample[]): Promise<string>;
  adapter(name: string, options: PeftAdapterOptions): Promise<string>;
  call(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response>;
  /** A whole evaluation: its events. */
  evaluate(body: object): Promise<EvaluationEvent[]>;
  close(): Promise<void>;
}

export async function startEvaluationRig(): Promise<EvaluationRig> {
  const folder = mkdtempSync(join(tmpdir(), 'mf-evaluation-'));
  const modelPath = join(folder, 'tiny.gguf');
  const tiny = writeTinyModel('llama', modelPath, { context: 256 });
  const registry = await AdapterRegistry.open({ root: join(folder, 'adapters'), base: inspectModel(modelPath).shape });
  const { client: engine, model: info } = await EngineClient.start(
    {
      modelPath,
      device: 'cpu',
      threads: 2,
      kvCells: 2048,
      slots: 4,
      slotRankMax: 16,
      hostBytesMax: 1e8,
      scheduler: { ...ENGINE_LIMITS },
    },
    ENGINE_LIMITS,
  );
  const vocabulary = openVocabulary(modelPath);
  const receipts = new DoubleReceipts();
  const digest = 'b'.repeat(64);
  const contextTokens = tiny.context;
  const model: BaseModel = {
    id: BASE_ID,
    digest,
    architecture: 'llama',
    contextTokens,
    vocabulary: tiny.vocabulary,
    embedding: info.embedding,
    weightBytes: 1,
    device: 'CPU',
    created: 0,
  };
  const resolveAdapter = async (name: string) => ({ handle: await registry.handle(name), fingerprint: null });
  const log = { info() {}, warn() {}, error: (fields: object) => console.error(fields) };
  const datasets = await DatasetStore.open({
    root: join(folder, 'datasets'),
    baseDigest: digest,
    contextTokens,
    needed: () => true,
    build: (source, target) => buildDataset({ source, target, vocabulary, contextTokens }),
  });
  const parts: Hono<DaemonEnv>[] = [
    evaluationRoutes({
      model,
      prepare: { vocabulary, contextTokens, resolveAdapter },
      context: { engine, vocabulary, receipts, baseDigest: digest, engineVersion: 'test' },
      reports: await ReportStore.open(folder),
      datasetPath: (sought) => datasets.source(sought),
      digestOf: (name) => registry.digestOf(name),
      log,
    }),
  ];
  const intake = new Hono<DaemonEnv>();
  intake.post('/datasets', async (c) => c.json(await datasets.receive(c.env.incoming, 0)));
  parts.push(intake, adapterRoutes(registry, engine));
  const server = createServer({
    token: TOKEN,
    engine,
    vocabulary,
    model,
    receipts,
    resolveAdapter,
    metrics: new Metrics(),
    log,
    version: 'test',
    health: () => ({
      status: 'ready',
      detail: '',
      version: 'test',
      uptimeSeconds: 1,
      queue: { running: 0, waiting: 0 },
      logSize: 0,
    }),
    parts,
  });
  const http = createAdaptorServer({ fetch: server.app.fetch });
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
  const call: EvaluationRig['call'] = (method, path, body, signal) =>
    fetch(`${url}${path}`, {
      method,
      headers: { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    });
  return {
    url,
    folder,
    modelPath,
    engine,
    receipts,
    registry,
    vocabulary,
    contextTokens,
    call,
    async dataset(examples) {
      const text = examples.map((example) => `${JSON.stringify(example)}\n`).join('');
      return (await datasets.receive(Readable.from([Buffer.from(text)]), 0)).digest;
    },
    async adapter(name, options) {
      const source = join(folder, `source-${name}`);
      writePeftAdapter(source, info, options);
      return (await registry.add({ name, source })).digest;
    },
    async evaluate(body) {
      const response = await call('POST', '/evaluations', { callerHash: CALLER, ...body });
      const text = await response.text();
      if (response.status !== 200) throw new Error(`${response.status}: ${text}`);
      return text
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as EvaluationEvent);
    },
    async close() {
      await engine.close();
      await new Promise<void>((resolve) => {
        http.close(() => resolve());
        (http as unknown as { closeAllConnections(): void }).closeAllConnections();
      });
      vocabulary.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
