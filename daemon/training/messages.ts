/** What main thread and training workers say to each other. */
import type { MessagePort } from 'node:worker_threads';
import type { BuiltDataset } from './dataset-build.ts';
import type { CheckpointFacts, Command } from './loop.ts';
import type { Recipe, RunCheckpoint, RunRequest, TrainingEvent } from './protocol.ts';
import type { RunFiles } from './run-data.ts';

export interface BuildTask {
  type: 'build';
  source: string;
  target: string;
  modelPath: string;
  contextTokens: number;
}

export interface RunTask {
  type: 'run';
  folder: string;
  request: RunRequest;
  training: RunFiles;
  validation: RunFiles | null;
  modelPath: string;
  threads: number | null;
  baseName: string;
  share: number;
  /** One int32: the index in COMMANDS of what the main thread wants. */
  control: SharedArrayBuffer;
  port: MessagePort;
  resumePointMs: number | null;
}

export interface TrialTask {
  type: 'trial';
  recipe: Recipe;
  training: RunFiles;
  validation: RunFiles | null;
  modelPath: string;
  threads: number | null;
  share: number;
  /** Measure, or only plan. */
  measure: boolean;
}

export type WorkerTask = BuildTask | RunTask | TrialTask;

export const COMMANDS: readonly Command[] = ['run', 'pause', 'cancel', 'stop'];

export interface Progress {
  step: number;
  epoch: number;
  trainedTokens: number;
}

/** `at`: how far it came; null where it did not begin. Messages on the way may be late or lost, this is not. */
export type RunOutcome = { at: Progress | null } & (
  | { outcome: 'succeeded' | 'paused' | 'cancelled' | 'stopped' }
  | { outcome: 'failed'; error: { code: string; message: string; param: string | null }; cause: string | null }
);

/** What a plan comes to, and what a micro-batch of it costs on this machine. */
export interface Trial {
  steps: number;
  epochs: number;
  /** Of the whole run. */
  rows: number;
  /** Of one pass over the validation set, and of the sample of it. */
  validationRows: number;
  sampleRows: number;
  longest: number;
  skipped: number;
  memoryBytes: number;
  rates: TrialRates | null;
}
export interface TrialRates {
  setupSeconds: number;
  secondsPerRow: number;
  evaluateSecondsPerRow: number;
  /** dpo only: rating the answers by the base, which is done once for each. */
  referenceSecondsPerRow: number;
  updateSeconds: number;
  saveSeconds: number;
}

export type FromRun =
  | { type: 'begun'; steps: number; memoryBytes: number }
  | { type: 'event'; event: TrainingEvent }
  | ({ type: 'progress' } & Progress)
  | { type: 'publish'; call: number; folder: string; as: 'checkpoint' | 'result'; facts: CheckpointFacts };
export type ToRun = {
  type: 'published';
  call: number;
  checkpoint: RunCheckpoint | null;
  error: { code: string; message: string } | null;
};

/** The task cannot be done, for a reason that its owner can do something about. */
export interface Refused {
  refused: { code: string; message: string; param: string | null };
}

export type WorkerResult = BuiltDataset | RunOutcome | Trial | Refused;
