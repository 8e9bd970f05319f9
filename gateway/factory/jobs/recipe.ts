/** What "auto" becomes: OpenAI's rules where they are known, else what suits small data on one machine. */
import { type Recipe, recipe as recipeSchema } from '../../../daemon/protocol.ts';
import type { JobMethod } from '../../db/schema.ts';
import type { Extension } from './request.ts';

/** What a multiplier of 1 stands for. */
export const LEARNING_RATE = 2e-4;
/** Preference training starts from what the model says already, and wants smaller steps. */
const DPO_MULTIPLIER = 0.1;
const DPO_BETA = 0.1;
/** Longer examples are rare in fine-tuning sets, and memory grows with them. */
const CONTEXT_TOKENS_DEFAULT = 2048;
/** Measurements of the validation loss over a whole run, at most. */
const VALIDATIONS_MAX = 20;
/** Examples of the validation set that one of them looks at; the daemon samples no more. */
const VALIDATION_SAMPLE = 32;
/** Examples validated for each that is trained on. Half of them costs a sixth of the time, for there is no way back. */
const VALIDATION_SHARE = 0.5;

/** OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning"): three epochs, but 100 to 25,000 examples seen in all. */
export function autoEpochs(examples: number): number {
  if (examples * 3 < 100) return Math.min(25, Math.max(1, Math.floor(100 / examples)));
  if (examples * 3 > 25_000) return Math.max(1, Math.floor(25_000 / examples));
  return 3;
}

/** 0.2 % of the examples, at most 256; small sets take 4 to 16, so that there are steps enough and none is noise. */
export function autoBatch(examples: number): number {
  const small = Math.min(16, Math.max(4, Math.floor(examples / 16)));
  return Math.min(256, Math.max(small, Math.round(examples * 0.002)), Math.max(1, examples));
}

/** Steps from one validation to the next: often enough for a curve, without most of the time going into it. */
export function autoValidation(steps: number, batch: number, examples: number): number {
  const affordable = Math.floor(
    (VALIDATION_SHARE * steps * batch) / Math.max(1, Math.min(VALIDATION_SAMPLE, examples)),
  );
  return Math.ceil(steps / Math.min(VALIDATIONS_MAX, Math.max(1, affordable)));
}

export function resolveRecipe(job: {
  method: JobMethod;
  extension: Extension;
  seed: number;
  examples: number;
  contextTokens: number;
  /** Examples of the validation set; null without one. */
  validation: number | null;
}): Recipe {
  const { extension: ext, method } = job;
  const { n_epochs, batch_size, learning_rate_multiplier, beta } = method.hyperparameters;
  const epochs = n_epochs === 'auto' ? autoEpochs(job.examples) : n_epochs;
  const batchSize = batch_size === 'auto' ? autoBatch(job.examples) : batch_size;
  const multiplier =
    learning_rate_multiplier === 'auto' ? (method.type === 'dpo' ? DPO_MULTIPLIER : 1) : learning_rate_multiplier;
  const steps = Math.min(ext.steps_max ?? Number.POSITIVE_INFINITY, Math.ceil(job.examples / batchSize) * epochs);
  const validateEvery =
    job.validation === null
      ? undefined
      : (ext.validate_every_steps ?? autoValidation(steps, batchSize, job.validation));
  return recipeSchema.parse({
    method:
      method.type === 'dpo'
        ? { type: 'dpo', beta: beta === undefined || beta === 'auto' ? DPO_BETA : beta }
        : { type: 'supervised' },
    adapter: {
      type: 'lora',
      ...given('rank', ext.rank),
      // Twice the rank, as is usual.
      ...given('alpha', ext.alpha ?? (ext.rank === undefined ? undefined : 2 * ext.rank)),
      ...given('rslora', ext.rslora),
      ...given('targets', ext.target_modules === 'all-linear' ? undefined : ext.target_modules),
      ...given('dropout', ext.dropout),
    },
    epochs,
    batchSize,
    learningRate: Math.min(1, ext.learning_rate ?? multiplier * LEARNING_RATE),
    contextTokens: Math.min(ext.context_tokens ?? CONTEXT_TOKENS_DEFAULT, job.contextTokens),
    seed: job.seed,
    ...given('stepsMax', ext.steps_max),
    ...given('scheduler', ext.scheduler),
    ...given('warmupRatio', ext.warmup_ratio),
    ...given('weightDecay', ext.weight_decay),
    ...given('clipNorm', ext.max_grad_norm),
    ...given('packing', ext.packing),
    ...given('recompute', ext.activation_checkpointing),
    ...given('checkpointEverySteps', ext.checkpoint_every_steps),
    ...given('validateEverySteps', validateEvery),
    ...given(
      'earlyStopping',
      ext.early_stopping === undefined
        ? undefined
        : { patience: ext.early_stopping.patience, ...given('minDelta', ext.early_stopping.min_delta) },
    ),
  });
}

function given<K extends string, V>(name: K, value: V | undefined): { [key in K]?: V } {
  return value === undefined ? {} : ({ [name]: value } as { [key in K]?: V });
}

const rounded = (value: number) => Number(value.toPrecision(6));

/** The three numbers OpenAI shows of a recipe (four with dpo). */
export function hyperparametersOf(method: JobMethod, recipe: Recipe | null): JobMethod['hyperparameters'] {
  if (recipe === null) return method.hyperparameters;
  return {
    n_epochs: recipe.epochs,
    batch_size: recipe.batchSize,
    learning_rate_multiplier: rounded(recipe.learningRate / LEARNING_RATE),
    ...(recipe.method.type === 'dpo' ? { beta: recipe.method.beta } : {}),
  };
}

/** The rest of it, under the names of the request's extension block. */
export function extensionOf(recipe: Recipe): Record<string, unknown> {
  const lora = recipe.adapter.type === 'lora' ? recipe.adapter : null;
  return {
    ...(lora === null
      ? {}
      : {
          rank: lora.rank,
          alpha: lora.alpha,
          rslora: lora.rslora,
          target_modules: lora.targets,
          dropout: lora.dropout,
        }),
    learning_rate: recipe.learningRate,
    scheduler: recipe.scheduler,
    warmup_ratio: recipe.warmupRatio,
    weight_decay: recipe.weightDecay,
    max_grad_norm: recipe.clipNorm,
    packing: recipe.packing,
    activation_checkpointing: recipe.recompute,
    context_tokens: recipe.contextTokens,
    ...(recipe.earlyStopping === undefined
      ? {}
      : {
          early_stopping: { patience: recipe.earlyStopping.patience, min_delta: recipe.earlyStopping.minDelta },
        }),
    ...(recipe.checkpointEverySteps === undefined ? {} : { checkpoint_every_steps: recipe.checkpointEverySteps }),
    ...(recipe.validateEverySteps === undefined ? {} : { validate_every_steps: recipe.validateEverySteps }),
    ...(recipe.stepsMax === undefined ? {} : { steps_max: recipe.stepsMax }),
  };
}
