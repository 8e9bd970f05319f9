import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { AdapterError } from '../../../daemon/adapters/errors.ts';
import { AdapterRegistry, type RegistryOptions } from '../../../daemon/adapters/registry.ts';
import { encodeSafetensors, peftAdapter, writePeftAdapter } from '../../support/safetensors-writer.ts';
import { describeTinyModel } from '../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'registry-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const base = describeTinyModel('llama', '');
const root = join(folder, 'adapters');
const source = (seed: number): string => join(folder, `adapter-${seed}`);
for (const seed of [1, 2, 3]) writePeftAdapter(source(seed), base, { seed, targets: ['attn_q'] });
beforeEach(() => rmSync(root, { recursive: true, force: true }));

const openRegistry = (options: Partial<RegistryOptions> = {}): Promise<AdapterRegistry> =>
  AdapterRegistry.open({ root, base, ...options });
const directories = (): string[] => readdirSync(root).filter((name) => name !== 'names.json');

function eventsOf(registry: AdapterRegistry): string[] {
  const events: string[] = [];
  registry.on('added', (adapter, replaced) => events.push(`added ${adapter.name}${replaced ? ' replacing' : ''}`));
  registry.on('removed', (name) => events.push(`removed ${name}`));
  registry.on('pinned', (_digest, pinned) => events.push(pinned ? 'pinned' : 'unpinned'));
  registry.on('unreferenced', () => events.push('unreferenced'));
  return events;
}

describe('adding', () => {
  test('gives the adapter its name, and it is still there after a restart', async () => {
    const registry = await openRegistry();
    const added = await registry.add({ name: 'poet', source: source(1) });
    expect(added).toMatchObject({
      name: 'poet',
      rankMax: 4,
      targets: ['attn_q'],
      tier: 'disk',
      pinned: false,
      source: source(1),
    });
    const again = await openRegistry();
    expect(again.list()).toEqual([added]);
    expect(await again.handle('poet')).toEqual(await registry.handle('poet'));
    expect(again.digestOf('poet')).toBe(added.digest);
  });

  test('the same name twice is refused unless it is to be replaced', async () => {
    const registry = await openRegistry();
    const first = await registry.add({ name: 'poet', source: source(1) });
    await expect(registry.add({ name: 'poet', source: source(2) })).rejects.toMatchObject({
      code: 'adapter_exists',
      status: 409,
    });
    const events = eventsOf(registry);
    const second = await registry.add({ name: 'poet', source: source(2), replace: true });
    expect(second.digest).not.toBe(first.digest);
    expect(directories()).toEqual([second.digest]);
    expect(events).toEqual(['added poet replacing', 'unreferenced']);
  });

  test('the same weights under two names are kept once, until the last name goes', async () => {
    const registry = await openRegistry();
    const events = eventsOf(registry);
    const a = await registry.add({ name: 'a', source: source(1) });
    const b = await registry.add({ name: 'b', source: source(1) });
    expect(b.digest).toBe(a.digest);
    await registry.remove('a');
    expect(directories()).toEqual([a.digest]);
    expect((await registry.handle('b')).digest).toBe(a.digest);
    await registry.remove('b');
    expect(directories()).toEqual([]);
    expect(events).toEqual(['added a', 'added b', 'removed a', 'removed b', 'unreferenced']);
  });

  test('what requests still want keeps its files until the last of them has ended', async () => {
    const used = new Set<string>();
    const registry = await openRegistry({ inUse: (digest) => used.has(digest) });
    const events = eventsOf(registry);
    const first = await registry.add({ name: 'poet', source: source(1) });
    const { file } = await registry.handle('poet');
    used.add(first.digest);
    const second = await registry.add({ name: 'poet', source: source(2), replace: true });
    expect(readFileSync(file).length).toBeGreaterThan(0);
    expect(events).toEqual(['added poet', 'added poet replacing', 'unreferenced']);
    registry.released(first.digest);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(directories(), 'still in use').toContain(first.digest);

    // Meanwhile a name means the old weights again: they stay for good.
    await registry.add({ name: 'old', source: source(1) });
    used.delete(first.digest);
    registry.released(first.digest);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(directories().sort()).toEqual([first.digest, second.digest].sort());

    used.add(first.digest);
    await registry.remove('old');
    expect(directories()).toContain(first.digest);
    used.delete(first.digest);
    registry.released(first.digest);
    await expect.poll(directories).toEqual([second.digest]);
  });

  test('removing an adapter while its handle is being made leaves the handle good, and the files go afterwards', async () => {
    const registry = await openRegistry();
    for (let i = 0; i < 20; i++) {
      await registry.add({ name: 'brief', source: source(3) });
      const [handle] = await Promise.all([registry.handle('brief'), registry.remove('brief')]);
      expect(handle.pairs).toHaveLength(3);
    }
    await expect.poll(directories).toEqual([]);
  });

  test('many at once, some of them the same, end as if one after the other', async () => {
    const registry = await openRegistry();
    await Promise.all(
      Array.from({ length: 12 }, (_, i) => registry.add({ name: `n${i}`, source: source(1 + (i % 3)) })),
    );
    await Promise.all([0, 3, 6, 9].map((i) => registry.remove(`n${i}`)));
    const results = await Promise.allSettled(
      Array.from({ length: 4 }, () => registry.add({ name: 'same', source: source(1) })),
    );
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    expect(directories()).toHaveLength(3);
    for (const { name } of registry.list()) expect((await registry.handle(name)).pairs).toHaveLength(3);
    expect((await openRegistry()).list()).toEqual(registry.list());
  });

  test.each(['', '.hidden', '../up', 'a/b', 'a b', 'x'.repeat(200), '-x'])('the name %j is refused', async (name) => {
    const registry = await openRegistry();
    await expect(registry.add({ name, source: source(1) })).rejects.toMatchObject({ status: 400, param: 'name' });
  });

  test('names that mean something to JavaScript are names like others', async () => {
    const registry = await openRegistry();
    for (const name of ['constructor', '__proto__', 'toString']) {
      expect(registry.get(name)).toBeUndefined();
      await registry.add({ name, source: source(1) });
      expect(registry.get(name)?.name).toBe(name);
    }
    expect((await openRegistry()).list()).toHaveLength(3);
  });

  test('from an upload', async () => {
    const { config, tensors } = peftAdapter(base, { seed: 9 });
    const registry = await openRegistry();
    const added = await registry.addFiles({ name: 'up' }, [
      { name: 'adapter_config.json', content: Readable.from([Buffer.from(JSON.stringify(config))]) },
      { name: 'adapter_model.safetensors', content: Readable.from([encodeSafetensors(tensors)]) },
    ]);
    expect(added).toMatchObject({ name: 'up', source: 'upload' });
  });

  test('from the hub, remembering the commit; with the operator’s token for the operator alone', async () => {
    const commit = 'a'.repeat(40);
    const tokens: unknown[] = [];
    const server = createServer((request, response) => {
      tokens.push(request.headers.authorization);
      response.setHeader('x-repo-commit', commit);
      response.end(readFileSync(join(source(1), (request.url ?? '').split('/').at(-1) as string)));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    try {
      const registry = await openRegistry({ hub: { endpoint, token: 'hf_secret' } });
      const local = await registry.add({ name: 'local', source: source(1) });
      const added = await registry.add({ name: 'far', source: 'hf:owner/repo' });
      expect(added).toMatchObject({ digest: local.digest, source: `hf:owner/repo@${commit}` });
      expect(tokens).toEqual([undefined, undefined]);
      await registry.add({ name: 'gated', source: 'hf:owner/repo', operator: true });
      expect(tokens.slice(2)).toEqual(['Bearer hf_secret', 'Bearer hf_secret']);
    } finally {
      server.close();
    }
  });

  test('what is refused leaves no name and no file', async () => {
    const registry = await openRegistry();
    const bad = join(folder, 'dora');
    writePeftAdapter(bad, base, { config: { use_dora: true } });
    await expect(registry.add({ name: 'x', source: bad })).rejects.toBeInstanceOf(AdapterError);
    expect(registry.list()).toEqual([]);
    expect(readdirSync(root)).toEqual([]);
  });

  test('a names file that cannot be written leaves no adapter behind', async () => {
    const registry = await openRegistry();
    mkdirSync(join(root, 'names.json'));
    await expect(registry.add({ name: 'x', source: source(1) })).rejects.toThrow();
    expect(registry.get('x')).toBeUndefined();
    expect(directories()).toEqual([]);
  });
});

describe('removing and pinning', () => {
  test('what is not there is not found', async () => {
    const registry = await openRegistry();
    await expect(registry.remove('nobody')).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
    await expect(registry.pin('nobody', true)).rejects.toMatchObject({ status: 404 });
    await expect(registry.handle('nobody')).rejects.toMatchObject({ status: 404 });
    expect(() => registry.digestOf('nobody')).toThrow(AdapterError);
    expect(registry.get('nobody')).toBeUndefined();
  });

  test('a pin survives a restart and a replacement', async () => {
    const registry = await openRegistry();
    await registry.add({ name: 'poet', source: source(1) });
    const events = eventsOf(registry);
    expect((await registry.pin('poet', true)).pinned).toBe(true);
    const again = await openRegistry();
    expect(again.pinnedDigests()).toEqual([registry.digestOf('poet')]);
    const replaced = await registry.add({ name: 'poet', source: source(2), replace: true });
    expect(replaced.pinned).toBe(true);
    await registry.pin('poet', false);
    expect(events).toEqual(['pinned', 'added poet replacing', 'pinned', 'unreferenced', 'unpinned']);
    expect(registry.pinnedDigests()).toEqual([]);
  });
});

describe('after a crash', () => {
  test('a directory that no name means is removed', async () => {
    const registry = await openRegistry();
    await registry.add({ name: 'poet', source: source(1) });
    const names = readFileSync(join(root, 'names.json'));
    await registry.add({ name: 'other', source: source(2) });
    writeFileSync(join(root, 'names.json'), names);
    const again = await openRegistry();
    expect(again.list().map(({ name }) => name)).toEqual(['poet']);
    expect(directories()).toEqual([again.digestOf('poet')]);
  });

  test('a name whose files are gone is told, and can be removed or replaced', async () => {
    const registry = await openRegistry();
    const { digest } = await registry.add({ name: 'poet', source: source(1) });
    await registry.add({ name: 'other', source: source(2) });
    rmSync(join(root, digest), { recursive: true });
    const again = await openRegistry();
    expect(again.broken).toEqual([{ name: 'poet', message: expect.stringContaining('no adapter') }]);
    expect(again.list().map(({ name }) => name)).toEqual(['other']);
    await expect(again.handle('poet')).rejects.toThrow(/missing or damaged/);
    await again.add({ name: 'poet', source: source(1), replace: true });
    expect((await again.handle('poet')).digest).toBe(digest);
  });

  test('a damaged names file stops the start rather than forgetting everything', async () => {
    await (await openRegistry()).add({ name: 'poet', source: source(1) });
    writeFileSync(join(root, 'names.json'), '{"version":1,"names":[');
    await expect(openRegistry()).rejects.toThrow(/damaged/);
    expect(directories()).toHaveLength(1);
  });
});

test('the tier is what the engine reports', async () => {
  const places = new Map<string, { tier: 'slot' | 'host' | 'disk' }>();
  const registry = await openRegistry({ placeOf: (digest) => places.get(digest) });
  const { digest } = await registry.add({ name: 'poet', source: source(1) });
  places.set(digest, { tier: 'slot' });
  expect(registry.get('poet')?.tier).toBe('slot');
  places.set(digest, { tier: 'host' });
  expect(registry.list()[0]?.tier).toBe('host');
});
