/**
 * The typed face of the native addon. JS validates and owns errors, C++ computes.
 * Everything here is synchronous unless it returns a promise; `Engine` and `Model` belong to the thread that made them,
 * `Vocabulary` may be opened in any thread (weights and vocabularies are loaded once per process and shared).
 */

/** Which device computes. `auto` takes a real GPU where there is one, never a software renderer. */
export type DeviceChoice = 'auto' | 'cpu' | 'vulkan' | 'cuda' | 'metal';

/** The seven linear layers of a transformer block that a LoRA adapter may change, in GGUF's names. */
export const TARGETS = ['attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down'] as const;
export type Target = (typeof TARGETS)[number];

export interface DeviceInfo {
  /** ggml's name, e.g. `CPU`, `Vulkan0`. */
  name: string;
  description: string;
  kind: 'cpu' | 'gpu' | 'igpu' | 'accel';
  memoryTotalBytes: number;
  memoryFreeBytes: number;
  /** True for llvmpipe, SwiftShader and the like; `auto` never takes one. */
  software: boolean;
}

export interface ModelInfo {
  /** GGUF `general.architecture`: llama, qwen2, qwen3, gemma3. */
  architecture: string;
  name: string;
  layers: number;
  /** Width of the residual stream. */
  embedding: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  feedForward: number;
  vocabulary: number;
  contextTrained: number;
  /** [in, out] of every linear layer an adapter may target. */
  targets: Record<Target, { in: number; out: number }>;
  /** llama-architecture GGUF files store the rows of q and k permuted for RoPE; PEFT's lora_B must be permuted alike. */
  ropePermuted: boolean;
  weightBytes: number;
  device: DeviceInfo;
}

export interface ModelOptions {
  /** GGUF file, already validated by `daemon/models/gguf.ts`. */
  path: string;
  device: DeviceChoice;
  /** CPU threads for the computing; default: all cores. */
  threads?: number;
  /**
   * Weights as stored and only ggml's own operations in libllama's order, adapters too: logits equal libllama's bit for bit
   * where a step holds one sequence (or several under one adapter) as libllama's would. Slower, and a row's result depends on
   * the shape of its batch. On the CPU only; GPUs always compute so, but for adapters. Such a model cannot be trained.
   */
  exact?: boolean;
}

/** One low-rank pair inside `file`, row-major as PEFT and GGUF store it: A is [rank, in], B is [out, rank]. Offsets in bytes. */
export interface AdapterTensorPair {
  target: Target;
  layer: number;
  rank: number;
  /** alpha / rank, or alpha / sqrt(rank) with rsLoRA. */
  scale: number;
  a: { offset: number; dtype: 'f32' | 'f16' | 'bf16' };
  b: { offset: number; dtype: 'f32' | 'f16' | 'bf16' };
  /** Heads by which the rows of B are to be permuted (HF rotate-half order to GGUF order); 0 = as they are. */
  permuteHeads: number;
}

/** Adapter weights in the form the engine's slots use; lives in host memory, counted in `bytes`. */
export interface AdapterImage {
  readonly bytes: number;
  /** Highest rank present. */
  readonly rankMax: number;
  /** Frees the host memory at once (slots that still use it keep it alive until they let go). */
  release(): void;
}

export interface EngineOptions {
  /** Cells of the KV cache, shared by all sequences (one cell = one position of one sequence, or of several that share a prefix). */
  kvCells: number;
  /** Sequence ids are 0 … sequencesMax − 1. */
  sequencesMax: number;
  /** Most rows one step may have. */
  batchTokensMax: number;
  /** Adapter slots; slot ids are 0 … slots − 1. */
  slots: number;
  /** Highest rank a slot takes (matters on GPUs, where slots are stacked tensors). */
  slotRankMax: number;
  /** Precision of cached keys and values; default f16. */
  kvType?: 'f16' | 'f32';
}

/** One mixed batch: T rows, each a token of some sequence under some adapter. All arrays have T entries. */
export interface StepBatch {
  tokens: Int32Array;
  /** Position of the token in its sequence; rows of one sequence are in rising order and follow what the cache holds. */
  positions: Int32Array;
  sequences: Int32Array;
  /** Slot of the row's adapter, −1 for the base. Rows of one sequence have the same slot. */
  slots: Int32Array;
  /** Rows whose logits are wanted, rising. */
  outputs: Int32Array;
  /** Per output: the sampler that picks the next token, or −1 for none. */
  samplers: Int32Array;
  /** Per output: a token whose probability is wanted, −1 for none. Whole logits need not leave the addon for it. */
  targets?: Int32Array;
  /** Also return the raw logits of the outputs (tests, scoring). */
  wantLogits?: boolean;
  /** Return the final hidden states of the outputs instead of logits (embeddings); samplers are ignored. */
  wantHidden?: boolean;
}

export interface TokenChoice {
  /** −1 where the output had no sampler. */
  token: number;
  /** Natural-log probability of the token under the model's own distribution (temperature 1, no penalties). */
  logprob: number;
  /** The `topLogprobs` best tokens, best first; empty unless the sampler asked for logprobs. */
  top: { token: number; logprob: number }[];
  /** Why no token could be chosen (a grammar that nothing continues); `token` is −1 then. Other rows are not affected. */
  error?: string;
}

export interface StepResult {
  choices: TokenChoice[];
  /** [outputs × vocabulary], if wanted. */
  logits?: Float32Array;
  /** [outputs × embedding], if wanted. */
  hidden?: Float32Array;
  /** Per output, if there were targets: natural-log probability under the model's own distribution; 0 where the target was −1. */
  targetLogprobs?: Float32Array;
  /** Per output, if there were targets: 1 where the target was the most likely token. */
  targetHits?: Uint8Array;
  computeMicros: number;
}

export interface SamplerOptions {
  /** 0 = greedy. */
  temperature: number;
  /** 0 = off. */
  topK: number;
  /** 1 = off. */
  topP: number;
  /** 0 = off. */
  minP: number;
  /** 1 = off; over the last `penaltyLast` tokens, prompt included. */
  repeatPenalty: number;
  frequencyPenalty: number;
  presencePenalty: number;
  penaltyLast: number;
  logitBias: { token: number; bias: number }[];
  /** 32 bits. */
  seed: number;
  /** Number of best alternatives to report per token; −1 = no logprobs at all, 0 = only the chosen token's. */
  topLogprobs: number;
  /** Never choose an end-of-generation token. */
  ignoreEos: boolean;
  /** GBNF; empty = none. */
  grammar: string;
  /** The grammar starts only at a trigger (tool calls with tool_choice auto). */
  grammarLazy: boolean;
  grammarTriggers: GrammarTrigger[];
  /** Text of the prompt that the grammar must already have consumed (`ChatPrompt.generationPrompt`). */
  grammarPrefill: string;
}

export interface GrammarTrigger {
  type: number;
  value: string;
  token: number;
}

export interface ChatPromptInput {
  /** OpenAI `messages` as JSON. */
  messagesJson: string;
  /** OpenAI `tools` as JSON, or ''. */
  toolsJson: string;
  toolChoice: 'auto' | 'none' | 'required';
  parallelToolCalls: boolean;
  /** JSON schema the answer must follow, or ''. */
  jsonSchema: string;
  /** Extra values for the chat template, each already JSON. */
  templateArguments?: Record<string, string>;
  /** False: end where the last message ends, as training renders an answer that is there already. Default true. */
  addGenerationPrompt?: boolean;
  /** Only `prompt` and `generationPrompt` are wanted, by the template alone: four times faster. Default false. */
  promptOnly?: boolean;
}

export interface ChatPrompt {
  prompt: string;
  grammar: string;
  grammarLazy: boolean;
  grammarTriggers: GrammarTrigger[];
  /** Special tokens whose text must be kept in the output for `parseChat`. */
  preservedTokens: string[];
  /** Strings that end the answer besides the model's own end tokens. */
  stops: string[];
  /** What the template already wrote on the assistant's behalf; the grammar and the parser begin with it. */
  generationPrompt: string;
  /** Opaque; hand it to `parseChat`. */
  format: number;
  parser: string;
}

export interface ParsedMessage {
  content: string;
  reasoningContent: string;
  toolCalls: { id: string; name: string; arguments: string }[];
}

export interface Vocabulary {
  readonly size: number;
  readonly bos: number;
  readonly eos: number;
  readonly addBos: boolean;
  /** Tokens that end a generation. */
  readonly endTokens: Int32Array;
  /** `special`: text such as `<|im_end|>` becomes its token; keep it false for what users write in /v1/completions. */
  tokenize(text: string, options: { special: boolean; addBos: boolean }): Int32Array;
  /** Bytes of a token (a token may hold part of a UTF-8 character). `special`: render special tokens' text, else empty. */
  tokenBytes(token: number, special: boolean): Uint8Array;
  chatPrompt(input: ChatPromptInput): ChatPrompt;
  /** `partial`: the answer is not complete yet (streaming). */
  parseChat(
    text: string,
    prompt: Pick<ChatPrompt, 'format' | 'parser' | 'generationPrompt'>,
    partial: boolean,
  ): ParsedMessage;
  schemaToGrammar(schemaJson: string): string;
  close(): void;
}

export interface Model {
  readonly info: ModelInfo;
  /** Builds slot weights from the bytes of a safetensors or GGUF file, off the calling thread. */
  buildAdapter(file: Uint8Array, pairs: AdapterTensorPair[]): Promise<AdapterImage>;
  /** The same from a file on disk, read a block at a time by the thread that builds. Rejects with ENOENT and the like, too. */
  loadAdapter(path: string, pairs: AdapterTensorPair[]): Promise<AdapterImage>;
  createEngine(options: EngineOptions): Engine;
  /** CPU only. Throws AddonError `out_of_memory` before anything is allocated if `trainerMemory` says it will not fit. */
  createTrainer(options: TrainerOptions): Trainer;
  trainerMemory(options: TrainerOptions): TrainerMemory;
  close(): void;
}

/** What is trained over the frozen base. */
export interface TrainerOptions {
  /** `lora`: low-rank pairs on linear layers. `prefix`: keys and values before every layer's own (P-Tuning v2). */
  method: 'lora' | 'prefix';
  /** LoRA: the linear layers that get a pair, in every block. */
  targets: Target[];
  rank: number;
  /** alpha / rank, or alpha / sqrt(rank) with rsLoRA. */
  scale: number;
  /** Dropout on the input of the low-rank pairs, 0 … < 1. */
  dropout: number;
  /** Prefix: number of trained positions. */
  prefixTokens: number;
  /** Seeds the initial A (uniform as PEFT's, B = 0) and the dropout masks; 32 bits. */
  seed: number;
  /** Most rows one call of `accumulate` computes together; at least the longest example. */
  rowsMax: number;
  /** Activation checkpointing: keep only each block's input and compute the rest again on the way back. The same results, bit for bit. */
  recompute: boolean;
  /** Whole-process share of the cores while an engine is computing too, 0.05 … 0.95; the engine is served first. */
  share: number;
}

/**
 * Examples one after another in one array of rows; each attends only to itself, and its positions start at 0.
 * `starts` has one entry per example and then the number of rows.
 */
export interface TrainingRows {
  tokens: Int32Array;
  starts: Int32Array;
  /** Per row: what the loss of predicting the *next* row's token counts; 0 on prompts and on the last row of an example. */
  weights: Float32Array;
}

export interface LossSums {
  /** Σ weight · −ln p(next token). */
  loss: number;
  /** Σ weight. */
  weight: number;
  /** Rows with weight whose most likely token was the right one. */
  correct: number;
  /** Rows with weight. */
  counted: number;
  computeMicros: number;
}

export interface PreferenceSums extends LossSums {
  /** Pairs in which the chosen answer had the higher implicit reward. */
  preferred: number;
  /** Σ over pairs of β (log-ratio chosen − log-ratio rejected). */
  margin: number;
}

export interface UpdateOptions {
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  /** Gradient norm above which all gradients are scaled down; 0 = never. */
  clipNorm: number;
}

/** Float32 parameters or gradients of one pair: A is [rank, in], B is [out, rank], row-major as PEFT stores them, scale not applied. */
export interface TrainedPair {
  target: Target;
  layer: number;
  a: Float32Array;
  b: Float32Array;
}

/** Of a trained prefix, per layer: [prefixTokens, kvHeads × headDim] each; keys as the cache holds them (after RoPE). */
export interface TrainedPrefix {
  layer: number;
  k: Float32Array;
  v: Float32Array;
}

/** Belongs to the thread that made it. All calls compute under the owner of the cores and hand over between slices of ≤ 20 ms. */
export interface Trainer {
  readonly parameters: number;
  /** Bytes the trainer has allocated so far (parameters, optimiser, activations, transposed weights), without the shared base. */
  readonly bytes: number;
  /**
   * Adds the gradient of Σ weight · CE / divisor to the gradients. With `divisor` = the Σ weight of the whole optimiser step,
   * the order and size of the calls do not matter but for rounding.
   */
  accumulate(rows: TrainingRows, divisor: number): LossSums;
  /**
   * Direct preference optimisation (Rafailov et al. 2023): examples 2i and 2i+1 are the chosen and the rejected answer of
   * one prompt; `reference` holds Σ log p of each example under the base (`logProbabilities` with adapter false).
   */
  accumulatePreference(rows: TrainingRows, reference: Float64Array, beta: number, divisor: number): PreferenceSums;
  /** Loss without gradients; `adapter` false: of the base alone. */
  evaluate(rows: TrainingRows, adapter: boolean): LossSums;
  /** Σ weight · ln p(next token) per example. */
  logProbabilities(rows: TrainingRows, adapter: boolean): Float64Array;
  /** Clips, one AdamW step, clears the gradients. A norm that is not finite changes nothing but the gradients. */
  update(options: UpdateOptions): { gradientNorm: number; applied: boolean };
  pairs(): TrainedPair[];
  gradients(): TrainedPair[];
  setPairs(pairs: TrainedPair[]): void;
  prefix(): TrainedPrefix[];
  /** Parameters, moments and step count: all that `restore` needs to go on to the bit. */
  snapshot(): Uint8Array;
  restore(snapshot: Uint8Array): void;
  /** Of all training in this process, since this was last asked: the longest time in which serving could not have had the cores. */
  longestHoldMs(): number;
  close(): void;
}

/** What `createTrainer` will take at most, in bytes, without the shared base. */
export interface TrainerMemory {
  parameters: number;
  activations: number;
  transposedWeights: number;
}

export interface Engine {
  readonly kvCellsFree: number;
  readonly kvCells: number;
  /** Puts an adapter into a slot (replacing what was there). Must not be called for a slot used by the step under way. */
  setSlot(slot: number, image: AdapterImage): void;
  clearSlot(slot: number): void;
  /** Forgets the positions ≥ `length` of a sequence; length 0 frees it. */
  trimSequence(sequence: number, length: number): void;
  /** Makes `destination` (empty) share the first `length` positions of `source`; no copying. */
  shareSequence(source: number, destination: number, length: number): void;
  sequenceLength(sequence: number): number;
  createSampler(options: SamplerOptions): number;
  /** Tells a sampler about prompt tokens (penalties). */
  acceptTokens(sampler: number, tokens: Int32Array): void;
  freeSampler(sampler: number): void;
  /** Computes one batch. Throws AddonError `kv_full` before anything has changed if the cells do not suffice. */
  step(batch: StepBatch): StepResult;
  close(): void;
  /** Writes a trained prefix into the first positions of an empty sequence; share it with others by `shareSequence`. */
  loadPrefix(sequence: number, layers: TrainedPrefix[]): void;
}

export type AddonErrorCode =
  | 'not_built'
  | 'no_device'
  | 'model_invalid'
  | 'architecture_unsupported'
  | 'out_of_memory'
  | 'argument_invalid'
  | 'kv_full'
  | 'grammar_invalid'
  | 'template_invalid'
  | 'adapter_invalid'
  | 'compute_failed'
  | 'closed';

export class AddonError extends Error {
  readonly code: AddonErrorCode;
  constructor(code: AddonErrorCode, message: string) {
    super(message);
    this.name = 'AddonError';
    this.code = code;
  }
}
