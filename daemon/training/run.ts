/** A run in memory, and what is said of it. */
import { DaemonError } from '../errors.ts';
import type { RunRequest, StepMetrics, TrainingRun } from './protocol.ts';
import { RunError } from './run-error.ts';
import type { RunFolder, RunState } from './run-folder.ts';

export interface Run {
  id: string;
  request: RunRequest;
  state: RunState;
  folder: RunFolder;
  lastEvent: number;
  metrics: StepMetrics | null;
  /** While it has the worker. */
  active: { control: Int32Array; ended: Promise<void> } | null;
  followers: Set<() => void>;
  /** Its state could not be written, and that was said. */
  trouble: boolean;
}

/** Statuses that nothing follows. */
export const OVER: ReadonlySet<string> = new Set(['succeeded', 'failed', 'cancelled']);

export function freshState(baseDigest: string): RunState {
  const now = new Date().toISOString();
  return {
    version: 1,
    status: 'queued',
    wanted: 'run',
    baseDigest,
    steps: 0,
    step: 0,
    epoch: 0,
    trainedTokens: 0,
    memoryBytes: null,
    crashes: 0,
    crashedAt: 0,
    checkpoints: [],
    error: null,
    told: null,
    createdAt: now,
    queuedAt: now,
    startedAt: null,
    servedAt: null,
    finishedAt: null,
  };
}

/** As the protocol has it. */
export function describe({ id, request, state, metrics, lastEvent, active }: Run): TrainingRun {
  const running = state.status === 'running' && active !== null;
  const left = running && metrics !== null && metrics.step <= state.step ? metrics.remainingSeconds : null;
  return {
    id,
    status: state.status,
    request,
    baseDigest: state.baseDigest,
    step: state.step,
    steps: state.steps,
    epoch: state.epoch,
    trainedTokens: state.trainedTokens,
    trainLoss: metrics?.trainLoss ?? null,
    tokensPerSecond: running ? (metrics?.tokensPerSecond ?? null) : null,
    estimatedFinish: left === null ? null : new Date(Date.now() + left * 1000).toISOString(),
    memoryBytes: state.memoryBytes,
    checkpoints: state.checkpoints,
    error: state.error,
    createdAt: state.createdAt,
    startedAt: state.startedAt,
    finishedAt: state.finishedAt,
    lastEvent,
  };
}

export function notNow(run: Run, what: string): DaemonError {
  const status = run.state.wanted === 'cancel' && !OVER.has(run.state.status) ? 'being cancelled' : run.state.status;
  return new DaemonError('run_not_ready', `the run ${run.id} is ${status}, so it cannot be ${what}`);
}

export function crashed(how: string): RunError {
  return new RunError(
    'worker_crashed',
    `The run was given up: ${how} without getting further. The last checkpoint was kept; the daemon's log has the cause.`,
  );
}
