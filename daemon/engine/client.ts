import { Worker } from 'node:worker_threads';
import type { ModelInfo } from '../../addon/types.ts';
import { DaemonError, invariant } from '../errors.ts';
import type {
  AdapterLoad,
  AdapterPlace,
  EngineGauges,
  EngineSettings,
  FromEngine,
  Job,
  SequenceEvent,
  StepReport,
  TierCounters,
  ToEngine,
} from './messages.ts';
import type { AdapterHandle } from './slots.ts';

/** Hears what happens to one job. `settled` comes once, after the last event: all choices ended, or the job failed. */
export interface JobListener {
  event(event: SequenceEvent): void;
  /** All events of a step were handed over: the moment to write. */
  flush(): void;
}

/** How messages reach the engine; a worker thread in the daemon. */
export interface EngineTransport {
  post(message: ToEngine): void;
  /** Resolves when the other side is gone. */
  terminate(): Promise<void>;
}

export interface EngineObserver {
  step?(report: StepReport, gauges: EngineGauges): void;
  places?(places: AdapterPlace[], counters: TierCounters, loads: AdapterLoad[]): void;
  /** An adapter could not be loaded; `cause` is for the log. */
  loadFailed?(digest: string, cause: string): void;
  /** The last job or move that wanted this adapter version has ended. */
  released?(digest: string): void;
  /** The engine is gone for good; those in flight have been told. */
  crash?(message: string): void;
}

export interface StartedEngine {
  client: EngineClient;
  model: ModelInfo;
  kvCells: number;
  slots: number;
}

export interface EngineClientLimits {
  waitingMax: number;
  waitingPerCallerMax: number;
}

interface Running {
  listener: JobListener;
  visibility: string;
  digest: string | null;
  choices: number;
  left: number;
  started: boolean;
}

const NO_GAUGES: EngineGauges = {
  running: 0,
  waiting: 0,
  kvCellsFree: 0,
  preemptions: 0,
  yields: 0,
  prefixHits: 0,
  prefixMisses: 0,
  prefixEvictions: 0,
};

/** The engine as the main thread sees it. Does not compute; keeps who waits for what, and tells everybody when it ends. */
export class EngineClient {
  readonly observer: EngineObserver;
  private readonly transport: EngineTransport;
  private readonly limits: EngineClientLimits;
  private readonly jobs = new Map<number, Running>();
  private readonly calls = new Map<number, { resolve: () => void; reject: (error: Error) => void }>();
  private readonly waitingOf = new Map<string, number>();
  private readonly forgetting = new Set<string>();
  /** Jobs and moves under way, by adapter version. */
  private readonly users = new Map<string, number>();
  private waiting = 0;
  private ids = 0;
  private gone: DaemonError | null = null;
  private byDigest = new Map<string, AdapterPlace>();
  gauges: EngineGauges = NO_GAUGES;

  constructor(transport: EngineTransport, limits: EngineClientLimits, observer: EngineObserver = {}) {
    this.transport = transport;
    this.limits = limits;
    this.observer = observer;
  }

  /** Starts the engine thread and waits until the model is loaded. */
  static start(
    settings: EngineSettings,
    limits: EngineClientLimits,
    observer: EngineObserver = {},
  ): Promise<StartedEngine> {
    const worker = new Worker(new URL('./worker-boot.mjs', import.meta.url), { workerData: settings, name: 'engine' });
    let stopping = false;
    const transport: EngineTransport = {
      post: (message) => worker.postMessage(message),
      terminate: async () => {
        stopping = true;
        await worker.terminate();
      },
    };
    const client = new EngineClient(transport, limits, observer);
    return new Promise((resolve, reject) => {
      worker.on('message', (message: FromEngine) => {
        if (message.type === 'ready') {
          const { model, kvCells, slots } = message;
          resolve({ client, model, kvCells, slots });
        } else client.receive(message);
      });
      worker.on('error', (error) => {
        reject(error);
        client.end(error instanceof Error ? (error.stack ?? error.message) : String(error));
      });
      worker.on('exit', (code) => {
        const message = `the engine thread ended with code ${code}`;
        reject(new Error(message));
        if (!stopping) client.end(message);
      });
    });
  }

  get jobCount(): number {
    return this.jobs.size;
  }
  get waitingCount(): number {
    return this.waiting;
  }
  get failed(): boolean {
    return this.gone !== null;
  }
  /** Where an adapter version's weights are; undefined: on disk. */
  place(digest: string): AdapterPlace | undefined {
    return this.byDigest.get(digest);
  }

  /** Adapter versions with jobs that are computed, and those with jobs that wait. */
  adaptersInUse(): { running: Set<string>; waiting: Set<string> } {
    const running = new Set<string>();
    const waiting = new Set<string>();
    for (const { digest, started } of this.jobs.values()) {
      if (digest !== null) (started ? running : waiting).add(digest);
    }
    return { running, waiting };
  }

  /** Queues a job; its id is for `abort`. Throws `overloaded`, `rate_limit_exceeded`, or `engine_failed`. */
  submit(job: Omit<Job, 'job'>, listener: JobListener): number {
    if (this.gone !== null) throw this.gone;
    const { choices, visibility } = job;
    const mine = this.waitingOf.get(visibility) ?? 0;
    if (this.waiting + choices > this.limits.waitingMax) {
      throw new DaemonError(
        'overloaded',
        `the engine has ${this.waiting} requests waiting, which is its limit; try again in a few seconds`,
      );
    }
    if (mine + choices > this.limits.waitingPerCallerMax) {
      throw new DaemonError(
        'rate_limit_exceeded',
        `${mine} of your requests wait already, which is the limit; wait for some of them to end`,
      );
    }
    this.ids += 1;
    const id = this.ids;
    this.jobs.set(id, {
      listener,
      visibility,
      digest: job.adapter?.digest ?? null,
      choices,
      left: choices,
      started: false,
    });
    if (job.adapter !== null) this.use(job.adapter.digest);
    this.waiting += choices;
    this.waitingOf.set(visibility, mine + choices);
    this.transport.post({ type: 'submit', job: { ...job, job: id } });
    return id;
  }

  /** Ends a job or one choice of it within one step; the `finished` events still come. */
  abort(job: number, choice: number | null = null): void {
    if (this.jobs.has(job)) this.transport.post({ type: 'abort', job, choice });
  }

  async move(adapter: AdapterHandle, to: 'slot' | 'host' | 'disk'): Promise<void> {
    this.use(adapter.digest);
    try {
      await this.call((call) => ({ type: 'move', call, adapter, to }));
    } finally {
      this.letGo(adapter.digest);
    }
  }
  /** Whether jobs or moves under way, waiting ones included, want this adapter version. */
  uses(digest: string): boolean {
    return this.users.has(digest);
  }
  pin(digest: string, pinned: boolean): Promise<void> {
    return this.call((call) => ({ type: 'pin', call, digest, pinned }));
  }
  /** No name means this version any more. It goes when the last job that uses it has ended. */
  forget(digest: string): void {
    if (this.users.has(digest)) this.forgetting.add(digest);
    else if (this.gone === null) this.transport.post({ type: 'forget', digest });
  }
  /** A name means this version again: what `forget` has put off is not done. */
  remember(digest: string): void {
    this.forgetting.delete(digest);
  }

  /** Fails what is in flight with `shutting_down` and ends the thread. */
  async close(): Promise<void> {
    if (this.gone !== null) return;
    this.transport.post({ type: 'exit' });
    const deadline = Date.now() + 2_000;
    while (this.jobs.size > 0 && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 5));
    this.failAll(new DaemonError('shutting_down', 'the daemon is stopping; send the request again in a moment'));
    await this.transport.terminate();
  }

  receive(message: FromEngine): void {
    switch (message.type) {
      case 'step':
        this.gauges = message.gauges;
        this.handOut(message.events);
        if (message.report !== null) this.observer.step?.(message.report, message.gauges);
        return;
      case 'places':
        this.byDigest = new Map(message.places.map((place) => [place.digest, place]));
        this.observer.places?.(message.places, message.counters, message.loads);
        return;
      case 'moved': {
        const call = this.calls.get(message.call);
        this.calls.delete(message.call);
        if (message.error === null) call?.resolve();
        else call?.reject(DaemonError.fromPlain(message.error));
        return;
      }
      case 'load_failed':
        this.observer.loadFailed?.(message.digest, message.cause);
        return;
      case 'fatal':
        this.end(message.message);
        return;
      case 'ready':
        return;
    }
  }

  /** The engine is gone: everybody in flight is told. */
  end(message: string): void {
    if (this.gone !== null) return;
    this.failAll(
      new DaemonError('engine_failed', 'the engine failed while it computed this request; it is being restarted'),
    );
    this.observer.crash?.(message);
  }

  private failAll(error: DaemonError): void {
    this.gone ??= error;
    for (const [job, { listener }] of [...this.jobs]) {
      this.settle(job);
      listener.event({ type: 'failed', job, error: error.toPlain() });
      listener.flush();
    }
    for (const { reject } of this.calls.values()) reject(error);
    this.calls.clear();
  }

  private handOut(events: SequenceEvent[]): void {
    const touched = new Set<JobListener>();
    for (const event of events) {
      const running = this.jobs.get(event.job);
      if (running === undefined) continue;
      if (event.type === 'started') this.countStart(running);
      if (event.type === 'failed') this.settle(event.job);
      if (event.type === 'finished' || event.type === 'embedded' || event.type === 'scored') {
        running.left -= 1;
        if (running.left === 0) this.settle(event.job);
      }
      running.listener.event(event);
      touched.add(running.listener);
    }
    for (const listener of touched) listener.flush();
  }

  private countStart(running: Running): void {
    if (running.started) return;
    running.started = true;
    this.waiting -= running.choices;
    const left = (this.waitingOf.get(running.visibility) ?? 0) - running.choices;
    if (left <= 0) this.waitingOf.delete(running.visibility);
    else this.waitingOf.set(running.visibility, left);
  }

  private settle(job: number): void {
    const running = this.jobs.get(job);
    if (running === undefined) return;
    this.countStart(running);
    this.jobs.delete(job);
    if (running.digest !== null) this.letGo(running.digest);
  }

  private use(digest: string): void {
    this.users.set(digest, (this.users.get(digest) ?? 0) + 1);
  }

  private letGo(digest: string): void {
    const left = (this.users.get(digest) ?? 0) - 1;
    invariant(left >= 0, 'an adapter is let go as often as it is used');
    if (left > 0) {
      this.users.set(digest, left);
      return;
    }
    this.users.delete(digest);
    if (this.forgetting.delete(digest)) this.forget(digest);
    this.observer.released?.(digest);
  }

  private call(message: (call: number) => ToEngine): Promise<void> {
    if (this.gone !== null) return Promise.reject(this.gone);
    this.ids += 1;
    const call = this.ids;
    return new Promise((resolve, reject) => {
      this.calls.set(call, { resolve, reject });
      this.transport.post(message(call));
    });
  }
}
