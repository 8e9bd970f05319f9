import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Job } from '../../../daemon/engine/messages.ts';
import type { AdapterHandle } from '../../../daemon/engine/slots.ts';
import { defaultModelPath, SKIP_REASON } from '../../support/model.ts';
import type { PeftAdapterOptions } from '../../support/safetensors-writer.ts';
import { writeTinyModel } from '../../support/tiny-models.ts';
import { compareGreedy, GREEDY, NativeBench, nativeJob } from './native-bench.ts';

/** Nine adapters that differ in rank, layers, targets and type. */
const ADAPTERS: PeftAdapterOptions[] = [
  { seed: 1, rank: 1 },
  { seed: 2, rank: 2, dtype: 'BF16' },
  { seed: 3, rank: 3, dtype: 'F16' },
  { seed: 4, rank: 4, targets: ['attn_q', 'attn_v'] },
  { seed: 5, rank: 8 },
  { seed: 6, rank: 16, layers: [0] },
  { seed: 7, rank: 24, targets: ['ffn_up', 'ffn_down'] },
  { seed: 8, rank: 32 },
  { seed: 9, rank: 5, rankOf: (target) => (target === 'attn_k' ? 11 : undefined) },
];

function prompt(length: number, seed: number, vocabulary: number): number[] {
  return Array.from({ length }, (_, i) => 3 + ((i * 31 + seed * 17 + i * i) % (vocabulary - 3)));
}

async function adaptersOf(bench: NativeBench, deviation: number): Promise<(AdapterHandle | null)[]> {
  const handles = await Promise.all(ADAPTERS.map((options, i) => bench.adapter(`a${i}`, { ...options, deviation })));
  return [...handles, null];
}

/** Everybody at once with chunked prefill, cancellations and fewer slots than adapters; then each alone. */
async function mixedEqualsAlone(
  bench: NativeBench,
  deviation: number,
  tolerance: number,
  maxTokens: number,
): Promise<void> {
  const adapters = await adaptersOf(bench, deviation);
  const jobs: Job[] = adapters.map((adapter, i) =>
    nativeJob(i, prompt(10 + i * 13, i, bench.model.info.vocabulary), { adapter, maxTokens }),
  );
  const doomed = adapters.map((adapter, i) =>
    nativeJob(100 + i, prompt(40, 50 + i, bench.model.info.vocabulary), { adapter, maxTokens }),
  );
  const mixed = bench.run(
    { stepTokensMax: 40, prefillRowsAloneMin: 16, mixedStepTargetMs: 5, runningMax: 12 },
    { slots: 4, kvCells: 2048 },
  );
  await mixed.finish((turn) => {
    const one = jobs[turn];
    if (one !== undefined) {
      mixed.loop.submit(one);
      mixed.loop.submit(doomed[turn] as Job);
    }
    if (turn >= 4 && turn < 4 + doomed.length) mixed.loop.abort(100 + turn - 4, null);
  });
  let compared = 0;
  const answers = new Set<string>();
  for (const one of jobs) {
    const alone = bench.run({ prefixCacheShare: 0 }, { slots: 1, kvCells: 1024 });
    alone.loop.submit(one);
    await alone.finish();
    const expected = alone.picked(one.job);
    expect(expected).toHaveLength(maxTokens);
    compared += compareGreedy(expected, mixed.picked(one.job), tolerance);
    answers.add(expected.map(({ token }) => token).join());
    alone.close();
  }
  // Near-ties may end a comparison early, but not often; and the adapters must make a difference, or nothing was tested.
  expect(compared).toBeGreaterThan(jobs.length * maxTokens * 0.8);
  expect(answers.size).toBe(jobs.length);
  expect(mixed.engine.kvCells - mixed.engine.kvCellsFree).toBeLessThanOrEqual(1024);
  mixed.close();
}

describe('engine with a tiny model', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mf-tiny-'));
  let bench: NativeBench;
  beforeAll(() => {
    bench = new NativeBench(writeTinyModel('llama', join(folder, 'tiny.gguf')).path);
  });
  afterAll(() => {
    bench.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it('gives each of nine adapters and the base in one batch what it gets alone', async () => {
    await mixedEqualsAlone(bench, 0.2, 2e-3, 24);
  });

  it('gives the same with a prefix from the cache as without', async () => {
    const adapter = await bench.adapter('cache', { seed: 20, rank: 6, deviation: 0.2 });
    const shared = prompt(60, 1, bench.model.info.vocabulary);
    const ask = async (share: number) => {
      const run = bench.run({ prefixCacheShare: share, stepTokensMax: 64 });
      for (const [id, tail] of [
        [1, 5],
        [2, 9],
        [3, 5],
      ] as const) {
        run.loop.submit(nativeJob(id, [...shared, tail, tail + 1], { adapter, maxTokens: 20 }));
        await run.finish();
      }
      const started = run.events.flatMap((e) => (e.type === 'started' ? [e.cachedTokens] : []));
      const picked = [1, 2, 3].map((id) => run.picked(id));
      run.close();
      return { started, picked };
    };
    const without = await ask(0);
    const with_ = await ask(0.5);
    expect(without.started).toEqual([0, 0, 0]);
    expect(with_.started).toEqual([0, 60, 61]);
    for (const [i, picked] of without.picked.entries()) {
      expect(compareGreedy(picked, with_.picked[i] ?? [], 1e-4)).toBeGreaterThan(16);
    }
  });

  it('gives the same bytes for the same seeds in the same batches, and others for other seeds', async () => {
    const adapter = await bench.adapter('seeded', { seed: 21, rank: 6, deviation: 0.2 });
    const once = async (seed: number) => {
      const run = bench.run({}, { slots: 2 });
      for (let id = 0; id < 4; id += 1) {
        const sampler = { ...GREEDY, temperature: 1, topP: 0.95, seed: seed + id };
        run.loop.submit(
          nativeJob(id, prompt(20, id, bench.model.info.vocabulary), {
            sampler,
            choices: 2,
            maxTokens: 12,
            adapter: id % 2 ? adapter : null,
          }),
        );
      }
      await run.finish();
      const tokens = [0, 1, 2, 3].flatMap((id) => [0, 1].map((choice) => run.picked(id, choice)));
      run.close();
      return JSON.stringify(tokens);
    };
    const first = await once(7);
    expect(await once(7)).toBe(first);
    expect(await once(8)).not.toBe(first);
  });

  it('loses nothing when the cells do not suffice for all', async () => {
    const jobs = Array.from({ length: 6 }, (_, i) =>
      nativeJob(i, prompt(30, i, bench.model.info.vocabulary), { maxTokens: 60 }),
    );
    const tight = bench.run({ reserveTokens: 1, stepTokensMax: 48, prefixCacheShare: 0 }, { kvCells: 256 });
    for (const one of jobs) tight.loop.submit(one);
    await tight.finish();
    expect(tight.loop.scheduler.stats.preemptions).toBeGreaterThan(0);
    for (const one of jobs) {
      const alone = bench.run({ prefixCacheShare: 0 }, { kvCells: 256 });
      alone.loop.submit(one);
      await alone.finish();
      compareGreedy(alone.picked(one.job), tight.picked(one.job), 2e-3);
      alone.close();
    }
    expect(tight.engine.kvCellsFree).toBe(256);
    tight.close();
  });

  it('embeds with an adapter beside generations what it embeds alone', async () => {
    const adapter = await bench.adapter('embed', { seed: 22, rank: 4, deviation: 0.2 });
    const prompts = [12, 70, 3].map((n) => Int32Array.from(prompt(n, n, bench.model.info.vocabulary)));
    const vectors = async (busy: boolean) => {
      const run = bench.run(
        busy ? { runningMax: 8, stepTokensMax: 24, prefillRowsAloneMin: 8, mixedStepTargetMs: 1 } : {},
      );
      if (busy) for (let id = 1; id < 4; id += 1) run.loop.submit(nativeJob(id, prompt(9, id, 100), { maxTokens: 30 }));
      run.loop.submit({
        job: 0,
        kind: 'embed',
        adapter,
        visibility: 'v',
        prompts,
        choices: 3,
        maxTokens: 0,
        sampler: null,
      });
      await run.finish();
      const found = prompts.map((_, choice) => run.events.find((e) => e.type === 'embedded' && e.choice === choice));
      run.close();
      return found.map((e) => (e?.type === 'embedded' ? [...e.vector] : []));
    };
    const alone = await vectors(false);
    const mixed = await vectors(true);
    for (const [i, vector] of alone.entries()) {
      expect(vector.length).toBe(bench.model.info.embedding);
      const other = mixed[i] as number[];
      for (const [k, x] of vector.entries()) expect(Math.abs(x - (other[k] as number))).toBeLessThan(1e-3);
    }
  });
});

const modelPath = await defaultModelPath();
describe.skipIf(modelPath === null)(
  `engine with the default model (${modelPath === null ? SKIP_REASON : 'quantised'})`,
  () => {
    it('gives each of nine adapters and the base in one batch what it gets alone, but for near-ties', async () => {
      const bench = new NativeBench(modelPath as string);
      // Quantised kernels round activations by batch size, so the same row differs a little between batches.
      await mixedEqualsAlone(bench, 0.02, 0.15, 12);
      bench.close();
    });
  },
);
