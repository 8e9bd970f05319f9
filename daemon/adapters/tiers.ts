/**
 * The three tiers of an adapter, disk → host RAM → slot, as a policy: what is read, what is kept, what makes room. Runs in
 * the engine thread between two steps and never waits; reading and building are done by `loadImage`.
 *
 * The life of an adapter here: `prefetch` or `acquire` starts one load, shared by all who want it; the image lands in the
 * host cache; `acquire` puts it into a free or the least recently used idle slot and pins that; `release` lets go. A slot
 * in use is never taken. An adapter that was unloaded or forgotten while in use keeps its slot until the last `release`.
 */
import type { AdapterImage } from '../../addon/types.ts';
import type { AdapterLoad, AdapterPlace, TierCounters } from '../engine/messages.ts';
import type { Acquired, AdapterHandle, AdapterTiers } from '../engine/slots.ts';
import { DaemonError, invariant, type PlainError } from '../errors.ts';
import { HostCache } from './host-cache.ts';
import { TIER_LIMITS } from './limits.ts';

export interface TierActions {
  /** Reads and builds an adapter; may take its time. Rejections become `failed` for all who wait. */
  loadImage(adapter: AdapterHandle): Promise<AdapterImage>;
  setSlot(slot: number, image: AdapterImage): void;
  clearSlot(slot: number): void;
}

export interface TierOptions {
  slots: number;
  hostBytesMax: number;
  /** Milliseconds; default `performance.now`. */
  now?: () => number;
  loadsMax?: number;
  failureMs?: number;
  /** Hears the cause of a failed load, for the log; callers get a sentence. */
  onError?: (digest: string, cause: unknown) => void;
}

interface Slot {
  digest: string;
  bytes: number;
  users: number;
  /** Rises with every use; the lowest among idle slots goes first. */
  usedAt: number;
  /** To be cleared when the last user lets go. */
  retiring: boolean;
}

interface Load {
  adapter: AdapterHandle;
  started: boolean;
  /** Somebody waits for it in `acquire` or `move`, not only a prefetch. */
  wanted: boolean;
  /** Unloaded meanwhile: throw it away unless somebody wants it. */
  unloaded: boolean;
  done: Promise<PlainError | null>;
  finish: (error: PlainError | null) => void;
}

export class TieredAdapters implements AdapterTiers {
  onChange: () => void = () => {};
  readonly slots: number;
  private readonly actions: TierActions;
  private readonly host: HostCache;
  private readonly table: (Slot | null)[];
  private readonly slotOf = new Map<string, number>();
  private readonly loads = new Map<string, Load>();
  private readonly failures = new Map<string, { error: PlainError; untilMs: number }>();
  private readonly pins = new Set<string>();
  private readonly now: () => number;
  private readonly loadsMax: number;
  private readonly failureMs: number;
  private readonly onError: NonNullable<TierOptions['onError']>;
  private loading = 0;
  private clock = 0;
  private closed = false;
  private samples: AdapterLoad[] = [];
  private hostHits = 0;
  private slotHits = 0;
  private misses = 0;
  private slotEvictions = 0;

  constructor(actions: TierActions, options: TierOptions) {
    invariant(options.slots >= 1, 'there is at least one slot');
    this.actions = actions;
    this.slots = options.slots;
    this.host = new HostCache(options.hostBytesMax);
    this.table = new Array<Slot | null>(options.slots).fill(null);
    this.now = options.now ?? (() => performance.now());
    this.loadsMax = options.loadsMax ?? TIER_LIMITS.loadsMax;
    this.onError = options.onError ?? (() => {});
    this.failureMs = options.failureMs ?? TIER_LIMITS.failureMs;
  }

  acquire(adapter: AdapterHandle): Acquired {
    const { digest } = adapter;
    const resident = this.slotOf.get(digest);
    if (resident !== undefined) {
      this.slotHits++;
      return this.use(resident);
    }
    const failed = this.failureOf(digest);
    if (failed) return { state: 'failed', error: failed };
    const image = this.host.get(digest);
    if (image) {
      const target = this.slotToFill();
      if (target === null) return { state: 'full' };
      const error = this.fill(target, digest, image);
      if (error) return { state: 'failed', error };
      this.hostHits++;
      return this.use(target);
    }
    this.load(adapter, true);
    return { state: 'loading' };
  }

  release(digest: string): void {
    const index = this.slotOf.get(digest);
    const slot = index === undefined ? null : this.table[index];
    invariant(index !== undefined && !!slot && slot.users > 0, `adapter ${digest} is released only by who acquired it`);
    slot.users--;
    if (slot.users > 0) return;
    if (slot.retiring) this.empty(index);
    this.onChange();
  }

  prefetch(adapter: AdapterHandle): void {
    if (this.isResident(adapter.digest) || this.failureOf(adapter.digest)) return;
    this.load(adapter, false);
  }

  isResident(digest: string): boolean {
    return this.slotOf.has(digest) || this.host.has(digest);
  }

  async move(adapter: AdapterHandle, to: 'slot' | 'host' | 'disk'): Promise<void> {
    if (to === 'disk') this.unload(adapter.digest);
    else if (to === 'host') await this.moveToHost(adapter);
    else await this.moveToSlot(adapter);
  }

  pin(digest: string, pinned: boolean): void {
    if (!pinned) {
      this.pins.delete(digest);
      this.host.unpin(digest);
    } else if (!this.pins.has(digest)) {
      if (this.pins.size >= this.slots - 1) {
        throw new DaemonError(
          'adapter_unavailable',
          `${this.pins.size} adapters are pinned and one of the ${this.slots} slots must stay free for the others; unpin one first`,
        );
      }
      this.pins.add(digest);
      this.host.pin(digest);
    }
    this.onChange();
  }

  forget(digest: string): void {
    this.pins.delete(digest);
    this.failures.delete(digest);
    this.unload(digest);
  }

  places(): AdapterPlace[] {
    const places: AdapterPlace[] = [];
    this.table.forEach((slot, index) => {
      if (!slot) return;
      const { digest, bytes } = slot;
      places.push({ digest, tier: 'slot', slot: index, bytes, pinned: this.pins.has(digest) });
    });
    for (const [digest, image] of this.host.entries()) {
      if (this.slotOf.has(digest)) continue;
      places.push({ digest, tier: 'host', slot: -1, bytes: image.bytes, pinned: this.pins.has(digest) });
    }
    return places;
  }

  counters(): TierCounters {
    const { hostHits, slotHits, misses, slotEvictions } = this;
    return { hostHits, slotHits, misses, hostEvictions: this.host.evictions, slotEvictions };
  }

  takeLoads(): AdapterLoad[] {
    const taken = this.samples;
    this.samples = [];
    return taken;
  }

  /** Bytes in the host cache now. */
  get hostBytes(): number {
    return this.host.bytes;
  }

  /** Lets go of everything; loads under way are released when they land. */
  close(): void {
    this.closed = true;
    this.table.forEach((slot, index) => {
      if (slot) this.empty(index);
    });
    this.host.clear();
    for (const load of [...this.loads.values()]) {
      if (!load.started) this.finish(load, plainOf(new DaemonError('shutting_down', 'the engine is stopping')));
    }
  }

  // ---- slots

  private use(index: number): Acquired {
    const slot = this.table[index] as Slot;
    slot.users++;
    slot.usedAt = ++this.clock;
    return { state: 'slot', slot: index };
  }

  /** An empty slot, else the idle one that was used longest ago; null if all are in use or pinned. */
  private slotToFill(): number | null {
    let best: number | null = null;
    for (const [index, slot] of this.table.entries()) {
      if (!slot) return index;
      if (slot.users > 0 || this.pins.has(slot.digest)) continue;
      if (best === null || slot.usedAt < (this.table[best] as Slot).usedAt) best = index;
    }
    return best;
  }

  private fill(index: number, digest: string, image: AdapterImage): PlainError | null {
    const before = this.table[index];
    if (before) {
      this.slotOf.delete(before.digest);
      this.table[index] = null;
      this.slotEvictions++;
    }
    const start = this.now();
    try {
      this.actions.setSlot(index, image);
    } catch (error) {
      // What the slot holds now is not known; empty is safe.
      this.actions.clearSlot(index);
      return this.fail(digest, error);
    }
    this.sample('slot', start);
    this.table[index] = { digest, bytes: image.bytes, users: 0, usedAt: ++this.clock, retiring: false };
    this.slotOf.set(digest, index);
    this.onChange();
    return null;
  }

  private empty(index: number): void {
    const slot = this.table[index] as Slot;
    this.slotOf.delete(slot.digest);
    this.table[index] = null;
    this.actions.clearSlot(index);
  }

  private unload(digest: string): void {
    const load = this.loads.get(digest);
    if (load) load.unloaded = true;
    this.host.delete(digest);
    const index = this.slotOf.get(digest);
    if (index !== undefined) {
      const slot = this.table[index] as Slot;
      if (slot.users > 0) slot.retiring = true;
      else this.empty(index);
    }
    this.onChange();
  }

  // ---- moves asked for by people

  private async moveToSlot(adapter: AdapterHandle): Promise<void> {
    const { digest } = adapter;
    await this.toHost(adapter);
    const resident = this.slotOf.get(digest);
    if (resident !== undefined) {
      (this.table[resident] as Slot).usedAt = ++this.clock;
      return;
    }
    const image = this.host.get(digest);
    const target = this.slotToFill();
    if (!image || target === null)
      throw unavailable('every slot is in use or pinned; try again when requests have ended');
    const error = this.fill(target, digest, image);
    if (error) throw DaemonError.fromPlain(error);
  }

  private async moveToHost(adapter: AdapterHandle): Promise<void> {
    if (!this.host.has(adapter.digest)) await this.loadNow(adapter);
    const index = this.slotOf.get(adapter.digest);
    if (index === undefined) return;
    if ((this.table[index] as Slot).users > 0)
      throw unavailable('the adapter is in use; try again when its requests have ended');
    this.empty(index);
    this.onChange();
  }

  private async toHost(adapter: AdapterHandle): Promise<void> {
    if (!this.isResident(adapter.digest)) await this.loadNow(adapter);
  }

  private async loadNow(adapter: AdapterHandle): Promise<void> {
    const error = await this.load(adapter, true).done;
    if (error) throw DaemonError.fromPlain(error);
  }

  // ---- disk → host

  private load(adapter: AdapterHandle, wanted: boolean): Load {
    const { digest } = adapter;
    const existing = this.loads.get(digest);
    if (existing) {
      existing.wanted ||= wanted;
      return existing;
    }
    this.misses++;
    let finish: Load['finish'] = () => {};
    const done = new Promise<PlainError | null>((resolve) => {
      finish = resolve;
    });
    const load: Load = { adapter, started: false, wanted, unloaded: false, done, finish };
    this.loads.set(digest, load);
    this.startLoads();
    return load;
  }

  /** Those that somebody waits for go before prefetches; among equals the first come. */
  private startLoads(): void {
    while (this.loading < this.loadsMax && !this.closed) {
      const waiting = [...this.loads.values()].filter((load) => !load.started);
      const next = waiting.find((load) => load.wanted) ?? waiting[0];
      if (!next) return;
      next.started = true;
      this.loading++;
      void this.run(next);
    }
  }

  private async run(load: Load): Promise<void> {
    const { digest } = load.adapter;
    const start = this.now();
    let error: PlainError | null = null;
    try {
      const image = await this.actions.loadImage(load.adapter);
      error = this.land(load, image, start);
    } catch (cause) {
      error = this.fail(digest, cause);
    }
    this.loading--;
    this.finish(load, error);
    this.startLoads();
    this.onChange();
  }

  private land(load: Load, image: AdapterImage, start: number): PlainError | null {
    const { digest } = load.adapter;
    if (this.closed || (load.unloaded && !load.wanted)) {
      image.release();
      return null;
    }
    if (!this.host.canAdd(image)) {
      image.release();
      return this.fail(
        digest,
        unavailable(
          `the adapter needs ${image.bytes} bytes of host memory and ${this.host.roomMax} are there for adapters that are not pinned; allow more or unpin some`,
        ),
      );
    }
    this.sample('host', start);
    this.host.add(digest, image, this.pins.has(digest));
    return null;
  }

  private finish(load: Load, error: PlainError | null): void {
    this.loads.delete(load.adapter.digest);
    load.finish(error);
  }

  private fail(digest: string, cause: unknown): PlainError {
    const error = plainOf(cause);
    this.onError(digest, cause);
    this.failures.set(digest, { error, untilMs: this.now() + this.failureMs });
    return error;
  }

  private failureOf(digest: string): PlainError | null {
    const failure = this.failures.get(digest);
    if (!failure) return null;
    if (this.now() < failure.untilMs) return failure.error;
    this.failures.delete(digest);
    return null;
  }

  private sample(level: AdapterLoad['level'], start: number): void {
    if (this.samples.length >= TIER_LIMITS.samplesMax) return;
    this.samples.push({ level, seconds: (this.now() - start) / 1000 });
  }
}

function unavailable(message: string): DaemonError {
  return new DaemonError('adapter_unavailable', message);
}

function plainOf(cause: unknown): PlainError {
  if (cause instanceof DaemonError) return cause.toPlain();
  if ((cause as NodeJS.ErrnoException | null)?.code === 'ENOENT') {
    return unavailable('the adapter was removed while the request waited; add it again').toPlain();
  }
  return unavailable('the adapter could not be loaded; the log of the daemon has the cause').toPlain();
}
