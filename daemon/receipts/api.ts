/** What a receipt log does, whether it runs in this thread (ReceiptLog) or in its own (ReceiptLogClient). */
import type { ConsistencyBundle, Receipt, ReceiptBundle } from '../protocol.ts';

export interface LogOptions {
  /** Folder with daemon.db and keys/log.key. Or name both paths. */
  dataDir?: string;
  dbPath?: string;
  keyPath?: string;
  /** Name of the log (schema-less URL, no spaces, no +), fixed when its key is made. Default: what the key says, or modelfactory/<12 hex digits>. */
  origin?: string;
}

export interface Appended {
  leafIndex: number;
}

export interface LogHealth {
  /**
   * ok: appends are durable. degraded: reads work, appends are refused until the cause is gone (full disk, failed I/O, the thread restarting); tried again by itself.
   * failed: the stored log is not what was signed; somebody has to look. closed: close() was called.
   */
  status: 'ok' | 'degraded' | 'failed' | 'closed';
  /** A sentence; empty when ok. */
  detail: string;
  /** Receipts in the log. */
  size: number;
  /** Receipts waiting for a commit. */
  queued: number;
  /** Group commits since the start; size grows by more than this when commits were shared. */
  commits: number;
  /** Milliseconds of the last commit, fsync included. */
  lastCommitMs: number;
}

export interface ReceiptLogApi {
  /**
   * Resolves once the receipt is durable (fsynced) and covered by a signed checkpoint. The same id with the same content again
   * resolves to the same index. Rejects with LogError: entry_invalid, entry_too_large, id_conflict, log_queue_full, log_busy,
   * log_full, log_io, log_tampered, log_unavailable, log_closed.
   */
  append(receipt: Receipt): Promise<Appended>;
  /** null: no such receipt. Rejects with log_tampered when the stored entry does not prove itself. */
  get(id: string): Promise<ReceiptBundle | null>;
  getByIndex(leafIndex: number): Promise<ReceiptBundle | null>;
  /** The newest signed checkpoint (C2SP note). */
  checkpoint(): Promise<string>;
  /** `tile/…` path of C2SP tlog-tiles; null for paths that are no tile or lie beyond the tree. */
  tile(path: string): Promise<Uint8Array | null>;
  /** Sizes from 0 to `size`; `newSize` defaults to the whole log. Rejects with out_of_range. */
  consistency(oldSize: number, newSize?: number): Promise<ConsistencyBundle>;
  /**
   * Computes every hash again from the entries, from leaf `from` on, at most `leavesMax` of them; where that reaches the end
   * of the tree, its root is held against the signed checkpoint. Rejects with log_tampered.
   */
  audit(from?: number, leavesMax?: number): Promise<{ leaves: number }>;
  health(): LogHealth;
  readonly size: number;
  readonly vkey: string;
  readonly origin: string;
  /** Commits what is queued, then closes the database. */
  close(): Promise<void>;
}
