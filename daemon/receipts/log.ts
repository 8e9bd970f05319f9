/**
 * The receipt log: an append-only Merkle log in daemon.db with group commit and signed checkpoints. Works in the thread that opens it
 * (libSQL is synchronous there); the daemon uses it through ReceiptLogClient, in a thread of its own.
 *
 * Life of a receipt: append → queue → batch (all that gathered while the last commit ran) → one transaction with leaves, tree nodes and the
 * checkpoint over them → fsync → the promise resolves.
 */
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { sqliteCode } from '../db/busy.ts';
import type { ConsistencyBundle, Receipt, ReceiptBundle } from '../protocol.ts';
import type { Appended, LogHealth, LogOptions, ReceiptLogApi } from './api.ts';
import { openCheckpoint, signCheckpoint } from './checkpoint.ts';
import { type Entry, receiptEntry } from './entry.ts';
import { LogError } from './errors.ts';
import { createKey, keyPaths, type LogKey, loadKey } from './key.ts';
import { LOG_LIMITS, type LogLimits } from './limits.ts';
import {
  CompactRange,
  consistencyProof,
  emptyRoot,
  inclusionProof,
  leafHash,
  type NodeId,
  rootAt,
  verifyInclusion,
} from './merkle.ts';
import { type CheckpointRow, type LeafRow, ReceiptStore } from './store.ts';
import { encodeEntryBundle, parseTilePath, TILE_WIDTH, tileNodes, tileWidthAt } from './tiles.ts';

interface Pending extends Entry {
  bytes: number;
  resolve: (appended: Appended) => void;
  reject: (error: LogError) => void;
}
/** What the signed checkpoint says and what appending needs; replaced as a whole after each commit. */
interface Head {
  range: CompactRange;
  checkpoint: CheckpointRow;
}
interface Trouble {
  status: 'degraded' | 'failed';
  error: LogError;
}

export class ReceiptLog implements ReceiptLogApi {
  readonly #dbPath: string;
  readonly #key: LogKey;
  readonly #limits: LogLimits;
  #store: ReceiptStore;
  #head: Head;
  #queue: Pending[] = [];
  /** The commit loop, while it runs. */
  #draining: Promise<void> | null = null;
  #trouble: Trouble | null = null;
  #probeTimer: NodeJS.Timeout | null = null;
  #probing: Promise<void> | null = null;
  #closed = false;
  #commits = 0;
  #lastCommitMs = 0;
  /** Called after each change of size or health. */
  onChange: () => void = () => {};

  private constructor(dbPath: string, key: LogKey, limits: LogLimits, store: ReceiptStore, head: Head) {
    this.#dbPath = dbPath;
    this.#key = key;
    this.#limits = limits;
    this.#store = store;
    this.#head = head;
  }

  /** Opens or makes the log. Rejects with LogError log_tampered, log_key_…, log_busy, log_full or log_io; the message says what to do. */
  static async open(options: LogOptions & { limits?: Partial<LogLimits> }): Promise<ReceiptLog> {
    const { dbPath, keyPath } = logPaths(options);
    const limits = { ...LOG_LIMITS, ...options.limits };
    let store: ReceiptStore | undefined;
    try {
      store = await ReceiptStore.open(dbPath);
      const key = await openKey(keyPath, options.origin, store);
      await store.begin({
        treeSize: 0,
        rootHash: emptyRoot(),
        note: signCheckpoint({ size: 0, rootHash: emptyRoot() }, key),
      });
      const head = await loadHead(store, key);
      const log = new ReceiptLog(dbPath, key, limits, store, head);
      await log.audit(Math.max(0, log.size - limits.auditLeavesAtOpen));
      return log;
    } catch (error) {
      store?.close();
      throw toLogError(error);
    }
  }

  get size(): number {
    return this.#head.checkpoint.treeSize;
  }
  get vkey(): string {
    return this.#key.vkey;
  }
  get origin(): string {
    return this.#key.name;
  }
  /** For tests: the log's own connection. */
  get store(): ReceiptStore {
    return this.#store;
  }

  health(): LogHealth {
    return {
      status: this.#closed ? 'closed' : (this.#trouble?.status ?? 'ok'),
      detail: this.#closed ? 'The log was closed.' : (this.#trouble?.error.message ?? ''),
      size: this.size,
      queued: this.#queue.length,
      commits: this.#commits,
      lastCommitMs: this.#lastCommitMs,
    };
  }

  async append(receipt: Receipt): Promise<Appended> {
    return this.appendEntry(receiptEntry(receipt));
  }

  /** For entries that receiptEntry() made, maybe in another thread. */
  appendEntry(entry: Entry): Promise<Appended> {
    const refusal = this.#refusal();
    if (refusal) return Promise.reject(refusal);
    return new Promise((resolve, reject) => {
      this.#queue.push({ ...entry, bytes: Buffer.byteLength(entry.text), resolve, reject });
      this.#draining ??= this.#drain();
    });
  }

  #refusal(): LogError | null {
    if (this.#closed) return new LogError('log_closed', 'The receipt log is closed: the daemon is stopping.');
    if (this.#trouble) return this.#trouble.error;
    if (this.#queue.length >= this.#limits.queueMax)
      return new LogError(
        'log_queue_full',
        `${this.#queue.length} receipts wait for the disk already: try again in a moment.`,
      );
    if (this.size + this.#queue.length >= this.#limits.treeSizeMax)
      return new LogError('log_full', 'The log has reached its largest size: start a new one.');
    return null;
  }

  /** Commits batch after batch until the queue is empty. A turn of the event loop before each lets messages that came during the last commit join it. */
  async #drain(): Promise<void> {
    try {
      for (;;) {
        await nextTurn();
        if (this.#queue.length === 0) return;
        await this.#commitBatch(this.#takeBatch());
      }
    } finally {
      this.#draining = null;
    }
  }

  #takeBatch(): Pending[] {
    let bytes = 0;
    let count = 0;
    for (const { bytes: more } of this.#queue) {
      if (count === this.#limits.batchEntriesMax || (count > 0 && bytes + more > this.#limits.batchBytesMax)) break;
      bytes += more;
      count++;
    }
    return this.#queue.splice(0, count);
  }

  /** Settles every promise of the batch, truthfully. Never throws. */
  async #commitBatch(batch: Pending[]): Promise<void> {
    let left = batch;
    // A refused insert means that ids are in the log already, or that another process appended. Both are cleared up by looking; a second refusal is not normal.
    for (let attempt = 1; left.length > 0; attempt++) {
      const firstOf = new Map<string, Pending>();
      for (const pending of left) if (!firstOf.has(pending.id)) firstOf.set(pending.id, pending);
      const entries = [...firstOf.values()];
      try {
        const startedAt = performance.now();
        const firstIndex = await this.#store.retryBusy(() => this.#write(entries), this.#limits.busyLimitMs);
        this.#lastCommitMs = performance.now() - startedAt;
        this.#commits++;
        const indexOf = new Map(entries.map(({ id }, i) => [id, firstIndex + i]));
        for (const pending of left) settle(pending, firstOf.get(pending.id)?.text, indexOf.get(pending.id));
        break;
      } catch (error) {
        if (sqliteCode(error) !== 'SQLITE_CONSTRAINT' || attempt === 3) {
          this.#fail(left, toLogError(error));
          break;
        }
        try {
          left = await this.#read(() => this.#settleKnown(left));
          await this.#read(() => this.#reload());
        } catch (reloadError) {
          this.#fail(left, toLogError(reloadError));
          break;
        }
      }
    }
    this.onChange();
  }

  /** Returns the index of the first entry. The head moves only once the transaction is durable. */
  async #write(entries: Entry[]): Promise<number> {
    const { range: before } = this.#head;
    const range = before.clone();
    const leaves = entries.map(({ id, text }, i) => ({
      leafIndex: before.size + i,
      id,
      entry: text,
      hashes: Buffer.concat(range.append(leafHash(text))),
    }));
    const rootHash = range.root();
    const checkpoint = {
      treeSize: range.size,
      rootHash,
      note: signCheckpoint({ size: range.size, rootHash }, this.#key),
    };
    await this.#store.commit(leaves, checkpoint);
    this.#head = { range, checkpoint };
    return before.size;
  }

  /** Settles those whose id is in the log; returns the others. */
  async #settleKnown(batch: Pending[]): Promise<Pending[]> {
    const known = await this.#store.byIds([...new Set(batch.map(({ id }) => id))]);
    return batch.filter((pending) => {
      const row = known.get(pending.id);
      if (row) settle(pending, row.entry, row.leafIndex);
      return row === undefined;
    });
  }

  /** Another process may have appended: read the head again, which must extend the one we know. */
  async #reload(): Promise<void> {
    const known = this.#head.checkpoint;
    const head = await loadHead(this.#store, this.#key);
    const prefix = await rootAt(known.treeSize, (nodes) => this.#store.nodes(nodes));
    if (head.checkpoint.treeSize < known.treeSize || !prefix.equals(known.rootHash))
      throw tampered(
        `the tree no longer contains the ${known.treeSize} receipts of the checkpoint that this process signed or read before`,
      );
    // A commit may have ended between these reads; the head never moves back.
    if (head.checkpoint.treeSize > this.size) this.#head = head;
  }

  /** Rejects `batch`. A locked database concerns only the batch; anything else stops appends until a probe succeeds. */
  #fail(batch: Pending[], error: LogError): void {
    if (error.code !== 'log_busy') {
      this.#trouble = { status: error.code === 'log_tampered' ? 'failed' : 'degraded', error };
      batch = [...batch, ...this.#queue.splice(0)];
      if (this.#trouble.status === 'degraded') this.#scheduleProbe(this.#limits.probeFirstMs);
    }
    for (const pending of batch) pending.reject(error);
  }

  #scheduleProbe(delayMs: number): void {
    if (this.#closed) return;
    this.#probeTimer = setTimeout(() => {
      this.#probing = this.#recover(delayMs);
    }, delayMs);
    this.#probeTimer.unref();
  }

  /** Opens the database afresh (after a failed fsync the old connection's view can't be trusted) and tries to write. */
  async #recover(delayMs: number): Promise<void> {
    try {
      const fresh = await ReceiptStore.open(this.#dbPath);
      this.#store.close();
      this.#store = fresh;
      await this.#store.probe(this.#limits.probeBytes);
      await this.#reload();
      this.#trouble = null;
    } catch (error) {
      const logError = toLogError(error);
      this.#trouble = { status: logError.code === 'log_tampered' ? 'failed' : 'degraded', error: logError };
      if (this.#trouble.status === 'degraded') this.#scheduleProbe(Math.min(delayMs * 2, this.#limits.probeMaxMs));
    } finally {
      this.#probing = null;
      this.onChange();
    }
  }

  async get(id: string): Promise<ReceiptBundle | null> {
    return this.#read(async () => this.#bundle(await this.#store.byId(id)));
  }

  async getByIndex(leafIndex: number): Promise<ReceiptBundle | null> {
    if (!Number.isSafeInteger(leafIndex) || leafIndex < 0) return null;
    return this.#read(async () => this.#bundle(await this.#store.byIndex(leafIndex)));
  }

  /** Proves the row against the newest checkpoint, and checks the proof before anybody sees it. */
  async #bundle(row: LeafRow | null): Promise<ReceiptBundle | null> {
    if (!row) return null;
    // Another process may have appended to the same file since.
    if (row.leafIndex >= this.size) await this.#reload();
    const { treeSize, rootHash, note } = this.#head.checkpoint;
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
      vkey: this.vkey,
    };
  }

  async checkpoint(): Promise<string> {
    return this.#head.checkpoint.note;
  }

  async tile(path: string): Promise<Uint8Array | null> {
    const ref = parseTilePath(path);
    if (!ref || ref.width > tileWidthAt(ref, this.size)) return null;
    return this.#read(async () => {
      const { level, index, width } = ref;
      if (level !== 'entries') return Buffer.concat(await this.#store.nodes(tileNodes({ level, index, width })));
      const rows = await this.#store.leaves(index * TILE_WIDTH, width);
      if (rows.length !== width) throw tampered(`leaves of ${path} are missing`);
      return encodeEntryBundle(rows.map(({ entry }) => Buffer.from(entry)));
    });
  }

  async consistency(oldSize: number, newSize = this.size): Promise<ConsistencyBundle> {
    const { treeSize, note } = this.#head.checkpoint;
    const inOrder =
      Number.isSafeInteger(oldSize) &&
      Number.isSafeInteger(newSize) &&
      0 <= oldSize &&
      oldSize <= newSize &&
      newSize <= treeSize;
    if (!inOrder)
      throw new LogError('out_of_range', `Consistency needs 0 ≤ from ≤ to ≤ ${treeSize}, the size of the log.`);
    // Every prefix of the tree is consistent with it, so signing one again says nothing new (Ed25519 even gives the same bytes).
    const sign = async (size: number) =>
      size === treeSize ? note : signCheckpoint({ size, rootHash: await rootAt(size, this.#nodes) }, this.#key);
    return this.#read(async () => ({
      oldCheckpoint: await sign(oldSize),
      newCheckpoint: await sign(newSize),
      consistencyProof: (await consistencyProof(oldSize, newSize, this.#nodes)).map(base64),
      vkey: this.vkey,
    }));
  }

  async audit(from = 0, leavesMax = Number.POSITIVE_INFINITY): Promise<{ leaves: number }> {
    const { treeSize, rootHash } = this.#head.checkpoint;
    const end = Math.min(treeSize, from + leavesMax);
    return this.#read(async () => {
      const range = await CompactRange.load(from, this.#nodes);
      while (range.size < end) {
        const rows = await this.#store.leaves(range.size, Math.min(this.#limits.auditPageLeaves, end - range.size));
        if (rows.length === 0) throw tampered(`receipts from leaf ${range.size} on are missing`);
        for (const { leafIndex, id, entry, hashes } of rows) {
          if (leafIndex !== range.size) throw tampered(`leaf ${range.size} is missing`);
          if (!Buffer.concat(range.append(leafHash(entry))).equals(hashes))
            throw tampered(`receipt ${id} (leaf ${leafIndex}) does not match its stored hashes`);
        }
        // Other messages get their turn between pages.
        await nextTurn();
      }
      if (end === treeSize && !range.root().equals(rootHash))
        throw tampered('the stored tree has another root than the signed checkpoint');
      return { leaves: end - from };
    });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#probeTimer) clearTimeout(this.#probeTimer);
    await this.#draining;
    await this.#probing;
    await this.#store.settleAndClose();
    this.onChange();
  }

  readonly #nodes = (nodes: NodeId[]) => this.#store.nodes(nodes);

  async #read<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await this.#store.retryBusy(work);
    } catch (error) {
      throw toLogError(error);
    }
  }
}

function settle(pending: Pending, storedText: string | undefined, leafIndex: number | undefined): void {
  if (storedText === pending.text && leafIndex !== undefined) pending.resolve({ leafIndex });
  else
    pending.reject(
      new LogError(
        'id_conflict',
        `Receipt ${pending.id} is in the log already, with other content: receipts never change.`,
      ),
    );
}

function base64(hash: Buffer): string {
  return hash.toString('base64');
}

function logPaths({ dataDir, dbPath, keyPath }: LogOptions): { dbPath: string; keyPath: string } {
  const db = dbPath ?? (dataDir === undefined ? undefined : join(dataDir, 'daemon.db'));
  const key = keyPath ?? (dataDir === undefined ? undefined : keyPaths(dataDir).key);
  if (db === undefined || key === undefined)
    throw new TypeError('A receipt log needs dataDir, or both dbPath and keyPath.');
  return { dbPath: db, keyPath: key };
}

/** A new key only for a new log: one that was signed can't go on under another. */
async function openKey(path: string, origin: string | undefined, store: ReceiptStore): Promise<LogKey> {
  const found = loadKey(path);
  if (!found && (await store.checkpoint()))
    throw new LogError(
      'log_key_missing',
      `The log was signed with a key that is not at ${path}. Restore it from a backup, or move daemon.db away to begin a new log.`,
    );
  const key = found ?? createKey(path, origin);
  if (origin !== undefined && key.name !== origin)
    throw new LogError(
      'log_key_mismatch',
      `The key ${path} belongs to the log "${key.name}", not "${origin}": a log keeps its name for life. Set that name, or begin a new log.`,
    );
  return key;
}

/** The signed checkpoint and the compact range under it. Throws log_tampered unless signature, size and root agree with the rows. */
async function loadHead(store: ReceiptStore, key: LogKey): Promise<Head> {
  const { row, size } = await readHead(store);
  if (!row) throw tampered('the signed checkpoint is missing');
  let signed: ReturnType<typeof openCheckpoint>;
  try {
    signed = openCheckpoint(row.note, key.verifier);
  } catch (error) {
    throw new LogError(
      'log_key_mismatch',
      `The stored checkpoint is not signed by the log's key (${(error as Error).message}) Restore the key or the database that belong together; don't delete either.`,
    );
  }
  if (signed.size !== BigInt(row.treeSize) || !signed.rootHash.equals(row.rootHash))
    throw tampered('the checkpoint row says something else than the note signed in it');
  if (size !== row.treeSize) throw tampered(`there are ${size} receipts, the signed checkpoint covers ${row.treeSize}`);
  const range = await CompactRange.load(size, (nodes) => store.nodes(nodes));
  if (!range.root().equals(row.rootHash)) throw tampered('the stored tree has another root than the signed checkpoint');
  return { range, checkpoint: row };
}

/** Checkpoint and size of one moment, though another process may commit between the two reads. */
async function readHead(store: ReceiptStore): Promise<{ row: CheckpointRow | null; size: number }> {
  for (let attempt = 0; ; attempt++) {
    const row = await store.checkpoint();
    const size = await store.size();
    if (row?.treeSize === size || attempt === 3) return { row, size };
  }
}

function tampered(what: string): LogError {
  return new LogError(
    'log_tampered',
    `The receipt log was changed outside the program: ${what}. Nothing more will be signed. Keep daemon.db for examination, and restore a backup that is at least as new as the last published checkpoint.`,
  );
}

/** What happened, for callers, from whatever libSQL or the system threw. */
export function toLogError(error: unknown): LogError {
  if (error instanceof LogError) return error;
  const code = sqliteCode(error);
  const because = { cause: error };
  if (code === 'SQLITE_BUSY' || code === 'SQLITE_LOCKED')
    return new LogError(
      'log_busy',
      'The receipt database is locked by another program: nothing was written. Close what holds it and try again.',
      because,
    );
  if (code === 'SQLITE_FULL' || (error as NodeJS.ErrnoException)?.code === 'ENOSPC')
    return new LogError(
      'log_full',
      'The disk with the receipt database is full: nothing was written. Free some space; the log goes on by itself.',
      because,
    );
  if (code === 'SQLITE_CORRUPT' || code === 'SQLITE_NOTADB')
    return new LogError(
      'log_tampered',
      'The receipt database is damaged (not a valid SQLite file). Keep it for examination and restore a backup.',
      because,
    );
  const what =
    code ??
    (error as NodeJS.ErrnoException)?.code ??
    (error instanceof Error ? `${error.name}: ${error.message}` : 'unknown error');
  return new LogError(
    'log_io',
    `The receipt database can't be read or written (${what}). Check the disk and the folder's permissions.`,
    because,
  );
}
