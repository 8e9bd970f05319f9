/** Opening daemon.db. */
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Client, createClient } from '@libsql/client';
import { drizzle, type LibSQLDatabase } from 'drizzle-orm/libsql';
import { BUSY_POLICY, type BusyPolicy, retryBusy } from './busy.ts';
import * as schema from './schema.ts';

export type DaemonDb = LibSQLDatabase<typeof schema>;
export interface Database {
  db: DaemonDb;
  client: Client;
}

/** Per connection, unlike WAL, which the file remembers. */
export const PRAGMAS: readonly string[] = ['PRAGMA synchronous = FULL'];

/**
 * Opens (or creates) the file with WAL and synchronous=FULL: a commit has been fsynced before it returns.
 * One connection only: pooled connections don't share pragmas, and libSQL works in the calling thread anyway, so two
 * transactions of one process could only block each other. Callers must not run two transactions at once.
 */
export async function openDatabase(path: string, busy: BusyPolicy = BUSY_POLICY): Promise<Database> {
  mkdirSync(dirname(path), { recursive: true });
  const client = createClient({ url: fileUrl(path), concurrency: 1 });
  try {
    await retryBusy(client, () => client.execute('PRAGMA journal_mode = WAL'), PRAGMAS, busy);
    for (const pragma of PRAGMAS) await client.execute(pragma);
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
