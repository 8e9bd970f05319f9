import type { AdapterTensorPair, Target } from '../../addon/types.ts';
import { TARGETS } from '../../addon/types.ts';
import type { BaseShape } from '../models/inspect.ts';
import { AdapterError } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';

export type AdapterFormat = 'peft' | 'gguf';
export type Dtype = 'f32' | 'f16' | 'bf16';
export const DTYPE_BYTES: Record<Dtype, number> = { f32: 4, f16: 2, bf16: 2 };

/** An adapter file understood: where each low-rank pair lies and how it is scaled. Weights are not looked at yet. */
export interface ParsedAdapter {
  format: AdapterFormat;
  /** By layer, then by target. */
  pairs: AdapterTensorPair[];
  rankMax: number;
  /** Those present, in the order of TARGETS. */
  targets: Target[];
  /** Those present, rising. */
  layers: number[];
}

/** One half of a pair as found in a file, whatever the format. */
export interface Half {
  name: string;
  target: Target;
  layer: number;
  half: 'a' | 'b';
  dtype: Dtype;
  /** Row-major: A is [rank, in], B is [out, rank]. */
  rows: number;
  columns: number;
  offset: number;
}

/**
 * Joins halves to pairs and holds them against the base.
 * @throws AdapterError
 */
export function pairUp(
  halves: readonly Half[],
  base: BaseShape,
  /** Scale of a pair and how its B's rows lie. */
  describe: (target: Target, layer: number, rank: number, name: string) => { scale: number; permuteHeads: number },
): Pick<ParsedAdapter, 'pairs' | 'rankMax' | 'targets' | 'layers'> {
  if (halves.length === 0) throw new AdapterError('corrupt', 'the adapter has no LoRA weights at all');
  const found = new Map<string, { a?: Half; b?: Half }>();
  for (const half of halves) {
    if (half.layer >= base.layers) {
      throw new AdapterError(
        'wrong_base',
        `the adapter changes layer ${half.layer} but the base model has ${base.layers} layers (0 to ${base.layers - 1}); it was made for another model`,
      );
    }
    const key = `${half.layer}/${half.target}`;
    const pair = found.get(key) ?? {};
    if (pair[half.half]) {
      throw new AdapterError('corrupt', `${half.name} and ${pair[half.half]?.name} are the same weights twice`);
    }
    pair[half.half] = half;
    found.set(key, pair);
  }
  const pairs: AdapterTensorPair[] = [];
  for (const { a, b } of found.values()) {
    if (!a || !b) {
      throw new AdapterError(
        'incomplete',
        `${(a ?? b)?.name} has no ${a ? 'lora_B' : 'lora_A'} beside it; the file is incomplete, save the adapter again`,
      );
    }
    pairs.push(checkedPair(a, b, base, describe));
  }
  pairs.sort((x, y) => x.layer - y.layer || TARGETS.indexOf(x.target) - TARGETS.indexOf(y.target));
  return {
    pairs,
    rankMax: Math.max(...pairs.map((pair) => pair.rank)),
    targets: TARGETS.filter((target) => pairs.some((pair) => pair.target === target)),
    layers: [...new Set(pairs.map((pair) => pair.layer))],
  };
}

function checkedPair(
  a: Half,
  b: Half,
  base: BaseShape,
  describe: (target: Target, layer: number, rank: number, name: string) => { scale: number; permuteHeads: number },
): AdapterTensorPair {
  const size = base.targets[a.target];
  const rank = a.rows;
  if (rank < 1 || b.columns < 1) throw new AdapterError('corrupt', `${a.name} has rank 0; nothing to serve`);
  if (a.columns !== size.in) {
    throw new AdapterError(
      'wrong_base',
      `${a.name} takes ${a.columns} inputs where the base model has ${size.in}; the adapter was made for another model`,
    );
  }
  if (b.rows !== size.out) {
    throw new AdapterError(
      'wrong_base',
      `${b.name} gives ${b.rows} outputs where the base model has ${size.out}; the adapter was made for another model`,
    );
  }
  if (b.columns !== rank) {
    throw new AdapterError(
      'corrupt',
      `${a.name} has rank ${rank} but ${b.name} has ${b.columns}; save the adapter again`,
    );
  }
  if (rank > ADAPTER_LIMITS.rankMax) {
    throw new AdapterError(
      'unsupported',
      `${a.name} has rank ${rank}; at most ${ADAPTER_LIMITS.rankMax} is served, train with a lower rank`,
    );
  }
  const { scale, permuteHeads } = describe(a.target, a.layer, rank, a.name);
  if (!Number.isFinite(scale)) throw new AdapterError('corrupt', `the scale of ${a.name} is no finite number`);
  return {
    target: a.target,
    layer: a.layer,
    rank,
    scale,
    a: { offset: a.offset, dtype: a.dtype },
    b: { offset: b.offset, dtype: b.dtype },
    permuteHeads,
  };
}
