/**
 * All training runs of this daemon: takes them in, lets one at a time have the training worker, passes on what their owners
 * want of them, and makes their adapters servable. What a run is, is in its folder; this is that in memory.
 */
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { MessageChannel } from 'node:worker_threads';
import type { AdapterRegistry } from '../adapters/registry.ts';
import { DaemonError, toDaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { recordOf } from './adapter-record.ts';
import { checkFiles, checkPlace } from './admission.ts';
import type { DatasetStore } from './dataset-store.ts';
import { clearTemporary, type Disk, isDiskFull, realDisk } from './disk.ts';
import { EventLog, EventReader, type NewEvent } from './event-log.ts';
import { COMMANDS, type FromRun, type RunOutcome, type ToRun } from './messages.ts';
import type { TrainingWorkers } from './pool.ts';
import { type RunRequest, runId, type StepMetrics, type TrainingEvent, type TrainingRun } from './protocol.ts';
import { Publisher } from './publisher.ts';
import { crashed, describe, freshState, notNow, OVER, type Run } from './run.ts';
import type { RunFiles } from './run-data.ts';
import { RunError } from './run-error.ts';
import { RunFolder, type RunState } from './run-folder.ts';
import { nextRun } from './turns.ts';

export interface RunsOptions {
  /** `MODELFACTORY_DATA/training`. */
  root: string;
  base: { id: string; digest: string; modelPath: string };
  threads: number | null;
  /** Share of the cores while chats are computed too. */
  share: number;
  workers: TrainingWorkers;
  datasets: DatasetStore;
  registry: Pick<AdapterRegistry, 'addFiles' | 'get' | 'remove'>;
  log: {
    info(fields: object, message: string): void;
    warn(fields: object, message: string): void;
    error(fields: object, message: string): void;
  };
  onMetrics?(metrics: StepMetrics): void;
  disk?: Disk;
  resumePointMs?: number;
}

/** Deaths of the whole daemon in a run that did not move on between them. */
const DEATHS_MAX = 5;

export class TrainingRuns {
  private readonly o: RunsOptions;
  private readonly runs = new Map<string, Run>();
  private readonly publisher: Publisher;
  private closing = false;
  private turning = false;

  private constructor(options: RunsOptions) {
    this.o = options;
    this.publisher = new Publisher(options.registry, options.log);
  }

  /** Runs that had the worker when the daemon ended wait for their turn again and go on from what they saved. */
  static open(options: RunsOptions): TrainingRuns {
    mkdirSync(options.root, { recursive: true });
    clearTemporary(options.root);
    const runs = new TrainingRuns(options);
    for (const id of readdirSync(options.root)) {
      if (!runId.safeParse(id).success) continue;
      try {
        runs.load(id);
      } catch (error) {
        options.log.error({ run: id, err: error }, 'the folder of a training run is damaged; it is left alone');
      }
    }
    runs.turn();
    return runs;
  }

  private load(id: string): void {
    const folder = new RunFolder(join(this.o.root, id), this.o.disk ?? realDisk);
    folder.clear();
    const { request, state } = folder.read();
    const { lastEvent, metrics } = state.told ?? eventsOf(folder);
    const run: Run = {
      id,
      request,
      state,
      folder,
      lastEvent,
      metrics,
      active: null,
      followers: new Set(),
      trouble: false,
    };
    this.runs.set(id, run);
    if (OVER.has(state.status)) folder.dropResumePoints();
    if (state.status !== 'running') return;
    // It was cut off: a daemon that stops in good order leaves its run queued.
    this.crash(run);
    if (state.wanted === 'cancel') this.end(run, 'cancelled');
    else if (state.crashes > DEATHS_MAX) {
      this.end(run, 'failed', crashed(`the daemon ended ${state.crashes} times`).toPlain());
    } else {
      const status = state.wanted === 'pause' ? 'paused' : 'queued';
      this.settle(run, status, 'The daemon was restarted; the run goes on from its last saved step.');
    }
  }

  list(): TrainingRun[] {
    return [...this.runs.values()].map((run) => describe(run)).sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1));
  }

  /** @throws DaemonError `not_found` */
  get(id: string): TrainingRun {
    return describe(this.known(id));
  }

  /** @throws DaemonError `not_found` */
  eventsPath(id: string): string {
    return this.known(id).folder.eventsPath;
  }

  get queueLength(): number {
    return [...this.runs.values()].filter(({ state }) => state.status === 'queued').length;
  }

  /** The one that has the worker. */
  get current(): TrainingRun | null {
    const run = [...this.runs.values()].find(({ active }) => active !== null);
    return run === undefined ? null : describe(run);
  }

  /** Whether a run that is not over needs a dataset. */
  needs(digest: string): boolean {
    return [...this.runs.values()].some(
      ({ state, request }) => !OVER.has(state.status) && (request.dataset === digest || request.validation === digest),
    );
  }

  /** @throws DaemonError */
  async put(id: string, request: RunRequest): Promise<{ run: TrainingRun; created: boolean }> {
    const same = (run: Run) => {
      if (isDeepStrictEqual(run.request, request)) return { run: describe(run), created: false };
      throw new DaemonError('run_exists', `there is a run ${id} already, with another request; choose another id`);
    };
    const known = this.runs.get(id);
    if (known !== undefined) return same(known);
    if (this.closing)
      throw new DaemonError('shutting_down', 'the daemon is stopping; send the request again in a moment');
    await checkFiles(request, this.o.datasets);
    // From here to where the run is known nothing waits: two that ask at once do not both get the name.
    const meanwhile = this.runs.get(id);
    if (meanwhile !== undefined) return same(meanwhile);
    checkPlace(request, { runs: this.runs.values(), taken: (name) => this.publisher.taken(id, name) });
    const state = freshState(this.o.base.digest);
    const folder = new RunFolder(join(this.o.root, id), this.o.disk ?? realDisk);
    try {
      folder.create(request, state);
    } catch (error) {
      throw isDiskFull(error)
        ? new DaemonError('disk_full', 'the disk has no room for a training run; free some space and try again')
        : error;
    }
    const run: Run = {
      id,
      request,
      state,
      folder,
      lastEvent: 0,
      metrics: null,
      active: null,
      followers: new Set(),
      trouble: false,
    };
    this.runs.set(id, run);
    this.event(run, {
      level: 'info',
      type: 'status',
      message: 'The run waits for its turn.',
      data: { status: 'queued' },
    });
    this.forgetOld();
    this.turn();
    return { run: describe(run), created: true };
  }

  /** Resolves when it has happened, or after a while; what was asked for is remembered across restarts. @throws DaemonError */
  async cancel(id: string): Promise<TrainingRun> {
    const run = this.known(id);
    if (run.state.status === 'cancelled') return describe(run);
    if (OVER.has(run.state.status)) throw notNow(run, 'cancelled');
    this.want(run, 'cancel');
    if (run.active === null) this.end(run, 'cancelled');
    else await this.settled(run);
    return describe(run);
  }

  /** @throws DaemonError */
  async pause(id: string): Promise<TrainingRun> {
    const run = this.known(id);
    if (OVER.has(run.state.status)) throw notNow(run, 'paused');
    if (run.state.wanted === 'cancel') throw notNow(run, 'paused');
    if (run.state.status === 'paused') return describe(run);
    this.want(run, 'pause');
    if (run.active === null) this.settle(run, 'paused', 'The run is paused.');
    else await this.settled(run);
    return describe(run);
  }

  /** @throws DaemonError */
  async resume(id: string): Promise<TrainingRun> {
    const run = this.known(id);
    if (OVER.has(run.state.status) || run.state.wanted === 'cancel') throw notNow(run, 'resumed');
    // A pause that is under way ends first; then the run waits for its turn like any other.
    if (run.active !== null && run.state.wanted === 'pause') await run.active.ended;
    if (run.state.status !== 'paused') return describe(run);
    this.want(run, 'run');
    run.state.queuedAt = new Date().toISOString();
    this.settle(run, 'queued', 'The run waits for its turn.');
    this.turn();
    return describe(run);
  }

  /** Forgets a run that is over; its adapters stay. @throws DaemonError */
  remove(id: string): void {
    const run = this.known(id);
    if (!OVER.has(run.state.status))
      throw new DaemonError('run_not_ready', `the run ${id} is ${run.state.status}; cancel it first`);
    this.runs.delete(id);
    run.folder.remove();
    this.tell(run);
  }

  /** Events after `after`; with `follow`, until the run is over or `signal` says so. @throws DaemonError `not_found` */
  async *events(id: string, after: number, follow: boolean, signal: AbortSignal): AsyncGenerator<TrainingEvent[]> {
    const run = this.known(id);
    const reader = new EventReader(run.folder.eventsPath, after);
    let wake = () => {};
    const hear = () => wake();
    run.followers.add(hear);
    signal.addEventListener('abort', hear);
    try {
      while (!signal.aborted) {
        // Before reading: what comes while reading is not missed.
        const more = new Promise<void>((resolve) => {
          wake = resolve;
        });
        const over = OVER.has(run.state.status) || this.runs.get(id) !== run || this.closing;
        const events = reader.next();
        if (events.length > 0) yield events;
        else if (!follow || over) return;
        else await more;
      }
    } finally {
      run.followers.delete(hear);
      signal.removeEventListener('abort', hear);
    }
  }

  /** Stops at the next micro-batch and saves; the runs go on when the daemon starts again. */
  async close(): Promise<void> {
    this.closing = true;
    const ended: Promise<void>[] = [];
    for (const run of this.runs.values()) {
      if (run.active === null) continue;
      if (Atomics.load(run.active.control, 0) === 0) Atomics.store(run.active.control, 0, COMMANDS.indexOf('stop'));
      ended.push(run.active.ended);
    }
    await Promise.all(ended);
    for (const run of this.runs.values()) this.tell(run);
  }

  private turn(): void {
    if (this.closing || this.turning || this.current !== null) return;
    const waiting: { id: string; owner: string; queuedAt: string }[] = [];
    const served = new Map<string, string>();
    for (const { id, request, state } of this.runs.values()) {
      const { owner } = request;
      if (state.servedAt !== null && state.servedAt > (served.get(owner) ?? '')) served.set(owner, state.servedAt);
      if (state.status === 'queued') waiting.push({ id, owner, queuedAt: state.queuedAt });
    }
    const next = nextRun(waiting, served);
    if (next === null) return;
    const run = this.known(next.id);
    const control = new Int32Array(new SharedArrayBuffer(4));
    run.state.servedAt = new Date().toISOString();
    const ended = this.serve(run, control).catch((error: unknown) => {
      // Nothing is known of what broke; the run must not stay where it is.
      this.o.log.error({ run: run.id, err: error }, 'a training run broke');
      run.active = null;
      this.end(
        run,
        'failed',
        new RunError('internal_error', 'The training failed unexpectedly; the daemon’s log has the cause.').toPlain(),
      );
    });
    run.active = { control, ended };
    void ended.then(() => {
      run.active = null;
      this.tell(run);
      this.turn();
    });
  }

  /** From here until it ends, the worker writes the run's events. */
  private async serve(run: Run, control: Int32Array): Promise<void> {
    const { state } = run;
    if (state.baseDigest !== this.o.base.digest) {
      const message = `The base model is another one (${this.o.base.digest.slice(0, 12)}…) than when the run was made (${state.baseDigest.slice(0, 12)}…). Start the daemon with the model of before, or make the job again.`;
      return this.end(run, 'failed', new RunError('base_changed', message).toPlain());
    }
    const files = await this.filesOf(run);
    if ('error' in files) return this.end(run, 'failed', files.error);
    // Whoever cancelled or paused while the files were looked at.
    if (state.wanted === 'cancel') return this.end(run, 'cancelled');
    if (state.wanted === 'pause') return this.settle(run, 'paused', 'The run is paused.');
    if (this.closing) return;
    state.startedAt ??= new Date().toISOString();
    this.settle(run, 'running', 'The run has begun.');
    const result = await this.work(run, control, files);
    if (result instanceof Error) return this.died(run, result);
    Object.assign(state, result.at ?? {});
    switch (result.outcome) {
      case 'succeeded':
      case 'cancelled':
        return this.end(run, result.outcome);
      case 'paused':
        return this.settle(run, 'paused', `The run is paused at step ${state.step}.`);
      case 'stopped':
        state.crashes = 0;
        return this.settle(run, 'queued', 'The daemon is stopping; the run goes on when it starts again.');
      case 'failed':
        if (result.cause !== null)
          this.o.log.error({ run: run.id, cause: result.cause }, 'a training run failed unexpectedly');
        return this.end(run, 'failed', result.error);
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
        this.save(run);
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
        this.tell(run);
        return;
    }
  }

  /** The worker died under it: again from its last resume point, but not for ever. */
  private died(run: Run, error: Error): void {
    const { state } = run;
    this.o.log.error({ run: run.id, err: error }, 'a training worker died');
    const saved = this.crash(run);
    if (state.wanted === 'cancel') this.end(run, 'cancelled');
    else if (state.crashes > TRAINING_LIMITS.crashesMax) {
      this.end(run, 'failed', crashed(`its worker died ${state.crashes} times`).toPlain());
    } else {
      const message = `The training worker died; the run goes on from step ${saved}.`;
      this.event(run, { level: 'warn', type: 'message', message, data: null });
      if (state.wanted === 'pause') this.settle(run, 'paused', 'The run is paused.');
      else this.settle(run, 'queued', 'The run waits for its turn.');
    }
  }

  /** Counts a death; a run that has moved on since the last one begins to count anew. Returns the step that it goes on from. */
  private crash({ state, folder }: Run): number {
    const saved = folder.readResumePoint()?.point.step ?? 0;
    state.crashes = saved > state.crashedAt ? 1 : state.crashes + 1;
    state.crashedAt = saved;
    state.step = saved;
    return saved;
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
        this.save(run);
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

  private want(run: Run, wanted: RunState['wanted']): void {
    run.state.wanted = wanted;
    this.save(run);
    const command = wanted === 'run' ? 'run' : wanted;
    if (run.active !== null) Atomics.store(run.active.control, 0, COMMANDS.indexOf(command));
  }

  private async settled(run: Run): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, TRAINING_LIMITS.commandMs);
    });
    await Promise.race([run.active?.ended, late]);
    clearTimeout(timer);
  }

  private end(run: Run, status: 'succeeded' | 'failed' | 'cancelled', error: RunState['error'] = null): void {
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
  private settle(run: Run, status: RunState['status'], message: string, error: RunState['error'] = null): void {
    const data = { status, ...(error === null ? {} : { error }) };
    this.event(run, { level: status === 'failed' ? 'error' : 'info', type: 'status', message, data });
    run.state.status = status;
    if (OVER.has(status)) run.state.told = { lastEvent: run.lastEvent, metrics: run.metrics };
    this.save(run);
    this.tell(run);
    const { step, steps } = run.state;
    this.o.log.info(
      { run: run.id, status, step, steps, ...(error === null ? {} : { code: error.code }) },
      'training run',
    );
  }

  /** A full disk must not keep a run from ending; what could not be written is told to the log. */
  private event(run: Run, event: NewEvent): void {
    try {
      const events = EventLog.open(run.folder.eventsPath);
      try {
        run.lastEvent = events.append(event, true).seq;
      } finally {
        events.close();
      }
    } catch (error) {
      this.o.log.error({ run: run.id, err: error }, 'an event of a training run could not be written');
    }
    this.tell(run);
  }

  private save(run: Run): void {
    try {
      run.folder.writeState(run.state);
      run.trouble = false;
    } catch (error) {
      if (!run.trouble)
        this.o.log.error({ run: run.id, err: error }, 'the state of a training run could not be written');
      run.trouble = true;
    }
  }

  private tell(run: Run): void {
    for (const hear of [...run.followers]) hear();
  }

  private forgetOld(): void {
    const over = [...this.runs.values()].filter(({ state }) => OVER.has(state.status));
    over.sort((a, b) => ((a.state.finishedAt ?? '') < (b.state.finishedAt ?? '') ? -1 : 1));
    for (const { id } of over.slice(0, Math.max(0, over.length - TRAINING_LIMITS.finishedRunsMax))) this.remove(id);
  }

  private known(id: string): Run {
    const run = this.runs.get(id);
    if (run === undefined)
      throw new DaemonError('not_found', `there is no training run ${JSON.stringify(id.slice(0, 64))}`);
    return run;
  }
}

function eventsOf(folder: RunFolder): { lastEvent: number; metrics: StepMetrics | null } {
  const events = EventLog.open(folder.eventsPath);
  events.close();
  return { lastEvent: events.summary.lastEvent, metrics: events.summary.lastMetrics };
}
