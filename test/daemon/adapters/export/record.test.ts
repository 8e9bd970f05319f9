/** How an adapter came to be stays with it; older versions stay reachable when that is asked for. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, expect, test } from 'vitest';
import { type AdapterRecord, readRecord } from '../../../../daemon/adapters/record.ts';
import { AdapterRegistry, versionName } from '../../../../daemon/adapters/registry.ts';
import { localFiles } from '../../../../daemon/adapters/source.ts';
import { adapterName } from '../../../../daemon/protocol.ts';
import { writePeftAdapter } from '../../../support/safetensors-writer.ts';
import { describeTinyModel } from '../../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'mf-record-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const base = describeTinyModel('llama', '');
const root = join(folder, 'adapters');
const source = (seed: number): string => join(folder, `adapter-${seed}`);
for (const seed of [1, 2, 3]) writePeftAdapter(source(seed), base, { seed, targets: ['attn_q'] });
let registry: AdapterRegistry;
beforeEach(async () => {
  rmSync(root, { recursive: true, force: true });
  registry = await AdapterRegistry.open({ root, base });
});

const record = (run: string): AdapterRecord => ({
  base: { id: 'tiny', digest: 'ab'.repeat(32) },
  recipe: null,
  dataset: null,
  metrics: null,
  run,
});
const folderOf = (name: string): string => registry.folder(name).path;

test('a record given with the files is kept beside them and is there after a restart', async () => {
  await registry.addFiles({ name: 'a', record: record('r1') }, localFiles(source(1)));
  expect(await readRecord(folderOf('a'))).toMatchObject({ version: 1, run: 'r1', notes: {} });
  registry = await AdapterRegistry.open({ root, base });
  expect(await readRecord(folderOf('a'))).toMatchObject({ run: 'r1' });
});

test('a record that a stranger sends among the files is read past', async () => {
  const files = async function* () {
    yield* localFiles(source(1));
    const bytes = Buffer.from(JSON.stringify({ version: 1, ...record('forged') }));
    yield {
      name: 'record.json',
      bytes: bytes.byteLength,
      content: (async function* () {
        yield bytes;
      })(),
    };
  };
  await registry.addFiles({ name: 'a' }, files());
  expect(existsSync(join(folderOf('a'), 'record.json'))).toBe(false);
  expect(await readRecord(folderOf('a'))).toBeNull();
});

test('the same weights again take the newest record and stay one folder', async () => {
  await registry.addFiles({ name: 'a:ckpt-step-3', record: record('r1') }, localFiles(source(1)));
  await registry.addFiles({ name: 'a', record: record('r2') }, localFiles(source(1)));
  expect(await readRecord(folderOf('a'))).toMatchObject({ run: 'r2' });
  expect(readdirSync(root).filter((entry) => entry !== 'names.json')).toHaveLength(1);
});

test('a damaged record costs the card, never the adapter', async () => {
  await registry.addFiles({ name: 'a', record: record('r1') }, localFiles(source(1)));
  writeFileSync(join(folderOf('a'), 'record.json'), '{"version": 1');
  expect(await readRecord(folderOf('a'))).toBeNull();
  expect((await registry.handle('a')).pairs.length).toBeGreaterThan(0);
});

test('a replaced version stays as NAME@digest where that is asked for, also after a restart, and can be removed', async () => {
  const first = await registry.addFiles({ name: 'a', keepReplaced: true }, localFiles(source(1)));
  const added: string[] = [];
  registry.on('added', ({ name }) => added.push(name));
  const second = await registry.addFiles({ name: 'a', replace: true, keepReplaced: true }, localFiles(source(2)));
  const old = `a@${first.digest.slice(0, 12)}`;
  expect(added).toEqual(['a', old]);
  registry = await AdapterRegistry.open({ root, base });
  expect(registry.digestOf('a')).toBe(second.digest);
  expect(registry.digestOf(old)).toBe(first.digest);
  expect(
    readFileSync((await registry.handle(old)).file).equals(readFileSync(join(source(1), 'adapter_model.safetensors'))),
  ).toBe(true);
  await registry.remove(old);
  expect(readdirSync(root).sort()).toEqual([second.digest, 'names.json'].sort());
});

test('without being asked, what is replaced is gone', async () => {
  await registry.addFiles({ name: 'a' }, localFiles(source(1)));
  const second = await registry.addFiles({ name: 'a', replace: true }, localFiles(source(2)));
  expect(registry.list().map(({ name }) => name)).toEqual(['a']);
  expect(readdirSync(root).sort()).toEqual([second.digest, 'names.json'].sort());
});

test('the longest name still has a version name that is a name', () => {
  const name = versionName('n'.repeat(128), 'c'.repeat(64));
  expect(adapterName.safeParse(name).success).toBe(true);
  expect(name).toBe(`${'n'.repeat(115)}@${'c'.repeat(12)}`);
});
