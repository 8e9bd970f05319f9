/** The training workers: one thread trains, one reads datasets and makes estimates; both end when they have been idle. */
import { Piscina } from 'piscina';
import { DaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import type { BuiltDataset } from './dataset-build.ts';
import type { BuildTask, Refused, RunOutcome, RunTask, Trial, TrialTask } from './messages.ts';

export interface TrainingWorkers {
  build(task: Omit<BuildTask, 'type'>): Promise<BuiltDataset>;
  trial(task: Omit<TrialTask, 'type'>): Promise<Trial>;
  /** Rejects if the worker died. */
  run(task: Omit<RunTask, 'type'>): Promise<RunOutcome>;
  close(): Promise<void>;
}

export class TrainingPool implements TrainingWorkers {
  private readonly training = pool();
  private readonly reading = pool();

  build(task: Omit<BuildTask, 'type'>): Promise<BuiltDataset> {
    return ask(this.reading, { type: 'build', ...task });
  }

  trial(task: Omit<TrialTask, 'type'>): Promise<Trial> {
    return ask(this.reading, { type: 'trial', ...task });
  }

  run(task: Omit<RunTask, 'type'>): Promise<RunOutcome> {
    return this.training.run({ type: 'run', ...task }, { transferList: [task.port] });
  }

  async close(): Promise<void> {
    await Promise.all([this.training.destroy(), this.reading.destroy()]);
  }

  /** For tests: kills the thread that trains. */
  async killTraining(): Promise<void> {
    for (const thread of this.training.threads) await thread.terminate();
  }
}

function pool(): Piscina {
  return new Piscina({
    filename: new URL('./worker-boot.mjs', import.meta.url).href,
    minThreads: 0,
    maxThreads: 1,
    idleTimeout: TRAINING_LIMITS.workerIdleMs,
  });
}

async function ask<T extends object>(pool: Piscina, task: unknown): Promise<T> {
  const result: T | Refused = await pool.run(task);
  if (!('refused' in result)) return result;
  const { code, message, param } = result.refused;
  // Errors of a run name a file of the job; to who asks for an estimate they are errors of the request.
  throw new DaemonError(code === 'dataset_invalid' ? code : 'invalid_request_error', message, param);
}
