import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import { writePeftAdapter } from '../../support/safetensors-writer.ts';
import { describeTinyModel, normals } from '../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'kill-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const base = describeTinyModel('llama', '');
const SEEDS = 4;
const ROUNDS = 8;

/** Adds, replaces and removes without end; says each name once its adding was acknowledged. */
const CHILD = `
import { AdapterRegistry } from ${JSON.stringify(new URL('../../../daemon/adapters/registry.ts', import.meta.url).href)};
const [root, sources, base] = process.argv.slice(2);
const registry = await AdapterRegistry.open({ root, base: JSON.parse(base) });
process.stdout.write('ready\\n');
for (let i = 0; ; i++) {
  await registry.add({ name: 'kept-' + i, source: sources + '/' + (i % ${SEEDS}) });
  process.stdout.write('kept-' + i + '\\n');
  await registry.add({ name: 'turning', source: sources + '/' + ((i + 1) % ${SEEDS}), replace: true });
  if (i % 3 === 2) await registry.remove('turning');
}
`;

test('a kill at any moment loses no acknowledged adapter and leaves no half one', async () => {
  for (let seed = 0; seed < SEEDS; seed++) writePeftAdapter(join(folder, String(seed)), base, { seed });
  const script = join(folder, 'child.mts');
  writeFileSync(script, CHILD);
  // Seeded moments, in milliseconds after the child is ready.
  const moments = normals('kill', ROUNDS, 1).map((x) => 15 + 60 * Math.abs(x));
  let acknowledgedInAll = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const root = join(folder, `root-${round}`);
    const child = spawn(process.execPath, ['--import', 'tsx', script, root, folder, JSON.stringify(base)], {
      cwd: join(import.meta.dirname, '../../..'),
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let said = '';
    // Every other round waits for a first acknowledgement, however slow the machine is; the others may hit the very beginning.
    const begun = round % 2 === 0 ? 'ready' : 'kept-0\n';
    const ready = new Promise<void>((resolve, reject) => {
      child.once('exit', () => reject(new Error('the child ended by itself')));
      child.stdout.on('data', (chunk: Buffer) => {
        said += chunk.toString();
        if (said.includes(begun)) resolve();
      });
    });
    await ready;
    await new Promise((resolve) => setTimeout(resolve, moments[round]));
    const gone = new Promise((resolve) => child.stdout.once('close', resolve));
    child.removeAllListeners('exit');
    child.kill('SIGKILL');
    await gone;

    const registry = await AdapterRegistry.open({ root, base });
    expect(registry.broken).toEqual([]);
    const acknowledged = said
      .split('\n')
      .slice(0, -1)
      .filter((line) => line.startsWith('kept-'));
    acknowledgedInAll += acknowledged.length;
    for (const name of acknowledged) expect((await registry.handle(name)).pairs).toHaveLength(21);
    for (const { name } of registry.list()) expect((await registry.handle(name)).pairs).toHaveLength(21);
    const digests = new Set(registry.list().map(({ digest }) => digest));
    expect(new Set(readdirSync(root).filter((entry) => /^[0-9a-f]{64}$/.test(entry)))).toEqual(digests);
    expect(readdirSync(root).filter((entry) => /^\.import-|\.tmp$/.test(entry))).toEqual([]);
  }
  expect(acknowledgedInAll).toBeGreaterThanOrEqual(ROUNDS / 2);
});
