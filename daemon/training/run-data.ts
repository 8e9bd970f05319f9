/** A tokenised dataset as one run sees it: cut at its context, without what has nothing to learn. */
import type { ModelInfo, TrainerOptions } from '../../addon/types.ts';
import { TARGETS } from '../../addon/types.ts';
import { PEFT_MODULES } from '../adapters/peft.ts';
import { microBatchRows, Plan, type PlanItem } from './plan.ts';
import type { Dataset, Recipe } from './protocol.ts';
import { RunError } from './run-error.ts';
import { TokenFile, type TokenFileSize } from './token-file.ts';

export interface RunFiles {
  tokensPath: string;
  size: TokenFileSize;
  kind: Dataset['kind'];
}

export class RunData {
  readonly file: TokenFile;
  /** Items of each example that has any. */
  readonly examples: PlanItem[][];
  readonly longest: number;
  /** Examples that are left out, since nothing of them can be learnt within the run's context. */
  readonly skipped: number;
  private readonly contextTokens: number;

  /** @throws RunError `invalid_training_file` or `invalid_validation_file` */
  constructor(files: RunFiles, recipe: Recipe, param: 'training_file' | 'validation_file') {
    const dpo = recipe.method.type === 'dpo';
    const bad = (message: string) => new RunError(`invalid_${param}`, message, param);
    if (dpo !== (files.kind === 'preference')) {
      throw bad(
        dpo
          ? `The method dpo learns from preferences, but the file holds ${files.kind} examples.`
          : 'The file holds preferences, from which only the method dpo learns.',
      );
    }
    this.contextTokens = recipe.contextTokens;
    this.file = new TokenFile(files.tokensPath, files.size);
    const byExample = new Map<number, number[]>();
    let numbered = 0;
    for (let sequence = 0; sequence < this.file.sequences; sequence++) {
      const example = this.file.example(sequence);
      numbered = example + 1;
      byExample.set(example, [...(byExample.get(example) ?? []), sequence]);
    }
    const learns = (sequence: number) => this.file.trained(sequence, this.contextTokens) > 0;
    const item = (example: number, sequences: number[]): PlanItem => ({
      example,
      sequences,
      rows: sequences.reduce((sum, sequence) => sum + this.file.length(sequence, this.contextTokens), 0),
    });
    this.examples = [];
    for (const [example, sequences] of byExample) {
      if (dpo) {
        if (sequences.length === 2 && sequences.every(learns)) this.examples.push([item(example, sequences)]);
      } else {
        const items = sequences.filter(learns).map((sequence) => item(example, [sequence]));
        if (items.length > 0) this.examples.push(items);
      }
    }
    this.skipped = numbered - this.examples.length;
    this.longest = this.examples.flat().reduce((most, { rows }) => Math.max(most, rows), 0);
    if (this.examples.length === 0) {
      this.file.close();
      throw bad(
        `Nothing in the file can be learnt: within ${recipe.contextTokens} tokens no example has an answer to train.`,
      );
    }
  }

  rows(items: readonly PlanItem[]) {
    return this.file.rows(
      items.flatMap(({ sequences }) => sequences),
      this.contextTokens,
    );
  }

  /** Σ weight of these items. */
  weight(items: readonly PlanItem[]): number {
    let sum = 0;
    for (const { sequences } of items)
      for (const sequence of sequences) sum += this.file.trained(sequence, this.contextTokens);
    return sum;
  }

  close(): void {
    this.file.close();
  }
}

/** Longest item of training and validation decide the size of a micro-batch along with the model. */
export function rowsMaxOf(info: Pick<ModelInfo, 'targets'>, data: readonly (RunData | null)[]): number {
  return data.reduce((most, one) => Math.max(most, one?.longest ?? 0), microBatchRows(info));
}

export function planOf(data: RunData, recipe: Recipe, rowsMax: number): Plan {
  const { batchSize, epochs, stepsMax, packing, seed } = recipe;
  return new Plan(data.examples, { batchSize, epochs, stepsMax, packing, seed, rowsMax });
}

export function trainerOptions(recipe: Recipe, rowsMax: number, share: number, recompute: boolean): TrainerOptions {
  const { adapter, seed } = recipe;
  const common = { seed, rowsMax, share, recompute };
  if (adapter.type === 'prefix') {
    return { ...common, method: 'prefix', targets: [], rank: 1, scale: 1, dropout: 0, prefixTokens: adapter.tokens };
  }
  const targets = TARGETS.filter((target) => adapter.targets.some((name) => PEFT_MODULES[target].endsWith(`.${name}`)));
  const scale = adapter.alpha / (adapter.rslora ? Math.sqrt(adapter.rank) : adapter.rank);
  return { ...common, method: 'lora', targets, rank: adapter.rank, scale, dropout: adapter.dropout, prefixTokens: 0 };
}
