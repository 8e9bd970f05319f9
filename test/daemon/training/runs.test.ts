import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import { DaemonError } from '../../../daemon/errors.ts';
import type { DatasetStore } from '../../../daemon/training/dataset-store.ts';
import {
  type RecipeInput,
  type RunRequest,
  runRequest,
  type TrainingEvent,
  type TrainingRun,
} from '../../../daemon/training/protocol.ts';
import { resultRows } from '../../../daemon/training/results.ts';
import { type RunsOptions, TrainingRuns } from '../../../daemon/training/runs.ts';
import { TokenFileWriter } from '../../../daemon/training/token-file.ts';
import { nextRun } from '../../../daemon/training/turns.ts';
import { until } from '../../support/eventually.ts';
import { PATIENCE_MS } from '../../support/patience.ts';
import { InProcessWorkers, SHAPE } from './in-process.ts';
import { temporaryFolder } from './support.ts';

const DATA = 'd'.repeat(64);
const PAIRS = 'e'.repeat(64);
const owner = (letter: string) => letter.repeat(64);

let root: ReturnType<typeof temporaryFolder>;
let workers: InProcessWorkers;
let registry: AdapterRegistry;
let open: TrainingRuns[];
beforeEach(async () => {
  root = temporaryFolder();
  workers = new InProcessWorkers();
  registry = await AdapterRegistry.open({ root: join(root.path, 'adapters'), base: SHAPE });
  open = [];
});
afterEach(async () => {
  for (const runs of open) await runs.close();
  root.remove();
});

function start(options: Partial<RunsOptions> = {}): TrainingRuns {
  const runs = TrainingRuns.open({
    root: join(root.path, 'training'),
    base: { id: 'tiny', digest: 'b'.repeat(64), modelPath: 'unused' },
    threads: 1,
    share: 0.3,
    workers,
    datasets: datasets(),
    registry,
    log: { info() {}, warn() {}, error() {} },
    ...options,
  });
  open.push(runs);
  return runs;
}

/** Twelve chat examples, and six pairs. */
function datasets(): DatasetStore {
  const files = new Map<string, object>();
  for (const [digest, kind] of [
    [DATA, 'chat'],
    [PAIRS, 'preference'],
  ] as const) {
    const tokensPath = join(root.path, `${kind}-${files.size}-${Math.random()}.bin`);
    const writer = new TokenFileWriter(tokensPath);
    for (let i = 0; i < 12; i++) {
      const tokens = Int32Array.from({ length: 6 + (i % 4) }, (_, k) => 1 + ((i * 13 + k) % 50));
      writer.add(kind === 'chat' ? i : i >> 1, { tokens, spans: [[3, tokens.length]] }, 1000);
    }
    files.set(digest, { tokensPath, size: writer.end(), dataset: { kind } });
  }
  const get = async (digest: string) => {
    const found = files.get(digest);
    if (found === undefined) throw new DaemonError('not_found', 'there is no such dataset', 'dataset');
    return found;
  };
  return {
    files: get,
    get: async (digest: string) => ((await get(digest)) as { dataset: object }).dataset,
  } as unknown as DatasetStore;
}

function request(
  given: {
    recipe?: Partial<RecipeInput>;
    adapter?: string;
    owner?: string;
    dataset?: string;
    validation?: string;
  } = {},
): RunRequest {
  const recipe = {
    method: { type: 'supervised' as const },
    adapter: { type: 'lora' as const, rank: 2, targets: ['v_proj' as const] },
    epochs: 2,
    batchSize: 4,
    learningRate: 0.01,
    contextTokens: 64,
    seed: 3,
    ...given.recipe,
  };
  return runRequest.parse({ dataset: DATA, adapter: 'mine', owner: owner('a'), ...given, recipe });
}

async function over(runs: TrainingRuns, id: string): Promise<{ run: TrainingRun; events: TrainingEvent[] }> {
  const events: TrainingEvent[] = [];
  for await (const some of runs.events(id, 0, true, AbortSignal.timeout(PATIENCE_MS))) events.push(...some);
  return { run: runs.get(id), events };
}

/** Waits in the n-th micro-batch until it is let go. The loop is synchronous, so the gate is what it asks each time. */
function gate(runs: () => TrainingRuns, at: number, then: (runs: TrainingRuns) => void): void {
  workers.script = {
    onAccumulate: (call) => {
      if (call === at) then(runs());
    },
  };
}

describe('training runs', () => {
  it('take a request to a served adapter, and tell of it in order', async () => {
    const runs = start();
    const { run, created } = await runs.put('one', request());
    expect(created).toBe(true);
    expect(run).toMatchObject({ id: 'one', status: 'queued', step: 0 });
    const { run: ended, events } = await over(runs, 'one');
    expect(ended).toMatchObject({ status: 'succeeded', step: 6, steps: 6, epoch: 2, error: null });
    expect(ended.trainedTokens).toBe(2 * 12 * 7.5);
    expect(ended.lastEvent).toBe(events.length);
    expect(events.filter(({ type }) => type === 'status').map(({ data }) => data?.status)).toEqual([
      'queued',
      'running',
      'succeeded',
    ]);
    expect(events.filter(({ type }) => type === 'metrics')).toHaveLength(6);
    expect(registry.list().map(({ name }) => name)).toEqual(['mine', 'mine:ckpt-step-3', 'mine:ckpt-step-6']);
    expect(ended.checkpoints.map(({ step, adapter, digest }) => [step, adapter, digest])).toEqual(
      [3, 6].map((step) => [step, `mine:ckpt-step-${step}`, registry.digestOf(`mine:ckpt-step-${step}`)]),
    );
    expect(registry.digestOf('mine')).toBe(ended.checkpoints[1]?.digest);
    const rows = [...resultRows(runs.eventsPath('one'))];
    expect(rows[0]).toContain('step,train_loss,train_mean_token_accuracy,valid_loss');
    expect(rows.slice(1).map((row) => row.split(',')[0])).toEqual(['1', '2', '3', '4', '5', '6']);
  });

  it('are the same run for the same id and request, and refuse another request', async () => {
    const runs = start();
    const first = await Promise.all([runs.put('one', request()), runs.put('one', request())]);
    expect(first.map(({ created }) => created).sort()).toEqual([false, true]);
    await expect(runs.put('one', request({ recipe: { seed: 4 } }))).rejects.toMatchObject({
      code: 'run_exists',
      status: 409,
    });
    await over(runs, 'one');
    expect((await runs.put('one', request())).run.status).toBe('succeeded');
  });

  it('keep the last three checkpoints servable', async () => {
    const runs = start();
    await runs.put('one', request({ recipe: { checkpointEverySteps: 1 } }));
    const { run, events } = await over(runs, 'one');
    expect(run.checkpoints.map(({ step }) => step)).toEqual([4, 5, 6]);
    expect(events.filter(({ type }) => type === 'checkpoint')).toHaveLength(6);
    expect(registry.list().map(({ name }) => name)).toEqual([
      'mine',
      'mine:ckpt-step-4',
      'mine:ckpt-step-5',
      'mine:ckpt-step-6',
    ]);
  });

  it('refuse what can never start', async () => {
    const runs = start();
    await expect(runs.put('one', request({ dataset: 'f'.repeat(64) }))).rejects.toMatchObject({ code: 'not_found' });
    await expect(runs.put('one', request({ recipe: { earlyStopping: { patience: 1 } } }))).rejects.toMatchObject({
      param: 'recipe.earlyStopping',
    });
    await expect(runs.put('one', request({ recipe: { method: { type: 'dpo', beta: 0.1 } } }))).rejects.toMatchObject({
      param: 'recipe.method',
    });
    await expect(runs.put('one', request({ dataset: PAIRS }))).rejects.toMatchObject({ param: 'recipe.method' });
    const both = await Promise.allSettled([runs.put('one', request()), runs.put('two', request())]);
    expect(both.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    await expect(runs.put('two', request())).rejects.toMatchObject({ code: 'adapter_exists' });
    await over(runs, 'one');
    await expect(runs.put('two', request())).rejects.toMatchObject({ code: 'adapter_exists' });
    expect(runs.list().map(({ id }) => id)).toEqual(['one']);
  });

  it('learn from preferences', async () => {
    const runs = start();
    await runs.put(
      'one',
      request({ dataset: PAIRS, validation: PAIRS, recipe: { method: { type: 'dpo', beta: 0.1 } } }),
    );
    const { run, events } = await over(runs, 'one');
    expect(run.status).toBe('succeeded');
    expect(events.find(({ type }) => type === 'metrics')?.data).toMatchObject({ rewardAccuracy: 1, trainLoss: 0.7 });
  });

  it('say what memory they need and have before anything is allocated', async () => {
    workers.memoryBytes = 1e15;
    const runs = start();
    await runs.put('one', request());
    const { run, events } = await over(runs, 'one');
    expect(run).toMatchObject({ status: 'failed', error: { code: 'insufficient_memory' } });
    expect(run.error?.message).toMatch(/needs [\d,]+ MB .* [\d,]+ MB are available.*Lower/);
    expect(events.at(-1)).toMatchObject({ type: 'status', level: 'error', data: { status: 'failed' } });
    expect(workers.trainers).toHaveLength(0);
  });

  it('fail where the base model is another one than when they were made', async () => {
    const first = start();
    gate(
      () => first,
      2,
      (runs) => void runs.close(),
    );
    await first.put('one', request());
    await until(() => first.current === null);
    workers.script = {};
    const runs = start({ base: { id: 'tiny', digest: 'c'.repeat(64), modelPath: 'unused' } });
    const { run } = await over(runs, 'one');
    expect(run).toMatchObject({ status: 'failed', error: { code: 'base_changed' } });
    expect(run.error?.message).toContain('Start the daemon with the model of before');
  });

  it('take turns between owners, whoever came first', async () => {
    const runs = start();
    for (const [id, who] of ['a1 a', 'a2 a', 'a3 a', 'b1 b', 'b2 b', 'c1 c'].map(
      (one) => one.split(' ') as [string, string],
    )) {
      await runs.put(id, request({ adapter: id, owner: owner(who) }));
    }
    await until(() => runs.list().every(({ status }) => status === 'succeeded'));
    // a1 began at once; from then on each owner gets one before anybody gets the next.
    expect(workers.served).toEqual(['a1', 'b1', 'c1', 'a2', 'b2', 'a3']);
  });
});

describe('turns', () => {
  it('let nobody wait behind another owner twice', () => {
    const waiting = [
      { id: 'x1', owner: 'x', queuedAt: '1' },
      { id: 'x2', owner: 'x', queuedAt: '2' },
      { id: 'y1', owner: 'y', queuedAt: '3' },
    ];
    expect(nextRun(waiting, new Map())?.id).toBe('x1');
    expect(nextRun(waiting.slice(1), new Map([['x', '5']]))?.id).toBe('y1');
    expect(
      nextRun(
        waiting.slice(1),
        new Map([
          ['x', '5'],
          ['y', '6'],
        ]),
      )?.id,
    ).toBe('x2');
    expect(nextRun([], new Map())).toBeNull();
  });
});

describe('cancel, pause and resume', () => {
  it('cancel a run that is computed within a micro-batch, and keep its checkpoints', async () => {
    const runs = start();
    const asked: Promise<TrainingRun>[] = [];
    gate(
      () => runs,
      5,
      (r) => {
        asked.push(r.cancel('one'));
      },
    );
    await runs.put('one', request());
    const { run } = await over(runs, 'one');
    expect((await asked[0])?.status).toBe('cancelled');
    expect(run).toMatchObject({ status: 'cancelled', error: null });
    expect(workers.trainers[0]?.accumulations).toBe(5);
    expect(workers.trainers[0]?.closed).toBe(true);
    expect(registry.list().map(({ name }) => name)).toEqual(['mine:ckpt-step-3']);
    await expect(runs.resume('one')).rejects.toMatchObject({ code: 'run_not_ready' });
    expect((await runs.cancel('one')).status).toBe('cancelled');
  });

  it('cancel and pause a run that waits, and let it go on', async () => {
    const runs = start();
    await runs.put('first', request({ adapter: 'first' }));
    await runs.put('one', request());
    await runs.put('two', request({ adapter: 'two' }));
    expect((await runs.cancel('one')).status).toBe('cancelled');
    expect((await runs.pause('two')).status).toBe('paused');
    expect((await runs.pause('two')).status).toBe('paused');
    await over(runs, 'first');
    expect(runs.get('two').status).toBe('paused');
    await runs.resume('two');
    expect((await over(runs, 'two')).run.status).toBe('succeeded');
    expect(workers.served).toEqual(['first', 'two']);
  });

  it('cancel and pause in every micro-batch and at every save, and end with the same weights', async () => {
    const runs = start();
    await runs.put('whole', request({ adapter: 'whole' }));
    await over(runs, 'whole');
    const expected = registry.digestOf('whole');
    const calls = workers.trainers[0]?.accumulations as number;
    for (let at = 1; at <= calls; at++) {
      const id = `p${at}`;
      gate(
        () => runs,
        at,
        (r) => void r.pause(id),
      );
      await runs.put(id, request({ adapter: id }));
      await until(() => runs.get(id).status === 'paused' || runs.get(id).status === 'succeeded');
      if (at < calls) expect(runs.get(id).status).toBe('paused');
      workers.script = {};
      if (runs.get(id).status === 'paused') await runs.resume(id);
      expect((await over(runs, id)).run.status).toBe('succeeded');
      expect(registry.digestOf(id)).toBe(expected);
    }
  });

  it('cancel a run while its files are looked at', async () => {
    const runs = start();
    await runs.put('one', request());
    const run = await runs.cancel('one');
    expect(run.status).toBe('cancelled');
    expect(registry.list()).toEqual([]);
  });

  it('remember over a restart what was asked for', async () => {
    const first = start();
    await first.put('other', request({ adapter: 'other' }));
    await first.put('one', request());
    await first.pause('one');
    await over(first, 'other');
    await first.close();
    const runs = start();
    expect(runs.get('one').status).toBe('paused');
    await runs.resume('one');
    expect((await over(runs, 'one')).run.status).toBe('succeeded');
  });
});

describe('restarts', () => {
  it('stop in good order and go on with the same weights and without a repeated event', async () => {
    const plain = start();
    await plain.put('whole', request({ adapter: 'whole' }));
    await over(plain, 'whole');
    await plain.close();
    const first = start();
    gate(
      () => first,
      4,
      (runs) => void runs.close(),
    );
    await first.put('one', request());
    await until(() => first.current === null);
    expect(first.get('one').status).toBe('queued');
    workers.script = {};
    const runs = start();
    const { run, events } = await over(runs, 'one');
    expect(run.status).toBe('succeeded');
    expect(registry.digestOf('mine')).toBe(registry.digestOf('whole'));
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, i) => i + 1));
    expect(events.filter(({ type }) => type === 'metrics').map(({ data }) => data?.step)).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it('take up runs of a daemon that was killed', async () => {
    const first = start();
    gate(
      () => first,
      5,
      (runs) => void runs.close(),
    );
    await first.put('one', request());
    await until(() => first.current === null);
    // As a killed daemon leaves it: running, an event cut short, files half-written.
    const folder = join(root.path, 'training', 'one');
    const state = JSON.parse(readFileSync(join(folder, 'state.json'), 'utf8'));
    writeFileSync(join(folder, 'state.json'), JSON.stringify({ ...state, status: 'running' }));
    writeFileSync(join(folder, 'events.ndjson'), `${readFileSync(join(folder, 'events.ndjson'), 'utf8')}{"seq":`);
    mkdirSync(join(folder, '.tmp-half'));
    mkdirSync(join(root.path, 'training', '.tmp-half'));
    workers.script = {};
    const runs = start();
    const { run, events } = await over(runs, 'one');
    expect(run.status).toBe('succeeded');
    expect(events.some(({ message }) => message.includes('was restarted'))).toBe(true);
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, i) => i + 1));
  });

  it('leave a damaged folder alone and serve the others', async () => {
    const first = start();
    await first.put('one', request());
    await over(first, 'one');
    mkdirSync(join(root.path, 'training', 'broken'));
    writeFileSync(join(root.path, 'training', 'broken', 'state.json'), '{"version":');
    expect(
      start()
        .list()
        .map(({ id }) => id),
    ).toEqual(['one']);
  });

  it('start a run again when its worker dies, twice, and then give it up', async () => {
    const runs = start();
    let deaths = 2;
    workers.dies = () => deaths-- > 0;
    await runs.put('one', request());
    const { run, events } = await over(runs, 'one');
    expect(run.status).toBe('succeeded');
    expect(events.filter(({ message }) => message.includes('worker died'))).toHaveLength(2);
    workers.dies = () => true;
    await runs.put('two', request({ adapter: 'two' }));
    expect((await over(runs, 'two')).run).toMatchObject({ status: 'failed', error: { code: 'worker_crashed' } });
    expect(registry.list().map(({ name }) => name)).not.toContain('two');
  });

  it('forget a run that is over, and keep its adapter', async () => {
    const runs = start();
    await runs.put('one', request());
    expect(() => runs.remove('one')).toThrow('cancel it first');
    await over(runs, 'one');
    expect(runs.needs(DATA)).toBe(false);
    runs.remove('one');
    expect(() => runs.get('one')).toThrow('no training run');
    expect(registry.get('mine')).toBeDefined();
  });
});
