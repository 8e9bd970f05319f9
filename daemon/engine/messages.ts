import type { DeviceChoice, ModelInfo, SamplerOptions } from '../../addon/types.ts';
import type { PlainError } from '../errors.ts';
import type { SchedulerOptions } from './scheduler.ts';
import type { SequenceKind } from './sequence.ts';
import type { AdapterHandle } from './slots.ts';

/** What main thread and engine thread say to each other. Plain data only: everything here is cloned between threads. */

/** What the engine thread is started with. */
export interface EngineSettings {
  modelPath: string;
  device: DeviceChoice;
  /** Default false. See `exactScheduler`. */
  exact?: boolean;
  threads: number | null;
  /** null: by the device's kind and memory. */
  kvCells: number | null;
  slots: number | null;
  slotRankMax: number | null;
  /** Host RAM that adapters may fill. */
  hostBytesMax: number;
  scheduler: SchedulerOptions;
}

/** One request to the engine; `choices` continuations (or embeddings, or ratings) of `prompts`. */
export interface Job {
  job: number;
  kind: SequenceKind;
  adapter: AdapterHandle | null;
  visibility: string;
  /** generate: one prompt for all choices; embed and score: one per choice. */
  prompts: Int32Array[];
  /** score: per prompt and position, 1 where the prediction of the next token is rated; the last one is not looked at. */
  rated?: Uint8Array[];
  choices: number;
  maxTokens: number;
  /** Choice i samples with `seed + i`. */
  sampler: SamplerOptions | null;
}

export type ToEngine =
  | { type: 'submit'; job: Job }
  /** `choice` null: the whole job. Takes effect before the next step. */
  | { type: 'abort'; job: number; choice: number | null }
  /** Brings an adapter into a slot (`slot`), host RAM (`host`), or down to disk (`disk`); answered by `moved`. */
  | { type: 'move'; call: number; adapter: AdapterHandle; to: 'slot' | 'host' | 'disk' }
  | { type: 'pin'; call: number; digest: string; pinned: boolean }
  /** The adapter version is gone: no KV and no weights of it are kept once those in flight are done. */
  | { type: 'forget'; digest: string }
  | { type: 'exit' };

/** One thing that happened to a sequence. */
export type SequenceEvent =
  /** The first choice of a job was admitted. */
  | { type: 'started'; job: number; cachedTokens: number; queueMs: number }
  | {
      type: 'token';
      job: number;
      choice: number;
      token: number;
      logprob?: number;
      top?: { token: number; logprob: number }[];
    }
  /** `generated` counts the end token too: it was computed. */
  | { type: 'finished'; job: number; choice: number; reason: 'stop' | 'length' | 'aborted'; generated: number }
  /** Mean of the final hidden states, not normalised. */
  | { type: 'embedded'; job: number; choice: number; vector: Float32Array }
  /** Of the rated tokens of one prompt: Σ ln p, how many there are, and how many were the most likely ones. */
  | { type: 'scored'; job: number; choice: number; logprob: number; rated: number; hits: number }
  | { type: 'failed'; job: number; error: PlainError };

export interface StepReport {
  computeMicros: number;
  /** Time between the end of the last step and the start of this one's compute, while there was work. */
  overheadMicros: number;
  decodeRows: number;
  prefillRows: number;
}

export interface EngineGauges {
  running: number;
  waiting: number;
  kvCellsFree: number;
  preemptions: number;
  yields: number;
  prefixHits: number;
  prefixMisses: number;
  prefixEvictions: number;
}

/** Where an adapter's weights are now. */
export interface AdapterPlace {
  digest: string;
  tier: 'slot' | 'host';
  slot: number;
  bytes: number;
  pinned: boolean;
}

/** One adapter brought from disk to host RAM (`host`), or from there into a slot (`slot`). */
export interface AdapterLoad {
  level: 'host' | 'slot';
  seconds: number;
}

/** Since the start of the engine thread. */
export interface TierCounters {
  hostHits: number;
  slotHits: number;
  misses: number;
  hostEvictions: number;
  slotEvictions: number;
}

export type FromEngine =
  | { type: 'ready'; model: ModelInfo; kvCells: number; slots: number }
  | { type: 'step'; events: SequenceEvent[]; report: StepReport | null; gauges: EngineGauges }
  | { type: 'places'; places: AdapterPlace[]; counters: TierCounters; loads: AdapterLoad[] }
  | { type: 'moved'; call: number; error: PlainError | null }
  /** An adapter's weights could not be brought in; `cause` is for the log, callers get a sentence. */
  | { type: 'load_failed'; digest: string; cause: string }
  | { type: 'fatal'; message: string };
