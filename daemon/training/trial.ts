/** Plans a run without starting it and, if asked, times a few of its own micro-batches on this machine. */
import type { Model, Trainer } from '../../addon/types.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { availableBytes, neededBytes } from './memory.ts';
import type { Trial, TrialRates, TrialTask } from './messages.ts';
import type { Plan, PlanItem } from './plan.ts';
import type { Recipe } from './protocol.ts';
import { planOf, RunData, rowsMaxOf, trainerOptions } from './run-data.ts';

/** Of a checkpoint beside the snapshot: encoding, hashing, syncing to disk, and what makes it servable. Measured. */
export const PUBLISH_SECONDS = 0.25;
/** From the turn of a run to its first micro-batch, and from its last to the end: a worker, its data, the result. Measured. */
const START_AND_END_SECONDS = 0.75;

export function trial(model: Model, task: TrialTask): Trial {
  const { recipe } = task;
  const data = new RunData(task.training, recipe, 'training_file');
  let validation: RunData | null = null;
  try {
    validation = task.validation === null ? null : new RunData(task.validation, recipe, 'validation_file');
    const rowsMax = rowsMaxOf(model.info, [data, validation]);
    const plan = planOf(data, recipe, rowsMax);
    const rowsOf = (items: readonly PlanItem[]) => items.reduce((sum, { rows }) => sum + rows, 0);
    const validationRows = rowsOf(validation?.examples.flat() ?? []);
    const sampled = Math.min(1, TRAINING_LIMITS.validationSample / Math.max(1, validation?.examples.length ?? 1));
    const kept = (recompute: boolean) =>
      neededBytes(model.trainerMemory(trainerOptions(recipe, rowsMax, task.share, recompute)));
    const free = availableBytes();
    const recompute = recipe.recompute === 'auto' ? kept(false) > free / 2 : recipe.recompute;
    const memoryBytes = kept(recompute);
    return {
      steps: plan.steps,
      epochs: plan.steps / plan.stepsPerEpoch,
      rows: plan.rows,
      validationRows,
      sampleRows: validationRows * sampled,
      longest: data.longest,
      skipped: data.skipped,
      memoryBytes,
      rates: task.measure && memoryBytes <= free ? measure(model, task, { data, plan, rowsMax, recompute }) : null,
    };
  } finally {
    data.close();
    validation?.close();
  }
}

interface Measured {
  data: RunData;
  plan: Plan;
  rowsMax: number;
  recompute: boolean;
}

function measure(model: Model, { recipe, share }: TrialTask, { data, plan, rowsMax, recompute }: Measured): TrialRates {
  const seconds = (work: () => void): number => {
    const start = performance.now();
    work();
    return (performance.now() - start) / 1000;
  };
  const start = performance.now();
  const trainer = model.createTrainer(trainerOptions(recipe, rowsMax, share, recompute));
  try {
    const batches = someBatches(plan);
    const first = batches[0] as PlanItem[];
    const references = new References(trainer, data);
    const compute = (items: PlanItem[]) => forwardAndBack(trainer, recipe, data, items, references);
    if (recipe.method.type === 'dpo') references.of(first);
    // The first call makes what the others reuse; its extra time comes once in a run too.
    const cold = seconds(() => compute(first));
    const setup = (performance.now() - start) / 1000;
    const update = {
      learningRate: 0,
      beta1: recipe.adamBeta1,
      beta2: recipe.adamBeta2,
      epsilon: recipe.adamEpsilon,
      weightDecay: 0,
      clipNorm: recipe.clipNorm,
    };
    let spent = 0;
    let rows = 0;
    let done = 0;
    for (const items of batches.slice(1).concat(batches)) {
      if (recipe.method.type === 'dpo') references.of(items);
      spent += seconds(() => compute(items));
      rows += items.reduce((sum, item) => sum + item.rows, 0);
      done += 1;
      const all = spent + references.seconds;
      if (done >= TRAINING_LIMITS.trialMicroBatchesMax || all * 1000 > TRAINING_LIMITS.trialMs) break;
    }
    const firstRows = first.reduce((sum, item) => sum + item.rows, 0);
    const secondsPerRow = spent / rows;
    const evaluated = seconds(() => trainer.evaluate(data.rows(first), true));
    return {
      setupSeconds: Math.max(0, setup - Math.min(cold, firstRows * secondsPerRow)),
      secondsPerRow,
      evaluateSecondsPerRow: evaluated / firstRows,
      referenceSecondsPerRow: references.secondsPerRow,
      updateSeconds: seconds(() => trainer.update(update)),
      saveSeconds: seconds(() => void trainer.snapshot()) + PUBLISH_SECONDS,
    };
  } finally {
    trainer.close();
  }
}

/** Micro-batches of steps spread over the first epoch: lengths differ, and so does what they cost. */
function someBatches(plan: Plan): PlanItem[][] {
  const all: PlanItem[][] = [];
  const steps = Math.min(plan.steps, plan.stepsPerEpoch);
  const stride = Math.max(1, Math.floor(steps / TRAINING_LIMITS.trialMicroBatchesMax));
  for (let step = 1; step <= steps && all.length <= 2 * TRAINING_LIMITS.trialMicroBatchesMax; step += stride) {
    all.push(...plan.step(step).microBatches);
  }
  return all.length > 1 ? all : [...all, ...all];
}

/** As a run rates them: each pair by itself, and once. */
class References {
  seconds = 0;
  private rows = 0;
  private readonly known = new Map<PlanItem[], Float64Array>();
  private readonly trainer: Trainer;
  private readonly data: RunData;

  constructor(trainer: Trainer, data: RunData) {
    this.trainer = trainer;
    this.data = data;
  }

  get secondsPerRow(): number {
    return this.rows === 0 ? 0 : this.seconds / this.rows;
  }

  of(items: PlanItem[]): Float64Array {
    const known = this.known.get(items);
    if (known !== undefined) return known;
    const start = performance.now();
    const found = items.flatMap((item) => [...this.trainer.logProbabilities(this.data.rows([item]), false)]);
    this.seconds += (performance.now() - start) / 1000;
    this.rows += items.reduce((sum, { rows }) => sum + rows, 0);
    this.known.set(items, Float64Array.from(found));
    return Float64Array.from(found);
  }
}

function forwardAndBack(
  trainer: Trainer,
  recipe: Recipe,
  data: RunData,
  items: PlanItem[],
  references: References,
): void {
  const rows = data.rows(items);
  if (recipe.method.type !== 'dpo') {
    trainer.accumulate(rows, Math.max(1, data.weight(items)));
    return;
  }
  trainer.accumulatePreference(rows, references.of(items), recipe.method.beta, items.length);
}

/** Passes over the validation set cost what they cost beside the steps. */
export function trialSeconds(found: Trial, rates: TrialRates, recipe: Recipe): number {
  const validations = recipe.validateEverySteps === undefined ? 0 : Math.floor(found.steps / recipe.validateEverySteps);
  const epochs = Math.ceil(found.epochs - 1e-9);
  const saves =
    epochs + (recipe.checkpointEverySteps === undefined ? 0 : Math.floor(found.steps / recipe.checkpointEverySteps));
  const validated = epochs * found.validationRows + validations * found.sampleRows;
  // Each answer of a pair is rated by the base once, however many epochs there are.
  const rated = recipe.method.type === 'dpo' ? found.rows / Math.max(1, found.epochs) + found.validationRows : 0;
  return (
    START_AND_END_SECONDS +
    rates.setupSeconds +
    rated * rates.referenceSecondsPerRow +
    found.rows * rates.secondsPerRow +
    found.steps * rates.updateSeconds +
    validated * rates.evaluateSecondsPerRow +
    saves * rates.saveSeconds
  );
}
