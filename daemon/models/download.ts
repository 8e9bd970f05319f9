/**
 * One file over HTTP, into a `.part` beside its final name: resumed with Range (RFC 9110, 14), hashed while it streams,
 * renamed when it is whole. The final name never holds anything but the whole, checked file.
 */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, rename, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Dispatcher } from 'undici';
import { FetchError } from './fetch-errors.ts';
import { ATTEMPTS_MAX, DISK_SPARE_BYTES, MODEL_BYTES_MAX } from './fetch-limits.ts';
import { type Answer, bodyOf, createDispatcher, get, header, type Timeouts } from './http.ts';

export interface Progress {
  label: string;
  doneBytes: number;
  /** null while unknown. */
  totalBytes: number | null;
}

/** What writing needs of a file handle; tests put a full disk in its place. */
export type PartFile = Pick<FileHandle, 'write' | 'truncate' | 'sync' | 'close'>;

export interface DownloadOptions extends Timeouts {
  url: string;
  /** Final name. */
  target: string;
  /** Shown with the progress. */
  label: string;
  /** Hex; null if nobody knows it beforehand (then the hub's own statement is used, where it makes one). */
  sha256: string | null;
  bytes?: number;
  headers?: Record<string, string>;
  onProgress?: ((progress: Progress) => void) | undefined;
  openPart?: ((path: string) => Promise<PartFile>) | undefined;
}

/** Returns the file's SHA-256, hex. Throws FetchError; what an interrupted download has got stays for the next call. */
export async function download(options: DownloadOptions): Promise<string> {
  await mkdir(dirname(options.target), { recursive: true });
  const dispatcher = createDispatcher(options);
  try {
    let attempt = 1;
    for (;;) {
      const part = await openResumable(options);
      try {
        return await complete(part, options, dispatcher);
      } catch (error) {
        if (!(error instanceof FetchError)) throw error;
        const isStale = error.code === 'hash_mismatch' && part.resumedAt > 0;
        // A stale part is gone by now; the source gets another chance with nothing resumed.
        if (!isStale && error.code !== 'interrupted') throw error;
        if (attempt++ >= ATTEMPTS_MAX) throw error;
      }
    }
  } finally {
    await dispatcher.destroy();
  }
}

/** What is on the disk so far, with the hash up to there. */
interface Part {
  path: string;
  etagPath: string;
  hash: Hash;
  position: number;
  /** How many bytes of an earlier try were kept; 0 = started afresh. */
  resumedAt: number;
  etag: string | null;
}

async function openResumable(options: DownloadOptions): Promise<Part> {
  const path = `${options.target}.part`;
  const part: Part = {
    path,
    etagPath: `${path}.etag`,
    hash: createHash('sha256'),
    position: 0,
    resumedAt: 0,
    etag: null,
  };
  const size = await stat(path)
    .then((found) => found.size)
    .catch(() => 0);
  if (size === 0 || (options.bytes !== undefined && size > options.bytes)) return part;
  part.etag = await readFile(part.etagPath, 'utf8').catch(() => null);
  // Where no hash is pinned, only the server's tag can tell that the rest belongs to what we have.
  if (options.sha256 === null && part.etag === null) return part;
  for await (const chunk of createReadStream(path, { end: size - 1 })) part.hash.update(chunk as Buffer);
  part.position = size;
  part.resumedAt = size;
  return part;
}

async function complete(part: Part, options: DownloadOptions, dispatcher: Dispatcher): Promise<string> {
  let expected = options.sha256;
  if (part.position === 0 || part.position !== options.bytes) {
    const headers = { ...options.headers };
    if (part.position > 0) headers.range = `bytes=${part.position}-`;
    if (part.position > 0 && part.etag !== null) headers['if-range'] = part.etag;
    const answer = await get(options.url, headers, dispatcher);
    expected ??= answer.sha256;
    try {
      await receive(part, options, answer);
    } finally {
      answer.response.body.on('error', () => {}).destroy();
    }
  }
  const actual = part.hash.digest('hex');
  if (expected !== null && actual !== expected) {
    await discard(part);
    throw new FetchError(
      'hash_mismatch',
      `${options.label}: the file has the SHA-256 ${actual}, expected ${expected}; it was not kept.`,
    );
  }
  await rename(part.path, options.target);
  await rm(part.etagPath, { force: true });
  return actual;
}

async function receive(part: Part, options: DownloadOptions, answer: Answer): Promise<void> {
  if (answer.status === 416) {
    // What we have is at least as long as the file there, so it is not that file.
    await discard(part);
    throw new FetchError('interrupted', `${answer.host} has a shorter file than what was there of it.`);
  }
  const begin = answer.status === 206 ? rangeStart(answer) : 0;
  if (begin !== part.position) {
    if (begin !== 0) throw new FetchError('refused', `${answer.host} sent another range than the one asked for.`);
    // The server knows no ranges, or its file has changed: it sends the whole, which replaces what we had.
    part.hash = createHash('sha256');
    part.position = 0;
    part.resumedAt = 0;
  }
  const total = totalOf(options, answer, begin);
  if (total !== null) await checkSpace(options, total - begin);
  try {
    await rememberTag(part, answer);
    const file = await (options.openPart ?? openPart)(part.path);
    try {
      await file.truncate(part.position);
      await pour(part, file, options, answer, total);
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (error) {
    throw isDiskFull(error) ? diskFull(options, null, error) : error;
  }
  if (total !== null && part.position < total) {
    throw new FetchError(
      'interrupted',
      `${answer.host} closed the connection after ${part.position} of ${total} bytes.`,
    );
  }
}

async function pour(
  part: Part,
  file: PartFile,
  options: DownloadOptions,
  answer: Answer,
  total: number | null,
): Promise<void> {
  const tell = () => options.onProgress?.({ label: options.label, doneBytes: part.position, totalBytes: total });
  tell();
  for await (const chunk of bodyOf(answer)) {
    if (part.position + chunk.length > (total ?? MODEL_BYTES_MAX)) {
      await discard(part);
      throw new FetchError('hash_mismatch', `${answer.host} sent more than the ${total} bytes of the file.`);
    }
    for (let written = 0; written < chunk.length; ) {
      const { bytesWritten } = await file.write(chunk, written, chunk.length - written, part.position + written);
      written += bytesWritten;
    }
    part.hash.update(chunk);
    part.position += chunk.length;
    tell();
  }
}

function totalOf(options: DownloadOptions, answer: Answer, begin: number): number | null {
  const length = header(answer.response.headers, 'content-length');
  const total = options.bytes ?? (length === null ? null : begin + Number(length));
  if (total !== null && !(total <= MODEL_BYTES_MAX)) {
    throw new FetchError(
      'refused',
      `${answer.host} offers ${total} bytes; more than ${MODEL_BYTES_MAX} are not taken.`,
    );
  }
  return total;
}

/** `bytes 100-199/200` → 100. */
function rangeStart(answer: Answer): number {
  const match = /^bytes (\d+)-/.exec(header(answer.response.headers, 'content-range') ?? '');
  return match ? Number(match[1]) : -1;
}

async function rememberTag(part: Part, answer: Answer): Promise<void> {
  const tag = header(answer.response.headers, 'etag');
  // Weak tags are no use with If-Range (RFC 9110, 13.1.5).
  if (tag !== null && !tag.startsWith('W/')) await writeFile(part.etagPath, tag);
  else await rm(part.etagPath, { force: true });
}

async function discard(part: Part): Promise<void> {
  await rm(part.path, { force: true });
  await rm(part.etagPath, { force: true });
}

/** Opened for writing at positions, without emptying what is there. */
async function openPart(path: string): Promise<PartFile> {
  return await open(path, 'a').then(async (created) => {
    await created.close();
    return await open(path, 'r+');
  });
}

async function checkSpace(options: DownloadOptions, neededBytes: number): Promise<void> {
  const space = await statfs(dirname(options.target)).catch(() => null);
  if (space === null) return;
  const freeBytes = space.bavail * space.bsize;
  if (freeBytes < neededBytes + DISK_SPARE_BYTES) throw diskFull(options, { neededBytes, freeBytes });
}

export function isDiskFull(error: unknown): boolean {
  const code = (error as { code?: unknown } | null)?.code;
  return code === 'ENOSPC' || code === 'EDQUOT';
}

function diskFull(
  options: DownloadOptions,
  space: { neededBytes: number; freeBytes: number } | null,
  cause?: unknown,
): FetchError {
  const mebibytes = (bytes: number) => `${Math.ceil(bytes / 1024 ** 2)} MiB`;
  const numbers = space ? ` (${mebibytes(space.neededBytes)} needed, ${mebibytes(space.freeBytes)} free)` : '';
  const folder = dirname(options.target);
  return new FetchError(
    'disk_full',
    `The disk of ${folder} is full${numbers}. Free some space and start again: what has been fetched is kept. Another place: MODELFACTORY_DATA and MODELFACTORY_CACHE.`,
    { cause },
  );
}
