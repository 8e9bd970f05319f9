/** The log's rows in daemon.db: reads, the one write (a group commit), and the probe for space. No policy. */
import { eq, gte, inArray, max, sql } from 'drizzle-orm';
import { BUSY_POLICY, retryBusy, sqliteCode } from '../db/busy.ts';
import { type Database, openDatabase, PRAGMAS } from '../db/database.ts';
import { migrate } from '../db/migrate.ts';
import { checkpoint, receipts, spaceProbe } from '../db/schema.ts';
import { LogError } from './errors.ts';
import { HASH_BYTES, type NodeId } from './merkle.ts';

export interface LeafRow {
  leafIndex: number;
  id: string;
  entry: string;
  /** The nodes this leaf completes, 32 bytes each, leaf hash first. */
  hashes: Buffer;
}
export interface CheckpointRow {
  treeSize: number;
  rootHash: Buffer;
  note: string;
}

/** SQLite takes 32,766 parameters; this keeps one statement's text short. */
const IDS_PER_QUERY = 500;
const ONE_ROW = 1;

export class ReceiptStore {
  readonly #database: Database;

  private constructor(database: Database) {
    this.#database = database;
  }

  static async open(path: string): Promise<ReceiptStore> {
    const database = await openDatabase(path);
    try {
      await migrate(database.client);
      return new ReceiptStore(database);
    } catch (error) {
      database.client.close();
      throw error;
    }
  }

  /** The connection, for tests and for one-off checks. */
  get database(): Database {
    return this.#database;
  }

  close(): void {
    this.#database.client.close();
  }

  /** Moves the write-ahead log into the file, so that after a clean stop daemon.db alone is a whole copy; then closes. */
  async settleAndClose(): Promise<void> {
    try {
      await this.#database.client.execute('PRAGMA wal_checkpoint(TRUNCATE)');
    } catch {
      // Only tidying up: the next open reads the write-ahead log.
    }
    this.close();
  }

  /** While another program holds the lock, tries again for up to `limitMs`. */
  retryBusy<T>(work: () => Promise<T>, limitMs = BUSY_POLICY.limitMs): Promise<T> {
    return retryBusy(this.#database.client, work, PRAGMAS, { ...BUSY_POLICY, limitMs });
  }

  async size(): Promise<number> {
    const [row] = await this.#database.db.select({ last: max(receipts.leafIndex) }).from(receipts);
    return row?.last === null || row?.last === undefined ? 0 : Number(row.last) + 1;
  }

  async checkpoint(): Promise<CheckpointRow | null> {
    const [row] = await this.#database.db.select().from(checkpoint);
    return row ?? null;
  }

  /** The checkpoint of the empty log. Does nothing when there is one already, also one that another process writes just now. */
  async begin({ treeSize, rootHash, note }: CheckpointRow): Promise<void> {
    try {
      await this.retryBusy(async () => {
        if ((await this.checkpoint()) || (await this.size()) > 0) return;
        await this.#database.db.insert(checkpoint).values({ slot: ONE_ROW, treeSize, rootHash, note });
      });
    } catch (error) {
      if (sqliteCode(error) !== 'SQLITE_CONSTRAINT') throw error;
    }
  }

  /**
   * One transaction: one multi-row insert of the leaves with their nodes, and the checkpoint over them. Durable when it resolves.
   * The triggers refuse leaves that don't follow the stored ones, so a writer with an outdated view fails and changes nothing.
   */
  async commit(leaves: LeafRow[], next: CheckpointRow): Promise<void> {
    const { db } = this.#database;
    await db.batch([
      db.insert(receipts).values(leaves),
      db.update(checkpoint).set(next).where(eq(checkpoint.slot, ONE_ROW)),
    ]);
  }

  async byId(id: string): Promise<LeafRow | null> {
    const [row] = await this.#database.db.select().from(receipts).where(eq(receipts.id, id));
    return row ?? null;
  }

  async byIndex(leafIndex: number): Promise<LeafRow | null> {
    const [row] = await this.#database.db.select().from(receipts).where(eq(receipts.leafIndex, leafIndex));
    return row ?? null;
  }

  async byIds(ids: string[]): Promise<Map<string, LeafRow>> {
    const found = new Map<string, LeafRow>();
    for (let at = 0; at < ids.length; at += IDS_PER_QUERY) {
      const rows = await this.#database.db
        .select()
        .from(receipts)
        .where(inArray(receipts.id, ids.slice(at, at + IDS_PER_QUERY)));
      for (const row of rows) found.set(row.id, row);
    }
    return found;
  }

  /** Up to `count` leaves from `from`, in order. */
  async leaves(from: number, count: number): Promise<LeafRow[]> {
    return this.#database.db
      .select()
      .from(receipts)
      .where(gte(receipts.leafIndex, from))
      .orderBy(receipts.leafIndex)
      .limit(count);
  }

  /** Stored hashes of tree nodes, in the order asked for. A node stands in the row of the leaf that completes it. */
  async nodes(nodes: NodeId[]): Promise<Buffer[]> {
    const rowOf = ({ level, index }: NodeId) => (index + 1) * 2 ** level - 1;
    const rows = [...new Set(nodes.map(rowOf))];
    const stored = new Map<number, Buffer>();
    for (let at = 0; at < rows.length; at += IDS_PER_QUERY) {
      const found = await this.#database.db
        .select({ leafIndex: receipts.leafIndex, hashes: receipts.hashes })
        .from(receipts)
        .where(inArray(receipts.leafIndex, rows.slice(at, at + IDS_PER_QUERY)));
      for (const { leafIndex, hashes } of found) stored.set(leafIndex, hashes);
    }
    return nodes.map((node) => {
      const hash = stored.get(rowOf(node))?.subarray(node.level * HASH_BYTES, (node.level + 1) * HASH_BYTES);
      if (hash?.length !== HASH_BYTES)
        throw new LogError(
          'log_tampered',
          `The tree's node (level ${node.level}, ${node.index}) is missing: rows were removed or changed.`,
        );
      return hash;
    });
  }

  /** Writes `bytes` to the file and frees them again. Fails while the disk is full. */
  async probe(bytes: number): Promise<void> {
    const { db } = this.#database;
    await db
      .insert(spaceProbe)
      .values({ slot: ONE_ROW, filler: Buffer.alloc(bytes) })
      .onConflictDoNothing();
    await db.delete(spaceProbe).where(sql`true`);
  }
}
