/** C2SP tlog-tiles: paths of tiles and entry bundles, and what they hold. */
import type { NodeId } from './merkle.ts';

/** Hashes of a full tile, entries of a full bundle. */
export const TILE_WIDTH = 256;
/** Levels of the tree per level of tiles. */
const TILE_HEIGHT = 8;

export interface TileRef {
  /** 0 … 63, or 'entries' for the leaves' data. */
  level: number | 'entries';
  index: number;
  /** 1 … 256. */
  width: number;
}

const TILE_PATH =
  /^tile\/(entries|[0-9]|[1-5][0-9]|6[0-3])\/((?:x[0-9]{3}\/){0,5}[0-9]{3})(?:\.p\/([1-9][0-9]{0,2}))?$/;

/** `tile/<L>/<N>[.p/<W>]`; null for any other path, including ones that spell a number in a second way. */
export function parseTilePath(path: string): TileRef | null {
  const match = TILE_PATH.exec(path);
  if (!match) return null;
  const [, level, elements, partial] = match;
  const index = Number(elements?.replaceAll(/[x/]/g, ''));
  const width = partial === undefined ? TILE_WIDTH : Number(partial);
  if (partial !== undefined && width >= TILE_WIDTH) return null;
  const ref: TileRef = { level: level === 'entries' ? 'entries' : Number(level), index, width };
  return tilePath(ref) === path ? ref : null;
}

export function tilePath({ level, index, width }: TileRef): string {
  let digits = String(index);
  digits = digits.padStart(Math.ceil(digits.length / 3) * 3, '0');
  const elements = digits.match(/[0-9]{3}/g) ?? [];
  const last = elements.pop();
  const path = `tile/${level}/${elements.map((element) => `x${element}/`).join('')}${last}`;
  return width === TILE_WIDTH ? path : `${path}.p/${width}`;
}

/** How many hashes (or entries) a tile has in a tree of `size`: 0 … 256. */
export function tileWidthAt({ level, index }: Pick<TileRef, 'level' | 'index'>, size: number): number {
  const height = level === 'entries' ? 0 : level;
  const subtrees = Math.floor(size / TILE_WIDTH ** height);
  return Math.max(0, Math.min(TILE_WIDTH, subtrees - index * TILE_WIDTH));
}

/** The tree nodes a hash tile consists of. */
export function tileNodes({ level, index, width }: TileRef & { level: number }): NodeId[] {
  return Array.from({ length: width }, (_, i) => ({ level: level * TILE_HEIGHT, index: index * TILE_WIDTH + i }));
}

/** Every tile, full and partial, that a tree of `size` has. */
export function tilesOf(size: number): TileRef[] {
  const tiles: TileRef[] = [];
  const levels: TileRef['level'][] = ['entries'];
  for (let level = 0; TILE_WIDTH ** level <= size; level++) levels.push(level);
  for (const level of levels) {
    for (let index = 0; ; index++) {
      const width = tileWidthAt({ level, index }, size);
      if (width === 0) break;
      tiles.push({ level, index, width });
    }
  }
  return tiles;
}

/** Big-endian 16-bit length before each entry. Entries are at most 65,535 bytes. */
export function encodeEntryBundle(entries: readonly Uint8Array[]): Buffer {
  return Buffer.concat(
    entries.flatMap((entry) => {
      const length = Buffer.alloc(2);
      length.writeUInt16BE(entry.length);
      return [length, entry];
    }),
  );
}

/** null when lengths and bytes don't agree. */
export function decodeEntryBundle(bundle: Uint8Array): Buffer[] | null {
  const bytes = Buffer.from(bundle.buffer, bundle.byteOffset, bundle.byteLength);
  const entries: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    if (at + 2 > bytes.length) return null;
    const end = at + 2 + bytes.readUInt16BE(at);
    if (end > bytes.length) return null;
    entries.push(bytes.subarray(at + 2, end));
    at = end;
  }
  return entries;
}
