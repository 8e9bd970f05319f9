/** Opens gateway.db (a file, or a remote libSQL URL shared by many gateways) and brings its tables up to date. */
import type { Client } from '@libsql/client';
import { drizzle, type LibSQLDatabase } from 'drizzle-orm/libsql';
import { migrate } from 'drizzle-orm/libsql/migrator';
import { isFile, openClient } from './client.ts';
import * as schema from './schema.ts';

export type Database = LibSQLDatabase<typeof schema> & { $client: Client };

export interface OpenedDatabase {
  db: Database;
  /** True when no other gateway can be using it, so open reservations found at start belong to nobody. */
  exclusive: boolean;
  close(): void;
}

export async function openDatabase(options: {
  url: string;
  authToken?: string;
  migrationsFolder: string;
}): Promise<OpenedDatabase> {
  const local = isFile(options.url);
  const client = await openClient({
    ...options,
    // Losing the last settlements in a power cut is safe: the sweep finds their open reservations and asks the daemon's log.
    pragmas: ['PRAGMA synchronous = NORMAL'],
  });
  if (local) await client.execute('PRAGMA journal_mode = WAL');
  const db = drizzle(client, { schema }) as Database;
  await migrate(db, { migrationsFolder: options.migrationsFolder });
  return { db, exclusive: local, close: () => client.close() };
}
