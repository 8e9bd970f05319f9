/**
 * Applies migrations/daemon/*.sql in the order of their names, each in one transaction with its row in `_migrations`.
 * Safe when two processes start at once: each step begins by taking the write lock and looking again.
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Client } from '@libsql/client';
import { type BusyPolicy, retryBusy } from './busy.ts';
import { PRAGMAS } from './database.ts';

export const MIGRATIONS_FOLDER = fileURLToPath(new URL('../../migrations/daemon/', import.meta.url));

export class MigrationError extends Error {
  override name = 'MigrationError';
}

interface Migration {
  name: string;
  sql: string;
  sha256: string;
}

function readMigrations(folder: string): Migration[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith('.sql'))
    .sort()
    .map((file) => {
      const sql = readFileSync(join(folder, file), 'utf8').replaceAll('\r\n', '\n');
      return { name: file.slice(0, -'.sql'.length), sql, sha256: createHash('sha256').update(sql).digest('hex') };
    });
}

/** Returns the names applied now. Throws MigrationError when the database is newer than the program, or was migrated by other SQL. */
export async function migrate(client: Client, folder = MIGRATIONS_FOLDER, busy?: BusyPolicy): Promise<string[]> {
  const migrations = readMigrations(folder);
  if (migrations.length === 0)
    throw new MigrationError(`No migrations in ${folder}: the installation is incomplete; install it again.`);
  const done: string[] = [];
  for (;;) {
    const applied = await retryBusy(client, () => appliedMigrations(client), PRAGMAS, busy);
    const next = nextMigration(migrations, applied);
    if (!next) return done;
    if (await retryBusy(client, () => applyMigration(client, next, applied.length), PRAGMAS, busy))
      done.push(next.name);
  }
}

async function appliedMigrations(client: Client): Promise<{ name: string; sha256: string }[]> {
  await client.execute(
    'CREATE TABLE IF NOT EXISTS _migrations (position INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, applied_at TEXT NOT NULL)',
  );
  const { rows } = await client.execute('SELECT name, sha256 FROM _migrations ORDER BY position');
  return rows.map((row) => ({ name: String(row.name), sha256: String(row.sha256) }));
}

function nextMigration(migrations: Migration[], applied: { name: string; sha256: string }[]): Migration | undefined {
  for (const [i, { name, sha256 }] of applied.entries()) {
    const known = migrations[i];
    if (!known)
      throw new MigrationError(
        `The database was migrated to ${name} by a newer version of this program: update the program.`,
      );
    if (known.name !== name || known.sha256 !== sha256)
      throw new MigrationError(
        `Migration ${i} of the database is ${name} (${sha256.slice(0, 12)}), here it is ${known.name} (${known.sha256.slice(0, 12)}): ` +
          'applied migrations must not be edited; restore the file or use the version that made the database.',
      );
  }
  return migrations[applied.length];
}

/** False when another process was faster. */
async function applyMigration(client: Client, migration: Migration, position: number): Promise<boolean> {
  const transaction = await client.transaction('write');
  try {
    const { rows } = await transaction.execute('SELECT count(*) AS n FROM _migrations');
    if (Number(rows[0]?.n) !== position) return false;
    for (const statement of migration.sql.split('--> statement-breakpoint')) {
      if (statement.trim()) await transaction.execute(statement);
    }
    await transaction.execute({
      sql: 'INSERT INTO _migrations (position, name, sha256, applied_at) VALUES (?, ?, ?, ?)',
      args: [position, migration.name, migration.sha256, new Date().toISOString()],
    });
    await transaction.commit();
    return true;
  } finally {
    transaction.close();
  }
}
