/** The whole daemon with the real trainer on a tiny model. */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import { inspectModel } from '../../../daemon/models/inspect.ts';
import { DatasetStore } from '../../../daemon/training/dataset-store.ts';
import { TrainingPool } from '../../../daemon/training/pool.ts';
import {
  type Dataset,
  type Estimate,
  type RecipeInput,
  runRequest,
  type TrainingEvent,
  type TrainingRun,
} from '../../../daemon/training/protocol.ts';
import { TrainingRuns } from '../../../daemon/training/runs.ts';
import { writeTinyModel } from '../../support/tiny-models.ts';
import { type DaemonProcess, readEvents, startDaemon, TOKEN } from '../daemon-process.ts';
import { temporaryFolder } from './support.ts';

let root: ReturnType<typeof temporaryFolder>;
let model: string;
const daemons: DaemonProcess[] = [];
beforeAll(() => {
  root = temporaryFolder();
  model = join(root.path, 'tiny.gguf');
  writeTinyModel('llama', model, { layers: 2 });
});
afterEach(async () => {
  for (const daemon of daemons.splice(0)) {
    daemon.child.kill('SIGKILL');
    await daemon.exited;
  }
});
afterAll(() => root.remove());

async function start(name: string, env: Record<string, string> = {}): Promise<DaemonProcess> {
  const data = join(root.path, name);
  mkdirSync(data, { recursive: true });
  const daemon = await startDaemon({
    MODELFACTORY_DATA: data,
    MODELFACTORY_BASE: model,
    MODELFACTORY_KV_CELLS: '1024',
    ...env,
  });
  daemons.push(daemon);
  return daemon;
}

const authorization = `Bearer ${TOKEN}`;
const words = ['the hat', 'on the head', 'in the inn', 'another thing', 'of the sand', 'it is in there'];
const lines = Array.from({ length: 24 }, (_, i) =>
  JSON.stringify({
    kind: 'chat',
    messages: [
      { role: 'user', content: `Say ${i % 6}.` },
      { role: 'assistant', content: words[i % 6] },
    ],
  }),
).join('\n');
const recipe: RecipeInput = {
  method: { type: 'supervised' },
  adapter: { type: 'lora', rank: 4, dropout: 0.1 },
  epochs: 2,
  batchSize: 8,
  learningRate: 0.01,
  contextTokens: 128,
  packing: false,
  seed: 11,
  checkpointEverySteps: 2,
};
const owner = 'a'.repeat(64);

async function upload(daemon: DaemonProcess, body = lines): Promise<Dataset> {
  const response = await fetch(`${daemon.url}/datasets`, { method: 'POST', headers: { authorization }, body });
  expect(response.status).toBe(200);
  return (await response.json()) as Dataset;
}

async function json<T>(response: Promise<Response>, status = 200): Promise<T> {
  const got = await response;
  const body = await got.json();
  expect([got.status, got.status === status ? null : body]).toEqual([status, null]);
  return body as T;
}

/** Follows a run's events until it is over, or until `enough` of them have come. */
async function follow(
  daemon: DaemonProcess,
  id: string,
  enough: (event: TrainingEvent) => boolean = () => false,
): Promise<TrainingEvent[]> {
  const abort = new AbortController();
  const response = await fetch(`${daemon.url}/training/runs/${id}/events?follow=true`, {
    headers: { authorization },
    signal: abort.signal,
  });
  const events: TrainingEvent[] = [];
  let rest = '';
  try {
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      const parts = (rest + Buffer.from(chunk).toString()).split('\n');
      rest = parts.pop() as string;
      for (const part of parts) {
        const event = JSON.parse(part) as TrainingEvent;
        events.push(event);
        if (enough(event)) return events;
      }
    }
  } finally {
    abort.abort();
  }
  return events;
}

const step = (event: TrainingEvent) => (event.type === 'metrics' ? (event.data as { step: number }).step : 0);

describe('training in the daemon', () => {
  it('takes a dataset to a served adapter, estimated before, with chats answered meanwhile', async () => {
    const daemon = await start('whole');
    const dataset = await upload(daemon);
    expect(dataset).toMatchObject({
      digest: createHash('sha256').update(lines).digest('hex'),
      kind: 'chat',
      examples: 24,
      duplicates: 18,
    });
    expect(await upload(daemon)).toEqual(dataset);
    expect(await json(daemon.call('GET', `/datasets/${dataset.digest}`))).toEqual(dataset);
    const estimate = await json<Estimate>(
      daemon.call('POST', '/training/estimate', { dataset: dataset.digest, recipe }),
    );
    expect(estimate).toMatchObject({ steps: 6, tokens: 2 * dataset.tokens, fits: true });
    expect(estimate.seconds).toBeGreaterThan(0);
    expect(estimate.memoryBytes).toBeLessThan(estimate.memoryAvailableBytes);

    const body = { dataset: dataset.digest, validation: dataset.digest, recipe, adapter: 'mine', owner };
    const put = await json<TrainingRun>(daemon.call('PUT', '/training/runs/one', body), 201);
    expect(put.status).toBe('queued');
    await json(daemon.call('PUT', '/training/runs/one', body), 200);
    await json(daemon.call('PUT', '/training/runs/one', { ...body, adapter: 'other' }), 409);
    await json(daemon.call('DELETE', `/datasets/${dataset.digest}`), 409);
    const chat = {
      requestId: 'chat-1',
      callerHash: owner,
      adapter: null,
      prompt: { kind: 'chat', messages: [{ role: 'user', content: 'Say 0.' }] },
      sampling: { temperature: 0 },
      maxTokens: 4,
      price: { inputMicrosPerMillion: 1, outputMicrosPerMillion: 1, currency: 'USD' },
    };
    await follow(daemon, 'one', (event) => step(event) === 1);
    const answered = await daemon.generate(chat);
    expect(answered.status).toBe(200);
    expect((await readEvents(answered)).at(-1)?.type).toBe('end');
    const events = await follow(daemon, 'one');
    const losses = events.filter(({ type }) => type === 'metrics').map(({ data }) => data?.trainLoss as number);
    expect(losses).toHaveLength(6);
    expect(losses.at(-1)).toBeLessThan((losses[0] as number) - 1);
    const run = await json<TrainingRun>(daemon.call('GET', '/training/runs/one'));
    expect(run).toMatchObject({
      status: 'succeeded',
      step: 6,
      steps: 6,
      epoch: 2,
      error: null,
      lastEvent: events.length,
    });
    expect(run.checkpoints.map(({ step }) => step)).toEqual([3, 4, 6]);
    const csv = await (await daemon.call('GET', '/training/runs/one/results')).text();
    expect(csv.trimEnd().split('\n')).toHaveLength(7);
    for (const adapter of ['mine', 'mine:ckpt-step-4']) {
      const served = await daemon.generate({ ...chat, requestId: `chat-${adapter.replace(':', '-')}`, adapter });
      expect(served.status).toBe(200);
      expect((await readEvents(served)).at(-1)?.type).toBe('end');
    }
    const metrics = await (await daemon.call('GET', '/metrics')).text();
    expect(metrics).toContain('modelfactory_training_queued 0');
    expect(await json(daemon.call('DELETE', '/training/runs/one'))).toEqual({ id: 'one', deleted: true });
    expect(await json(daemon.call('DELETE', `/datasets/${dataset.digest}`))).toEqual({
      digest: dataset.digest,
      deleted: true,
    });
    await json(daemon.call('GET', `/datasets/${dataset.digest}`), 404);
    await json(daemon.call('GET', '/training/runs/one/events'), 404);
  });

  it('ends with the same weights, bit for bit, after being killed in the middle again and again', async () => {
    let daemon = await start('killed');
    const { digest } = await upload(daemon);
    const body = { dataset: digest, validation: digest, recipe, owner };
    await json(daemon.call('PUT', '/training/runs/whole', { ...body, adapter: 'whole' }), 201);
    await follow(daemon, 'whole');
    const { digest: expected } = await json<{ digest: string }>(daemon.call('GET', '/adapters/whole'));
    await json(daemon.call('PUT', '/training/runs/one', { ...body, adapter: 'mine' }), 201);
    for (const [at, signal, after] of [
      [1, 'SIGKILL', 40],
      [3, 'SIGKILL', 0],
      [4, 'SIGTERM', 5],
      [5, 'SIGKILL', 15],
    ] as const) {
      await follow(daemon, 'one', (event) => step(event) === at);
      await new Promise((resolve) => setTimeout(resolve, after));
      daemon.child.kill(signal);
      expect(await daemon.exited).toBe(signal === 'SIGTERM' ? 0 : 'SIGKILL');
      daemon = await start('killed');
    }
    const events = await follow(daemon, 'one');
    expect(events.at(-1)?.data?.status).toBe('succeeded');
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, i) => i + 1));
    expect(events.map(step).filter((number) => number > 0)).toEqual([1, 2, 3, 4, 5, 6]);
    expect((await json<{ digest: string }>(daemon.call('GET', '/adapters/mine'))).digest).toBe(expected);
    expect(readdirSync(join(root.path, 'killed', 'training', 'one')).sort()).toEqual([
      'checkpoints',
      'events.ndjson',
      'request.json',
      'state.json',
    ]);
  }, 180_000);

  it('says what is wrong with data and requests', async () => {
    const daemon = await start('wrong');
    const send = (body: string) =>
      fetch(`${daemon.url}/datasets`, { method: 'POST', headers: { authorization }, body });
    const bad = await json<{ error: { code: string; message: string } }>(send(`${lines}\n{"kind":"chat"}`), 400);
    expect(bad.error).toMatchObject({ code: 'dataset_invalid', message: expect.stringContaining('line 25: messages') });
    const { digest } = await upload(daemon);
    const request = { dataset: digest, recipe, adapter: 'mine', owner };
    await json(daemon.call('PUT', '/training/runs/..%2Fevil', request), 400);
    await json(daemon.call('PUT', '/training/runs/one', { ...request, recipe: { ...recipe, epochs: 0 } }), 400);
    await json(daemon.call('PUT', '/training/runs/one', { ...request, dataset: 'f'.repeat(64) }), 404);
    await json(daemon.call('GET', '/training/runs/one'), 404);
    expect(await json(daemon.call('GET', '/training/runs'))).toEqual({ data: [] });
    const left = readdirSync(join(root.path, 'wrong', 'datasets'));
    expect(left).toEqual([digest]);
  });

  it('can be turned off', async () => {
    const daemon = await start('off', { MODELFACTORY_TRAINING: 'off' });
    const { error } = await json<{ error: { code: string } }>(daemon.call('GET', '/training/runs'), 503);
    expect(error.code).toBe('training_unavailable');
  });
});

describe('the training worker', () => {
  it('dies under a run, which goes on in a new one and ends with the same weights', async () => {
    const folder = join(root.path, 'dying');
    mkdirSync(folder);
    const pool = new TrainingPool();
    const datasets = await DatasetStore.open({
      root: join(folder, 'datasets'),
      baseDigest: 'b'.repeat(64),
      contextTokens: 256,
      needed: () => true,
      build: (source, target) => pool.build({ source, target, modelPath: model, contextTokens: 256 }),
    });
    const registry = await AdapterRegistry.open({ root: join(folder, 'adapters'), base: inspectModel(model).shape });
    const log = pino({ level: 'silent' });
    const base = { id: 'tiny', digest: 'b'.repeat(64), modelPath: model };
    const runs = TrainingRuns.open({
      root: join(folder, 'training'),
      base,
      threads: 2,
      share: 0.3,
      workers: pool,
      datasets,
      registry,
      log,
      resumePointMs: 0,
    });
    try {
      const { digest } = await datasets.receive(
        (async function* () {
          yield Buffer.from(lines);
        })(),
        0,
      );
      const ends = async (id: string, hear: (event: TrainingEvent) => void = () => {}) => {
        for await (const some of runs.events(id, 0, true, new AbortController().signal)) some.forEach(hear);
        return runs.get(id);
      };
      const request = (adapter: string, given: Partial<RecipeInput> = {}) =>
        runRequest.parse({ dataset: digest, recipe: { ...recipe, ...given }, adapter, owner });
      await runs.put('whole', request('whole'));
      await ends('whole');
      await runs.put('one', request('mine'));
      const killed: number[] = [];
      const run = await ends('one', (event) => {
        if ([2, 4].includes(step(event)) && !killed.includes(step(event))) {
          killed.push(step(event));
          void pool.killTraining();
        }
      });
      expect(killed).toEqual([2, 4]);
      expect(run).toMatchObject({ status: 'succeeded', step: 6 });
      expect(registry.digestOf('mine')).toBe(registry.digestOf('whole'));
      // Preferences: before the first update policy and base are the same, so each pair's loss is ln 2; then it falls.
      const pairs = Array.from({ length: 8 }, (_, i) =>
        JSON.stringify({
          kind: 'preference',
          messages: [{ role: 'user', content: `Say ${i}.` }],
          preferred: { role: 'assistant', content: words[i % 6] },
          rejected: { role: 'assistant', content: words[(i + 1) % 6] },
        }),
      );
      const preferences = await datasets.receive(
        (async function* () {
          yield Buffer.from(pairs.join('\n'));
        })(),
        0,
      );
      const dpo = {
        ...request('dpo', { method: { type: 'dpo', beta: 0.1 }, adapter: { type: 'lora', rank: 4 }, packing: true }),
        dataset: preferences.digest,
        validation: preferences.digest,
      };
      await runs.put('dpo', dpo);
      const measured: Record<string, number>[] = [];
      await ends('dpo', (event) => {
        if (event.type === 'metrics') measured.push(event.data as Record<string, number>);
      });
      expect(measured).toHaveLength(2);
      expect(measured[0]?.trainLoss).toBeCloseTo(Math.LN2, 3);
      expect(measured[1]?.trainLoss).toBeLessThan(Math.LN2 - 0.005);
      expect(measured[1]?.fullValidLoss).toBeLessThan(measured[1]?.trainLoss as number);
      expect(measured[1]?.rewardAccuracy).toBeGreaterThan(0.5);
      // The measured baseline ends with a file of its own, and with nothing that is served.
      await runs.put('prefix', request('prefix', { adapter: { type: 'prefix', tokens: 4 } }));
      expect(await ends('prefix')).toMatchObject({ status: 'succeeded', checkpoints: [] });
      expect(registry.get('prefix')).toBeUndefined();
      expect(readdirSync(join(folder, 'training', 'prefix', 'result'))).toEqual(['prefix.safetensors']);
    } finally {
      await runs.close();
      await pool.close();
    }
  });

  it('does not hold up the main thread while it reads a dataset', async () => {
    const pool = new TrainingPool();
    try {
      const source = join(root.path, 'large.ndjson');
      writeFileSync(source, Array.from({ length: 150 }, (_, i) => lines.replaceAll('Say', `Say ${i} and`)).join('\n'));
      let turns = 0;
      const timer = setInterval(() => turns++, 5);
      const start = performance.now();
      const { dataset } = await pool.build({
        source,
        target: join(root.path, 'large.bin'),
        modelPath: model,
        contextTokens: 256,
      });
      clearInterval(timer);
      expect(dataset.examples).toBe(3600);
      // On busy machines timers are late, but a blocked loop would not have run any.
      expect(turns).toBeGreaterThan((performance.now() - start) / 250);
    } finally {
      await pool.close();
    }
  });
});
