import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, readFile, rename, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { z } from 'zod';

const record = z.object({
  bytes: z.number(),
  modifiedMs: z.number(),
  inode: z.string(),
  digest: z.string().regex(/^[0-9a-f]{64}$/),
});
const cacheFile = z.record(z.string(), record);

/**
 * SHA-256 of a model file, hex. Remembered in `cachePath` under the file's path together with its size, time of change
 * and inode, so that a restart does not read gigabytes again; any difference means to hash anew. A cache that cannot be
 * read or written costs time, never correctness.
 */
export async function modelDigest(path: string, cachePath: string): Promise<string> {
  const key = resolve(path);
  const before = await stat(path, { bigint: true });
  const seen = { bytes: Number(before.size), modifiedMs: Number(before.mtimeNs) / 1e6, inode: String(before.ino) };
  const cache = await readCache(cachePath);
  const known = cache[key];
  if (known && known.bytes === seen.bytes && known.modifiedMs === seen.modifiedMs && known.inode === seen.inode) {
    return known.digest;
  }
  const digest = await fileDigest(path);
  const after = await stat(path, { bigint: true });
  // A file that changed while it was read is hashed, but not remembered.
  if (after.size === before.size && after.mtimeNs === before.mtimeNs) {
    await writeCache(cachePath, { ...cache, [key]: { ...seen, digest } });
  }
  return digest;
}

export async function fileDigest(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

async function readCache(path: string): Promise<z.output<typeof cacheFile>> {
  try {
    return cacheFile.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch {
    return {};
  }
}

async function writeCache(path: string, cache: z.output<typeof cacheFile>): Promise<void> {
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(JSON.stringify(cache));
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch {
    // The next start hashes again.
  }
}
