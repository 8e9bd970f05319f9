/**
 * The receipt log: an append-only Merkle log in daemon.db with group commit and signed checkpoints. Works in the thread that opens it
 * (libSQL is synchronous there); the daemon uses it through ReceiptLogClient, in a thread of its own.
 *
 * Life of a receipt: append → queue → batch (all that gathered while the last commit ran) → one transaction with leaves, tree nodes and the
 * checkpoint over them → fsync → the promise resolves.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { sqliteCode } from '../db/busy.ts';
import type { ConsistencyBundle, Receipt, ReceiptBundle } from '../protocol.ts';
import type { Appended, LogHealth, LogOptions, ReceiptLogApi } from './api.ts';
import { audit } from './audit.ts';
import { signCheckpoint } from './checkpoint.ts';
import { type Entry, receiptEntry } from './entry.ts';
import { LogError, tampered, toLogError } from './errors.ts';
import { type Head, loadHead, logPaths, openKey } from './head.ts';
import type { LogKey } from './key.ts';
import { LOG_LIMITS, type LogLimits } from './limits.ts';
import { emptyRoot, leafHash, rootAt } from './merkle.ts';
import { LogReader } from './reader.ts';
import { ReceiptStore } from './store.ts';
import { Witness } from './witness.ts';

interface Pending extends Entry {
  bytes: number;
  resolve: (appended: Appended) => void;
  reject: (error: LogError) => void;
}
interface Trouble {
  status: 'degraded' | 'failed';
  error: LogError;
}

export class ReceiptLog implements ReceiptLogApi {
  readonly #dbPath: string;
  readonly #key: LogKey;
  readonly #limits: LogLimits;
  readonly #witness: Witness;
  readonly #reader: LogReader;
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

  private constructor(parts: {
    dbPath: string;
    key: LogKey;
    limits: LogLimits;
    store: ReceiptStore;
    head: Head;
    witness: Witness;
  }) {
    this.#dbPath = parts.dbPath;
    this.#key = parts.key;
    this.#limits = parts.limits;
    this.#store = parts.store;
    this.#head = parts.head;
    this.#witness = parts.witness;
    this.#reader = new LogReader({
      key: parts.key,
      store: () => this.#store,
      checkpoint: () => this.#head.checkpoint,
      reload: () => this.#reload(),
    });
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
      const witness = new Witness(keyPath);
      await witness.check(store, head, key);
      const log = new ReceiptLog({ dbPath, key, limits, store, head, witness });
      await log.audit(Math.max(0, log.size - limits.auditLeavesAtOpen));
      witness.write(head.checkpoint.note);
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
          left = await this.#reader.read(() => this.#settleKnown(left));
          await this.#reader.read(() => this.#reload());
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
    this.#witness.write(checkpoint.note);
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

  get(id: string): Promise<ReceiptBundle | null> {
    return this.#reader.get(id);
  }

  getByIndex(leafIndex: number): Promise<ReceiptBundle | null> {
    return this.#reader.getByIndex(leafIndex);
  }

  async checkpoint(): Promise<string> {
    return this.#head.checkpoint.note;
  }

  tile(path: string): Promise<Uint8Array | null> {
    return this.#reader.tile(path);
  }

  consistency(oldSize: number, newSize = this.size): Promise<ConsistencyBundle> {
    return this.#reader.consistency(oldSize, newSize);
  }

  audit(from = 0, leavesMax = Number.POSITIVE_INFINITY): Promise<{ leaves: number }> {
    return this.#reader.read((store) =>
      audit(store, this.#head.checkpoint, { from, leavesMax, pageLeaves: this.#limits.auditPageLeaves }),
    );
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#probeTimer) clearTimeout(this.#probeTimer);
    await this.#draining;
    await this.#probing;
    await this.#store.settleAndClose();
    this.#witness.close();
    this.onChange();
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
