import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { startRig } from './rig.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));

test('the migrations lead to the schema in the code: drizzle-kit finds nothing to add', () => {
  const copy = mkdtempSync(join(root, 'node_modules', '.mf-migrations-'));
  try {
    cpSync(join(root, 'migrations/gateway'), copy, { recursive: true });
    const before = readdirSync(copy).sort();
    // drizzle-kit takes `out` relative to where it runs.
    const args = [
      'generate',
      '--dialect',
      'sqlite',
      '--schema',
      './gateway/db/schema.ts',
      '--out',
      `./${relative(root, copy)}`,
    ];
    const output = execFileSync(process.execPath, [join(root, 'node_modules/drizzle-kit/bin.cjs'), ...args], {
      cwd: root,
      encoding: 'utf8',
    });
    expect(output).toContain('No schema changes');
    expect(readdirSync(copy).sort()).toEqual(before);
  } finally {
    rmSync(copy, { recursive: true, force: true });
  }
});

test('the database itself refuses to reopen settled money or to let sums go below zero', async () => {
  const rig = await startRig();
  const { ledger } = rig.app.services;
  const { id } = await rig.key();
  await ledger.reserve('done', id, 10);
  await ledger.post('done', {
    costMicros: 4,
    usage: { promptTokens: 1, cachedTokens: 0, completionTokens: 1 },
    model: 'm',
  });
  const run = (sql: string) => rig.database.db.$client.execute(sql);
  await expect(run("UPDATE reservations SET state = 'open' WHERE request_id = 'done'")).rejects.toThrow(
    /stays settled/,
  );
  await expect(run('UPDATE keys SET reserved_micros = -1')).rejects.toThrow(/keys_money/);
  expect(await rig.money(id)).toEqual({ spent: 4, reserved: 0 });
  await rig.close();
});
