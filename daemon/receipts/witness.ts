/**
 * The newest checkpoint once more, in a file beside the key. A database that lost its last pages, or was replaced by an older
 * copy, is a good database of an earlier time: only something outside it can tell. The log's key must not sign a second tree
 * of a size that it has signed already, so such a log does not open.
 */
import { closeSync, constants, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { type Checkpoint, openCheckpoint } from './checkpoint.ts';
import { tampered } from './errors.ts';
import type { Head } from './head.ts';
import type { LogKey } from './key.ts';
import { LOG_LIMITS } from './limits.ts';
import { rootAt } from './merkle.ts';
import type { ReceiptStore } from './store.ts';

/** `…/log.key` → `…/log.checkpoint`. */
export function witnessPathFor(keyPath: string): string {
  return `${keyPath.replace(/\.key$/, '')}.checkpoint`;
}

export class Witness {
  readonly #path: string;
  #file: number | null = null;

  constructor(keyPath: string) {
    this.#path = witnessPathFor(keyPath);
  }

  /** Rejects with log_tampered where the log is behind what was signed, or another one. */
  async check(store: ReceiptStore, { checkpoint: { treeSize } }: Head, key: LogKey): Promise<void> {
    const signed = this.#read(key);
    if (signed === null) return;
    if (signed.size > BigInt(treeSize))
      throw tampered(
        `${signed.size} receipts were signed (${this.#path} says so), of which the database holds only the first ${treeSize}; it was cut off, or an older copy was put in its place`,
      );
    const root = await rootAt(Number(signed.size), (nodes) => store.nodes(nodes));
    if (!root.equals(signed.rootHash))
      throw tampered(`its first ${signed.size} receipts are not those of the checkpoint in ${this.#path}`);
  }

  /** After each commit, before anybody hears of it. Not synced to the disk: after a power cut it may be older than the log, which is no contradiction. */
  write(note: string): void {
    try {
      // In place, and cut to length afterwards: a kill in between leaves a whole note, as notes never get shorter.
      this.#file ??= openSync(this.#path, constants.O_RDWR | constants.O_CREAT, 0o644);
      const bytes = Buffer.from(note);
      writeSync(this.#file, bytes, 0, bytes.length, 0);
      ftruncateSync(this.#file, bytes.length);
    } catch {
      // Nothing depends on it but the next opening, which then has an older one to compare with, or none.
    }
  }

  close(): void {
    if (this.#file !== null) closeSync(this.#file);
    this.#file = null;
  }

  /** Null where there is none, where a power cut left half of one, and where another key signed it. */
  #read(key: LogKey): Checkpoint | null {
    try {
      const note = readFileSync(this.#path);
      return note.length > LOG_LIMITS.noteBytesMax ? null : openCheckpoint(note, key.verifier);
    } catch {
      return null;
    }
  }
}
