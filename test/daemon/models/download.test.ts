import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type DownloadOptions, download, type Progress } from '../../../daemon/models/download.ts';
import { type FileServer, sendFile, serve } from './file-server.ts';

const FILE = randomBytes(300_000);
const SHA256 = createHash('sha256').update(FILE).digest('hex');
const OTHER = randomBytes(300_000);

let folder: string;
let target: string;
let server: FileServer | null = null;

beforeEach(() => {
  doneBytes = 0;
  folder = mkdtempSync(join(tmpdir(), 'download-'));
  target = join(folder, 'model.gguf');
});
afterEach(async () => {
  await server?.close();
  server = null;
  rmSync(folder, { recursive: true, force: true });
});

/** How far the download under test has come. */
let doneBytes = 0;
const hasArrived = async (bytes: number) => {
  while (doneBytes < bytes) await sleep(5);
};

const fetchIt = (options: Partial<DownloadOptions> = {}) =>
  download({
    url: `${server?.url ?? ''}/file`,
    target,
    label: 'model',
    sha256: SHA256,
    bytes: FILE.length,
    onProgress: (progress) => {
      doneBytes = progress.doneBytes;
    },
    ...options,
  });

describe('a download', () => {
  it('arrives whole under its final name, with nothing left beside it', async () => {
    server = await serve((request, response) => sendFile(request, response, FILE));
    const seen: Progress[] = [];
    expect(await fetchIt({ onProgress: (progress) => seen.push(progress) })).toBe(SHA256);
    expect(readFileSync(target).equals(FILE)).toBe(true);
    expect(readdirSync(folder)).toEqual(['model.gguf']);
    expect(seen.at(0)).toMatchObject({ doneBytes: 0, totalBytes: FILE.length });
    expect(seen.at(-1)).toMatchObject({ doneBytes: FILE.length });
  });

  it('goes on where the connection was cut, and asks for the rest only', async () => {
    let calls = 0;
    server = await serve((request, response) =>
      sendFile(request, response, FILE, '"v1"', calls++ === 0 ? 100_000 : undefined, hasArrived),
    );
    await fetchIt();
    expect(readFileSync(target).equals(FILE)).toBe(true);
    expect(server.requests.map(({ range }) => range)).toEqual([undefined, 'bytes=100000-']);
  });

  it('goes on after the program was ended, and never shows a half file under the final name', async () => {
    let isCut = true;
    server = await serve((request, response) =>
      sendFile(request, response, FILE, '"v1"', isCut ? 50_000 : undefined, hasArrived),
    );
    await expect(fetchIt()).rejects.toMatchObject({ code: 'interrupted' });
    expect(existsSync(target)).toBe(false);
    // Four tries of 50,000 bytes each, none of them lost.
    expect(statSync(`${target}.part`).size).toBe(200_000);
    isCut = false;
    await fetchIt();
    expect(server.requests.at(-1)?.range).toBe('bytes=200000-');
    expect(readFileSync(target).equals(FILE)).toBe(true);
  });

  it('starts over with a server that knows no ranges', async () => {
    writeFileSync(`${target}.part`, FILE.subarray(0, 1234));
    server = await serve((_, response) => response.writeHead(200, { 'content-length': FILE.length }).end(FILE));
    await fetchIt();
    expect(server.requests[0]?.range).toBe('bytes=1234-');
    expect(readFileSync(target).equals(FILE)).toBe(true);
  });

  it('starts over when the file has changed on the server since (If-Range)', async () => {
    let calls = 0;
    server = await serve((request, response) =>
      calls++ === 0
        ? sendFile(request, response, OTHER, '"old"', 10_000, hasArrived)
        : sendFile(request, response, FILE, '"new"'),
    );
    await fetchIt();
    expect(readFileSync(target).equals(FILE)).toBe(true);
  });

  it('starts over when what lay there was of another file', async () => {
    writeFileSync(`${target}.part`, OTHER.subarray(0, 1000));
    server = await serve((request, response) => sendFile(request, response, FILE));
    await fetchIt();
    expect(server.requests.map(({ range }) => range)).toEqual(['bytes=1000-', undefined]);
    expect(readFileSync(target).equals(FILE)).toBe(true);
  });

  it('starts over when what lay there is longer than the file', async () => {
    writeFileSync(`${target}.part`, Buffer.concat([FILE, OTHER]));
    server = await serve((request, response) => sendFile(request, response, FILE));
    await fetchIt();
    expect(readFileSync(target).equals(FILE)).toBe(true);
  });

  it('asks for nothing when the part is already whole', async () => {
    writeFileSync(`${target}.part`, FILE);
    server = await serve((request, response) => sendFile(request, response, FILE));
    await fetchIt();
    expect(server.requests).toEqual([]);
    expect(readFileSync(target).equals(FILE)).toBe(true);
  });

  it('refuses other bytes than the pinned ones and keeps none of them', async () => {
    server = await serve((request, response) => sendFile(request, response, OTHER));
    await expect(fetchIt()).rejects.toMatchObject({ code: 'hash_mismatch' });
    expect(readdirSync(folder)).toEqual([]);
    expect(server.requests).toHaveLength(1);
  });

  it('refuses more bytes than the file has', async () => {
    server = await serve((_, response) => response.writeHead(200).end(Buffer.concat([FILE, OTHER])));
    await expect(fetchIt()).rejects.toMatchObject({ code: 'hash_mismatch' });
    expect(existsSync(target)).toBe(false);
  });

  it.each([
    ['nobody listens', null],
    ['the server accepts and says nothing', () => {}],
    [
      'the server is broken',
      (_: unknown, response: { writeHead(status: number): { end(): void } }) => response.writeHead(503).end(),
    ],
  ])('is given up at once when %s', async (_, handler) => {
    server = handler ? await serve(handler as never) : null;
    const url = server ? `${server.url}/file` : 'http://127.0.0.1:9/file';
    await expect(fetchIt({ url, headersTimeoutMs: 300 })).rejects.toMatchObject({ code: 'unreachable' });
    // It is not asked again: the next source is.
    expect(server?.requests ?? []).toHaveLength(server ? 1 : 0);
  });

  it('treats a body that stands still as cut', async () => {
    let calls = 0;
    server = await serve((request, response) => {
      if (calls++ > 0) return sendFile(request, response, FILE);
      response.writeHead(200, { 'content-length': FILE.length, etag: '"v1"' });
      response.write(FILE.subarray(0, 1000));
    });
    await fetchIt({ stallTimeoutMs: 500 });
    expect(server.requests[1]?.range).toBe('bytes=1000-');
  });

  it('says that the disk is full, keeps what it has, and goes on later', async () => {
    server = await serve((request, response) => sendFile(request, response, FILE));
    let written = 0;
    const openPart = async (path: string) => {
      const file = await open(path, 'w+');
      return {
        truncate: (length: number) => file.truncate(length),
        sync: () => file.sync(),
        close: () => file.close(),
        write: (async (chunk: Buffer, offset: number, length: number, position: number) => {
          const room = Math.min(length, 70_000 - written);
          if (room <= 0) throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
          written += room;
          return await file.write(chunk, offset, room, position);
        }) as never,
      };
    };
    const error = await fetchIt({ openPart }).catch((thrown) => thrown);
    expect(error).toMatchObject({ code: 'disk_full' });
    expect(error.message).toContain(folder);
    expect(existsSync(target)).toBe(false);
    expect(statSync(`${target}.part`).size).toBe(70_000);
    await fetchIt();
    expect(server.requests.at(-1)?.range).toBe('bytes=70000-');
    expect(readFileSync(target).equals(FILE)).toBe(true);
  });

  it('gives its token to the hub but not to the store the hub redirects to, and checks the hash that the hub names', async () => {
    const store = await serve((request, response) => sendFile(request, response, FILE));
    try {
      let linked = SHA256;
      server = await serve((_, response) =>
        response.writeHead(302, { location: `${store.url}/blob`, 'x-linked-etag': `"${linked}"` }).end(),
      );
      const options = { sha256: null, headers: { authorization: 'Bearer secret' } };
      expect(await fetchIt(options)).toBe(SHA256);
      expect(server.requests[0]?.authorization).toBe('Bearer secret');
      expect(store.requests[0]?.authorization).toBeUndefined();
      rmSync(target);
      linked = createHash('sha256').update(OTHER).digest('hex');
      await expect(fetchIt(options)).rejects.toMatchObject({ code: 'hash_mismatch' });
    } finally {
      await store.close();
    }
  });

  it('does not follow redirects for ever', async () => {
    server = await serve((_, response) => response.writeHead(302, { location: '/file' }).end());
    await expect(fetchIt()).rejects.toMatchObject({ code: 'unreachable' });
    expect(server.requests.length).toBeLessThan(10);
  });
});
