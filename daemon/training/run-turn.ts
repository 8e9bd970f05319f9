/** One run's turn at the training worker: looks at its files, lets the worker have it, hears of it, and settles what came of it. */
import { MessageChannel } from 'node:worker_threads';
import { toDaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { recordOf } from './adapter-record.ts';
import type { DatasetStore } from './dataset-store.ts';
import { isDiskFull } from './disk.ts';
import type { FromRun, RunOutcome, ToRun } from './messages.ts';
import type { TrainingWorkers } from './pool.ts';
import type { StepMetrics } from './protocol.ts';
import type { Publisher } from './publisher.ts';
import { crashed, type Run } from './run.ts';
import type { RunFiles } from './run-data.ts';
import { RunError } from './run-error.ts';
import { eventsOf, type RunStates, type TrainingLog } from './run-states.ts';

export interface TurnOptions {
  base: { id: string; digest: string; modelPath: string };
  threads: number | null;
  /** Share of the cores while chats are computed too. */
  share: number;
  workers: TrainingWorkers;
  datasets: DatasetStore;
  log: TrainingLog;
  onMetrics?(metrics: StepMetrics): void;
  resumePointMs?: number;
}

export class RunTurns {
  private readonly o: TurnOptions;
  private readonly states: RunStates;
  private readonly publisher: Publisher;
  /** Whether the daemon is stopping. */
  private readonly closing: () => boolean;

  constructor(options: TurnOptions, states: RunStates, publisher: Publisher, closing: () => boolean) {
    this.o = options;
    this.states = states;
    this.publisher = publisher;
    this.closing = closing;
  }

  /** From here until it ends, the worker writes the run's events. */
  async serve(run: Run, control: Int32Array): Promise<void> {
    const { state } = run;
    if (state.baseDigest !== this.o.base.digest) {
      const message = `The base model is another one (${this.o.base.digest.slice(0, 12)}…) than when the run was made (${state.baseDigest.slice(0, 12)}…). Start the daemon with the model of before, or make the job again.`;
      return this.states.end(run, 'failed', new RunError('base_changed', message).toPlain());
    }
    const files = await this.filesOf(run);
    if ('error' in files) return this.states.end(run, 'failed', files.error);
    // Whoever cancelled or paused while the files were looked at.
    if (state.wanted === 'cancel') return this.states.end(run, 'cancelled');
    if (state.wanted === 'pause') return this.states.settle(run, 'paused', 'The run is paused.');
    if (this.closing()) return;
    state.startedAt ??= new Date().toISOString();
    this.states.settle(run, 'running', 'The run has begun.');
    const result = await this.work(run, control, files);
    if (result instanceof Error) return this.died(run, result);
    Object.assign(state, result.at ?? {});
    switch (result.outcome) {
      case 'succeeded':
      case 'cancelled':
        return this.states.end(run, result.outcome);
      case 'paused':
        return this.states.settle(run, 'paused', `The run is paused at step ${state.step}.`);
      case 'stopped':
        state.crashes = 0;
        return this.states.settle(run, 'queued', 'The daemon is stopping; the run goes on when it starts again.');
      case 'failed':
        if (result.cause !== null)
          this.o.log.error({ run: run.id, cause: result.cause }, 'a training run failed unexpectedly');
        return this.states.end(run, 'failed', result.error);
    }
  }

  private async filesOf(
    run: Run,
  ): Promise<{ training: RunFiles; validation: RunFiles | null } | { error: ReturnType<RunError['toPlain']> }> {
    const { dataset, validation } = run.request;
    const files = async (digest: string): Promise<RunFiles> => {
      const { tokensPath, size, dataset } = await this.o.datasets.files(digest);
      return { tokensPath, size, kind: dataset.kind };
    };
    let code: 'invalid_training_file' | 'invalid_validation_file' = 'invalid_training_file';
    try {
      const training = await files(dataset);
      code = 'invalid_validation_file';
      return { training, validation: validation === undefined ? null : await files(validation) };
    } catch (error) {
      return { error: new RunError(code, toDaemonError(error).message, code.slice('invalid_'.length)).toPlain() };
    }
  }

  /** What the worker made of it, or how it died. */
  private async work(
    run: Run,
    control: Int32Array,
    files: { training: RunFiles; validation: RunFiles | null },
  ): Promise<RunOutcome | Error> {
    const { port1: port, port2 } = new MessageChannel();
    const publishing = new Set<Promise<void>>();
    port.on('message', (message: FromRun) => {
      if (message.type === 'publish') {
        const work = this.publish(run, message).then((reply) => port.postMessage(reply));
        publishing.add(work);
        void work.finally(() => publishing.delete(work));
      } else this.hear(run, message);
    });
    const { base, threads, share, workers, resumePointMs } = this.o;
    try {
      const outcome = await workers.run({
        folder: run.folder.path,
        request: run.request,
        ...files,
        modelPath: base.modelPath,
        baseName: base.id,
        threads,
        share,
        control: control.buffer as SharedArrayBuffer,
        port: port2,
        resumePointMs: resumePointMs ?? null,
      });
      // What it said before it ended may still be under way.
      await new Promise((resolve) => setImmediate(resolve));
      return outcome;
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    } finally {
      await Promise.allSettled(publishing);
      port.close();
      // The file is the truth: messages of a worker that died may be lost.
      Object.assign(run, eventsOf(run.folder));
    }
  }

  private hear(run: Run, message: Exclude<FromRun, { type: 'publish' }>): void {
    switch (message.type) {
      case 'begun':
        run.state.steps = message.steps;
        run.state.memoryBytes = message.memoryBytes;
        this.states.save(run);
        return;
      case 'progress':
        run.state.step = message.step;
        run.state.epoch = message.epoch;
        run.state.trainedTokens = message.trainedTokens;
        return;
      case 'event':
        run.lastEvent = message.event.seq;
        if (message.event.type === 'metrics') {
          run.metrics = message.event.data as unknown as StepMetrics;
          run.state.memoryBytes = run.metrics.memoryBytes;
          this.o.onMetrics?.(run.metrics);
        }
        this.states.tell(run);
        return;
    }
  }

  /** The worker died under it: again from its last resume point, but not for ever. */
  private died(run: Run, error: Error): void {
    const { state } = run;
    this.o.log.error({ run: run.id, err: error }, 'a training worker died');
    const saved = this.states.crash(run);
    if (state.wanted === 'cancel') this.states.end(run, 'cancelled');
    else if (state.crashes > TRAINING_LIMITS.crashesMax) {
      this.states.end(run, 'failed', crashed(`its worker died ${state.crashes} times`).toPlain());
    } else {
      const message = `The training worker died; the run goes on from step ${saved}.`;
      this.states.event(run, { level: 'warn', type: 'message', message, data: null });
      if (state.wanted === 'pause') this.states.settle(run, 'paused', 'The run is paused.');
      else this.states.settle(run, 'queued', 'The run waits for its turn.');
    }
  }

  private async publish(run: Run, asked: Extract<FromRun, { type: 'publish' }>): Promise<ToRun> {
    const { call, folder, as, facts } = asked;
    const { id, request, state } = run;
    const { base, datasets } = this.o;
    try {
      const record = await recordOf({ id, request, base, datasets, metrics: facts.metrics });
      const made = await this.publisher.publish({ id, request, folder, as, facts, record });
      if (made !== null && as === 'checkpoint') {
        const others = state.checkpoints.filter(({ step }) => step !== made.step);
        const all = [...others, made].sort((a, b) => a.step - b.step);
        state.checkpoints = all.slice(-TRAINING_LIMITS.checkpointsKept);
        this.states.save(run);
        for (const old of all.slice(0, -TRAINING_LIMITS.checkpointsKept))
          await this.publisher.withdraw(id, old.adapter);
      }
      return { type: 'published', call, checkpoint: made, error: null };
    } catch (error) {
      this.o.log.error({ run: id, err: error }, 'a trained adapter could not be made servable');
      const full = isDiskFull(error) || (error as { reason?: string }).reason === 'disk_full';
      const { message } = toDaemonError(error);
      return {
        type: 'published',
        call,
        checkpoint: null,
        error: { code: full ? 'disk_full' : 'internal_error', message },
      };
    }
  }
}
