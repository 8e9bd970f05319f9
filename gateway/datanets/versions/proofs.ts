/** Proofs that a row is in a version, for anybody who has the verifier key. */
import { and, asc, eq } from 'drizzle-orm';
import { LRUCache } from 'lru-cache';
import { DATANET_ROW_PROOF, leafHash, verifyInclusion } from '../../../daemon/evidence.ts';
import { datanetRows, type VersionRow, versionTiles } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import { Pieces } from '../pieces.ts';
import type { Build, VersionsDeps } from './build.ts';
import { BLOCK, HASH_BYTES, type LeafBlock, Tiles, TileTree } from './tiles.ts';
import { leafPage } from './version-rows.ts';

/** What GET …/proof answers and `modelfactory verify` checks. */
export interface RowProof {
  type: typeof DATANET_ROW_PROOF;
  /** The leaf's bytes: canonical JSON of `{record, signature}`. */
  entry: string;
  leafIndex: number;
  /** Base64, leaf to root. */
  inclusionProof: string[];
  checkpoint: string;
  vkey: string;
  /** Canonical JSON of the row; only for those who may read it. */
  content?: string;
}

export class Proofs {
  readonly #deps: Pick<VersionsDeps, 'db' | 'key' | 'log'>;
  readonly #known = new LRUCache<string, Tiles>({
    maxSize: limits.tileCacheBytesMax,
    sizeCalculation: ({ bytes }) => bytes,
  });
  #underWay: Promise<unknown> = Promise.resolve();

  constructor(deps: Pick<VersionsDeps, 'db' | 'key' | 'log'>) {
    this.#deps = deps;
  }

  /** Of a version that was published a moment ago. */
  keep(version: Pick<Build, 'datanetId' | 'number'>, tree: TileTree): void {
    this.#keep(version, new Tiles(tree.size, tree.tiles()));
  }

  /** @param seq of a row; null: it is not in the version. */
  async of(version: VersionRow, seq: number, options: { content: boolean }): Promise<RowProof | null> {
    const tiles = await this.#tiles(version);
    const block = tiles.blockOf(seq);
    if (block === null) return null;
    const leavesOf = (number: number) => this.#leaves(version, tiles.startOf(number));
    const leaves = await leavesOf(block);
    const place = leaves.seqs.indexOf(seq);
    if (place === -1) return null;
    const [row] = await this.#deps.db
      .select({ entry: datanetRows.entry, content: datanetRows.content })
      .from(datanetRows)
      .where(eq(datanetRows.seq, seq));
    if (row === undefined) return null;
    const leafIndex = block * BLOCK + place;
    const hashes = await tiles.proof(leafIndex, async (number) => (number === block ? leaves : leavesOf(number)));
    const root = Buffer.from(version.root, 'hex');
    const claim = { leafHash: leafHash(row.entry), index: leafIndex, size: tiles.size, proof: hashes, root };
    if (!verifyInclusion(claim)) throw tampered(version);
    return {
      type: DATANET_ROW_PROOF,
      entry: row.entry,
      leafIndex,
      inclusionProof: hashes.map((hash) => hash.toString('base64')),
      checkpoint: version.checkpoint,
      vkey: this.#deps.key.vkey,
      ...(options.content && row.content !== null ? { content: row.content } : {}),
    };
  }

  async #leaves(version: VersionRow, start: number): Promise<LeafBlock> {
    const { seqs, hashes } = await leafPage(this.#deps.db.$client, version.datanetId, version.number, start - 1, BLOCK);
    return { seqs, hashes: seqs.map((_, at) => hashes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES)) };
  }

  async #tiles(version: VersionRow): Promise<Tiles> {
    const known = this.#known.get(keyOf(version));
    if (known !== undefined) return known;
    const stored = await this.#stored(version);
    if (stored !== null) return stored;
    // One at a time, whoever asks: a hundred who ask for the same need it once.
    const made = this.#underWay.then(() => this.#known.get(keyOf(version)) ?? this.#made(version));
    this.#underWay = made.catch(() => {});
    return made;
  }

  async #stored(version: VersionRow): Promise<Tiles | null> {
    const { datanetId, number } = version;
    const rows = await this.#deps.db
      .select({ starts: versionTiles.starts, hashes: versionTiles.hashes })
      .from(versionTiles)
      .where(and(eq(versionTiles.datanetId, datanetId), eq(versionTiles.version, number)))
      .orderBy(asc(versionTiles.tile));
    if (rows.length === 0 && version.rows > 0) return null;
    return this.#keep(version, new Tiles(version.rows, rows));
  }

  #keep(version: Pick<Build, 'datanetId' | 'number'>, tiles: Tiles): Tiles {
    this.#known.set(keyOf(version), tiles);
    return tiles;
  }

  /** Of a version from before tiles were stored. */
  async #made(version: VersionRow): Promise<Tiles> {
    const { datanetId, number } = version;
    const tree = new TileTree();
    const pieces = new Pieces(limits.versionLeavesAtOnce);
    for (let after = 0, done = false; !done; ) {
      await pieces.next(async (most) => {
        const page = await leafPage(this.#deps.db.$client, datanetId, number, after, most);
        tree.appendAll(page);
        done = page.seqs.length < most;
        after = page.seqs.at(-1) ?? after;
      });
    }
    if (tree.root().toString('hex') !== version.root) throw tampered(version);
    const tiles = tree.tiles();
    if (tiles.length > 0)
      await this.#deps.db
        .insert(versionTiles)
        .values(tiles.map((tile) => ({ datanetId, version: number, ...tile })))
        .onConflictDoNothing();
    return this.#keep(version, new Tiles(tree.size, tiles));
  }
}

function keyOf({ datanetId, number }: Pick<Build, 'datanetId' | 'number'>): string {
  return `${datanetId}/${number}`;
}

function tampered(version: VersionRow): Error {
  const which = `version ${version.number} of ${version.datanetId}`;
  return new Error(`the rows of ${which} do not lead to its signed root: the database was changed`);
}
