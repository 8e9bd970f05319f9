/** Teacher forcing through the serving engine: the sums that come back are those of the whole logits. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SequenceEvent } from '../../../daemon/engine/messages.ts';
import type { AdapterHandle } from '../../../daemon/engine/slots.ts';
import { writeTinyModel } from '../../support/tiny-models.ts';
import { NativeBench, type NativeRun, nativeJob } from '../engine/native-bench.ts';

const folder = mkdtempSync(join(tmpdir(), 'mf-score-'));
let bench: NativeBench;
let adapter: AdapterHandle;
let vocabulary: number;

beforeAll(async () => {
  const path = join(folder, 'tiny.gguf');
  vocabulary = writeTinyModel('llama', path).vocabulary;
  bench = new NativeBench(path);
  adapter = await bench.adapter('a', { rank: 4, deviation: 0.3, seed: 5 });
});
afterAll(() => {
  bench.close();
  rmSync(folder, { recursive: true, force: true });
});

const prompt = (length: number, seed: number) =>
  Int32Array.from({ length }, (_, i) => (Math.imul(i + 1, 2654435761 + seed * 97) >>> 8) % 250);

function scoreJob(job: number, prompts: Int32Array[], rated: Uint8Array[], handle: AdapterHandle | null) {
  return nativeJob(job, [0], {
    kind: 'score',
    prompts,
    rated,
    choices: prompts.length,
    maxTokens: 0,
    sampler: null,
    adapter: handle,
  });
}

function scored(run: NativeRun, job: number): Extract<SequenceEvent, { type: 'scored' }>[] {
  return run.events
    .filter(
      (event): event is Extract<SequenceEvent, { type: 'scored' }> => event.type === 'scored' && event.job === job,
    )
    .sort((a, b) => a.choice - b.choice);
}

/** From the logits of every row, in one step. */
async function fromLogits(tokens: Int32Array, rated: Uint8Array, handle: AdapterHandle | null) {
  const run = bench.run();
  let slot = -1;
  if (handle !== null) {
    await run.tiers.move(handle, 'slot');
    slot = run.tiers.places().find((place) => place.digest === handle.digest)?.slot ?? -1;
    expect(slot).toBeGreaterThanOrEqual(0);
  }
  const rows = Int32Array.from(tokens, (_, i) => i);
  const { logits } = run.engine.step({
    tokens,
    positions: rows,
    sequences: new Int32Array(tokens.length),
    slots: new Int32Array(tokens.length).fill(slot),
    outputs: rows,
    samplers: new Int32Array(tokens.length).fill(-1),
    wantLogits: true,
  });
  let logprob = 0;
  let hits = 0;
  let count = 0;
  for (let i = 0; i + 1 < tokens.length; i += 1) {
    if (rated[i] !== 1) continue;
    const row = (logits as Float32Array).subarray(i * vocabulary, (i + 1) * vocabulary);
    const best = row.reduce((a, b) => Math.max(a, b));
    let sum = 0;
    for (const x of row) sum += Math.exp(x - best);
    const target = tokens[i + 1] as number;
    logprob += (row[target] as number) - best - Math.log(sum);
    if (row.indexOf(best) === target) hits += 1;
    count += 1;
  }
  run.close();
  return { logprob, hits, rated: count };
}

describe('rating given tokens', () => {
  const lengths = [2, 17, 40, 90, 33, 120];
  const prompts = lengths.map((length, i) => prompt(length, i));
  // Half of each is the prompt; the last place never counts, whatever the mask says.
  const masks = lengths.map((length) => Uint8Array.from({ length }, (_, i) => (i >= length / 2 - 1 ? 1 : 0)));

  it('gives the loss and the hits that the whole logits give, for base and adapter in one batch', async () => {
    const run = bench.run();
    run.loop.submit(scoreJob(1, prompts, masks, null));
    run.loop.submit(scoreJob(2, prompts, masks, adapter));
    await run.finish();
    for (const [job, handle] of [
      [1, null],
      [2, adapter],
    ] as const) {
      const all = scored(run, job);
      expect(all).toHaveLength(prompts.length);
      for (const [i, one] of all.entries()) {
        const wanted = await fromLogits(prompts[i] as Int32Array, masks[i] as Uint8Array, handle);
        expect(one.rated).toBe(wanted.rated);
        expect(one.logprob).toBeCloseTo(wanted.logprob, 1);
        expect(Math.abs(one.logprob - wanted.logprob)).toBeLessThan(2e-3 * wanted.rated);
        expect(Math.abs(one.hits - wanted.hits)).toBeLessThanOrEqual(1);
      }
    }
    const [base, adapted] = [scored(run, 1)[3], scored(run, 2)[3]];
    expect(Math.abs((base?.logprob ?? 0) - (adapted?.logprob ?? 0))).toBeGreaterThan(0.05);
    run.close();
  });

  it('finds what the model itself says most likely, as likely as it said', async () => {
    const run = bench.run();
    run.loop.submit(nativeJob(1, prompt(12, 4), { maxTokens: 24, adapter }));
    await run.finish();
    const said = run.picked(1);
    const whole = Int32Array.from([...prompt(12, 4), ...said.map(({ token }) => token)]);
    run.loop.submit(scoreJob(2, [whole], [Uint8Array.from(whole, (_, i) => (i >= 11 ? 1 : 0))], adapter));
    await run.finish();
    const [one] = scored(run, 2);
    expect(one?.rated).toBe(24);
    expect(one?.hits).toBeGreaterThanOrEqual(23);
    const sum = said.reduce((total, { logprob }) => total + logprob, 0);
    expect(one?.logprob).toBeGreaterThan(sum - 0.05);
    expect(one?.logprob).toBeLessThan(sum + 0.05);
    run.close();
  });

  it('is the loss that training reports for the same rows', async () => {
    const trainer = bench.model.createTrainer({
      method: 'lora',
      targets: ['attn_q'],
      rank: 1,
      scale: 1,
      dropout: 0,
      prefixTokens: 0,
      seed: 1,
      rowsMax: 512,
      recompute: false,
      share: 0.5,
    });
    const starts = [0];
    for (const { length } of prompts) starts.push((starts.at(-1) as number) + length);
    const weights = Float32Array.from(masks.flatMap((mask) => [...mask.slice(0, -1), 0]));
    const tokens = Int32Array.from(prompts.flatMap((one) => [...one]));
    const trained = trainer.evaluate({ tokens, starts: Int32Array.from(starts), weights }, false);
    trainer.close();
    const run = bench.run();
    run.loop.submit(scoreJob(1, prompts, masks, null));
    await run.finish();
    const all = scored(run, 1);
    const loss = all.reduce((sum, { logprob }) => sum - logprob, 0);
    const rated = all.reduce((sum, one) => sum + one.rated, 0);
    expect(rated).toBe(trained.counted);
    // The cache of serving holds half floats, training keeps single ones.
    expect(Math.abs(loss - trained.loss) / rated).toBeLessThan(2e-3);
    run.close();
  });

  it('is not changed by small chunks, few cells, preemption and generations beside it', async () => {
    const alone = bench.run();
    alone.loop.submit(scoreJob(1, prompts, masks, null));
    await alone.finish();
    const busy = bench.run({ scoreRowsMax: 7, stepTokensMax: 32, runningMax: 6, reserveTokens: 0 }, { kvCells: 160 });
    busy.loop.submit(nativeJob(5, prompt(20, 9), { maxTokens: 60 }));
    busy.loop.submit(scoreJob(1, prompts, masks, null));
    busy.loop.submit(nativeJob(6, prompt(30, 8), { maxTokens: 40 }));
    await busy.finish();
    expect(busy.picked(5)).toHaveLength(60);
    for (const [i, one] of scored(alone, 1).entries()) {
      const other = scored(busy, 1)[i];
      expect(other?.rated).toBe(one.rated);
      expect(Math.abs((other?.logprob ?? 0) - one.logprob)).toBeLessThan(2e-3 * Math.max(1, one.rated));
    }
    expect(busy.engine.kvCellsFree).toBeGreaterThan(0);
    alone.close();
    busy.close();
  });

  it('ends a job that is aborted, and refuses a token that does not exist', async () => {
    const run = bench.run();
    run.loop.submit(scoreJob(1, prompts, masks, null));
    run.loop.abort(1, null);
    await run.finish();
    expect(scored(run, 1)).toHaveLength(0);
    expect(run.loop.jobCount).toBe(0);
    const one = Int32Array.of(0);
    expect(() =>
      run.engine.step({
        tokens: one,
        positions: one,
        sequences: one,
        slots: Int32Array.of(-1),
        outputs: one,
        samplers: Int32Array.of(-1),
        targets: Int32Array.of(vocabulary),
      }),
    ).toThrow(/target/);
    run.close();
  });
});
