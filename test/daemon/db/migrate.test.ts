import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generateSQLiteDrizzleJson, generateSQLiteMigration } from 'drizzle-kit/api';
import { getTableConfig, type SQLiteTable } from 'drizzle-orm/sqlite-core';
import { describe, expect, it, onTestFinished } from 'vitest';
import { retryBusy, sqliteCode } from '../../../daemon/db/busy.ts';
import { openDatabase, PRAGMAS } from '../../../daemon/db/database.ts';
import { MIGRATIONS_FOLDER, migrate } from '../../../daemon/db/migrate.ts';
import * as schema from '../../../daemon/db/schema.ts';

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'daemon-db-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
async function open(path = join(temporaryFolder(), 'daemon.db')) {
  const database = await openDatabase(path, { limitMs: 3_000, firstDelayMs: 1, delayMaxMs: 10 });
  onTestFinished(() => database.client.close());
  return database;
}
const migrationNames = readdirSync(MIGRATIONS_FOLDER)
  .filter((file) => file.endsWith('.sql'))
  .map((file) => file.slice(0, -4))
  .sort();

describe('migrations', () => {
  it('the newest snapshot is what schema.ts says: nothing waits to be generated', async () => {
    const snapshots = readdirSync(join(MIGRATIONS_FOLDER, 'meta')).filter((file) => file.endsWith('_snapshot.json'));
    const newest = JSON.parse(readFileSync(join(MIGRATIONS_FOLDER, 'meta', snapshots.sort().at(-1)!), 'utf8'));
    const current = await generateSQLiteDrizzleJson(schema, newest.id);
    expect(await generateSQLiteMigration(newest, current)).toEqual([]);
  });

  it('make the tables, columns and unique indexes of schema.ts, and no others', async () => {
    const { client } = await open();
    expect(await migrate(client)).toEqual(migrationNames);
    const tables = Object.values(schema).map((table) => getTableConfig(table as SQLiteTable));
    const { rows } = await client.execute(
      "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> '_migrations'",
    );
    expect(rows.map(({ name }) => name).sort()).toEqual(tables.map(({ name }) => name).sort());
    for (const { name, columns } of tables) {
      const { rows: found } = await client.execute({
        sql: 'SELECT name, lower(type) AS type, "notnull", pk FROM pragma_table_info(?)',
        args: [name],
      });
      const wanted = columns.map((column) => ({
        name: column.name,
        type: column.getSQLType(),
        notnull: column.notNull ? 1 : 0,
        pk: column.primary ? 1 : 0,
      }));
      expect(found.map((row) => ({ ...row }))).toEqual(wanted);
      const { rows: unique } = await client.execute({
        sql: 'SELECT c.name FROM pragma_index_list(?) i JOIN pragma_index_info(i.name) c WHERE i."unique" = 1 AND i.origin <> \'pk\'',
        args: [name],
      });
      expect(unique.map((row) => row.name)).toEqual(
        columns.filter(({ isUnique }) => isUnique).map((column) => column.name),
      );
    }
  });

  it('are applied once, also by two programs at the same moment', async () => {
    const path = join(temporaryFolder(), 'daemon.db');
    const [a, b] = [await open(path), await open(path)];
    const applied = await Promise.all([migrate(a.client), migrate(b.client)]);
    expect(applied.flat().sort()).toEqual(migrationNames);
    expect(await migrate(a.client)).toEqual([]);
  });

  it('a failing one leaves nothing behind and is tried again at the next start', async () => {
    const folder = temporaryFolder();
    const { client } = await open();
    writeFileSync(join(folder, '0000_a.sql'), 'CREATE TABLE a (x);');
    writeFileSync(join(folder, '0001_b.sql'), 'CREATE TABLE b (x);--> statement-breakpoint\nCREATE TABLE a (x);');
    await expect(migrate(client, folder)).rejects.toThrow(/already exists/);
    const tables = await client.execute("SELECT name FROM sqlite_master WHERE name IN ('a', 'b')");
    expect(tables.rows.map(({ name }) => name)).toEqual(['a']);
    writeFileSync(join(folder, '0001_b.sql'), 'CREATE TABLE b (x);');
    expect(await migrate(client, folder)).toEqual(['0001_b']);
  });

  it('edited ones, and databases of a newer version, are refused with a sentence', async () => {
    const folder = temporaryFolder();
    const { client } = await open();
    for (const name of migrationNames)
      copyFileSync(join(MIGRATIONS_FOLDER, `${name}.sql`), join(folder, `${name}.sql`));
    writeFileSync(join(folder, '9999_future.sql'), 'CREATE TABLE future (x);');
    await migrate(client, folder);
    await expect(migrate(client)).rejects.toThrow(/newer version/);
    writeFileSync(join(folder, '9999_future.sql'), 'CREATE TABLE future (y);');
    await expect(migrate(client, folder)).rejects.toThrow(/must not be edited/);
    await expect(migrate(client, temporaryFolder())).rejects.toThrow(/No migrations/);
  });
});

describe('a locked database', () => {
  it('is waited for, and given up on after the limit with SQLITE_BUSY', async () => {
    const path = join(temporaryFolder(), 'daemon.db');
    const [holder, writer] = [await open(path), await open(path)];
    await holder.client.execute('CREATE TABLE t (x)');
    const write = () => writer.client.execute('INSERT INTO t VALUES (1)');
    const held = await holder.client.transaction('write');
    const policy = { limitMs: 80, firstDelayMs: 1, delayMaxMs: 20 };
    const error = await retryBusy(writer.client, write, PRAGMAS, policy).catch((reason) => reason);
    expect(sqliteCode(error)).toBe('SQLITE_BUSY');
    const waiting = retryBusy(writer.client, write, PRAGMAS, { ...policy, limitMs: 3_000 });
    setTimeout(() => held.rollback(), 50);
    expect((await waiting).rowsAffected).toBe(1);
    // The statements that met the lock are gone with their connection: transactions commit at once.
    await writer.client.batch(['INSERT INTO t VALUES (2)'], 'write');
  });
});
