/** A row of a mixed batch gets what it gets alone: adapters of many ranks, chunked prefill, cancellations, shared prefixes. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type AdapterImage, type Engine, loadModel, type Model, type Target } from '../../addon/index.ts';
import { argmax } from '../../loadtest/bench/stats.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import { writeTinyModel } from '../support/tiny-models.ts';
import {
  agreement,
  batchOf,
  ENGINE,
  forward,
  GREEDY,
  loraFor,
  quantisedRowsStandAlone,
  type Rows,
  randomTokens,
  rowsOf,
  temporaryFolder,
} from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);
const smol = await defaultModelPath();
if (!smol) console.info(`skipped in part: ${SKIP_REASON}`);

const RANKS: { rank: number; targets?: readonly Target[] }[] = [
  { rank: 1 },
  { rank: 2, targets: ['attn_q', 'attn_v'] },
  { rank: 3 },
  { rank: 4, targets: ['ffn_up', 'ffn_down'] },
  { rank: 8 },
  { rank: 16, targets: ['attn_k', 'attn_output', 'ffn_gate'] },
  { rank: 5 },
  { rank: 32 },
  { rank: 64, targets: ['attn_v'] },
];

interface Job {
  sequence: number;
  slot: number;
  prompt: Int32Array;
  /** Tokens fed one by one after the prompt. */
  forced: Int32Array;
}

/** Everybody together: one row for each job that decodes, and up to `chunk` rows of the prompts not yet read, in turn. */
function together(
  engine: Engine,
  jobs: readonly Job[],
  chunk: number,
  onStep?: (step: number, parts: Rows[]) => void,
): Float32Array[][] {
  const done = new Map(jobs.map((job) => [job, 0]));
  const logits = new Map(jobs.map((job) => [job, [] as Float32Array[]]));
  for (let turn = 0; [...done].some(([job, n]) => n < job.prompt.length + job.forced.length); turn++) {
    const parts: Rows[] = [];
    let left = chunk;
    // Beginning with another job each turn mixes the order of rows, too.
    for (const job of [...jobs.slice(turn % jobs.length), ...jobs.slice(0, turn % jobs.length)]) {
      const position = done.get(job) as number;
      const { sequence, slot } = job;
      if (position < job.prompt.length) {
        const size = Math.min(left, job.prompt.length - position, 11);
        if (size === 0) continue;
        left -= size;
        parts.push({ sequence, slot, position, tokens: job.prompt.subarray(position, position + size) });
      } else if (position < job.prompt.length + job.forced.length) {
        const at = position - job.prompt.length;
        parts.push({ sequence, slot, position, tokens: job.forced.subarray(at, at + 1) });
      }
    }
    const own = parts.length;
    onStep?.(turn, parts);
    const rows = rowsOf(engine.step(batchOf(parts)));
    let row = 0;
    for (const [i, part] of parts.entries()) {
      const job = jobs.find((j) => j.sequence === part.sequence);
      const mine = rows.slice(row, row + part.tokens.length);
      row += part.tokens.length;
      if (i >= own || !job) continue;
      logits.get(job)?.push(...mine);
      done.set(job, part.position + part.tokens.length);
    }
  }
  return jobs.map((job) => logits.get(job) as Float32Array[]);
}

interface Subject {
  name: string;
  path: () => string;
  /** Mean KL nats allowed between together and alone. */
  limit: number;
  /** Rows must have the very same bytes where ggml's kernels allow it. */
  bytes: boolean;
  strength: number;
  skip: boolean;
}

const subjects: Subject[] = [
  {
    name: 'tiny llama, float32',
    path: () => writeTinyModel('llama', join(folder.path, 'llama.gguf'), { type: 'f32' }).path,
    limit: 1e-6,
    bytes: false,
    strength: 20,
    skip: false,
  },
  {
    name: 'tiny qwen2, Q8_0',
    path: () => writeTinyModel('qwen2', join(folder.path, 'qwen2.gguf'), { type: 'q8_0' }).path,
    limit: 1e-4,
    bytes: true,
    strength: 20,
    skip: false,
  },
  {
    name: 'tiny gemma3, Q4_1',
    path: () => writeTinyModel('gemma3', join(folder.path, 'gemma3.gguf'), { type: 'q4_1' }).path,
    limit: 1e-4,
    bytes: true,
    strength: 20,
    skip: false,
  },
  { name: 'SmolLM2, Q4_1', path: () => smol as string, limit: 1e-4, bytes: true, strength: 6, skip: !smol },
];

describe.each(subjects.filter((s) => !s.skip))('$name', ({ path, limit, bytes, strength }) => {
  let model: Model;
  const images: AdapterImage[] = [];
  let jobs: Job[];

  function engineWithSlots(): Engine {
    const engine = model.createEngine(ENGINE);
    images.forEach((image, slot) => {
      engine.setSlot(slot, image);
    });
    return engine;
  }

  beforeAll(async () => {
    model = loadModel({ path: path(), device: 'cpu' });
    const shape = model.info as Parameters<typeof loraFor>[0];
    for (const [i, choice] of RANKS.entries()) {
      const { file, pairs } = loraFor(shape, { ...choice, seed: 40 + i, strength: strength / Math.sqrt(choice.rank) });
      images.push(await model.buildAdapter(file, pairs));
    }
    const vocabulary = model.info.vocabulary;
    // Two rows of the base besides the adapters, and one adapter twice.
    jobs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 4, -1, -1].map((slot, i) => ({
      sequence: i,
      slot,
      prompt: randomTokens(5 + ((i * 23) % 60), vocabulary, 100 + i),
      forced: randomTokens(12, vocabulary, 200 + i),
    }));
  });
  afterAll(() => {
    for (const image of images) image.release();
    model.close();
  });

  test('nine adapters and the base together, with chunked prefill and cancellations, are each what they are alone', () => {
    const engine = engineWithSlots();
    let cancelled = 0;
    const doomed = 13;
    const mixed = together(engine, jobs, 24, (turn, parts) => {
      // A stranger comes and goes: its cells are given to others in the middle of their sequences.
      if (turn % 3 === 2 && engine.sequenceLength(doomed) > 0) {
        engine.trimSequence(doomed, turn % 2 === 0 ? 0 : 2);
        cancelled++;
      }
      const position = engine.sequenceLength(doomed);
      parts.push({ sequence: doomed, slot: turn % 9, position, tokens: randomTokens(5, model.info.vocabulary, turn) });
    });
    expect(cancelled).toBeGreaterThan(3);
    engine.close();

    const alone = engineWithSlots();
    const base = alone;
    for (const [i, job] of jobs.entries()) {
      const tokens = Int32Array.from([...job.prompt, ...job.forced]);
      const expected = forward(alone, tokens, { slot: job.slot, chunks: [job.prompt.length, 1] });
      const got = agreement(expected, mixed[i] as Float32Array[]);
      expect(got.mean).toBeLessThan(limit);
      if (bytes && quantisedRowsStandAlone()) expect(got.equal).toBe(tokens.length);
      // Without the adapter it would be something else, or nothing was tested.
      if (job.slot >= 0) {
        expect(agreement(expected, forward(base, tokens)).mean).toBeGreaterThan(20 * limit);
      }
    }
    alone.close();
  });

  test('greedy continuations in a mixed batch are those alone', () => {
    const run = (chosen: readonly Job[]): number[][] => {
      const engine = engineWithSlots();
      const samplers = chosen.map(() => engine.createSampler(GREEDY));
      const first = chosen.map(
        (job, i): Rows => ({
          ...job,
          tokens: job.prompt,
          position: 0,
          outputs: 'last',
          sampler: samplers[i] as number,
        }),
      );
      const out = chosen.map(() => [] as number[]);
      let parts = first;
      for (let turn = 0; turn < 12; turn++) {
        const { choices } = engine.step(batchOf(parts, { wantLogits: false }));
        parts = parts.map((part, i) => {
          const token = choices[i]?.token as number;
          out[i]?.push(token);
          return { ...part, tokens: [token], position: part.position + part.tokens.length };
        });
      }
      engine.close();
      return out;
    };
    const mixed = run(jobs);
    // A row may be a near-tie for float weights; for quantised ones there is nothing to differ.
    for (const [i, job] of jobs.entries()) expect(run([job])[0]).toEqual(mixed[i]);
    expect(new Set(mixed.map((tokens) => tokens.join())).size).toBeGreaterThan(6);
  });

  test('the same batches give the same bytes', () => {
    const [first, second] = [0, 1].map(() => {
      const engine = engineWithSlots();
      const rows = together(engine, jobs, 24).flat();
      engine.close();
      return rows;
    }) as [Float32Array[], Float32Array[]];
    expect(agreement(first, second)).toMatchObject({ equal: first.length, rows: first.length });
  });

  test('a shared prefix gives what recomputing it gives, and neither sequence harms the other', () => {
    const engine = engineWithSlots();
    const slot = 4;
    const tokens = randomTokens(50, model.info.vocabulary, 300);
    const other = randomTokens(20, model.info.vocabulary, 301);
    const expected = forward(engine, tokens, { slot });
    const fork = Int32Array.from([...tokens.subarray(0, 37), ...other]);
    const expectedFork = forward(engine, fork, { slot });

    const free = engine.kvCellsFree;
    engine.step(batchOf([{ sequence: 0, slot, tokens: tokens.subarray(0, 40), position: 0, outputs: 'none' }]));
    engine.shareSequence(0, 1, 37);
    expect(engine.kvCellsFree).toBe(free - 40);
    expect(engine.sequenceLength(1)).toBe(37);
    // Both go on in one batch, each its own way.
    const rows = rowsOf(
      engine.step(
        batchOf([
          { sequence: 1, slot, tokens: other, position: 37 },
          { sequence: 0, slot, tokens: tokens.subarray(40), position: 40 },
        ]),
      ),
    );
    const loose = 2 * limit;
    expect(agreement(expectedFork.slice(37), rows.slice(0, 20)).mean).toBeLessThan(loose);
    expect(agreement(expected.slice(40), rows.slice(20)).mean).toBeLessThan(loose);

    // The second falls back into the shared part and writes there again: the first must not see it.
    engine.trimSequence(1, 30);
    engine.trimSequence(0, 40);
    engine.step(batchOf([{ sequence: 1, slot, tokens: other, position: 30, outputs: 'none' }]));
    const again = rowsOf(engine.step(batchOf([{ sequence: 0, slot, tokens: tokens.subarray(40), position: 40 }])));
    expect(agreement(expected.slice(40), again).mean).toBeLessThan(loose);

    // The first one leaves altogether; the second still holds what they shared.
    engine.trimSequence(0, 0);
    engine.step(batchOf([{ sequence: 2, slot, tokens: tokens, position: 0, outputs: 'none' }]));
    engine.trimSequence(1, 30);
    const rest = tokens.subarray(30);
    const survivor = rowsOf(engine.step(batchOf([{ sequence: 1, slot, tokens: rest, position: 30 }])));
    expect(agreement(expected.slice(30), survivor).mean).toBeLessThan(loose);
    engine.trimSequence(1, 0);
    engine.trimSequence(2, 0);
    expect(engine.kvCellsFree).toBe(engine.kvCells);
    expect(argmax(survivor.at(-1) as Float32Array)).toBe(argmax(expected.at(-1) as Float32Array));
    engine.close();
  });

  test('a slot filled anew serves the new adapter from the next step on', () => {
    const engine = engineWithSlots();
    const tokens = randomTokens(15, model.info.vocabulary, 400);
    const [old, fresh] = [forward(engine, tokens, { slot: 0 }), forward(engine, tokens, { slot: 4 })];
    engine.setSlot(0, images[4] as AdapterImage);
    expect(agreement(fresh, forward(engine, tokens, { slot: 0 }))).toMatchObject({ equal: 15 });
    engine.setSlot(0, images[0] as AdapterImage);
    expect(agreement(old, forward(engine, tokens, { slot: 0 }))).toMatchObject({ equal: 15 });
    expect(agreement(old, fresh).mean).toBeGreaterThan(20 * limit);
    engine.close();
  });
});
