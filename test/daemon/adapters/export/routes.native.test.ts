/** Exports over HTTP: errors before the first byte, the length kept, readers who leave, adapters that go. */
import { existsSync, mkdtempSync, rmSync, utimesSync } from 'node:fs';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createAdaptorServer } from '@hono/node-server';
import { Hono } from 'hono';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { exportRoutes } from '../../../../daemon/adapters/export/routes.ts';
import { EXPORT_LIMITS } from '../../../../daemon/adapters/limits.ts';
import type { AdapterRegistry } from '../../../../daemon/adapters/registry.ts';
import { localFiles } from '../../../../daemon/adapters/source.ts';
import { toDaemonError } from '../../../../daemon/errors.ts';
import type { EvaluationReport } from '../../../../daemon/protocol.ts';
import type { DaemonEnv } from '../../../../daemon/server.ts';
import { writePeftAdapter } from '../../../support/safetensors-writer.ts';
import { writeTinyModel } from '../../../support/tiny-models.ts';
import { BASE_DIGEST, contextFor, untar } from './rig.ts';

const folder = mkdtempSync(join(tmpdir(), 'mf-export-routes-'));
// A few megabytes, so that sockets cannot hold a whole export.
const tiny = writeTinyModel('llama', join(folder, 'base.gguf'), { embedding: 256, feedForward: 2048, layers: 4 });
const source = join(folder, 'source');
writePeftAdapter(source, tiny, { seed: 5 });
const MADE = new Date('2026-01-01T00:00:00Z');
const RECIPE = {
  method: { type: 'supervised' },
  adapter: { type: 'lora', rank: 4, alpha: 8, rslora: false, targets: ['q_proj'], dropout: 0 },
  epochs: 2,
  batchSize: 8,
  learningRate: 2e-4,
  scheduler: 'cosine',
  warmupRatio: 0.03,
  weightDecay: 0,
  clipNorm: 1,
  adamBeta1: 0.9,
  adamBeta2: 0.999,
  adamEpsilon: 1e-8,
  contextTokens: 512,
  packing: true,
  recompute: 'auto',
  seed: 7,
} as const;

let registry: AdapterRegistry;
let server: Server;
let url: string;
const warnings: object[] = [];
let reports: EvaluationReport[] = [];
beforeAll(async () => {
  // A time of whole seconds, which can be put back exactly.
  utimesSync(tiny.path, MADE, MADE);
  const context = await contextFor(tiny, folder);
  registry = context.registry;
  await registry.add({ name: 'plain', source });
  const metrics = { step: 12, trainLoss: 1.25, trainMeanTokenAccuracy: 0.75, fullValidLoss: 1.5 };
  const dataset = { digest: 'cd'.repeat(32), examples: 100, tokens: 12_345 };
  const base = { id: 'tiny', digest: BASE_DIGEST };
  const record = {
    base,
    recipe: { ...RECIPE, adapter: { ...RECIPE.adapter, targets: ['q_proj' as const] } },
    dataset,
    metrics,
    run: 'run-1',
    notes: { '](http://x)|': 'a | b\n# c' },
  };
  await registry.add({ name: 'made-other', source });
  writePeftAdapter(join(folder, 'made'), tiny, { seed: 6 });
  await registry.addFiles({ name: 'made', record }, localFiles(join(folder, 'made')));
  const app = new Hono<DaemonEnv>();
  app.onError((error, c) => {
    const known = toDaemonError(error);
    return c.json(known.body(), known.status as 400);
  });
  app.route(
    '/',
    exportRoutes(
      { ...context, reportsOf: async () => reports },
      { info: () => {}, warn: (fields) => warnings.push(fields) },
    ),
  );
  server = createAdaptorServer({ fetch: app.fetch }) as Server;
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  rmSync(folder, { recursive: true, force: true });
});

const get = (path: string, init?: RequestInit): Promise<Response> => fetch(`${url}/adapters/${path}`, init);

describe('refused before the first byte, with a sentence and a status', () => {
  test.each([
    ['plain/export', 400, 'format'],
    ['plain/export?format=onnx', 400, 'format'],
    ['plain/export?format=peft&type=f16', 400, 'type'],
    ['plain/export?format=gguf&type=q4_0', 400, 'type'],
    ['plain/export?format=merged&type=__proto__', 400, 'type'],
    ['plain/export?format=merged&type=iq1_s', 400, 'type'],
    [`plain/export?format=merged&type=${'x'.repeat(100)}`, 400, 'type'],
    ['nobody/export?format=peft', 404, 'model'],
    ['..%2F..%2Fetc%2Fpasswd/export?format=peft', 404, 'model'],
    ['__proto__/export?format=merged', 404, 'model'],
    ['nobody/card', 404, 'model'],
  ])('%s', async (path, status, param) => {
    const answer = await get(path);
    expect(answer.status).toBe(status);
    const { error } = (await answer.json()) as { error: { message: string; param: string } };
    expect(error.param).toBe(param);
    expect(error.message).not.toContain(folder);
  });

  test('a base file that was changed since the start', async () => {
    const changed = new Date(Date.now() + 60_000);
    utimesSync(tiny.path, changed, changed);
    const answer = await get('plain/export?format=merged');
    utimesSync(tiny.path, MADE, MADE);
    expect(answer.status).toBe(503);
    expect(await answer.text()).toContain('base model file was changed');
  });
});

test.each(['peft', 'gguf', 'merged', 'merged&type=q8_0'])(
  '%s comes with its length and a file name',
  async (format) => {
    const answer = await get(`plain/export?format=${format}`);
    expect(answer.status).toBe(200);
    const bytes = Buffer.from(await answer.arrayBuffer());
    expect(bytes.byteLength).toBe(Number(answer.headers.get('content-length')));
    expect(answer.headers.get('content-disposition')).toMatch(/^attachment; filename="plain[\w-]*\.(tar|gguf)"$/);
  },
);

test('what was trained here goes out with its recipe and metrics, and the card says so', async () => {
  const files = await untar(Buffer.from(await (await get('made/export?format=peft')).arrayBuffer()));
  expect([...files.keys()].map((name) => name.replace('made/', ''))).toEqual([
    'adapter_config.json',
    'adapter_model.safetensors',
    'README.md',
    'recipe.json',
    'metrics.json',
  ]);
  expect(JSON.parse(String(files.get('made/recipe.json')))).toMatchObject({ learningRate: 2e-4, seed: 7 });
  expect(JSON.parse(String(files.get('made/metrics.json')))).toMatchObject({ metrics: { step: 12, trainLoss: 1.25 } });
  const card = (await (await get('made/card')).json()) as {
    text: string;
    dataset: object;
    files: object;
    base: object;
  };
  expect(card).toMatchObject({
    base: { id: 'tiny', digest: BASE_DIGEST },
    dataset: { examples: 100, tokens: 12_345 },
    metrics: { step: 12, fullValidLoss: 1.5 },
    recipe: { seed: 7 },
    reports: [],
  });
  expect(Object.keys(card.files)).toContain('adapter_model.safetensors');
  expect(card.text).toContain('| Learning rate | 0.0002, cosine, warm-up 3 % |');
  // Notes are text, whatever they hold.
  expect(card.text).toContain('| \\]\\(http://x\\)\\| | a \\| b \\# c |');
});

test('scores go with the adapter; texts of the data, who asked and other models do not', async () => {
  const { digest } = registry.get('made') as { digest: string };
  const value = (of: number) => ({ value: of, low: of, high: of });
  const scores = (model: string | null, adapterDigest: string | null, loss: number) =>
    ({ model, adapterDigest, loss: value(loss), graders: {} }) as unknown as EvaluationReport['scores'][number];
  reports = [
    {
      id: 'eval-1',
      createdAt: '2026-01-02T00:00:00Z',
      baseDigest: BASE_DIGEST,
      dataset: 'cd'.repeat(32),
      examples: 3,
      unanswered: 0,
      request: { callerHash: 'ca'.repeat(32), graders: [{ input: 'secret prompt' }] } as unknown as never,
      scores: [scores(null, null, 3), scores('made', digest, 2), scores('somebody-elses', 'ee'.repeat(32), 1)],
      samples: [{ prompt: 'secret question', reference: 'secret', answers: [{ model: null, text: 'secret' }] }],
      seconds: 1,
      usage: { promptTokens: 1, cachedTokens: 0, completionTokens: 1 },
      costMicros: 5,
    },
  ];
  try {
    const card = await (await get('made/card')).json();
    expect(card).toMatchObject({ reports: [{ id: 'eval-1', scores: [{ model: null }, { model: 'made' }] }] });
    const files = await untar(Buffer.from(await (await get('made/export?format=peft')).arrayBuffer()));
    for (const text of [
      JSON.stringify(card),
      String(files.get('made/metrics.json')),
      String(files.get('made/README.md')),
    ])
      expect(text).not.toMatch(/secret|somebody-elses|caca/);
    expect(String(files.get('made/README.md'))).toContain('## Evaluation');
  } finally {
    reports = [];
  }
});

test('an export goes on when its adapter is removed, and the next one is refused', async () => {
  writePeftAdapter(join(folder, 'doomed'), tiny, { seed: 9 });
  await registry.add({ name: 'doomed', source: join(folder, 'doomed') });
  const { file } = await registry.handle('doomed');
  const answer = await get('doomed/export?format=merged');
  await registry.remove('doomed');
  expect(existsSync(file)).toBe(false);
  const bytes = await answer.arrayBuffer();
  expect(bytes.byteLength).toBe(Number(answer.headers.get('content-length')));
  expect((await get('doomed/export?format=merged')).status).toBe(404);
});

test('readers who leave give their places back', async () => {
  const leave = async (): Promise<void> => {
    const abort = new AbortController();
    const answer = await get('plain/export?format=merged&type=f32', { signal: abort.signal });
    await answer.body?.getReader().read();
    abort.abort();
  };
  const before = warnings.length;
  const readers = Array.from({ length: EXPORT_LIMITS.concurrentMax }, leave);
  await Promise.all(readers);
  await expect.poll(() => warnings.length).toBe(before + EXPORT_LIMITS.concurrentMax);
  const next = await get('plain/export?format=gguf');
  expect(next.status).toBe(200);
  await next.arrayBuffer();
});

test('more exports than there are places are told to come again', async () => {
  const open = Array.from({ length: EXPORT_LIMITS.concurrentMax }, () => new AbortController());
  const answers = await Promise.all(open.map(({ signal }) => get('plain/export?format=merged&type=f32', { signal })));
  expect(answers.map(({ status }) => status)).toEqual(open.map(() => 200));
  const refused = await get('plain/export?format=gguf');
  expect(refused.status).toBe(503);
  expect(await refused.text()).toContain('exports are under way');
  for (const abort of open) abort.abort();
});
