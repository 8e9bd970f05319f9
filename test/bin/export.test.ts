/** `modelfactory export` against servers good and bad: what lands on disk is whole, and nowhere else than asked. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pack } from 'tar-stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { runCli } from '../../bin/cli/program.ts';

let folder: string;
let server: Server | undefined;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'cli-export-'));
});
afterEach(async () => {
  server?.closeAllConnections();
  await new Promise((done) => (server ? server.close(done) : done(null)));
  server = undefined;
  rmSync(folder, { recursive: true, force: true });
});

async function cli(
  listener: RequestListener,
  ...args: string[]
): Promise<{ code: number; out: string; notes: string }> {
  server = createServer(listener);
  await new Promise<void>((done) => server?.listen(0, '127.0.0.1', done));
  const out: string[] = [];
  const notes: string[] = [];
  const env = {
    MODELFACTORY_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    MODELFACTORY_KEY: 'mf-k',
  };
  const code = await runCli(
    ['export', ...args],
    { out: (line) => out.push(line), note: (line) => notes.push(line) },
    env,
  );
  return { code, out: out.join('\n'), notes: notes.join('\n') };
}

async function tarOf(files: [name: string, text: string, type?: 'file' | 'symlink'][]): Promise<Buffer> {
  const tar = pack();
  for (const [name, text, type = 'file'] of files) {
    if (type === 'symlink') tar.entry({ name, type, linkname: text });
    else tar.entry({ name }, text);
  }
  tar.finalize();
  const parts: Buffer[] = [];
  for await (const part of tar) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

const answer =
  (bytes: Uint8Array): RequestListener =>
  (_, response) => {
    response.writeHead(200, { 'content-length': bytes.byteLength }).end(bytes);
  };

describe('modelfactory export', () => {
  it('asks for what was said and writes one file, named safely', async () => {
    let asked = '';
    const result = await cli(
      (request, response) => {
        asked = `${request.url} ${request.headers.authorization}`;
        answer(Buffer.from('GGUFbytes'))(request, response);
      },
      'ft:base:me::1',
      ...['--format', 'merged', '--type', 'q8_0', '--out', join(folder, 'new')],
    );
    expect(result).toMatchObject({ code: 0 });
    expect(asked).toBe('/api/adapters/ft%3Abase%3Ame%3A%3A1/export?format=merged&type=q8_0 Bearer mf-k');
    expect(readdirSync(join(folder, 'new'))).toEqual(['ft_base_me__1-merged.gguf']);
    expect(readFileSync(join(folder, 'new', 'ft_base_me__1-merged.gguf'), 'utf8')).toBe('GGUFbytes');
  });

  it('unpacks a PEFT folder, and replaces one only with --force', async () => {
    const tar = await tarOf([
      ['a/adapter_config.json', '{}'],
      ['a/README.md', 'hello'],
    ]);
    const args = ['a', '--format', 'peft', '--out', folder];
    expect(await cli(answer(tar), ...args)).toMatchObject({ code: 0 });
    expect(readdirSync(join(folder, 'a')).sort()).toEqual(['README.md', 'adapter_config.json']);
    writeFileSync(join(folder, 'a', 'mine.txt'), '');
    const again = await cli(answer(tar), ...args);
    expect(again).toMatchObject({ code: 1, notes: expect.stringContaining('--force') });
    expect(existsSync(join(folder, 'a', 'mine.txt'))).toBe(true);
    expect(await cli(answer(tar), ...args, '--force')).toMatchObject({ code: 0 });
    expect(existsSync(join(folder, 'a', 'mine.txt'))).toBe(false);
  });

  it.each<[string, [string, string, ('file' | 'symlink')?][]]>([
    ['a path upwards', [['../evil.txt', 'x']]],
    ['an absolute path', [['/tmp/cli-export-evil.txt', 'x']]],
    ['a path deeper than a folder', [['a/b/evil.txt', 'x']]],
    ['a hidden file', [['a/.bashrc', 'x']]],
    ['a link', [['a/link', '/etc/passwd', 'symlink']]],
    ['backslashes', [['a/..\\evil.txt', 'x']]],
  ])('leaves nothing of an answer with %s', async (_, files) => {
    const tar = await tarOf([['a/adapter_config.json', '{}'], ...files]);
    const result = await cli(answer(tar), 'a', '--format', 'peft', '--out', folder);
    expect(result).toMatchObject({ code: 1, notes: expect.stringContaining('not part of a PEFT folder') });
    expect(readdirSync(folder)).toEqual([]);
    expect(existsSync('/tmp/cli-export-evil.txt')).toBe(false);
  });

  it.each(['gguf', 'peft'])('leaves nothing of an answer that breaks off (%s)', async (format) => {
    const tar = await tarOf([['a/adapter_config.json', 'x'.repeat(5000)]]);
    const result = await cli(
      (_, response) => {
        response.writeHead(200, { 'content-length': tar.byteLength });
        response.write(tar.subarray(0, 2000), () => response.destroy());
      },
      ...['a', '--format', format, '--out', folder],
    );
    expect(result).toMatchObject({ code: 1, notes: expect.stringMatching(/broke off|ended after/) });
    expect(readdirSync(folder)).toEqual([]);
  });

  it("passes the server's sentence on", async () => {
    const message = 'there is no adapter named "a"';
    const result = await cli(
      (_, response) => {
        response.writeHead(404, { 'content-type': 'application/json' }).end(JSON.stringify({ error: { message } }));
      },
      ...['a', '--format', 'gguf', '--out', folder],
    );
    expect(result).toEqual({ code: 1, out: '', notes: `error: ${message}` });
  });

  it('says that a file is no folder to write to, and leaves it', async () => {
    const place = join(folder, 'file');
    writeFileSync(place, 'mine');
    const result = await cli(answer(Buffer.from('x')), 'a', '--format', 'gguf', '--out', place);
    expect(result).toMatchObject({ code: 1, notes: expect.stringContaining('is no folder') });
    expect(readFileSync(place, 'utf8')).toBe('mine');
  });

  it('says that the disk is full, and keeps nothing', async (context) => {
    // A file system of its own with no room; only where the machine has one that small.
    const tiny = process.env.MODELFACTORY_TEST_SMALL_DISK;
    if (!tiny) return context.skip('MODELFACTORY_TEST_SMALL_DISK names no small file system');
    const result = await cli(answer(Buffer.alloc(8 << 20)), 'a', '--format', 'gguf', '--out', tiny);
    expect(result).toMatchObject({ code: 1, notes: expect.stringContaining('is full') });
    expect(readdirSync(tiny)).toEqual([]);
  });

  it.each([['a'], ['a', '--format', 'onnx']])('refuses %j %j before anything is asked', async (...args) => {
    let asked = false;
    const result = await cli(
      () => {
        asked = true;
      },
      ...args,
    );
    expect(result.code).toBe(1);
    expect(asked).toBe(false);
  });
});
