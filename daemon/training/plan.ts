/**
 * What is computed when: the order of the examples in each epoch, which of them make an optimiser step, and how a step is
 * cut into micro-batches. Depends on recipe, data and the model's shape and on nothing else: a run that goes on after a
 * crash plans the same again.
 */
import type { ModelInfo } from '../../addon/types.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import type { Recipe } from './protocol.ts';
import { mix, shuffle } from './random.ts';

/** What is computed together or not at all: a sequence, or with dpo the chosen and the rejected one. */
export interface PlanItem {
  /** Number of the example in the file, from 0. */
  example: number;
  /** Sequences of the token file. */
  sequences: readonly number[];
  rows: number;
}

export interface PlanShape {
  batchSize: number;
  epochs: number;
  stepsMax?: number | undefined;
  packing: boolean;
  seed: number;
  rowsMax: number;
}

export interface Step {
  /** From 1. */
  step: number;
  items: PlanItem[];
  microBatches: PlanItem[][];
  rows: number;
  /** Whether this step ends an epoch, or the run. */
  epochEnds: boolean;
}

export class Plan {
  readonly steps: number;
  readonly stepsPerEpoch: number;
  private readonly shape: PlanShape;
  /** Items of each example that has any. */
  private readonly examples: readonly (readonly PlanItem[])[];
  private order: { epoch: number; indices: Int32Array } | null = null;

  /** `examples`: the items of each example; those without are not there. */
  constructor(examples: readonly (readonly PlanItem[])[], shape: PlanShape) {
    if (examples.length === 0) throw new Error('a plan needs examples');
    for (const items of examples) {
      for (const { rows } of items)
        if (rows > shape.rowsMax) throw new Error('an example is longer than a micro-batch');
    }
    this.examples = examples;
    this.shape = shape;
    this.stepsPerEpoch = Math.ceil(examples.length / shape.batchSize);
    const wanted = Math.max(1, Math.ceil(shape.epochs * this.stepsPerEpoch - 1e-9));
    this.steps = Math.min(wanted, shape.stepsMax ?? wanted);
  }

  /** `step` from 1. */
  step(step: number): Step {
    const epoch = Math.floor((step - 1) / this.stepsPerEpoch);
    const within = (step - 1) % this.stepsPerEpoch;
    const { batchSize } = this.shape;
    const chosen = this.indices(epoch).subarray(within * batchSize, (within + 1) * batchSize);
    const items = [...chosen].flatMap((index) => this.examples[index] as readonly PlanItem[]);
    return {
      step,
      items,
      microBatches: pack(items, this.shape.rowsMax, this.shape.packing),
      rows: items.reduce((sum, item) => sum + item.rows, 0),
      epochEnds: within === this.stepsPerEpoch - 1 || step === this.steps,
    };
  }

  /** Rows of the whole run. */
  get rows(): number {
    const rowsOf = (step: number) => this.step(step).rows;
    const epochs = Math.floor(this.steps / this.stepsPerEpoch);
    const all = this.examples.flat().reduce((sum, item) => sum + item.rows, 0);
    let rows = epochs * all;
    for (let step = epochs * this.stepsPerEpoch + 1; step <= this.steps; step++) rows += rowsOf(step);
    return rows;
  }

  private indices(epoch: number): Int32Array {
    if (this.order?.epoch !== epoch) {
      const indices = Int32Array.from(this.examples, (_, index) => index);
      this.order = { epoch, indices: shuffle(indices, mix(this.shape.seed, epoch)) };
    }
    return this.order.indices;
  }
}

/**
 * First fit, longest first: at most 11/9 of the fewest bins possible (Johnson 1973). Ties keep the order they had. Without
 * packing each item is alone.
 */
export function pack(items: readonly PlanItem[], rowsMax: number, packing: boolean): PlanItem[][] {
  if (!packing) return items.map((item) => [item]);
  const bins: { free: number; items: PlanItem[] }[] = [];
  for (const item of [...items].sort((a, b) => b.rows - a.rows)) {
    const bin = bins.find(({ free }) => free >= item.rows);
    if (bin === undefined) bins.push({ free: rowsMax - item.rows, items: [item] });
    else {
      bin.items.push(item);
      bin.free -= item.rows;
    }
  }
  return bins.map((bin) => bin.items);
}

/** As `pack`, for sets of any size: the time of first fit grows with the square of what it packs. */
export function* packInParts(items: readonly PlanItem[], rowsMax: number, packing: boolean): Generator<PlanItem[]> {
  const { packedTogether } = TRAINING_LIMITS;
  for (let at = 0; at < items.length; at += packedTogether) {
    yield* pack(items.slice(at, at + packedTogether), rowsMax, packing);
  }
}

/** Rows of a micro-batch for a model: as many as keep its kernels busy, few enough to hand over the cores soon. */
export function microBatchRows(info: Pick<ModelInfo, 'targets'>): number {
  const macs = Object.values(info.targets).reduce((sum, { in: width, out }) => sum + width * out, 0);
  const { microBatchMacs, microBatchRowsMin, microBatchRowsMax } = TRAINING_LIMITS;
  const rows = Math.round(microBatchMacs / macs / 32) * 32;
  return Math.min(microBatchRowsMax, Math.max(microBatchRowsMin, rows));
}

/** Learning rate of a step (from 1): rises linearly over the warm-up, then falls along the schedule. */
export function learningRate(
  recipe: Pick<Recipe, 'learningRate' | 'scheduler' | 'warmupRatio'>,
  step: number,
  steps: number,
): number {
  const warmup = Math.ceil(recipe.warmupRatio * steps);
  if (step <= warmup) return (recipe.learningRate * step) / warmup;
  const done = (step - 1 - warmup) / Math.max(1, steps - warmup);
  switch (recipe.scheduler) {
    case 'constant':
      return recipe.learningRate;
    case 'linear':
      return recipe.learningRate * (1 - done);
    case 'cosine':
      return recipe.learningRate * 0.5 * (1 + Math.cos(Math.PI * done));
  }
}
