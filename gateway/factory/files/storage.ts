/**
 * The bytes of uploaded files, in one folder of this machine: written to `NAME.part`, synced, renamed; so a file under its own name is whole.
 * Where rows and files disagree after a crash, the sweep at start removes files without a row.
 */
import { createHash } from 'node:crypto';
import { createReadStream, readSync } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rename, rm, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { ApiError } from '../../errors.ts';
import { randomId } from '../../http/ids.ts';
import { limits } from '../../limits.ts';
import type { ByteSource } from '../datasets/source.ts';

export interface Draft {
  readonly bytes: number;
  write(chunk: Uint8Array): Promise<void>;
  /** Makes the bytes durable, still without a name; @returns their SHA-256. */
  seal(): Promise<string>;
  source(): ByteSource;
  /** Gives them their name. */
  keep(): Promise<void>;
  /** Removes them, whatever became of them. */
  drop(): Promise<void>;
}

/** Bytes that are written once, read back in any order, and gone when the work is done. */
export interface Scratch {
  readonly bytes: number;
  write(chunk: Uint8Array): Promise<void>;
  /** Waits for the disk, which has these bytes in memory as a rule: small pieces only. */
  read(start: number, bytes: number): Uint8Array;
  drop(): Promise<void>;
}

export interface FileStorage {
  /** @throws ApiError 507 when the disk has no room for so many bytes. */
  draft(id: string, bytesExpected: number): Promise<Draft>;
  /** @throws ApiError 507 when the disk has no room for so many bytes. */
  scratch(bytesExpected: number): Promise<Scratch>;
  source(id: string, bytes: number): ByteSource;
  /** For what reads files in a thread of its own. */
  path(id: string): string;
  /** From the start to the end. */
  read(id: string): ReadableStream<Uint8Array>;
  remove(id: string): Promise<void>;
  /** Removes drafts, and files that `known` does not know. */
  sweep(known: (ids: string[]) => Promise<Set<string>>): Promise<void>;
}

const NAME = /^file-[A-Za-z0-9_-]{1,64}$/;
const READ_BYTES = 256 * 1024;

export function noRoom(cause?: unknown): ApiError {
  const message =
    'The server has no room on its disk for this file. Delete files that are no longer needed, or free disk space.';
  return new ApiError(507, 'server_error', 'insufficient_storage', message, {
    cause,
    headers: { 'x-should-retry': 'false' },
  });
}

const FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);

function storageError(error: unknown): unknown {
  return FULL.has(String((error as { code?: unknown }).code)) ? noRoom(error) : error;
}

/** @param openFile tests hand in disks that fill up. */
export function diskStorage(folder: string, openFile: typeof open = open): FileStorage {
  const path = (id: string) => {
    if (!NAME.test(id)) throw new Error(`${id} is no file id`);
    return join(folder, id);
  };
  const makeRoom = async (bytesExpected: number) => {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const { bavail, bsize } = await statfs(folder);
    if (bavail * bsize < bytesExpected + limits.fileDiskReserveBytes) throw noRoom();
  };
  return {
    async draft(id, bytesExpected) {
      await makeRoom(bytesExpected);
      const part = `${path(id)}.part`;
      return new DiskDraft(await openFile(part, 'wx', 0o600), part, path(id), folder);
    },
    async scratch(bytesExpected) {
      await makeRoom(bytesExpected);
      // Under the name of a draft, so that the sweep after a crash finds it.
      const part = join(folder, `scratch-${randomId()}.part`);
      return new DiskScratch(await openFile(part, 'wx+', 0o600), part);
    },
    source: (id, bytes) => diskSource(path(id), bytes),
    path,
    read: (id) => readAll(path(id)),
    async remove(id) {
      await rm(path(id), { force: true });
    },
    async sweep(known) {
      const names = await readdir(folder).catch(() => []);
      for (const name of names) if (name.endsWith('.part')) await rm(join(folder, name), { force: true });
      const ids = names.filter((name) => NAME.test(name));
      for (let at = 0; at < ids.length; at += 500) {
        const some = ids.slice(at, at + 500);
        const rows = await known(some);
        for (const id of some) if (!rows.has(id)) await rm(join(folder, id), { force: true });
      }
    },
  };
}

class DiskScratch implements Scratch {
  readonly #file: FileHandle;
  readonly #path: string;
  bytes = 0;

  constructor(file: FileHandle, path: string) {
    this.#file = file;
    this.#path = path;
  }

  async write(chunk: Uint8Array): Promise<void> {
    try {
      for (let at = 0; at < chunk.byteLength; ) {
        const { bytesWritten } = await this.#file.write(chunk, at, chunk.byteLength - at, this.bytes + at);
        at += bytesWritten;
      }
    } catch (error) {
      throw storageError(error);
    }
    this.bytes += chunk.byteLength;
  }

  read(start: number, bytes: number): Uint8Array {
    const buffer = Buffer.allocUnsafe(bytes);
    for (let at = 0; at < bytes; ) {
      const read = readSync(this.#file.fd, buffer, at, bytes - at, start + at);
      if (read === 0) throw new Error('the scratch file is shorter than what was written');
      at += read;
    }
    return buffer;
  }

  async drop(): Promise<void> {
    await this.#file.close().catch(() => {});
    await rm(this.#path, { force: true });
  }
}

class DiskDraft implements Draft {
  readonly #file: FileHandle;
  readonly #part: string;
  readonly #path: string;
  readonly #folder: string;
  readonly #hash = createHash('sha256');
  #closed = false;
  bytes = 0;

  constructor(file: FileHandle, part: string, path: string, folder: string) {
    this.#file = file;
    this.#part = part;
    this.#path = path;
    this.#folder = folder;
  }

  async write(chunk: Uint8Array): Promise<void> {
    this.#hash.update(chunk);
    this.bytes += chunk.byteLength;
    try {
      for (let at = 0; at < chunk.byteLength; ) {
        const { bytesWritten } = await this.#file.write(chunk, at, chunk.byteLength - at);
        at += bytesWritten;
      }
    } catch (error) {
      throw storageError(error);
    }
  }

  async seal(): Promise<string> {
    try {
      await this.#file.sync();
      await this.#close();
    } catch (error) {
      throw storageError(error);
    }
    return this.#hash.digest('hex');
  }

  source(): ByteSource {
    return diskSource(this.#part, this.bytes);
  }

  async keep(): Promise<void> {
    await rename(this.#part, this.#path);
    const folder = await open(this.#folder, 'r');
    try {
      await folder.sync();
    } catch {
      // Some file systems cannot sync a folder; the name then becomes durable a little later.
    } finally {
      await folder.close();
    }
  }

  async drop(): Promise<void> {
    await this.#close().catch(() => {});
    await rm(this.#part, { force: true });
    await rm(this.#path, { force: true });
  }

  async #close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#file.close();
  }
}

export function diskSource(path: string, bytes: number): ByteSource {
  return {
    bytes,
    stream: () =>
      bytes === 0
        ? empty()
        : (createReadStream(path, { end: bytes - 1, highWaterMark: READ_BYTES }) as AsyncIterable<Uint8Array>),
    async slice(start, end) {
      const wanted = Math.max(0, Math.min(end, bytes) - start);
      const file = await open(path, 'r');
      try {
        const buffer = new Uint8Array(wanted);
        for (let at = 0; at < wanted; ) {
          const { bytesRead } = await file.read(buffer, at, wanted - at, start + at);
          if (bytesRead === 0) throw new Error(`${path} is shorter than it was`);
          at += bytesRead;
        }
        return buffer.buffer;
      } finally {
        await file.close();
      }
    },
  };
}

async function* empty(): AsyncGenerator<Uint8Array> {}

function readAll(path: string): ReadableStream<Uint8Array> {
  const source = createReadStream(path, { highWaterMark: READ_BYTES });
  const chunks = source[Symbol.asyncIterator]();
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await chunks.next();
      if (done) controller.close();
      else controller.enqueue(value as Uint8Array);
    },
    cancel: () => void source.destroy(),
  });
}
