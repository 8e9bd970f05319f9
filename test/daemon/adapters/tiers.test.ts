import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { AdapterImage } from '../../../addon/types.ts';
import { TieredAdapters, type TierOptions } from '../../../daemon/adapters/tiers.ts';
import type { AdapterHandle } from '../../../daemon/engine/slots.ts';
import { DaemonError } from '../../../daemon/errors.ts';

const handle = (digest: string): AdapterHandle => ({ digest, file: `/adapters/${digest}`, pairs: [] });
/** Lets promises settle. */
const settle = async (): Promise<void> => {
  for (let i = 0; i < 10; i++) await Promise.resolve();
};

class Image implements AdapterImage {
  readonly digest: string;
  readonly bytes: number;
  readonly rankMax = 8;
  released = 0;
  constructor(digest: string, bytes: number) {
    this.digest = digest;
    this.bytes = bytes;
  }
  release(): void {
    this.released++;
  }
}

interface Pending {
  digest: string;
  land: () => void;
  fail: (error: Error) => void;
}

/** The engine and the disk: loads land when the test says so, and everything that was ever made is remembered. */
class World {
  readonly tiers: TieredAdapters;
  readonly images: Image[] = [];
  readonly pending: Pending[] = [];
  readonly slots: (string | null)[];
  readonly errors: unknown[] = [];
  changes = 0;
  nowMs = 0;
  failSlot = false;
  bytesOf: (digest: string) => number = () => 10;

  constructor(options: Partial<TierOptions> = {}) {
    const slots = options.slots ?? 2;
    this.slots = new Array<string | null>(slots).fill(null);
    this.tiers = new TieredAdapters(
      {
        loadImage: ({ digest }) =>
          new Promise((resolve, reject) => {
            this.pending.push({
              digest,
              land: () => {
                const image = new Image(digest, this.bytesOf(digest));
                this.images.push(image);
                resolve(image);
              },
              fail: reject,
            });
          }),
        setSlot: (slot, image) => {
          if (this.failSlot) throw new Error('the device is out of memory');
          expect((image as Image).released).toBe(0);
          this.slots[slot] = (image as Image).digest;
        },
        clearSlot: (slot) => {
          this.slots[slot] = null;
        },
      },
      {
        slots,
        hostBytesMax: 100,
        now: () => this.nowMs,
        onError: (_digest, cause) => this.errors.push(cause),
        ...options,
      },
    );
    this.tiers.onChange = () => this.changes++;
  }

  async landAll(): Promise<void> {
    for (let rounds = 0; this.pending.length > 0 && rounds < 100; rounds++) {
      for (const load of this.pending.splice(0)) load.land();
      await settle();
    }
  }

  /** Asks, waits for the disk, asks again. */
  async acquire(digest: string): Promise<number> {
    const first = this.tiers.acquire(handle(digest));
    if (first.state === 'slot') return first.slot;
    await this.landAll();
    const second = this.tiers.acquire(handle(digest));
    if (second.state !== 'slot') throw new Error(`${digest}: ${second.state}`);
    return second.slot;
  }

  get live(): Image[] {
    return this.images.filter(({ released }) => released === 0);
  }
}

describe('an adapter comes from disk to a slot', () => {
  test('loading first, then in a slot that holds its weights, and pinned until it is released', async () => {
    const world = new World();
    expect(world.tiers.acquire(handle('a'))).toEqual({ state: 'loading' });
    expect(world.tiers.isResident('a')).toBe(false);
    await world.landAll();
    expect(world.tiers.isResident('a')).toBe(true);
    const acquired = world.tiers.acquire(handle('a'));
    expect(acquired).toEqual({ state: 'slot', slot: 0 });
    expect(world.slots[0]).toBe('a');
    expect(world.tiers.places()).toEqual([{ digest: 'a', tier: 'slot', slot: 0, bytes: 10, pinned: false }]);
  });

  test('all who ask for it share one load and one slot', async () => {
    const world = new World();
    world.tiers.prefetch(handle('a'));
    world.tiers.acquire(handle('a'));
    world.tiers.acquire(handle('a'));
    expect(world.pending).toHaveLength(1);
    await world.landAll();
    expect([world.tiers.acquire(handle('a')), world.tiers.acquire(handle('a'))]).toEqual([
      { state: 'slot', slot: 0 },
      { state: 'slot', slot: 0 },
    ]);
    expect(world.images).toHaveLength(1);
  });

  test('a prefetch brings it to host RAM; the slot is then filled at once', async () => {
    const world = new World();
    world.tiers.prefetch(handle('a'));
    await world.landAll();
    expect(world.tiers.places()).toEqual([{ digest: 'a', tier: 'host', slot: -1, bytes: 10, pinned: false }]);
    expect(world.tiers.acquire(handle('a')).state).toBe('slot');
    expect(world.pending).toHaveLength(0);
  });

  test('few are loaded at a time, and those that somebody waits for come before prefetches', async () => {
    const world = new World({ loadsMax: 1 });
    for (const digest of ['p', 'q', 'r']) world.tiers.prefetch(handle(digest));
    world.tiers.acquire(handle('r'));
    world.tiers.acquire(handle('s'));
    const order: string[] = [];
    while (world.pending.length > 0) {
      expect(world.pending).toHaveLength(1);
      const load = world.pending.shift() as Pending;
      order.push(load.digest);
      load.land();
      await settle();
    }
    expect(order).toEqual(['p', 'r', 's', 'q']);
  });
});

describe('room is made', () => {
  test('in slots: the idle one used longest ago goes, one in use never', async () => {
    const world = new World({ slots: 2 });
    await world.acquire('a');
    await world.acquire('b');
    await world.acquire('a');
    world.tiers.prefetch(handle('c'));
    await world.landAll();
    expect(world.tiers.acquire(handle('c'))).toEqual({ state: 'full' });
    world.tiers.release('a');
    expect(world.tiers.acquire(handle('c'))).toEqual({ state: 'full' });
    world.tiers.release('b');
    expect(await world.acquire('c')).toBe(1);
    expect(world.slots).toEqual(['a', 'c']);
    world.tiers.release('a');
    world.tiers.release('c');
    await world.acquire('a');
    world.tiers.release('a');
    await world.acquire('d');
    expect(world.slots).toEqual(['a', 'd']);
  });

  test('in host RAM: by bytes, the least recently used first; released once', async () => {
    const world = new World({ hostBytesMax: 30 });
    for (const digest of ['a', 'b', 'c']) {
      world.tiers.prefetch(handle(digest));
      await world.landAll();
    }
    await world.acquire('a');
    world.tiers.prefetch(handle('d'));
    await world.landAll();
    expect(world.live.map(({ digest }) => digest)).toEqual(['a', 'c', 'd']);
    expect(world.tiers.hostBytes).toBe(30);
    expect(world.tiers.counters().hostEvictions).toBe(1);
  });

  test('an adapter larger than the whole budget is told so, and nothing else is thrown out for it', async () => {
    const world = new World({ hostBytesMax: 30 });
    world.bytesOf = (digest) => (digest === 'big' ? 31 : 10);
    await world.acquire('a');
    world.tiers.acquire(handle('big'));
    await world.landAll();
    expect(world.tiers.acquire(handle('big'))).toMatchObject({
      state: 'failed',
      error: { code: 'adapter_unavailable' },
    });
    expect(world.live.map(({ digest }) => digest)).toEqual(['a']);
  });

  test('pinned adapters stay, in slots and in host RAM', async () => {
    const world = new World({ slots: 2, hostBytesMax: 20 });
    world.tiers.pin('a', true);
    await world.acquire('a');
    world.tiers.release('a');
    for (const digest of ['b', 'c', 'd']) {
      await world.acquire(digest);
      world.tiers.release(digest);
    }
    expect(world.slots).toEqual(['a', 'd']);
    expect(world.live.map(({ digest }) => digest)).toEqual(['a', 'd']);
    expect(world.tiers.places().find(({ digest }) => digest === 'a')?.pinned).toBe(true);
    world.tiers.pin('a', false);
    await world.acquire('e');
    world.tiers.release('e');
    expect(world.slots).toEqual(['e', 'd']);
  });

  test('pinning and unpinning what is loaded lets go of nothing', async () => {
    const world = new World({ slots: 2, hostBytesMax: 20 });
    world.tiers.prefetch(handle('a'));
    await world.landAll();
    world.tiers.pin('a', true);
    for (const digest of ['b', 'c']) {
      world.tiers.prefetch(handle(digest));
      await world.landAll();
    }
    expect(world.live.map(({ digest }) => digest)).toEqual(['a', 'c']);
    world.tiers.pin('a', false);
    expect(world.live).toHaveLength(2);
    expect(world.tiers.hostBytes).toBe(20);
  });

  test('one slot is always left to those that are not pinned', () => {
    const world = new World({ slots: 2 });
    world.tiers.pin('a', true);
    world.tiers.pin('a', true);
    expect(() => world.tiers.pin('b', true)).toThrow(DaemonError);
    expect(() => new World({ slots: 1 }).tiers.pin('a', true)).toThrow(DaemonError);
  });
});

describe('unloading', () => {
  test('an idle adapter goes at once, from slot and host RAM', async () => {
    const world = new World();
    await world.acquire('a');
    world.tiers.release('a');
    await world.tiers.move(handle('a'), 'disk');
    expect(world.slots[0]).toBeNull();
    expect(world.live).toEqual([]);
    expect(world.tiers.places()).toEqual([]);
  });

  test('one in use keeps its slot until the last request on it ends', async () => {
    const world = new World();
    await world.acquire('a');
    await world.acquire('a');
    world.tiers.forget('a');
    expect(world.slots[0]).toBe('a');
    world.tiers.release('a');
    expect(world.slots[0]).toBe('a');
    world.tiers.release('a');
    expect(world.slots[0]).toBeNull();
    expect(world.tiers.isResident('a')).toBe(false);
    expect(world.live).toEqual([]);
  });

  test('a load under way that nobody waits for is thrown away when it lands', async () => {
    const world = new World();
    world.tiers.prefetch(handle('a'));
    world.tiers.forget('a');
    await world.landAll();
    expect(world.live).toEqual([]);
    expect(world.tiers.isResident('a')).toBe(false);
  });

  test('one that a request waits for is still served', async () => {
    const world = new World();
    world.tiers.acquire(handle('a'));
    world.tiers.forget('a');
    await world.landAll();
    expect(world.tiers.acquire(handle('a')).state).toBe('slot');
  });

  test('closing releases everything, also what lands later', async () => {
    const world = new World();
    await world.acquire('a');
    world.tiers.pin('b', true);
    await world.acquire('b');
    world.tiers.prefetch(handle('c'));
    world.tiers.close();
    await world.landAll();
    expect(world.images).toHaveLength(3);
    expect(world.images.every(({ released }) => released === 1)).toBe(true);
    expect(world.slots).toEqual([null, null]);
  });
});

describe('moving by hand', () => {
  test('to a slot, to host RAM, to disk', async () => {
    const world = new World();
    const toSlot = world.tiers.move(handle('a'), 'slot');
    await world.landAll();
    await toSlot;
    expect(world.slots[0]).toBe('a');
    await world.tiers.move(handle('a'), 'host');
    expect(world.tiers.places()).toMatchObject([{ digest: 'a', tier: 'host' }]);
    expect(world.slots[0]).toBeNull();
    await world.tiers.move(handle('a'), 'disk');
    expect(world.tiers.places()).toEqual([]);
  });

  test('is refused when there is no room, when it is in use, when it cannot be loaded', async () => {
    const world = new World({ slots: 1 });
    await world.acquire('a');
    const noRoom = world.tiers.move(handle('b'), 'slot');
    const expectation = expect(noRoom).rejects.toMatchObject({ code: 'adapter_unavailable' });
    await world.landAll();
    await expectation;
    await expect(world.tiers.move(handle('a'), 'host')).rejects.toMatchObject({ code: 'adapter_unavailable' });
    const broken = expect(world.tiers.move(handle('c'), 'slot')).rejects.toThrow(/broken file/);
    await settle();
    world.pending.splice(0)[0]?.fail(new DaemonError('adapter_invalid', 'broken file'));
    await broken;
  });
});

describe('failures', () => {
  test('reach everybody who waits, leave nothing, and are tried again after a while', async () => {
    const world = new World();
    world.tiers.acquire(handle('a'));
    world.pending.splice(0)[0]?.fail(new DaemonError('adapter_invalid', 'broken file'));
    await settle();
    for (let i = 0; i < 3; i++) {
      expect(world.tiers.acquire(handle('a'))).toEqual({
        state: 'failed',
        error: { code: 'adapter_invalid', message: 'broken file', param: null },
      });
    }
    expect(world.tiers.places()).toEqual([]);
    world.nowMs += 10_000;
    expect(world.tiers.acquire(handle('a'))).toEqual({ state: 'loading' });
    await world.landAll();
    expect(world.tiers.acquire(handle('a')).state).toBe('slot');
  });

  test('of another kind are told without their insides; the log hears the cause', async () => {
    const world = new World();
    world.tiers.acquire(handle('a'));
    world.pending.splice(0)[0]?.fail(new TypeError('undefined is not /secret/path'));
    await settle();
    const failed = world.tiers.acquire(handle('a'));
    expect(JSON.stringify(failed)).not.toContain('secret');
    expect(String(world.errors[0])).toContain('secret');
  });

  test('a slot that cannot be filled stays empty and usable', async () => {
    const world = new World({ slots: 1 });
    world.tiers.prefetch(handle('a'));
    await world.landAll();
    world.failSlot = true;
    expect(world.tiers.acquire(handle('a')).state).toBe('failed');
    expect(world.slots).toEqual([null]);
    world.failSlot = false;
    expect(await world.acquire('b')).toBe(0);
  });

  test('a release without an acquire is a bug and says so', () => {
    expect(() => new World().tiers.release('a')).toThrow(/invariant/);
  });
});

test('hits, misses, evictions and load times are counted', async () => {
  const world = new World({ slots: 1 });
  world.tiers.acquire(handle('a'));
  world.nowMs += 250;
  await world.landAll();
  world.tiers.acquire(handle('a'));
  world.tiers.acquire(handle('a'));
  world.tiers.release('a');
  world.tiers.release('a');
  await world.acquire('b');
  expect(world.tiers.counters()).toEqual({ hostHits: 2, slotHits: 1, misses: 2, hostEvictions: 0, slotEvictions: 1 });
  expect(world.tiers.takeLoads().map(({ level, seconds }) => [level, seconds])).toEqual([
    ['host', 0.25],
    ['slot', 0],
    ['host', 0],
    ['slot', 0],
  ]);
  expect(world.tiers.takeLoads()).toEqual([]);
});

describe('whatever happens in whatever order', () => {
  const digest = fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f');
  const command = fc.oneof(
    { weight: 5, arbitrary: fc.record({ do: fc.constant('acquire' as const), digest }) },
    { weight: 5, arbitrary: fc.record({ do: fc.constant('release' as const), pick: fc.nat(100) }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant('land' as const), pick: fc.nat(100) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('fail' as const), pick: fc.nat(100) }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('prefetch' as const), digest }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('forget' as const), digest }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('pin' as const), digest, pinned: fc.boolean() }) },
    {
      weight: 1,
      arbitrary: fc.record({ do: fc.constant('move' as const), digest, to: fc.constantFrom('slot', 'host', 'disk') }),
    },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('time' as const) }) },
  );

  test('budgets hold, what is in use stays, a slot holds what it says, and each image is released exactly once', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 3 }),
        fc.integer({ min: 15, max: 60 }),
        fc.array(command, { maxLength: 80 }),
        async (slots, hostBytesMax, commands) => {
          const world = new World({ slots, hostBytesMax });
          world.bytesOf = (name) => 8 + 4 * (name.charCodeAt(0) - 0x61);
          /** What the test holds: one entry per acquire. */
          const held: { digest: string; slot: number }[] = [];
          const moves: Promise<void>[] = [];
          for (const c of commands) {
            if (c.do === 'acquire') {
              const acquired = world.tiers.acquire(handle(c.digest));
              if (acquired.state === 'slot') held.push({ digest: c.digest, slot: acquired.slot });
              if (acquired.state === 'full') expect(new Set(held.map(({ slot }) => slot)).size).toBeGreaterThan(0);
            } else if (c.do === 'release' && held.length > 0) {
              const [one] = held.splice(c.pick % held.length, 1);
              world.tiers.release((one as { digest: string }).digest);
            } else if ((c.do === 'land' || c.do === 'fail') && world.pending.length > 0) {
              const [load] = world.pending.splice(c.pick % world.pending.length, 1) as [Pending];
              if (c.do === 'land') load.land();
              else load.fail(new Error('disk'));
              await settle();
            } else if (c.do === 'prefetch') world.tiers.prefetch(handle(c.digest));
            else if (c.do === 'forget') world.tiers.forget(c.digest);
            else if (c.do === 'pin') {
              try {
                world.tiers.pin(c.digest, c.pinned);
              } catch (error) {
                expect(error).toBeInstanceOf(DaemonError);
              }
            } else if (c.do === 'move') {
              moves.push(world.tiers.move(handle(c.digest), c.to as 'slot').catch(() => {}));
            } else if (c.do === 'time') world.nowMs += 2000;

            for (const { digest: name, slot } of held) expect(world.slots[slot]).toBe(name);
            expect(world.tiers.hostBytes).toBeLessThanOrEqual(hostBytesMax);
            const places = world.tiers.places();
            expect(new Set(places.map((place) => place.digest)).size).toBe(places.length);
            for (const place of places) if (place.tier === 'slot') expect(world.slots[place.slot]).toBe(place.digest);
            expect(world.slots.filter((name) => name !== null).length).toBe(
              places.filter(({ tier }) => tier === 'slot').length,
            );
            // Nothing is alive that the cache does not count.
            const live = world.live.reduce((sum, image) => sum + image.bytes, 0);
            expect(live).toBe(world.tiers.hostBytes);
            expect(world.images.every(({ released }) => released <= 1)).toBe(true);
          }
          for (const { digest: name } of held) world.tiers.release(name);
          await world.landAll();
          world.tiers.close();
          await world.landAll();
          await Promise.all(moves);
          expect(world.images.every(({ released }) => released === 1)).toBe(true);
          expect(world.slots.every((name) => name === null)).toBe(true);
        },
      ),
      { numRuns: 600 },
    );
  });

  test('everybody is served in the end, even when the host cache holds one adapter at a time', async () => {
    const world = new World({ slots: 2, hostBytesMax: 12 });
    const waiting = ['a', 'b', 'c', 'd', 'e'];
    for (let turns = 0; waiting.length > 0 && turns < 50; turns++) {
      for (const name of [...waiting]) {
        const acquired = world.tiers.acquire(handle(name));
        if (acquired.state !== 'slot') continue;
        waiting.splice(waiting.indexOf(name), 1);
        world.tiers.release(name);
      }
      world.pending.splice(0, 1)[0]?.land();
      await settle();
    }
    expect(waiting).toEqual([]);
  });
});
