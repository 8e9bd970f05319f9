/**
 * The Merkle tree of one version (RFC 6962) by its inner hashes: the roots of all full blocks of 256 leaves, and which row each block begins
 * with. A third of a byte a row; a proof needs besides them only the leaves of one block and of a last one that is not full.
 * (After the tiles of C2SP tlog-tiles, whose height is 8 too.)
 */
import { CompactRange, inclusionProof, type NodeId, nodeHash } from '../../../daemon/evidence.ts';

export const HASH_BYTES = 32;
const BLOCK_LEVEL = 8;
/** Leaves. */
export const BLOCK = 2 ** BLOCK_LEVEL;
/** Blocks of one tile. */
const TILE_BLOCKS = 256;

export interface Tile {
  tile: number;
  starts: number[];
  /** Side by side. */
  hashes: Buffer;
}

/** The leaves of one block, in their order. */
export interface LeafBlock {
  seqs: readonly number[];
  hashes: readonly Uint8Array[];
}

/** Made leaf by leaf; the leaves themselves are not kept. */
export class TileTree {
  readonly #range = CompactRange.empty();
  readonly #starts: number[] = [];
  readonly #blocks: Buffer[] = [];
  #last = 0;

  /** In ascending order of `seq`. */
  append(seq: number, leaf: Buffer): void {
    if (seq <= this.#last) throw new Error('the rows of a version are out of order');
    this.#last = seq;
    if (this.#range.size % BLOCK === 0) this.#starts.push(seq);
    // A copy: the leaf may be a view of a page of thousands.
    const block = this.#range.append(Buffer.from(leaf))[BLOCK_LEVEL];
    if (block !== undefined) this.#blocks.push(block);
  }

  /** @param page leaves, their hashes side by side. */
  appendAll({ seqs, hashes }: { seqs: readonly number[]; hashes: Buffer }): void {
    for (const [at, seq] of seqs.entries()) this.append(seq, hashes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES));
  }

  get size(): number {
    return this.#range.size;
  }

  root(): Buffer {
    return this.#range.root();
  }

  tiles(): Tile[] {
    const tiles: Tile[] = [];
    for (let at = 0; at < this.#starts.length; at += TILE_BLOCKS) {
      const starts = this.#starts.slice(at, at + TILE_BLOCKS);
      tiles.push({ tile: tiles.length, starts, hashes: Buffer.concat(this.#blocks.slice(at, at + TILE_BLOCKS)) });
    }
    return tiles;
  }
}

/** Tiles as they are read back: what proofs are made with. */
export class Tiles {
  readonly size: number;
  readonly #starts: readonly number[];
  /** By level, from that of blocks on. */
  readonly #levels: Buffer[][];

  /** @param size leaves. @throws when the tiles are not those of so many leaves. */
  constructor(size: number, tiles: readonly Omit<Tile, 'tile'>[]) {
    const starts = tiles.flatMap((tile) => tile.starts);
    const blocks = tiles.flatMap(({ hashes }) =>
      Array.from({ length: hashes.length / HASH_BYTES }, (_, at) =>
        hashes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES),
      ),
    );
    if (starts.length !== Math.ceil(size / BLOCK) || blocks.length !== Math.floor(size / BLOCK))
      throw new Error('the tiles of a version do not cover its rows');
    this.size = size;
    this.#starts = starts;
    this.#levels = levelsAbove(blocks);
  }

  /** About what it takes in memory. */
  get bytes(): number {
    return this.#starts.length * (8 + 3 * HASH_BYTES) + 64;
  }

  /** The block that a row is in, if it is in this version; null: it comes before all rows. */
  blockOf(seq: number): number | null {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] as number) <= seq) low = middle + 1;
      else high = middle;
    }
    return low === 0 ? null : low - 1;
  }

  /** The row that a block begins with. */
  startOf(block: number): number {
    return this.#starts[block] as number;
  }

  /**
   * Hashes from leaf to root.
   * @param leavesOf reads the leaves of a block; asked for that of the leaf, and for the last one where it is not full.
   */
  async proof(index: number, leavesOf: (block: number) => Promise<LeafBlock>): Promise<Buffer[]> {
    const inside = new Map<number, Buffer[][]>();
    const levelsOf = async (block: number) => {
      const levels = inside.get(block) ?? levelsAbove((await leavesOf(block)).hashes.map((leaf) => Buffer.from(leaf)));
      inside.set(block, levels);
      return levels;
    };
    return inclusionProof(index, this.size, async (nodes: NodeId[]) => {
      const hashes: Buffer[] = [];
      for (const { level, index: at } of nodes) {
        const found =
          level >= BLOCK_LEVEL
            ? this.#levels[level - BLOCK_LEVEL]?.[at]
            : (await levelsOf(Math.floor(at / 2 ** (BLOCK_LEVEL - level))))[level]?.[at % 2 ** (BLOCK_LEVEL - level)];
        if (found === undefined) throw new Error('a version asked its tree for a node that it does not have');
        hashes.push(found);
      }
      return hashes;
    });
  }
}

/** The hashes themselves, and all perfect subtrees above them. */
function levelsAbove(hashes: Buffer[]): Buffer[][] {
  const levels = [hashes];
  for (let below = hashes; below.length > 1; ) {
    const level: Buffer[] = [];
    for (let at = 0; at + 1 < below.length; at += 2) level.push(nodeHash(below[at] as Buffer, below[at + 1] as Buffer));
    levels.push(level);
    below = level;
  }
  return levels;
}
