/**
 * All training runs of this daemon: takes them in, lets one at a time have the training worker, passes on what their owners
 * want of them, and makes their adapters servable. What a run is, is in its folder; this is that in memory.
 */
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { AdapterRegistry } from '../adapters/registry.ts';
import { DaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { checkFiles, checkPlace } from './admission.ts';
import { clearTemporary, type Disk, isDiskFull, realDisk } from './disk.ts';
import { EventReader } from './event-log.ts';
import { COMMANDS } from './messages.ts';
import { type RunRequest, runId, type TrainingEvent, type TrainingRun } from './protocol.ts';
import { Publisher } from './publisher.ts';
import { crashed, describe, freshState, notNow, OVER, type Run } from './run.ts';
import { RunError } from './run-error.ts';
import { RunFolder } from './run-folder.ts';
import { eventsOf, RunStates } from './run-states.ts';
import { RunTurns, type TurnOptions } from './run-turn.ts';
import { nextRun } from './turns.ts';

export interface RunsOptions extends TurnOptions {
  /** `MODELFACTORY_DATA/training`. */
  root: string;
  registry: Pick<AdapterRegistry, 'addFiles' | 'get' | 'remove'>;
  disk?: Disk;
}

/** Deaths of the whole daemon in a run that did not move on between them. */
const DEATHS_MAX = 5;

export class TrainingRuns {
  private readonly o: RunsOptions;
  private readonly runs = new Map<string, Run>();
  private readonly publisher: Publisher;
  private readonly states: RunStates;
  private readonly turns: RunTurns;
  private closing = false;

  private constructor(options: RunsOptions) {
    this.o = options;
    this.publisher = new Publisher(options.registry, options.log);
    this.states = new RunStates(options.log);
    this.turns = new RunTurns(options, this.states, this.publisher, () => this.closing);
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
    this.states.crash(run);
    if (state.wanted === 'cancel') this.states.end(run, 'cancelled');
    else if (state.crashes > DEATHS_MAX) {
      this.states.end(run, 'failed', crashed(`the daemon ended ${state.crashes} times`).toPlain());
    } else {
      const status = state.wanted === 'pause' ? 'paused' : 'queued';
      this.states.settle(run, status, 'The daemon was restarted; the run goes on from its last saved step.');
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
    this.states.event(run, {
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
    this.states.want(run, 'cancel');
    if (run.active === null) this.states.end(run, 'cancelled');
    else await this.settled(run);
    return describe(run);
  }

  /** @throws DaemonError */
  async pause(id: string): Promise<TrainingRun> {
    const run = this.known(id);
    if (OVER.has(run.state.status)) throw notNow(run, 'paused');
    if (run.state.wanted === 'cancel') throw notNow(run, 'paused');
    if (run.state.status === 'paused') return describe(run);
    this.states.want(run, 'pause');
    if (run.active === null) this.states.settle(run, 'paused', 'The run is paused.');
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
    this.states.want(run, 'run');
    run.state.queuedAt = new Date().toISOString();
    this.states.settle(run, 'queued', 'The run waits for its turn.');
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
    this.states.tell(run);
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
    for (const run of this.runs.values()) this.states.tell(run);
  }

  private turn(): void {
    if (this.closing || this.current !== null) return;
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
    const ended = this.turns.serve(run, control).catch((error: unknown) => {
      // Nothing is known of what broke; the run must not stay where it is.
      this.o.log.error({ run: run.id, err: error }, 'a training run broke');
      run.active = null;
      this.states.end(
        run,
        'failed',
        new RunError('internal_error', 'The training failed unexpectedly; the daemon’s log has the cause.').toPlain(),
      );
    });
    run.active = { control, ended };
    void ended.then(() => {
      run.active = null;
      this.states.tell(run);
      this.turn();
    });
  }

  private async settled(run: Run): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, TRAINING_LIMITS.commandMs);
    });
    await Promise.race([run.active?.ended, late]);
    clearTimeout(timer);
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
