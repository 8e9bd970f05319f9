import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { EngineLoop } from '../../../daemon/engine/loop.ts';
import type { Job, SequenceEvent } from '../../../daemon/engine/messages.ts';
import type { SchedulerOptions } from '../../../daemon/engine/scheduler.ts';
import { GREEDY } from '../../support/samplers.ts';
import { DoubleEngine, DoubleSlots, END_TOKEN, handle, VOCABULARY, WIDTH } from './double.ts';

const SAMPLER = { ...GREEDY, temperature: 1 };

const OPTIONS: SchedulerOptions = {
  runningMax: 6,
  sequencesMax: 10,
  stepTokensMax: 24,
  prefillRowsMin: 4,
  prefillRowsAloneMin: 8,
  scoreRowsMax: 64,
  mixedStepTargetMs: 0.1,
  aloneStepTargetMs: 1,
  reserveTokens: 8,
  overtakeMax: 5,
  slotWaitStepsMax: 12,
  prefixTokensMin: 3,
  prefixCacheShare: 0.5,
};

interface Bench {
  loop: EngineLoop;
  engine: DoubleEngine;
  slots: DoubleSlots;
  events: SequenceEvent[];
}

function bench(
  options: Partial<SchedulerOptions> = {},
  set: { kvCells?: number; slots?: number; loadTicks?: number; broken?: string[] } = {},
): Bench {
  const scheduler = { ...OPTIONS, ...options };
  const slotCount = set.slots ?? 3;
  const engine = new DoubleEngine({
    kvCells: set.kvCells ?? 256,
    sequencesMax: scheduler.sequencesMax,
    batchTokensMax: scheduler.stepTokensMax,
    slots: slotCount,
    slotRankMax: 64,
  });
  const slots = new DoubleSlots(engine, slotCount, set.loadTicks ?? 0, set.broken);
  const events: SequenceEvent[] = [];
  const loop = new EngineLoop({
    engine,
    slots,
    endTokens: Int32Array.of(END_TOKEN),
    scheduler,
    emit: (batch) => events.push(...batch),
  });
  return { loop, engine, slots, events };
}

function job(id: number, extra: Partial<Job> & { prompt?: number[] } = {}): Job {
  const { prompt, ...rest } = extra;
  return {
    job: id,
    kind: 'generate',
    adapter: null,
    visibility: 'v',
    prompts: [Int32Array.from(prompt ?? [id + 1, 2, 3])],
    choices: 1,
    maxTokens: 8,
    sampler: { ...SAMPLER, seed: id },
    ...rest,
  };
}

function run(b: Bench, turnsMax = 20_000): void {
  for (let i = 0; i < turnsMax; i += 1) {
    if (b.loop.idle) return;
    b.slots.tick();
    b.loop.turn();
  }
  throw new Error('not finished: somebody starves or the scheduler is stuck');
}

function tokensOf(events: SequenceEvent[], id: number, choice = 0): number[] {
  return events.flatMap((e) => (e.type === 'token' && e.job === id && e.choice === choice ? [e.token] : []));
}

function finishOf(events: SequenceEvent[], id: number, choice = 0): string[] {
  return events.flatMap((e) => (e.type === 'finished' && e.job === id && e.choice === choice ? [e.reason] : []));
}

/** What the request gets with the machine to itself, no prefix cache, no other step before. */
function alone(one: Job, choice = 0): { tokens: number[]; reason: string[] } {
  const b = bench({ prefixCacheShare: 0, stepTokensMax: 512, runningMax: 1 }, { kvCells: 4096 });
  const sampler = one.sampler === null ? null : { ...one.sampler, seed: one.sampler.seed + choice };
  b.loop.submit({ ...one, job: 0, choices: 1, sampler });
  run(b);
  return { tokens: tokensOf(b.events, 0), reason: finishOf(b.events, 0) };
}

function assertClean(b: Bench): void {
  expect(b.engine.samplersOpen).toBe(0);
  for (const pins of b.slots.pins.values()) expect(pins).toBe(0);
  b.loop.scheduler.forget('');
  for (const digest of b.slots.pins.keys()) b.loop.scheduler.forget(digest);
  expect(b.engine.kvCellsFree).toBe(b.engine.kvCells);
}

interface Arrival {
  at: number;
  adapter: number;
  tenant: number;
  prompt: number[];
  maxTokens: number;
  choices: number;
  cancelAt: number | null;
  penalties: boolean;
}

const arrival: fc.Arbitrary<Arrival> = fc.record({
  at: fc.nat(60),
  adapter: fc.integer({ min: -1, max: 7 }),
  tenant: fc.nat(1),
  // Few different tokens and shared beginnings, so that prefixes meet.
  prompt: fc
    .tuple(
      fc.constantFrom([], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 9, 9, 9]),
      fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 30 }),
    )
    .map(([a, b]) => [...a, ...b]),
  maxTokens: fc.integer({ min: 1, max: 25 }),
  choices: fc.integer({ min: 1, max: 3 }),
  cancelAt: fc.option(fc.nat(60), { freq: 4, nil: null }),
  penalties: fc.boolean(),
});

function toJob(a: Arrival, id: number): Job {
  return job(id, {
    adapter: a.adapter < 0 ? null : handle(`adapter${a.adapter}`),
    visibility: `tenant${a.tenant}`,
    prompt: a.prompt,
    maxTokens: a.maxTokens,
    choices: a.choices,
    sampler: { ...SAMPLER, seed: id * 7, repeatPenalty: a.penalties ? 1.1 : 1 },
  });
}

describe('scheduler', () => {
  it('gives every request exactly the tokens that it gets alone, whatever arrives, is cancelled, or does not fit', () => {
    // The promise is only worth something if the runs meet the hard cases.
    const met = { preemptions: 0, yields: 0, prefixHits: 0, prefixEvictions: 0, adapterLoads: 0, cancelled: 0 };
    fc.assert(
      fc.property(
        fc.array(arrival, { minLength: 1, maxLength: 24 }),
        fc.integer({ min: 64, max: 160 }),
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 0, max: 6 }),
        fc.constantFrom(0, 0.5),
        (arrivals, kvCells, slotCount, loadTicks, prefixCacheShare) => {
          const b = bench({ prefixCacheShare }, { kvCells, slots: slotCount, loadTicks });
          const jobs = arrivals.map(toJob);
          const cancelled = new Set<number>();
          for (let turn = 0; turn < 61 || !b.loop.idle; turn += 1) {
            if (turn > 20_000) throw new Error('stuck');
            for (const [id, a] of arrivals.entries()) {
              if (a.at === turn) b.loop.submit(jobs[id] as Job);
              if (a.cancelAt !== null && a.cancelAt + a.at === turn && a.cancelAt > 0) {
                b.loop.abort(id, null);
                cancelled.add(id);
              }
            }
            b.slots.tick();
            b.loop.turn();
          }
          expect(b.engine.rowsMaxSeen).toBeLessThanOrEqual(OPTIONS.stepTokensMax);
          for (const [id, a] of arrivals.entries()) {
            for (let choice = 0; choice < a.choices; choice += 1) {
              const expected = alone(jobs[id] as Job, choice);
              const got = tokensOf(b.events, id, choice);
              const reason = finishOf(b.events, id, choice);
              expect(reason).toHaveLength(1);
              if (reason[0] === 'aborted') {
                expect(cancelled.has(id)).toBe(true);
                expect(got).toEqual(expected.tokens.slice(0, got.length));
              } else {
                expect(got).toEqual(expected.tokens);
                expect(reason).toEqual(expected.reason);
              }
            }
          }
          assertClean(b);
          const { preemptions, yields, prefixHits, prefixEvictions } = b.loop.scheduler.stats;
          met.preemptions += preemptions;
          met.yields += yields;
          met.prefixHits += prefixHits;
          met.prefixEvictions += prefixEvictions;
          met.adapterLoads += b.slots.loads;
          met.cancelled += cancelled.size;
        },
      ),
      { numRuns: 300 },
    );
    for (const [what, count] of Object.entries(met)) expect(count, what).toBeGreaterThan(20);
  });

  it('keeps a prefix from other tenants and other adapter versions, and uses it for its own', () => {
    const prompt = Array.from({ length: 40 }, (_, i) => i + 1);
    const b = bench({}, { kvCells: 512 });
    const ask = (id: number, visibility: string, adapter: string | null) => {
      b.loop.submit(
        job(id, {
          prompt: [...prompt, 5],
          visibility,
          adapter: adapter === null ? null : handle(adapter),
          maxTokens: 2,
        }),
      );
      run(b);
      const started = b.events.find((e) => e.type === 'started' && e.job === id);
      return started?.type === 'started' ? started.cachedTokens : -1;
    };
    expect(ask(1, 'a', 'x')).toBe(0);
    expect(ask(2, 'a', 'x')).toBe(40);
    expect(ask(3, 'b', 'x')).toBe(0);
    expect(ask(4, 'a', 'x2')).toBe(0);
    expect(ask(5, 'a', null)).toBe(0);
    b.loop.scheduler.forget('x');
    expect(ask(6, 'a', 'x')).toBe(0);
  });

  it('charges prompts too: whoever sends long ones gets fewer turns than whoever sends short ones', () => {
    const b = bench({
      runningMax: 1,
      stepTokensMax: 64,
      prefillRowsAloneMin: 64,
      prefixCacheShare: 0,
      overtakeMax: 1000,
    });
    const ask = (id: number, digest: string, length: number) =>
      b.loop.submit(
        job(id, {
          prompt: Array.from({ length }, (_, i) => ((id * 7 + i) % 90) + 1),
          maxTokens: 1,
          adapter: handle(digest),
          sampler: { ...SAMPLER, ignoreEos: true },
        }),
      );
    for (let i = 0; i < 8; i += 1) ask(i, 'long', 38);
    for (let i = 0; i < 8; i += 1) ask(100 + i, 'short', 8);
    run(b);
    const order = b.events.flatMap((e) => (e.type === 'finished' ? [e.job] : []));
    // A long one costs 38 + 2, a short one 8 + 2: four short ones for each long one.
    expect(order.slice(0, 5).filter((id) => id >= 100)).toHaveLength(4);
    expect(order.slice(0, 10).filter((id) => id >= 100)).toHaveLength(8);
  });

  it('computes the prompt of n choices once', () => {
    const b = bench({ stepTokensMax: 64, prefillRowsAloneMin: 64 });
    const prompt = Array.from({ length: 40 }, (_, i) => (i % 50) + 1);
    const one = job(1, { prompt, choices: 4, maxTokens: 6, sampler: { ...SAMPLER, ignoreEos: true } });
    b.loop.submit(one);
    run(b);
    // 40 rows for the prompt, its last row again for each of the other three choices, 5 decode rows each.
    const cellsEver = 40 + 3 + 4 * 5;
    expect(b.events.filter((e) => e.type === 'token')).toHaveLength(24);
    expect(b.engine.rowsTotal).toBe(cellsEver);
    for (let c = 0; c < 4; c += 1) expect(tokensOf(b.events, 1, c)).toEqual(alone(one, c).tokens);
  });

  it('lets a short prompt pass a long one, and keeps decoding in every step meanwhile', () => {
    const b = bench({}, { kvCells: 1024 });
    const ignore = { ...SAMPLER, ignoreEos: true };
    b.loop.submit(job(1, { prompt: [1, 2], maxTokens: 100, sampler: ignore }));
    for (let i = 0; i < 3; i += 1) b.loop.turn();
    b.loop.submit(job(2, { prompt: Array.from({ length: 400 }, (_, i) => (i % 9) + 1), sampler: ignore }));
    b.loop.submit(job(3, { prompt: [7, 7, 7], sampler: ignore }));
    for (let i = 0; i < 3; i += 1) {
      const before = tokensOf(b.events, 1).length;
      b.loop.turn();
      expect(tokensOf(b.events, 1)).toHaveLength(before + 1);
    }
    expect(tokensOf(b.events, 3).length).toBeGreaterThan(0);
    expect(tokensOf(b.events, 2)).toHaveLength(0);
  });

  it('does not let a flood for one adapter starve another, nor a flood of many adapters one that waits for a slot', () => {
    const flood = bench({ runningMax: 2 }, { kvCells: 1024 });
    const ignore = { ...SAMPLER, ignoreEos: true };
    for (let id = 0; id < 60; id += 1)
      flood.loop.submit(job(id, { adapter: handle('busy'), maxTokens: 10, sampler: ignore }));
    for (let i = 0; i < 5; i += 1) flood.loop.turn();
    flood.loop.submit(job(100, { adapter: handle('quiet'), maxTokens: 10, sampler: ignore }));
    run(flood);
    const finished = flood.events.flatMap((e) => (e.type === 'finished' ? [e.job] : []));
    expect(finished.indexOf(100)).toBeLessThan(6);

    const many = bench({ runningMax: 4 }, { kvCells: 4096, slots: 1 });
    many.loop.submit(job(0, { adapter: handle('holder'), maxTokens: 3000, sampler: ignore }));
    many.loop.turn();
    many.loop.submit(job(1, { adapter: handle('waiter'), maxTokens: 4, sampler: ignore }));
    let turns = 0;
    while (finishOf(many.events, 1).length === 0) {
      many.loop.turn();
      turns += 1;
      // One holder generates for 3000 steps; the other adapter gets the slot long before.
      expect(turns).toBeLessThan(3 * OPTIONS.slotWaitStepsMax);
    }
    run(many);
    expect(tokensOf(many.events, 0)).toEqual(
      alone(job(0, { adapter: handle('holder'), maxTokens: 3000, sampler: ignore })).tokens,
    );
  });

  it('admits a request after a bounded number of overtakings even if new adapters arrive in every step', () => {
    const b = bench({ runningMax: 2 }, { kvCells: 512, slots: 2 });
    const ignore = { ...SAMPLER, ignoreEos: true };
    let id = 1;
    const arrive = () => {
      b.loop.submit(job(id, { adapter: handle(`new${id}`), maxTokens: 2, sampler: ignore }));
      id += 1;
    };
    for (let i = 0; i < 4; i += 1) arrive();
    b.loop.submit(
      job(1000, {
        adapter: handle('old'),
        prompt: Array.from({ length: 200 }, () => 3),
        maxTokens: 200,
        sampler: ignore,
      }),
    );
    let admissions = 0;
    while (!b.events.some((e) => e.type === 'started' && e.job === 1000)) {
      arrive();
      b.loop.turn();
      admissions = b.events.filter((e) => e.type === 'started').length;
      expect(admissions).toBeLessThan(4 * OPTIONS.overtakeMax);
    }
    b.loop.abort(1000, null);
    run(b);
  });

  it('ends a cancelled request before the next step, and frees what it held', () => {
    const b = bench();
    b.loop.submit(job(1, { maxTokens: 100, sampler: { ...SAMPLER, ignoreEos: true } }));
    for (let i = 0; i < 5; i += 1) b.loop.turn();
    const steps = b.engine.steps;
    b.loop.abort(1, null);
    b.loop.turn();
    expect(b.engine.steps).toBe(steps);
    expect(b.events.at(-1)).toEqual({
      type: 'finished',
      job: 1,
      choice: 0,
      reason: 'aborted',
      generated: tokensOf(b.events, 1).length,
    });
    expect(b.loop.idle).toBe(true);
    assertClean(b);
  });

  it('ends one choice and goes on with the others', () => {
    const b = bench();
    const one = job(1, { choices: 3, maxTokens: 12, sampler: { ...SAMPLER, ignoreEos: true } });
    b.loop.submit(one);
    b.loop.turn();
    b.loop.abort(1, 0);
    run(b);
    expect(finishOf(b.events, 1, 0)).toEqual(['aborted']);
    for (const c of [1, 2]) expect(tokensOf(b.events, 1, c)).toEqual(alone(one, c).tokens);
    assertClean(b);
  });

  it('takes cells from the youngest, never from the oldest', () => {
    const b = bench({ reserveTokens: 1, prefixCacheShare: 0 }, { kvCells: 100 });
    const ignore = { ...SAMPLER, ignoreEos: true };
    for (let id = 0; id < 6; id += 1) {
      b.loop.submit(job(id, { prompt: Array.from({ length: 8 }, () => id + 1), maxTokens: 80, sampler: ignore }));
    }
    while (finishOf(b.events, 0).length === 0) {
      const before = tokensOf(b.events, 0).length;
      b.loop.turn();
      if (before > 0) expect(tokensOf(b.events, 0)).toHaveLength(before + 1);
    }
    expect(b.loop.scheduler.stats.preemptions).toBeGreaterThan(0);
    run(b);
    assertClean(b);
  });

  it('fails only the request whose adapter or grammar is broken', () => {
    const b = bench({}, { broken: ['bad'] });
    b.loop.submit(job(1, { adapter: handle('bad') }));
    b.loop.submit(job(2, { sampler: { ...SAMPLER, grammar: 'bad' } }));
    b.loop.submit(job(3));
    run(b);
    expect(b.events.filter((e) => e.type === 'failed').map((e) => e.job)).toEqual([1, 2]);
    expect(tokensOf(b.events, 3)).toEqual(alone(job(3)).tokens);
    assertClean(b);
  });

  it('embeds beside generations: the mean over all tokens, whatever the chunks', () => {
    const prompts = [5, 30, 1, 77].map((n) =>
      Int32Array.from({ length: n }, (_, i) => ((i * 7) % (VOCABULARY - 1)) + 1),
    );
    const embed = (b: Bench) => {
      b.loop.submit(
        job(9, { kind: 'embed', prompts, choices: prompts.length, maxTokens: 0, sampler: null, adapter: handle('x') }),
      );
      run(b);
      const vectors = prompts.map((_, c) => b.events.find((e) => e.type === 'embedded' && e.choice === c));
      return vectors.map((v) => (v?.type === 'embedded' ? v.vector : null));
    };
    const quiet = embed(bench({ stepTokensMax: 512, prefillRowsAloneMin: 512 }, { kvCells: 2048 }));
    const busy = bench({}, { kvCells: 128 });
    for (let id = 1; id < 6; id += 1) busy.loop.submit(job(id, { maxTokens: 30, adapter: handle(`a${id}`) }));
    busy.loop.turn();
    const mixed = embed(busy);
    expect(mixed).toEqual(quiet);
    expect(quiet.every((v) => v?.length === WIDTH)).toBe(true);
    for (let id = 1; id < 6; id += 1) {
      expect(tokensOf(busy.events, id)).toEqual(alone(job(id, { maxTokens: 30, adapter: handle(`a${id}`) })).tokens);
    }
    assertClean(busy);
  });
});
