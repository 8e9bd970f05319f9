import { join } from 'node:path';
import { type Client, createClient } from '@libsql/client';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { appendAll, openLog, receiptsFrom, temporaryFolder } from './support.ts';

const ROW = "'{}', zeroblob(32)";
/** Every statement that would change, remove or skip what is written; none may get through, on any connection. */
const attacks: [string, string][] = [
  ['UPDATE of an entry', "UPDATE receipts SET entry = '{}' WHERE leaf_index = 1"],
  ['UPDATE of an index', 'UPDATE receipts SET leaf_index = 100 WHERE leaf_index = 1'],
  ['UPDATE OR REPLACE', 'UPDATE OR REPLACE receipts SET leaf_index = 2 WHERE leaf_index = 1'],
  ['DELETE', 'DELETE FROM receipts WHERE leaf_index = 1'],
  ['DELETE of everything', 'DELETE FROM receipts'],
  ['REPLACE by index', `REPLACE INTO receipts VALUES (1, 'new', ${ROW})`],
  ['REPLACE by id', `INSERT OR REPLACE INTO receipts VALUES (5, 'rcpt_1', ${ROW})`],
  ['REPLACE by rowid', `INSERT OR REPLACE INTO receipts (rowid, id, entry, hashes) VALUES (1, 'new', ${ROW})`],
  ['UPSERT', `INSERT INTO receipts VALUES (1, 'rcpt_1', ${ROW}) ON CONFLICT DO UPDATE SET entry = '{}'`],
  ['UPSERT by id', `INSERT INTO receipts VALUES (5, 'rcpt_1', ${ROW}) ON CONFLICT (id) DO UPDATE SET entry = '{}'`],
  ['INSERT OR IGNORE of a duplicate', `INSERT OR IGNORE INTO receipts VALUES (1, 'rcpt_1', ${ROW})`],
  ['a gap', `INSERT INTO receipts VALUES (6, 'new', ${ROW})`],
  ['an index before the first', `INSERT INTO receipts VALUES (-1, 'new', ${ROW})`],
  ['an index chosen by SQLite', `INSERT INTO receipts VALUES (NULL, 'new', ${ROW})`],
  ['a gap within one statement', `INSERT INTO receipts VALUES (5, 'new', ${ROW}), (7, 'newer', ${ROW})`],
  [
    'a duplicate id within one statement',
    `INSERT OR REPLACE INTO receipts VALUES (5, 'new', ${ROW}), (6, 'new', ${ROW})`,
  ],
  ['an entry that is too long', "INSERT INTO receipts VALUES (5, 'new', printf('%.65536c', 'x'), zeroblob(32))"],
  ['no hashes', "INSERT INTO receipts VALUES (5, 'new', '{}', zeroblob(0))"],
  ['half a hash', "INSERT INTO receipts VALUES (5, 'new', '{}', zeroblob(48))"],
  ['a smaller checkpoint', 'UPDATE checkpoint SET tree_size = 4'],
  ['the same checkpoint size with another root', 'UPDATE checkpoint SET root_hash = zeroblob(32)'],
  ['a checkpoint beyond the receipts', 'UPDATE checkpoint SET tree_size = 6'],
  ['a second checkpoint', "INSERT INTO checkpoint VALUES (2, 5, zeroblob(32), '')"],
  ['REPLACE of the checkpoint', "REPLACE INTO checkpoint VALUES (1, 5, zeroblob(32), '')"],
  ['DELETE of the checkpoint', 'DELETE FROM checkpoint'],
];

describe.each([
  ['a new connection', []],
  ['a connection with recursive_triggers', ['PRAGMA recursive_triggers = ON']],
  [
    'a connection without foreign keys, sync or trust',
    ['PRAGMA foreign_keys = OFF', 'PRAGMA synchronous = OFF', 'PRAGMA trusted_schema = OFF'],
  ],
])('the tables are append-only on %s', (_, pragmas) => {
  let client: Client;
  let content: () => Promise<unknown>;

  beforeEach(async () => {
    const dataDir = temporaryFolder();
    const log = await openLog({ dataDir });
    await appendAll(log, receiptsFrom(0, 5));
    client = createClient({ url: `file:${join(dataDir, 'daemon.db')}`, concurrency: 1 });
    onTestFinished(() => client.close());
    for (const pragma of pragmas) await client.execute(pragma);
    content = async () => [
      (await client.execute('SELECT leaf_index, id, entry, hex(hashes) FROM receipts')).rows.map((row) =>
        Object.values(row),
      ),
      (await client.execute('SELECT slot, tree_size, hex(root_hash), note FROM checkpoint')).rows.map((row) =>
        Object.values(row),
      ),
    ];
  });

  it.each(attacks)('%s is denied', async (_, statement) => {
    const before = await content();
    await expect(client.execute(statement)).rejects.toMatchObject({ code: 'SQLITE_CONSTRAINT' });
    await expect(client.batch([statement], 'write')).rejects.toMatchObject({ code: 'SQLITE_CONSTRAINT' });
    expect(await content()).toEqual(before);
  });

  it('while the next row in order is taken (so the denials above are the guards at work)', async () => {
    await client.execute(`INSERT INTO receipts VALUES (5, 'new', ${ROW}), (6, 'newer', ${ROW})`);
    await client.execute('UPDATE checkpoint SET tree_size = 7');
  });
});

it('every UNIQUE column of receipts is named in the guard against REPLACE', async () => {
  const log = await openLog({ dataDir: temporaryFolder() });
  const { client } = log.store.database;
  const guard = String(
    (await client.execute("SELECT sql FROM sqlite_master WHERE name = 'receipts_no_gap_no_replace'")).rows[0]?.sql,
  );
  const { rows: indexes } = await client.execute('SELECT name FROM pragma_index_list(\'receipts\') WHERE "unique" = 1');
  expect(indexes.length).toBeGreaterThan(0);
  for (const { name } of indexes) {
    const { rows: columns } = await client.execute({
      sql: 'SELECT name FROM pragma_index_info(?)',
      args: [String(name)],
    });
    for (const { name: column } of columns) expect(guard).toMatch(new RegExp(`${column} = NEW\\.${column}`));
  }
});
