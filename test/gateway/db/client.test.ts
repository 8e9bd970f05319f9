/** What a gateway does while another process holds its database. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from '@libsql/client';
import { expect, onTestFinished, test } from 'vitest';
import { openClient } from '../../../gateway/db/client.ts';

async function lockable(limitMs: number) {
  const folder = mkdtempSync(join(tmpdir(), 'modelfactory-client-'));
  const url = `file:${join(folder, 'gateway.db')}`;
  const client = await openClient({ url, busy: { limitMs, firstDelayMs: 1, delayMaxMs: 20 } });
  const other = createClient({ url, concurrency: 1 });
  onTestFinished(() => {
    client.close();
    other.close();
    rmSync(folder, { recursive: true, force: true });
  });
  await client.executeMultiple('PRAGMA journal_mode = WAL; CREATE TABLE t (x INTEGER); INSERT INTO t VALUES (0);');
  const seenByOther = async () => Number((await other.execute('SELECT x FROM t')).rows[0]?.x);
  return { client, other, seenByOther };
}

const ADD = 'UPDATE t SET x = x + 1';

const WAYS = {
  statement: async (client: Awaited<ReturnType<typeof openClient>>) => client.execute(ADD),
  'statement that returns rows': async (client) => client.execute(`${ADD} RETURNING x`),
  batch: async (client) => client.batch([ADD], 'write'),
} satisfies Record<string, (client: Awaited<ReturnType<typeof openClient>>) => Promise<unknown>>;

test.each(Object.entries(WAYS))('a %s waits for the lock, and others are served meanwhile', async (_, add) => {
  const { client, other, seenByOther } = await lockable(5_000);
  const held = await other.transaction('write');
  let done = false;
  const adding = add(client).then(() => {
    done = true;
  });
  for (let i = 0; i < 10; i += 1) {
    expect(Number((await client.execute('SELECT x FROM t')).rows[0]?.x)).toBe(0);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  expect(done).toBe(false);
  await held.rollback();
  await adding;
  expect(await seenByOther()).toBe(1);
});

test.each(Object.entries(WAYS))(
  'after a %s that met the lock for too long, changes are committed at once',
  async (_, add) => {
    const { client, other, seenByOther } = await lockable(60);
    const held = await other.transaction('write');
    await expect(add(client)).rejects.toMatchObject({ code: 'SQLITE_BUSY' });
    await held.rollback();
    for (const [index, again] of Object.values(WAYS).entries()) {
      await again(client);
      expect(await seenByOther()).toBe(index + 1);
      // Nothing of this client's holds the lock.
      await other.execute('UPDATE t SET x = x');
    }
  },
);

test('a new connection has the pragmas of the old', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'modelfactory-client-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const url = `file:${join(folder, 'gateway.db')}`;
  const busy = { limitMs: 30, firstDelayMs: 1, delayMaxMs: 5 };
  const client = await openClient({ url, pragmas: ['PRAGMA synchronous = NORMAL'], busy });
  const other = createClient({ url, concurrency: 1 });
  await client.execute('PRAGMA journal_mode = WAL');
  await client.execute('CREATE TABLE t (x INTEGER)');
  const held = await other.transaction('write');
  await expect(client.execute(ADD)).rejects.toMatchObject({ code: 'SQLITE_BUSY' });
  await held.rollback();
  expect((await client.execute('PRAGMA synchronous')).rows[0]?.synchronous).toBe(1);
  expect(Object.values((await client.execute('PRAGMA busy_timeout')).rows[0] ?? {})).toEqual([20]);
  client.close();
  other.close();
});

test('transactions over several calls are refused: a new connection would take them away', async () => {
  const { client } = await lockable(60);
  await expect(client.transaction('write')).rejects.toThrow(/batches/);
});
