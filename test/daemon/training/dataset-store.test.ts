import { createHash } from 'node:crypto';
import { readdirSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { TRAINING_LIMITS } from '../../../daemon/limits.ts';
import { DatasetStore, type DatasetStoreOptions } from '../../../daemon/training/dataset-store.ts';
import { temporaryFolder } from './support.ts';

let root: ReturnType<typeof temporaryFolder>;
let builds: number;
beforeEach(() => {
  root = temporaryFolder();
  builds = 0;
});
afterEach(() => root.remove());

const open = (options: Partial<DatasetStoreOptions> = {}) =>
  DatasetStore.open({
    root: join(root.path, 'datasets'),
    baseDigest: 'b',
    contextTokens: 100,
    needed: () => false,
    async build(_source, target) {
      builds += 1;
      writeFileSync(target, `tokens ${builds}`);
      const counts = {
        bytes: 1,
        examples: 1,
        tokens: builds,
        trainedTokens: 1,
        truncated: 0,
        duplicates: 0,
        longest: 1,
      };
      return {
        dataset: { kind: 'chat', ...counts, histogram: { width: 1, counts: [1] }, problems: [] },
        size: { tokens: 1, sequences: 1, spans: 1 },
      };
    },
    ...options,
  });

async function* bytes(...parts: (string | Error)[]): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    if (part instanceof Error) throw part;
    yield Buffer.from(part);
  }
}
const HOUR = 3_600_000;
const left = () => readdirSync(join(root.path, 'datasets'));

describe('dataset store', () => {
  it('knows a dataset by its bytes, and reads it once', async () => {
    const store = await open();
    const [first, second] = await Promise.all([
      store.receive(bytes('{"a":', '1}'), 7),
      store.receive(bytes('{"a":1}'), 0),
    ]);
    expect(first.digest).toBe(createHash('sha256').update('{"a":1}').digest('hex'));
    expect(second).toEqual(first);
    expect(builds).toBe(1);
    expect(left()).toEqual([first.digest]);
    expect(await (await open()).get(first.digest)).toEqual(first);
    expect(builds).toBe(1);
  });

  it('leaves nothing of an upload that breaks off, is too large or cannot be read', async () => {
    const store = await open();
    await expect(store.receive(bytes('{"a"', new Error('gone')), 0)).rejects.toThrow('gone');
    await expect(store.receive(bytes('x'), TRAINING_LIMITS.datasetBytesMax + 1)).rejects.toMatchObject({
      code: 'request_too_large',
    });
    const refusing = await open({ build: () => Promise.reject(new Error('line 3')) });
    await expect(refusing.receive(bytes('x'), 0)).rejects.toThrow('line 3');
    expect(left()).toEqual([]);
  });

  it('forgets what nobody has used for a week; using it is asking for it, sending it again, or a run that needs it', async () => {
    let now = Date.now();
    const needed = new Set<string>();
    const store = await open({ now: () => now, needed: (digest) => needed.has(digest) });
    const digests: string[] = [];
    for (const text of ['idle', 'asked', 'sent', 'trained on'])
      digests.push((await store.receive(bytes(text), 0)).digest);
    const [, asked, , trainedOn] = digests as [string, string, string, string];
    needed.add(trainedOn);
    now += TRAINING_LIMITS.datasetKeptMs - HOUR;
    await store.sweep();
    expect(left().sort()).toEqual([...digests].sort());
    await store.files(asked);
    await store.receive(bytes('sent'), 0);
    now += 2 * HOUR;
    await store.sweep();
    expect(left().sort()).toEqual(digests.slice(1).sort());
    needed.clear();
    await store.sweep();
    expect(left().sort()).toEqual(digests.slice(1, 3).sort());
  });

  it('makes room for a new one with those used longest ago, but not with one in use', async () => {
    let now = Date.now();
    const freeBytes = async () => (left().length > 2 ? 0 : 1e12);
    const store = await open({ now: () => now, freeBytes });
    const digests: string[] = [];
    for (const text of ['a', 'b']) {
      digests.push((await store.receive(bytes(text), 0)).digest);
      now += 2 * HOUR;
    }
    digests.push((await store.receive(bytes('c'), 0)).digest);
    now += HOUR / 2;
    const { digest } = await store.receive(bytes('d'), 10);
    expect(left().sort()).toEqual([...digests.slice(1), digest].sort());
    await store.get(digests[1] as string);
    // All that is there has just been used.
    await expect(store.receive(bytes('e'), 10)).rejects.toMatchObject({ code: 'disk_full' });
    expect(left()).toHaveLength(3);
  });

  it('says that the disk is full, before and while it writes', async () => {
    const store = await open({ freeBytes: async () => 1000 });
    await expect(store.receive(bytes('x'), 1)).rejects.toMatchObject({ code: 'disk_full', status: 507 });
    const full = await open({ build: () => Promise.reject(Object.assign(new Error('no space'), { code: 'ENOSPC' })) });
    await expect(full.receive(bytes('x'), 0)).rejects.toMatchObject({ code: 'disk_full' });
    expect(left()).toEqual([]);
  });

  it('tokenises again for another base model, or where the tokens are gone', async () => {
    const { digest } = await (await open()).receive(bytes('x'), 0);
    const other = await open({ baseDigest: 'c' });
    expect((await other.get(digest)).tokens).toBe(2);
    const { tokensPath } = await other.files(digest);
    rmSync(tokensPath);
    expect((await other.get(digest)).tokens).toBe(3);
    expect(readdirSync(join(root.path, 'datasets', digest)).sort()).toHaveLength(3);
  });

  it('clears away at the start what a killed process left, and removes what it is told to', async () => {
    await mkdir(join(root.path, 'datasets', '.tmp-half'), { recursive: true });
    const store = await open();
    expect(left()).toEqual([]);
    const { digest } = await store.receive(bytes('x'), 0);
    await store.remove(digest);
    expect(left()).toEqual([]);
    await expect(store.get(digest)).rejects.toMatchObject({ code: 'not_found', status: 404 });
    await expect(store.get('../keys')).rejects.toMatchObject({ code: 'not_found' });
  });
});
