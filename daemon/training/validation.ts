/** What a trainer makes of examples without learning from them: the validation loss, and the base's view of preferences. */
import type { Trainer } from '../../addon/types.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { type PlanItem, packInParts } from './plan.ts';
import type { Recipe } from './protocol.ts';
import { mix, shuffle } from './random.ts';
import type { RunData } from './run-data.ts';

export interface Measured {
  loss: number;
  accuracy: number;
}

export interface ValidationOptions {
  recipe: Recipe;
  trainer: Trainer;
  rowsMax: number;
}

export class Validation {
  private readonly o: ValidationOptions;
  /** Asked before each micro-batch; throws to leave what is under way. */
  private readonly check: () => void;
  /** Σ log p of the two answers of a pair under the base, by example. */
  private readonly references = new Map<RunData, Map<number, [number, number]>>();

  constructor(options: ValidationOptions, check: () => void) {
    this.o = options;
    this.check = check;
  }

  measure(data: RunData, items: readonly PlanItem[]): Measured {
    const { recipe, trainer, rowsMax } = this.o;
    const total = { loss: 0, weight: 0, correct: 0, counted: 0 };
    for (const batch of packInParts(items, rowsMax, recipe.packing)) {
      this.check();
      const rows = data.rows(batch);
      if (recipe.method.type !== 'dpo') {
        add(total, trainer.evaluate(rows, true));
        continue;
      }
      const reference = this.referencesOf(data, batch);
      const own = trainer.logProbabilities(rows, true);
      for (let pair = 0; pair < batch.length; pair++) {
        const gain = (i: number) => (own[i] as number) - (reference[i] as number);
        const margin = recipe.method.beta * (gain(2 * pair) - gain(2 * pair + 1));
        total.loss += Math.log1p(Math.exp(-Math.abs(margin))) + Math.max(0, -margin);
        total.weight += 1;
        total.correct += margin > 0 ? 1 : 0;
        total.counted += 1;
      }
    }
    return { loss: total.loss / total.weight, accuracy: total.correct / total.counted };
  }

  /** The same examples at every validation, so that their losses can be compared. */
  sampleOf(data: RunData): PlanItem[] {
    const order = Int32Array.from(data.examples, (_, index) => index);
    shuffle(order, mix(this.o.recipe.seed, -1));
    return [...order.subarray(0, TRAINING_LIMITS.validationSample)].flatMap(
      (index) => data.examples[index] as PlanItem[],
    );
  }

  /** Each pair is computed by itself, once: what it is does not depend on what it was packed with, nor on a restart. */
  referencesOf(data: RunData, items: readonly PlanItem[]): Float64Array {
    const known = this.references.get(data) ?? new Map<number, [number, number]>();
    this.references.set(data, known);
    const out = new Float64Array(items.length * 2);
    for (const [i, item] of items.entries()) {
      let pair = known.get(item.example);
      if (pair === undefined) {
        this.check();
        const [chosen, rejected] = this.o.trainer.logProbabilities(data.rows([item]), false);
        pair = [chosen as number, rejected as number];
        known.set(item.example, pair);
      }
      out.set(pair, 2 * i);
    }
    return out;
  }
}

export function add(sums: { loss: number; weight: number; correct: number; counted: number }, got: typeof sums): void {
  sums.loss += got.loss;
  sums.weight += got.weight;
  sums.correct += got.correct;
  sums.counted += got.counted;
}
