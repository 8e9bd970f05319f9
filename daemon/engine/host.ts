import type { Engine } from '../../addon/types.ts';
import { DaemonError, toDaemonError } from '../errors.ts';
import { EngineLoop } from './loop.ts';
import type { FromEngine, ToEngine } from './messages.ts';
import type { SchedulerOptions } from './scheduler.ts';
import type { AdapterTiers } from './slots.ts';

export interface HostOptions {
  engine: Engine;
  tiers: AdapterTiers;
  endTokens: Int32Array;
  scheduler: SchedulerOptions;
  post: (message: FromEngine) => void;
  /** Told `exit`; everything in flight has been failed. */
  onExit: () => void;
}

/** What runs inside the engine thread: takes messages between two turns of the loop, and turns it while there is work. */
export class EngineHost {
  private readonly options: HostOptions;
  private readonly loop: EngineLoop;
  private readonly tiers: AdapterTiers;
  private scheduled = false;
  private dead = false;
  private placesChanged = true;

  constructor(options: HostOptions) {
    this.options = options;
    this.tiers = options.tiers;
    const { engine, tiers, endTokens, scheduler, post } = options;
    this.loop = new EngineLoop({
      engine,
      slots: tiers,
      endTokens,
      scheduler,
      emit: (events, report, gauges) => post({ type: 'step', events, report, gauges }),
    });
    tiers.onChange = () => {
      this.placesChanged = true;
      this.wake();
    };
    this.reportPlaces();
  }

  receive(message: ToEngine): void {
    if (this.dead) return;
    switch (message.type) {
      case 'submit':
        this.loop.submit(message.job);
        break;
      case 'abort':
        this.loop.abort(message.job, message.choice);
        break;
      case 'move':
        this.answer(message.call, () => this.tiers.move(message.adapter, message.to));
        break;
      case 'pin':
        this.answer(message.call, () => this.tiers.pin(message.digest, message.pinned));
        break;
      case 'forget':
        this.loop.scheduler.forget(message.digest);
        this.tiers.forget(message.digest);
        break;
      case 'exit':
        this.dead = true;
        this.loop.failAll(
          new DaemonError('shutting_down', 'the daemon is stopping; send the request again in a moment').toPlain(),
        );
        this.options.onExit();
        return;
    }
    this.wake();
  }

  private answer(call: number, work: () => void | Promise<void>): void {
    Promise.resolve()
      .then(work)
      .then(
        () => {
          // Whoever hears that it is done asks next where it is.
          this.reportPlaces();
          this.options.post({ type: 'moved', call, error: null });
        },
        (error: unknown) => this.options.post({ type: 'moved', call, error: toDaemonError(error).toPlain() }),
      )
      .finally(() => this.wake());
  }

  private wake(): void {
    if (this.scheduled || this.dead) return;
    this.scheduled = true;
    // A turn of the event loop between two steps: messages arrive and adapters move then.
    setImmediate(this.turn);
  }

  private readonly turn = (): void => {
    this.scheduled = false;
    if (this.dead) return;
    let worked = false;
    try {
      worked = this.loop.turn();
    } catch (error) {
      // The engine's state is not known any more. Everybody is told; who started the thread decides what becomes of it.
      this.dead = true;
      const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
      this.loop.failAll(
        new DaemonError(
          'engine_failed',
          'the engine failed while it computed this request; it is being restarted',
        ).toPlain(),
      );
      this.options.post({ type: 'fatal', message });
      return;
    }
    if (this.placesChanged) this.reportPlaces();
    if (worked) this.wake();
  };

  private reportPlaces(): void {
    this.placesChanged = false;
    this.options.post({
      type: 'places',
      places: this.tiers.places(),
      counters: this.tiers.counters(),
      loads: this.tiers.takeLoads(),
    });
  }
}
