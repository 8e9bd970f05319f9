import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, expect, test } from 'vitest';
import { modelDigest } from '../../../daemon/models/digest.ts';

const folder = mkdtempSync(join(tmpdir(), 'digest-'));
const file = join(folder, 'model.gguf');
const cache = join(folder, 'digests.json');
const content = Buffer.alloc(3_000_000, 'weights');
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
afterAll(() => rmSync(folder, { recursive: true, force: true }));
beforeEach(() => {
  writeFileSync(file, content);
  rmSync(cache, { force: true });
});

test('is the SHA-256 of the file', async () => {
  expect(await modelDigest(file, cache)).toBe(sha256(content));
});

test('a restart does not read the file again: what the cache says is believed while the file is the same', async () => {
  await modelDigest(file, cache);
  writeFileSync(cache, readFileSync(cache, 'utf8').replace(sha256(content), 'a'.repeat(64)));
  expect(await modelDigest(file, cache)).toBe('a'.repeat(64));
});

test('a file of the same size but changed later is hashed anew', async () => {
  await modelDigest(file, cache);
  const other = Buffer.alloc(content.length, 'changed');
  writeFileSync(file, other);
  utimesSync(file, 1000, 2000);
  expect(await modelDigest(file, cache)).toBe(sha256(other));
});

test('a damaged cache costs time, not correctness', async () => {
  writeFileSync(cache, '{"half":');
  expect(await modelDigest(file, cache)).toBe(sha256(content));
  expect(JSON.parse(readFileSync(cache, 'utf8'))).toHaveProperty([file, 'digest'], sha256(content));
});

test('a cache that cannot be written does no harm', async () => {
  expect(await modelDigest(file, join(file, 'not-a-folder', 'digests.json'))).toBe(sha256(content));
});
