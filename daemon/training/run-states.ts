/** How runs stand, in memory and on disk: what is wanted of them, what becomes of them, and whoever listens. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { EventLog, type NewEvent } from './event-log.ts';
import { COMMANDS } from './messages.ts';
import type { StepMetrics } from './protocol.ts';
import { OVER, type Run } from './run.ts';
import type { RunFolder, RunState } from './run-folder.ts';

export interface TrainingLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export class RunStates {
  private readonly log: TrainingLog;

  constructor(log: TrainingLog) {
    this.log = log;
  }

  want(run: Run, wanted: RunState['wanted']): void {
    run.state.wanted = wanted;
    this.save(run);
    const command = wanted === 'run' ? 'run' : wanted;
    if (run.active !== null) Atomics.store(run.active.control, 0, COMMANDS.indexOf(command));
  }

  end(run: Run, status: 'succeeded' | 'failed' | 'cancelled', error: RunState['error'] = null): void {
    run.state.finishedAt = new Date().toISOString();
    run.state.error = error;
    const said = {
      succeeded: 'The run has succeeded.',
      failed: error?.message ?? 'The run has failed.',
      cancelled: 'The run was cancelled.',
    };
    this.settle(run, status, said[status], error);
    run.folder.dropResumePoints();
    for (const step of run.folder.checkpoints()) run.folder.removeCheckpoint(step);
    rmSync(join(run.folder.path, 'best'), { recursive: true, force: true });
  }

  /** The event first: whoever reads the state as over finds everything that there is to say. */
  settle(run: Run, status: RunState['status'], message: string, error: RunState['error'] = null): void {
    const data = { status, ...(error === null ? {} : { error }) };
    this.event(run, { level: status === 'failed' ? 'error' : 'info', type: 'status', message, data });
    run.state.status = status;
    if (OVER.has(status)) run.state.told = { lastEvent: run.lastEvent, metrics: run.metrics };
    this.save(run);
    this.tell(run);
    const { step, steps } = run.state;
    this.log.info(
      { run: run.id, status, step, steps, ...(error === null ? {} : { code: error.code }) },
      'training run',
    );
  }

  /** A full disk must not keep a run from ending; what could not be written is told to the log. */
  event(run: Run, event: NewEvent): void {
    try {
      const events = EventLog.open(run.folder.eventsPath);
      try {
        run.lastEvent = events.append(event, true).seq;
      } finally {
        events.close();
      }
    } catch (error) {
      this.log.error({ run: run.id, err: error }, 'an event of a training run could not be written');
    }
    this.tell(run);
  }

  save(run: Run): void {
    try {
      run.folder.writeState(run.state);
      run.trouble = false;
    } catch (error) {
      if (!run.trouble) this.log.error({ run: run.id, err: error }, 'the state of a training run could not be written');
      run.trouble = true;
    }
  }

  tell(run: Run): void {
    for (const hear of [...run.followers]) hear();
  }

  /** Counts a death; a run that has moved on since the last one begins to count anew. Returns the step that it goes on from. */
  crash({ state, folder }: Run): number {
    const saved = folder.readResumePoint()?.point.step ?? 0;
    state.crashes = saved > state.crashedAt ? 1 : state.crashes + 1;
    state.crashedAt = saved;
    state.step = saved;
    return saved;
  }
}

export function eventsOf(folder: RunFolder): { lastEvent: number; metrics: StepMetrics | null } {
  const events = EventLog.open(folder.eventsPath);
  events.close();
  return { lastEvent: events.summary.lastEvent, metrics: events.summary.lastMetrics };
}
