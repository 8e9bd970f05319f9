/**
 * The case on which gradients are compared with PyTorch's: a tiny float32 model, low-rank pairs that are not zero, two
 * examples of different length. Everything comes from seeds, so that the fixture holds only what PyTorch answered.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { TARGETS, type TrainedPair, type TrainerOptions, type TrainingRows } from '../../addon/types.ts';
import {
  describeTinyModel,
  normals,
  TINY_ARCHITECTURES,
  type TinyArchitecture,
  type TinyModel,
  writeTinyModel,
} from '../support/tiny-models.ts';

/** Two layers: in gemma3 one with a sliding window and one without. */
const LAYERS = 2;
/** Odd, so that no kernel's block size hides a remainder that is left out. */
export const RANK = 3;
export const SCALE = 1.75;
/** The first example is longer than gemma3's window of 16. */
const LENGTHS = [23, 14];
const PROMPT = 5;
export const DIVISOR = 20;

export const FIXTURE = join(import.meta.dirname, 'fixtures', 'trainer-gradients');

export function caseModel(architecture: TinyArchitecture, path: string): TinyModel {
  return writeTinyModel(architecture, path, { type: 'f32', layers: LAYERS, seed: 7 });
}

export const caseOptions = (more: Partial<TrainerOptions> = {}): TrainerOptions => ({
  method: 'lora',
  targets: [...TARGETS],
  rank: RANK,
  scale: SCALE,
  dropout: 0,
  prefixTokens: 1,
  seed: 1,
  rowsMax: 64,
  recompute: false,
  share: 0.5,
  ...more,
});

/** A and B of comparable influence: the gradient of each is then well above rounding. */
export function casePairs(model: TinyModel): TrainedPair[] {
  return Array.from({ length: model.layers }, (_, layer) =>
    TARGETS.map((target) => {
      const { in: width, out } = model.targets[target];
      const name = `${model.architecture}/${layer}/${target}`;
      return {
        target,
        layer,
        a: normals(`${name}/a`, RANK * width, 1 / Math.sqrt(width)),
        b: normals(`${name}/b`, out * RANK, 0.2),
      };
    }),
  ).flat();
}

/** Prompts weigh nothing, answers 1, and some rows a fraction, as soft weights would. */
export function caseRows(vocabulary: number): TrainingRows {
  const count = LENGTHS.reduce((sum, length) => sum + length, 0);
  const noise = normals('gradient-case', count, 1);
  const starts = [0];
  for (const length of LENGTHS) starts.push((starts.at(-1) as number) + length);
  const weights = new Float32Array(count);
  LENGTHS.forEach((length, e) => {
    const start = starts[e] as number;
    for (let i = PROMPT - 1; i < length - 1; i++) weights[start + i] = i % 4 === 0 ? 0.5 : 1;
  });
  return {
    tokens: Int32Array.from(noise, (x) => Math.abs(Math.floor(x * 1e4)) % vocabulary),
    starts: Int32Array.from(starts),
    weights,
  };
}

export interface Reference {
  /** Σ weight · −ln p, of both examples. */
  loss: number;
  gradients: TrainedPair[];
}

/** What PyTorch answered; see fixtures/make-gradients.ts. Rows of B are in the order of the GGUF file's rows. */
export function readReference(model: TinyModel): Reference {
  const facts = JSON.parse(readFileSync(`${FIXTURE}.json`, 'utf8')) as { losses: Record<TinyArchitecture, number> };
  const bytes = readFileSync(`${FIXTURE}.f32`);
  let at = 0;
  const take = (count: number): Float32Array => {
    const values = Float32Array.from({ length: count }, (_, i) => bytes.readFloatLE(at + 4 * i));
    at += 4 * count;
    return values;
  };
  for (const architecture of TINY_ARCHITECTURES) {
    const shape = architecture === model.architecture ? model : caseShape(architecture);
    const gradients = casePairs(shape).map((pair) => ({ ...pair, a: take(pair.a.length), b: take(pair.b.length) }));
    if (architecture === model.architecture) return { loss: facts.losses[architecture], gradients };
  }
  throw new Error(`no reference for ${model.architecture}`);
}

const caseShape = (architecture: TinyArchitecture): TinyModel =>
  describeTinyModel(architecture, '', { layers: LAYERS });
