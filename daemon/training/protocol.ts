/**
 * What gateway and daemon say to each other about training, evaluation and what comes out of them. Part of ../protocol.ts.
 *
 *   POST   /datasets                        NDJSON of TrainingExample → Dataset (streamed to disk; known by the SHA-256 of its bytes)
 *   GET    /datasets/{digest}               Dataset
 *   DELETE /datasets/{digest}               { digest, deleted: true }; 409 while a run that is not over needs it
 *   POST   /training/estimate               EstimateRequest → Estimate
 *   PUT    /training/runs/{id}              RunRequest → TrainingRun; the same id with the same request is the same run (201 new, 200 known)
 *   GET    /training/runs                   { data: TrainingRun[] }
 *   GET    /training/runs/{id}              TrainingRun
 *   GET    /training/runs/{id}/events?after=SEQ&follow=true   NDJSON of TrainingEvent from SEQ + 1 on; with follow, stays open until the run is over
 *   POST   /training/runs/{id}/cancel | /pause | /resume      TrainingRun
 *   GET    /training/runs/{id}/results      CSV, a row per optimiser step
 *   DELETE /training/runs/{id}              forgets a run that is over (its adapters stay)
 *   POST   /evaluations                     EvaluationRequest → NDJSON of EvaluationEvent; closing the connection cancels
 *   GET    /evaluations?adapter=NAME        { data: EvaluationReport[] }, newest first; without a name, all
 *   GET    /evaluations/{id}                EvaluationReport
 *   POST   /graders/run                     GraderRunRequest → GraderRunResponse
 *   GET    /adapters/{name}/export?format=peft|gguf|merged    a .tar (peft) or .gguf, streamed
 *   GET    /adapters/{name}/card            AdapterCard
 */
import { z } from 'zod';

/** Without slashes or dots first: also a folder's name. */
export const runId = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/);
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const adapterId = z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9._:@-]{0,127}$/);

/** An OpenAI chat message with its content reduced to text; `weight` 0: an assistant message that is not trained against. */
export const trainingMessage = z
  .object({
    role: z.enum(['system', 'developer', 'user', 'assistant', 'tool', 'function']),
    content: z.string().nullable(),
    weight: z.union([z.literal(0), z.literal(1)]).optional(),
  })
  .catchall(z.unknown());
export type TrainingMessage = z.output<typeof trainingMessage>;

/** One line of a dataset. */
export const trainingExample = z.discriminatedUnion('kind', [
  z.object({
    kind: z.literal('chat'),
    messages: z.array(trainingMessage).min(1),
    tools: z.array(z.record(z.string(), z.unknown())).optional(),
    parallelToolCalls: z.boolean().optional(),
  }),
  z.object({ kind: z.literal('completion'), prompt: z.string(), completion: z.string() }),
  z.object({
    kind: z.literal('preference'),
    messages: z.array(trainingMessage).min(1),
    tools: z.array(z.record(z.string(), z.unknown())).optional(),
    parallelToolCalls: z.boolean().optional(),
    preferred: trainingMessage,
    rejected: trainingMessage,
  }),
]);
export type TrainingExample = z.output<typeof trainingExample>;

/** Statistics are of the daemon's base model's own tokenizer and chat template. */
export interface Dataset {
  digest: string;
  bytes: number;
  kind: TrainingExample['kind'];
  examples: number;
  /** All tokens, prompts included, before truncation. */
  tokens: number;
  /** Tokens that count in the loss. */
  trainedTokens: number;
  /** Examples longer than the model's context, which would be cut. */
  truncated: number;
  duplicates: number;
  longest: number;
  /** Equal-width bins over the examples' lengths in tokens: `counts[i]` examples have lengths in [i · width, (i + 1) · width). */
  histogram: { width: number; counts: number[] };
  /** What the tokenizer or the template refused, first 100: the example's number from 1, and why. */
  problems: { example: number; message: string }[];
}

export const LINEAR_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;

/** All that decides the weights that come out, but for base and data. Nothing here is "auto": the gateway has resolved that. */
export const recipe = z.object({
  method: z.discriminatedUnion('type', [
    z.object({ type: z.literal('supervised') }),
    z.object({ type: z.literal('dpo'), beta: z.number().gt(0).max(2) }),
  ]),
  adapter: z.discriminatedUnion('type', [
    z.object({
      type: z.literal('lora'),
      rank: z.number().int().min(1).max(256).default(8),
      alpha: z.number().gt(0).max(4096).default(16),
      rslora: z.boolean().default(false),
      /** HF names of linear layers. */
      targets: z
        .array(z.enum(LINEAR_TARGETS))
        .min(1)
        .max(7)
        .default([...LINEAR_TARGETS]),
      dropout: z.number().min(0).max(0.9).default(0),
    }),
    /** P-Tuning v2, the measured baseline; its result is not served as an adapter. */
    z.object({ type: z.literal('prefix'), tokens: z.number().int().min(1).max(1024).default(128) }),
  ]),
  epochs: z.number().min(0.01).max(50),
  /** Ends earlier if this many optimiser steps come first. */
  stepsMax: z.number().int().min(1).optional(),
  /** Examples (pairs with dpo) per optimiser step. */
  batchSize: z.number().int().min(1).max(256),
  learningRate: z.number().gt(0).max(1),
  scheduler: z.enum(['cosine', 'linear', 'constant']).default('cosine'),
  warmupRatio: z.number().min(0).max(0.5).default(0.03),
  weightDecay: z.number().min(0).max(1).default(0),
  clipNorm: z.number().min(0).max(1000).default(1),
  adamBeta1: z.number().min(0).lt(1).default(0.9),
  adamBeta2: z.number().min(0).lt(1).default(0.999),
  adamEpsilon: z.number().gt(0).max(0.1).default(1e-8),
  /** Longer examples are cut at the end. */
  contextTokens: z.number().int().min(16).max(131_072),
  /** Compute several examples together without padding; off: one example at a time. */
  packing: z.boolean().default(true),
  /** Activation checkpointing; auto: where the activations would not fit otherwise. */
  recompute: z.union([z.boolean(), z.literal('auto')]).default('auto'),
  seed: z.number().int().min(0).max(2_147_483_647),
  /** Besides one at the end of each epoch. */
  checkpointEverySteps: z.number().int().min(1).optional(),
  /** Validation on a sample of the validation set; the whole set is run at the end of each epoch. */
  validateEverySteps: z.number().int().min(1).optional(),
  earlyStopping: z
    .object({ patience: z.number().int().min(1).max(100), minDelta: z.number().min(0).default(0) })
    .optional(),
});
export type Recipe = z.output<typeof recipe>;
export type RecipeInput = z.input<typeof recipe>;

export const estimateRequest = z.object({ dataset: sha256, validation: sha256.optional(), recipe });
export type EstimateRequest = z.output<typeof estimateRequest>;
export interface Estimate {
  steps: number;
  /** Tokens computed over the whole run, prompts included. */
  tokens: number;
  /** Tokens charged for (all tokens × epochs, as OpenAI counts trained_tokens). */
  trainedTokens: number;
  /** Of training alone on this machine, with nothing else to compute. */
  seconds: number;
  /** Peak of the whole daemon process while training. */
  memoryBytes: number;
  memoryAvailableBytes: number;
  fits: boolean;
}

export const runRequest = z.object({
  dataset: sha256,
  validation: sha256.optional(),
  recipe,
  /** Name of the adapter that comes out; its checkpoints are `NAME:ckpt-step-N`. */
  adapter: adapterId,
  /** Who asked (hash), for fair turns in the queue. */
  owner: sha256,
  /** Goes into the model card as it is. */
  notes: z.record(z.string().max(64), z.string().max(512)).default({}),
});
export type RunRequest = z.output<typeof runRequest>;
export type RunRequestInput = z.input<typeof runRequest>;

export type RunStatus = 'queued' | 'running' | 'paused' | 'succeeded' | 'failed' | 'cancelled';
export interface CheckpointMetrics {
  step: number;
  trainLoss: number;
  trainMeanTokenAccuracy: number;
  validLoss?: number;
  validMeanTokenAccuracy?: number;
  fullValidLoss?: number;
  fullValidMeanTokenAccuracy?: number;
}
export interface RunCheckpoint {
  step: number;
  epoch: number;
  /** Name under which it is served. */
  adapter: string;
  digest: string;
  metrics: CheckpointMetrics;
  createdAt: string;
}
export interface TrainingRun {
  id: string;
  status: RunStatus;
  request: RunRequest;
  baseDigest: string;
  step: number;
  steps: number;
  epoch: number;
  trainedTokens: number;
  /** Of the last optimiser step. */
  trainLoss: number | null;
  tokensPerSecond: number | null;
  /** ISO time; null when not running. */
  estimatedFinish: string | null;
  memoryBytes: number | null;
  checkpoints: RunCheckpoint[];
  /** Codes: invalid_training_file, invalid_validation_file, insufficient_memory, loss_not_finite, disk_full, base_changed, worker_crashed, internal_error. */
  error: { code: string; message: string; param: string | null } | null;
  createdAt: string;
  startedAt: string | null;
  finishedAt: string | null;
  /** Sequence number of the newest event. */
  lastEvent: number;
}

export interface TrainingEvent {
  /** From 1, without gaps. */
  seq: number;
  time: string;
  level: 'info' | 'warn' | 'error';
  type: 'message' | 'metrics' | 'status' | 'checkpoint';
  message: string;
  /** metrics: StepMetrics; status: { status }; checkpoint: RunCheckpoint. */
  data: Record<string, unknown> | null;
}
export interface StepMetrics {
  step: number;
  steps: number;
  epoch: number;
  trainLoss: number;
  trainMeanTokenAccuracy: number;
  validLoss?: number;
  validMeanTokenAccuracy?: number;
  fullValidLoss?: number;
  fullValidMeanTokenAccuracy?: number;
  learningRate: number;
  gradientNorm: number;
  tokens: number;
  tokensPerSecond: number;
  /** Of the run, without pauses. */
  elapsedSeconds: number;
  remainingSeconds: number;
  memoryBytes: number;
  /** dpo only. */
  rewardAccuracy?: number;
  rewardMargin?: number;
}

/** Characters of a grader's templates, each. */
export const GRADER_CHARACTERS_MAX = 65_536;
const graderName = z.string().min(1).max(128);
const graderText = z.string().max(GRADER_CHARACTERS_MAX);

/** OpenAI's grader objects; templates such as {{ item.reference }} and {{ sample.output_text }}. Gateways take them so, too. */
export const stringCheckGrader = z.object({
  type: z.literal('string_check'),
  name: graderName,
  operation: z.enum(['eq', 'ne', 'like', 'ilike']),
  input: graderText,
  reference: graderText,
});
export const textSimilarityGrader = z.object({
  type: z.literal('text_similarity'),
  name: graderName,
  evaluation_metric: z.enum([
    'cosine',
    'fuzzy_match',
    'bleu',
    'gleu',
    'meteor',
    'rouge_1',
    'rouge_2',
    'rouge_3',
    'rouge_4',
    'rouge_5',
    'rouge_l',
  ]),
  input: graderText,
  reference: graderText,
});
/** Messages are plain text here; OpenAI's parts are for gateways to put together. */
export const scoreModelGrader = z.object({
  type: z.literal('score_model'),
  name: graderName,
  /** Adapter name, or the base's id. */
  model: z.string().min(1).max(256),
  input: z
    .array(z.object({ role: z.string(), content: graderText }))
    .min(1)
    .max(32),
  range: z.tuple([z.number(), z.number()]).default([0, 1]),
  sampling_params: z.record(z.string(), z.unknown()).optional(),
});
export const grader = z.discriminatedUnion('type', [stringCheckGrader, textSimilarityGrader, scoreModelGrader]);
export type Grader = z.output<typeof grader>;

/** As `price` in ../protocol.ts. */
const priceOfTokens = z.object({
  inputMicrosPerMillion: z.number().int().min(0),
  outputMicrosPerMillion: z.number().int().min(0),
  currency: z.string().length(3),
});

/** One grader on one answer. */
export const graderRunRequest = z.object({
  /** Of the receipt, where a model is asked; names one computation at most. */
  requestId: z.string().regex(/^[\w-]{1,255}$/),
  callerHash: sha256,
  price: priceOfTokens,
  grader,
  /** Namespace `item` of the templates. */
  item: z.record(z.string(), z.unknown()).default({}),
  /** `sample.output_text`; `sample.output_json` too if it is JSON. */
  sample: z.string().max(1_048_576),
});
export type GraderRunRequest = z.output<typeof graderRunRequest>;
export interface GraderRunResponse {
  score: number;
  /** Why there is no score (`score` is then the lowest there is); null where there is one. */
  failure: { kind: 'invalid_variable' | 'model_parse' | 'model_server'; message: string } | null;
  seconds: number;
  usage: { promptTokens: number; cachedTokens: number; completionTokens: number };
  costMicros: number;
  /** What the judge wrote. */
  judged: string | null;
}

export const evaluationRequest = z.object({
  /** Names the report; absent: the daemon draws one. One id is one evaluation. */
  id: z
    .string()
    .regex(/^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/)
    .optional(),
  dataset: sha256,
  /** Adapter names, null = the base; each is run on the same examples. */
  models: z.array(adapterId.nullable()).min(1).max(8),
  /** First this many examples of the set in seeded order; absent: all. */
  examplesMax: z.number().int().min(1).optional(),
  seed: z.number().int().min(0).max(0xffff_ffff).default(0),
  /** Generate answers (greedily) and compare them with the references; false: loss, perplexity and token accuracy only. */
  generate: z.boolean().default(true),
  maxTokens: z.number().int().min(1).max(4096).default(256),
  graders: z.array(grader).max(16).default([]),
  callerHash: sha256,
  /** Of generated text and judges, which are receipted; ratings by teacher forcing cost nothing. Absent: nothing is charged. */
  price: priceOfTokens.optional(),
});
export type EvaluationRequest = z.output<typeof evaluationRequest>;
export type EvaluationRequestInput = z.input<typeof evaluationRequest>;

/**
 * With a 95 % confidence interval by bootstrap over examples. Shares and ROUGE lie in 0 … 1, BLEU in 0 … 100; loss is in nats
 * per trained token.
 */
export interface Measured {
  value: number;
  low: number;
  high: number;
}
export interface EvaluationScores {
  model: string | null;
  adapterDigest: string | null;
  loss: Measured;
  perplexity: Measured;
  tokenAccuracy: Measured;
  /** Only with `generate`. */
  rouge1?: Measured;
  rouge2?: Measured;
  rougeL?: Measured;
  bleu?: Measured;
  exactMatch?: Measured;
  graders: Record<string, Measured>;
  /** Answers that a grader could not judge; they count as the lowest score. */
  graderFailures: Record<string, number>;
}
export interface EvaluationReport {
  id: string;
  createdAt: string;
  baseDigest: string;
  dataset: string;
  examples: number;
  /** Examples without a generated answer from anybody: their prompts leave no room in the context. */
  unanswered: number;
  request: EvaluationRequest;
  scores: EvaluationScores[];
  /** Some examples with each model's answer, for people to look at. */
  samples: { prompt: string; reference: string; answers: { model: string | null; text: string }[] }[];
  seconds: number;
  /** Of all generated text, judges included. */
  usage: { promptTokens: number; cachedTokens: number; completionTokens: number };
  costMicros: number;
}
export type EvaluationEvent =
  | {
      type: 'progress';
      phase: 'score' | 'generate' | 'grade';
      /** Of all phases and models together. */
      done: number;
      total: number;
      model: string | null;
      /** Of the phase under way. */
      perSecond: number | null;
      /** null while there is a phase to come of which nothing is known. */
      secondsLeft: number | null;
      /** What generated text has cost so far. */
      costMicros: number;
    }
  | { type: 'report'; report: EvaluationReport }
  | { type: 'error'; error: { status: number; code: string; type: string; message: string; param: string | null } };

/** What of a report goes with its adapter: its scores and the base's. No text of the data, nothing of who asked or of other models. */
export type CardReport = Pick<
  EvaluationReport,
  'id' | 'createdAt' | 'baseDigest' | 'dataset' | 'examples' | 'unanswered' | 'scores'
>;
export interface AdapterCard {
  name: string;
  digest: string;
  /** Markdown. */
  text: string;
  base: { id: string; digest: string };
  recipe: Recipe | null;
  dataset: { digest: string; examples: number; tokens: number } | null;
  metrics: CheckpointMetrics | null;
  reports: CardReport[];
  /** SHA-256 of every file of the adapter's folder. */
  files: Record<string, string>;
}
