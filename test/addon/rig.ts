/** What the addon's tests share: tiny models, random adapters, batches put together row by row, and measures of agreement. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type AdapterTensorPair,
  AddonError,
  type AddonErrorCode,
  type Engine,
  type EngineOptions,
  type Model,
  type StepBatch,
  type StepResult,
  type Target,
} from '../../addon/index.ts';
import { type BaseShape, randomAdapter } from '../../loadtest/bench/adapters.ts';
import { seededRandom } from '../../loadtest/bench/random.ts';
import { klDivergence } from '../../loadtest/bench/stats.ts';
import type { TinyModel } from '../support/tiny-models.ts';

export { GREEDY } from '../support/samplers.ts';

export const ENGINE: EngineOptions = {
  kvCells: 1024,
  sequencesMax: 16,
  batchTokensMax: 512,
  slots: 12,
  slotRankMax: 64,
};

/** A folder that is gone when `remove` was called. */
export function temporaryFolder(): { path: string; remove: () => void } {
  const path = mkdtempSync(join(tmpdir(), 'mf-addon-'));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

export function randomTokens(count: number, vocabulary: number, seed: number): Int32Array {
  const random = seededRandom(seed);
  return Int32Array.from({ length: count }, () => Math.floor(random.next() * vocabulary));
}

/** Consecutive rows of one sequence under one adapter. */
export interface Rows {
  sequence: number;
  tokens: ArrayLike<number>;
  position: number;
  slot?: number;
  /** Which rows give logits: all, the last, or none. Default all. */
  outputs?: 'all' | 'last' | 'none';
  sampler?: number;
}

export function batchOf(
  parts: readonly Rows[],
  options: { wantLogits?: boolean; wantHidden?: boolean } = {},
): StepBatch {
  const tokens: number[] = [];
  const positions: number[] = [];
  const sequences: number[] = [];
  const slots: number[] = [];
  const outputs: number[] = [];
  const samplers: number[] = [];
  for (const part of parts) {
    for (let i = 0; i < part.tokens.length; i++) {
      const wanted = part.outputs ?? 'all';
      if (wanted === 'all' || (wanted === 'last' && i === part.tokens.length - 1)) {
        outputs.push(tokens.length);
        samplers.push(part.sampler ?? -1);
      }
      tokens.push(part.tokens[i] as number);
      positions.push(part.position + i);
      sequences.push(part.sequence);
      slots.push(part.slot ?? -1);
    }
  }
  return {
    tokens: Int32Array.from(tokens),
    positions: Int32Array.from(positions),
    sequences: Int32Array.from(sequences),
    slots: Int32Array.from(slots),
    outputs: Int32Array.from(outputs),
    samplers: Int32Array.from(samplers),
    wantLogits: options.wantLogits ?? true,
    wantHidden: options.wantHidden ?? false,
  };
}

/** Rows of logits of a result, one per output. */
export function rowsOf(result: StepResult): Float32Array[] {
  const values = (result.logits ?? result.hidden) as Float32Array;
  const width = values.length / result.choices.length;
  return Array.from({ length: result.choices.length }, (_, i) => values.subarray(i * width, (i + 1) * width));
}

/** Logits of every position of a fresh sequence, in chunks of the given sizes (the last one repeats). */
export function forward(
  engine: Engine,
  tokens: Int32Array,
  options: { sequence?: number; slot?: number; chunks?: readonly number[] } = {},
): Float32Array[] {
  const { sequence = 0, slot = -1, chunks = [tokens.length] } = options;
  engine.trimSequence(sequence, 0);
  const rows: Float32Array[] = [];
  for (let at = 0, turn = 0; at < tokens.length; turn++) {
    const size = chunks[Math.min(turn, chunks.length - 1)] as number;
    const part = tokens.subarray(at, at + size);
    rows.push(...rowsOf(engine.step(batchOf([{ sequence, tokens: part, position: at, slot }]))));
    at += part.length;
  }
  engine.trimSequence(sequence, 0);
  return rows;
}

export interface Agreement {
  /** KL(expected ‖ actual), nats. */
  mean: number;
  max: number;
  /** Largest difference of a logit. */
  difference: number;
  /** Rows whose bytes are equal, of all. */
  equal: number;
  rows: number;
}

export function agreement(expected: readonly Float32Array[], actual: readonly Float32Array[]): Agreement {
  if (expected.length !== actual.length) throw new Error(`${expected.length} rows against ${actual.length}`);
  const a: Agreement = { mean: 0, max: 0, difference: 0, equal: 0, rows: expected.length };
  expected.forEach((row, i) => {
    const other = actual[i] as Float32Array;
    const kl = klDivergence(row, other);
    a.mean += kl / expected.length;
    a.max = Math.max(a.max, kl);
    if (sameBytes(row, other)) a.equal++;
    for (let k = 0; k < row.length; k++) {
      a.difference = Math.max(a.difference, Math.abs((row[k] as number) - (other[k] as number)));
    }
    // NaN passes every comparison above; here it does not.
    if (Number.isNaN(kl)) a.mean = a.max = Number.NaN;
  });
  return a;
}

export function sameBytes(a: Float32Array, b: Float32Array): boolean {
  return Buffer.from(a.buffer, a.byteOffset, a.byteLength).equals(Buffer.from(b.buffer, b.byteOffset, b.byteLength));
}

export interface AdapterChoice {
  rank: number;
  seed: number;
  targets?: readonly Target[];
  /** 1 changes little; tests that ask whether the adapter was applied at all want more. */
  strength?: number;
}

/** A random adapter for a model, as a GGUF LoRA that libllama reads too. */
export function loraFor(
  model: Pick<TinyModel, 'architecture' | 'layers' | 'targets'>,
  { rank, seed, targets, strength = 20 }: AdapterChoice,
): { file: Buffer; pairs: AdapterTensorPair[] } {
  const wanted = targets ?? (Object.keys(model.targets) as Target[]);
  const shape = {
    architecture: model.architecture,
    layers: model.layers,
    targets: Object.fromEntries(wanted.map((t) => [t, [model.targets[t].in, model.targets[t].out]])),
  } as BaseShape;
  return randomAdapter(shape, rank, seed, strength);
}

/** Builds a random adapter and puts it into a slot. */
export async function putAdapter(
  model: Model,
  engine: Engine,
  slot: number,
  shape: Pick<TinyModel, 'architecture' | 'layers' | 'targets'>,
  choice: AdapterChoice,
): Promise<void> {
  const { file, pairs } = loraFor(shape, choice);
  const image = await model.buildAdapter(file, pairs);
  engine.setSlot(slot, image);
  image.release();
}

export function writeLora(path: string, model: TinyModel, choice: AdapterChoice): ReturnType<typeof loraFor> {
  const made = loraFor(model, choice);
  writeFileSync(path, made.file);
  return made;
}

/** The code of the AddonError that `f` throws; fails where it throws nothing or something else. */
export function errorCode(f: () => unknown): AddonErrorCode {
  try {
    f();
  } catch (error) {
    if (error instanceof AddonError) return error.code;
    throw error;
  }
  throw new Error('nothing was thrown');
}

/**
 * Whether a row of a product with quantised weights has the same bytes whatever else is in the step. Tried with every x86
 * variant of ggml's CPU library up to Zen 4: so it is with AVX2 and above (repacked kernels for one row and for many add
 * alike); with AVX alone a step of a single row rounds differently. Float weights: a step of a single row rounds
 * differently with AVX and above. Not known for AMX and for other processors.
 */
export function quantisedRowsStandAlone(): boolean {
  if (process.arch !== 'x64' || process.platform !== 'linux') return false;
  const flags = /^flags\s*:.*$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[0] ?? '';
  return /\bavx2\b/.test(flags) && !/\bamx_int8\b/.test(flags);
}
