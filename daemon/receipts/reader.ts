/** What a log shows: receipts with their proofs, tiles, and proofs that it only grew. Each proof is checked before anybody sees it. */
import type { ConsistencyBundle, ReceiptBundle } from '../protocol.ts';
import { signCheckpoint } from './checkpoint.ts';
import { LogError, tampered, toLogError } from './errors.ts';
import type { LogKey } from './key.ts';
import {
  consistencyProof,
  emptyRoot,
  inclusionProof,
  leafHash,
  type NodeId,
  rootAt,
  verifyConsistency,
  verifyInclusion,
} from './merkle.ts';
import type { CheckpointRow, LeafRow, ReceiptStore } from './store.ts';
import { encodeEntryBundle, parseTilePath, TILE_WIDTH, tileNodes, tileWidthAt } from './tiles.ts';

/** The log that is read: its rows and its signed checkpoint of this moment. */
export interface ReadableLog {
  key: LogKey;
  store: () => ReceiptStore;
  checkpoint: () => CheckpointRow;
  /** Takes in what another process appended. */
  reload: () => Promise<void>;
}

export class LogReader {
  readonly #log: ReadableLog;
  readonly #nodes = (nodes: NodeId[]) => this.#log.store().nodes(nodes);

  constructor(log: ReadableLog) {
    this.#log = log;
  }

  /** Reads, waiting for a lock that another program holds. Rejects with LogError. */
  async read<T>(work: (store: ReceiptStore) => Promise<T>): Promise<T> {
    try {
      const store = this.#log.store();
      return await store.retryBusy(() => work(store));
    } catch (error) {
      throw toLogError(error);
    }
  }

  get(id: string): Promise<ReceiptBundle | null> {
    return this.read(async (store) => this.#bundle(await store.byId(id)));
  }

  async getByIndex(leafIndex: number): Promise<ReceiptBundle | null> {
    if (!Number.isSafeInteger(leafIndex) || leafIndex < 0) return null;
    return this.read(async (store) => this.#bundle(await store.byIndex(leafIndex)));
  }

  /** Proves the row against the newest checkpoint. */
  async #bundle(row: LeafRow | null): Promise<ReceiptBundle | null> {
    if (!row) return null;
    // Another process may have appended to the same file since.
    if (row.leafIndex >= this.#log.checkpoint().treeSize) await this.#log.reload();
    const { treeSize, rootHash, note } = this.#log.checkpoint();
    const proof = await inclusionProof(row.leafIndex, treeSize, this.#nodes);
    if (
      !verifyInclusion({ index: row.leafIndex, size: treeSize, leafHash: leafHash(row.entry), proof, root: rootHash })
    )
      throw tampered(`receipt ${row.id} (leaf ${row.leafIndex}) does not match the tree`);
    return {
      entry: row.entry,
      leafIndex: row.leafIndex,
      inclusionProof: proof.map(base64),
      checkpoint: note,
      vkey: this.#log.key.vkey,
    };
  }

  async tile(path: string): Promise<Uint8Array | null> {
    const ref = parseTilePath(path);
    if (!ref || ref.width > tileWidthAt(ref, this.#log.checkpoint().treeSize)) return null;
    return this.read(async (store) => {
      const { level, index, width } = ref;
      if (level !== 'entries') return Buffer.concat(await store.nodes(tileNodes({ level, index, width })));
      const rows = await store.leaves(index * TILE_WIDTH, width);
      if (rows.length !== width) throw tampered(`leaves of ${path} are missing`);
      return encodeEntryBundle(rows.map(({ entry }) => Buffer.from(entry)));
    });
  }

  async consistency(oldSize: number, newSize: number): Promise<ConsistencyBundle> {
    const head = this.#log.checkpoint();
    const inOrder =
      Number.isSafeInteger(oldSize) &&
      Number.isSafeInteger(newSize) &&
      0 <= oldSize &&
      oldSize <= newSize &&
      newSize <= head.treeSize;
    if (!inOrder)
      throw new LogError('out_of_range', `Consistency needs 0 ≤ from ≤ to ≤ ${head.treeSize}, the size of the log.`);
    return this.read(async () => ({
      oldCheckpoint: await this.#checkpointAt(oldSize, head),
      newCheckpoint: await this.#checkpointAt(newSize, head),
      consistencyProof: (await consistencyProof(oldSize, newSize, this.#nodes)).map(base64),
      vkey: this.#log.key.vkey,
    }));
  }

  /**
   * The checkpoint of an earlier size, signed again. Every prefix of the tree is consistent with it, so that says nothing new
   * (Ed25519 even gives the same bytes), provided that it is a prefix: a changed row must never get a signature.
   */
  async #checkpointAt(size: number, { treeSize, rootHash, note }: CheckpointRow): Promise<string> {
    if (size === treeSize) return note;
    const oldRoot = size === 0 ? emptyRoot() : await rootAt(size, this.#nodes);
    if (size > 0) {
      const proof = await consistencyProof(size, treeSize, this.#nodes);
      if (!verifyConsistency({ oldSize: size, newSize: treeSize, oldRoot, newRoot: rootHash, proof }))
        throw tampered(`the first ${size} receipts are not those that the signed checkpoint covers`);
    }
    return signCheckpoint({ size, rootHash: oldRoot }, this.#log.key);
  }
}

function base64(hash: Buffer): string {
  return hash.toString('base64');
}
