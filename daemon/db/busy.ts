/** A database that another connection holds: what its errors mean, and how to wait. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@libsql/client';

/** How long, and how often, a locked database is tried again. Milliseconds. */
export interface BusyPolicy {
  limitMs: number;
  firstDelayMs: number;
  delayMaxMs: number;
}
export const BUSY_POLICY: BusyPolicy = { limitMs: 5_000, firstDelayMs: 2, delayMaxMs: 100 };

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
 * connection fails ("SQL statements in progress"), and a single statement's change is seen by nobody else and keeps the lock
 * (https://github.com/tursodatabase/libsql-client-ts/issues/352). So a busy connection is replaced by a new one, with the `pragmas` of the old.
 * `client`: of one connection to a file.
 */
export async function retryBusy<T>(
  client: Client,
  work: () => Promise<T>,
  pragmas: readonly string[],
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
      for (const pragma of pragmas) await client.execute(pragma);
      if (performance.now() + delayMs > giveUpAt) throw error;
      await sleep(delayMs);
    }
  }
}
