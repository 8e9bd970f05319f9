/** What a log begins with when it opens: its key, and the signed checkpoint that its rows must agree with. */
import { join } from 'node:path';
import type { LogOptions } from './api.ts';
import { openCheckpoint } from './checkpoint.ts';
import { LogError, tampered } from './errors.ts';
import { createKey, keyPaths, type LogKey, loadKey } from './key.ts';
import { CompactRange } from './merkle.ts';
import type { CheckpointRow, ReceiptStore } from './store.ts';

/** What the signed checkpoint says and what appending needs; replaced as a whole after each commit. */
export interface Head {
  range: CompactRange;
  checkpoint: CheckpointRow;
}
/** Where database and key of a log lie. */
export function logPaths({ dataDir, dbPath, keyPath }: LogOptions): { dbPath: string; keyPath: string } {
  const db = dbPath ?? (dataDir === undefined ? undefined : join(dataDir, 'daemon.db'));
  const key = keyPath ?? (dataDir === undefined ? undefined : keyPaths(dataDir).key);
  if (db === undefined || key === undefined)
    throw new TypeError('A receipt log needs dataDir, or both dbPath and keyPath.');
  return { dbPath: db, keyPath: key };
}

/** A new key only for a new log: one that was signed can't go on under another. */
export async function openKey(path: string, origin: string | undefined, store: ReceiptStore): Promise<LogKey> {
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
export async function loadHead(store: ReceiptStore, key: LogKey): Promise<Head> {
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
