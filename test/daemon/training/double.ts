/** A Trainer that computes next to nothing, but whose weights depend on every row, weight, order and setting that reached it. */
import type { TrainedPair, Trainer, TrainingRows, UpdateOptions } from '../../../addon/types.ts';

const PARAMETERS = 8;

export interface DoubleTrainerScript {
  /** Called before each accumulate, with how often it was called in all. */
  onAccumulate?(call: number): void;
  /** Loss of a call instead of its own. */
  lossOf?(call: number): number | undefined;
  /** Loss that `evaluate` gives, by how often it was called. */
  evaluateLoss?(call: number): number | undefined;
}

export class DoubleTrainer implements Trainer {
  readonly parameters = PARAMETERS;
  readonly bytes = 0;
  private values = Float64Array.from({ length: PARAMETERS }, (_, i) => i / 10);
  private moments = new Float64Array(PARAMETERS);
  private steps = 0;
  private gradient = new Float64Array(PARAMETERS);
  accumulations = 0;
  evaluations = 0;
  /** Sizes of all micro-batches, in order. */
  readonly batches: number[] = [];
  closed = false;
  private readonly script: DoubleTrainerScript;

  constructor(script: DoubleTrainerScript = {}) {
    this.script = script;
  }

  accumulate(rows: TrainingRows, divisor: number) {
    this.accumulations += 1;
    this.script.onAccumulate?.(this.accumulations);
    this.batches.push(rows.tokens.length);
    const sums = this.sumsOf(rows, true);
    for (let row = 0; row < rows.tokens.length; row++) {
      const place = row % PARAMETERS;
      // Depends on what was added before, so that the order within a step matters too.
      const weight = rows.weights[row] as number;
      this.gradient[place] =
        (this.gradient[place] as number) * 0.999 + (Math.sin((rows.tokens[row] as number) + row) * weight) / divisor;
    }
    const loss = this.script.lossOf?.(this.accumulations);
    return loss === undefined ? sums : { ...sums, loss };
  }

  accumulatePreference(rows: TrainingRows, reference: Float64Array, beta: number, divisor: number) {
    const sums = this.accumulate(rows, divisor);
    const margin = reference.reduce((sum, value, i) => sum + (i % 2 === 0 ? -value : value), 0) * beta;
    this.gradient[0] = (this.gradient[0] as number) + margin / divisor;
    const pairs = reference.length / 2;
    return { ...sums, loss: pairs * 0.7, weight: pairs, preferred: pairs, margin };
  }

  evaluate(rows: TrainingRows) {
    this.evaluations += 1;
    const sums = this.sumsOf(rows, true);
    const loss = this.script.evaluateLoss?.(this.evaluations);
    return loss === undefined ? sums : { ...sums, loss: loss * sums.weight };
  }

  logProbabilities(rows: TrainingRows, adapter: boolean): Float64Array {
    return Float64Array.from({ length: rows.starts.length - 1 }, (_, i) => {
      let sum = 0;
      for (let row = rows.starts[i] as number; row < (rows.starts[i + 1] as number); row++) {
        sum -= (rows.weights[row] as number) * (1 + Math.abs(Math.cos(rows.tokens[row] as number)));
      }
      return adapter ? sum * (1 + (this.values[0] as number)) : sum;
    });
  }

  update(options: UpdateOptions) {
    const norm = Math.hypot(...this.gradient);
    this.steps += 1;
    for (let i = 0; i < PARAMETERS; i++) {
      this.moments[i] =
        options.beta1 * (this.moments[i] as number) + (1 - options.beta1) * (this.gradient[i] as number);
      this.values[i] = (this.values[i] as number) - options.learningRate * (this.moments[i] as number) * this.steps;
    }
    this.gradient.fill(0);
    return { gradientNorm: norm, applied: Number.isFinite(norm) };
  }

  pairs(): TrainedPair[] {
    return [];
  }
  gradients() {
    return [];
  }
  setPairs(): void {}
  prefix() {
    return [];
  }

  snapshot(): Uint8Array {
    return new Uint8Array(Float64Array.from([...this.values, ...this.moments, this.steps]).buffer);
  }

  restore(snapshot: Uint8Array): void {
    const all = new Float64Array(Uint8Array.from(snapshot).buffer);
    this.values = all.slice(0, PARAMETERS);
    this.moments = all.slice(PARAMETERS, 2 * PARAMETERS);
    this.steps = all[2 * PARAMETERS] as number;
    this.gradient.fill(0);
  }

  longestHoldMs(): number {
    return 0;
  }
  close(): void {
    this.closed = true;
  }

  private sumsOf(rows: TrainingRows, moving: boolean) {
    const weight = rows.weights.reduce((sum, one) => sum + one, 0);
    const pull = moving ? (this.values[1] as number) : 0;
    return { loss: weight * (2 + pull), weight, correct: weight / 2, counted: weight, computeMicros: 1 };
  }
}
