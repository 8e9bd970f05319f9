/** Opening daemon.db, and what its errors mean. */
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Client, createClient } from '@libsql/client';
import { drizzle, type LibSQLDatabase } from 'drizzle-orm/libsql';
import * as schema from './schema.ts';

export type DaemonDb = LibSQLDatabase<typeof schema>;
export interface Database {
  db: DaemonDb;
  client: Client;
}

/** Per connection, unlike WAL, which the file remembers. */
const SYNC_FULL = 'PRAGMA synchronous = FULL';

/** How long, and how often, a locked database is tried again. Milliseconds. */
export interface BusyPolicy {
  limitMs: number;
  firstDelayMs: number;
  delayMaxMs: number;
}
export const BUSY_POLICY: BusyPolicy = { limitMs: 5_000, firstDelayMs: 2, delayMaxMs: 100 };

/**
 * Opens (or creates) the file with WAL and synchronous=FULL: a commit has been fsynced before it returns.
 * One connection only: pooled connections don't share pragmas, and libSQL works in the calling thread anyway, so two
 * transactions of one process could only block each other. Callers must not run two transactions at once.
 */
export async function openDatabase(path: string, busy: BusyPolicy = BUSY_POLICY): Promise<Database> {
  mkdirSync(dirname(path), { recursive: true });
  const client = createClient({ url: fileUrl(path), concurrency: 1 });
  try {
    await retryBusy(client, () => client.execute('PRAGMA journal_mode = WAL'), busy);
    await client.execute(SYNC_FULL);
    return { client, db: drizzle(client, { schema }) };
  } catch (error) {
    client.close();
    throw error;
  }
}

/** libSQL parses its URL: what has a meaning there is escaped. */
function fileUrl(path: string): string {
  return `file:${path.split('/').map(encodeURIComponent).join('/')}`;
}

/** Base result code (`SQLITE_BUSY`, `SQLITE_FULL`, …) of an error of libSQL, also where drizzle wrapped it; else null. */
export function sqliteCode(error: unknown): string | null {
  for (let e = error, depth = 0; e instanceof Error && depth < 5; e = e.cause, depth++) {
    const code = (e as { code?: unknown }).code;
    if (typeof code === 'string' && code.startsWith('SQLITE_')) return code;
  }
  return null;
}

/**
 * Runs `work` again, with growing pauses, while another connection holds the lock; after `limitMs` throws the last error.
 * SQLite leaves a statement that met SQLITE_BUSY in progress, and libSQL resets it only when it is garbage: until then every COMMIT on that
 * connection fails ("SQL statements in progress"). So a busy connection is replaced by a new one.
 */
export async function retryBusy<T>(
  client: Client,
  work: () => Promise<T>,
  policy: BusyPolicy = BUSY_POLICY,
): Promise<T> {
  const giveUpAt = performance.now() + policy.limitMs;
  for (let delayMs = policy.firstDelayMs; ; delayMs = Math.min(delayMs * 2, policy.delayMaxMs)) {
    try {
      return await work();
    } catch (error) {
      const code = sqliteCode(error);
      if (code !== 'SQLITE_BUSY' && code !== 'SQLITE_LOCKED') throw error;
      await client.reconnect();
      await client.execute(SYNC_FULL);
      if (performance.now() + delayMs > giveUpAt) throw error;
      await sleep(delayMs);
    }
  }
}
