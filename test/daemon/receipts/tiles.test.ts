import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodeEntryBundle,
  encodeEntryBundle,
  parseTilePath,
  TILE_WIDTH,
  tilePath,
  tilesOf,
  tileWidthAt,
} from '../../../daemon/receipts/tiles.ts';

describe('tile paths', () => {
  it('are written as the specification writes them', () => {
    expect(tilePath({ level: 0, index: 1_234_067, width: 256 })).toBe('tile/0/x001/x234/067');
    expect(tilePath({ level: 'entries', index: 5, width: 17 })).toBe('tile/entries/005.p/17');
    expect(parseTilePath('tile/1/x001/000.p/3')).toEqual({ level: 1, index: 1_000, width: 3 });
  });

  it('round-trip, and only the one right spelling is taken', () => {
    const ref = fc.record({
      level: fc.oneof(fc.nat(63), fc.constant('entries' as const)),
      index: fc.integer({ min: 0, max: 2 ** 48 }),
      width: fc.integer({ min: 1, max: 256 }),
    });
    fc.assert(
      fc.property(ref, (tile) => {
        expect(parseTilePath(tilePath(tile))).toEqual(tile);
      }),
    );
    fc.assert(
      fc.property(fc.stringMatching(/^tile\/[0-9entris]{0,3}\/[0-9x/.p]{0,14}$/), (path) => {
        const parsed = parseTilePath(path);
        if (parsed) expect(tilePath(parsed)).toBe(path);
      }),
    );
    for (const bad of [
      '',
      'tile/0/0',
      'tile/0/0000',
      'tile/64/000',
      'tile/00/000',
      'tile/0/x000/000',
      'tile/0/000.p/0',
      'tile/0/000.p/256',
      'tile/0/000.p/01',
      'tile/0/../000',
      'tile/-1/000',
      'tile/0/001/000',
      'tile/0/000/',
      '/tile/0/000',
    ])
      expect(parseTilePath(bad), bad).toBeNull();
  });

  it('a tree of 70,000 leaves has the tiles of the worked example', () => {
    const tiles = tilesOf(70_000).filter(({ level }) => level !== 'entries');
    const count = (level: number, full: boolean) =>
      tiles.filter((tile) => tile.level === level && (tile.width === TILE_WIDTH) === full);
    expect(count(0, true)).toHaveLength(273);
    expect(count(0, false)).toMatchObject([{ width: 112 }]);
    expect(count(1, true)).toHaveLength(1);
    expect(count(1, false)).toMatchObject([{ width: 17 }]);
    expect(count(2, false)).toMatchObject([{ width: 1 }]);
    expect(tilesOf(256).filter(({ level }) => level !== 'entries')).toEqual([
      { level: 0, index: 0, width: 256 },
      { level: 1, index: 0, width: 1 },
    ]);
    expect(tilesOf(0)).toEqual([]);
    expect(tileWidthAt({ level: 63, index: 0 }, 2 ** 48)).toBe(0);
  });
});

describe('entry bundles', () => {
  it('round-trip, up to the largest entry', () => {
    const entries = [Buffer.alloc(0), Buffer.from('x'), Buffer.alloc(65_535, 7)];
    expect(decodeEntryBundle(encodeEntryBundle(entries))).toEqual(entries);
    expect(() => encodeEntryBundle([Buffer.alloc(65_536)])).toThrow();
  });

  it('decoding never throws and never invents bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        const entries = decodeEntryBundle(bytes);
        if (entries) expect(encodeEntryBundle(entries)).toEqual(Buffer.from(bytes));
      }),
    );
    expect(decodeEntryBundle(Buffer.from([0, 2, 1]))).toBeNull();
    expect(decodeEntryBundle(Buffer.from([0]))).toBeNull();
  });
});
