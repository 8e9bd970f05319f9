/** The command line against the real gateway (over HTTP, with a real database) and a scripted daemon; verify against a real log. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { serve } from '@hono/node-server';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { parseMoney, table } from '../../bin/cli/output.ts';
import { runCli } from '../../bin/cli/program.ts';
import { multipart } from '../../bin/cli/upload.ts';
import { type Rig, startRig } from '../gateway/rig.ts';

let folder: string;
let rig: Rig;
let server: Server;
let env: NodeJS.ProcessEnv;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'cli-'));
  rig = await startRig({ adapters: ['legal'] });
  server = serve({ fetch: rig.app.fetch, hostname: '127.0.0.1', port: 0 }) as Server;
  await new Promise((done) => server.once('listening', done));
});
afterAll(async () => {
  await new Promise((done) => {
    server.close(done);
    server.closeAllConnections();
  });
  await rig.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => {
  env = { MODELFACTORY_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, MODELFACTORY_KEY: rig.admin };
});

async function cli(...args: string[]): Promise<{ code: number; out: string; notes: string }> {
  const out: string[] = [];
  const notes: string[] = [];
  const code = await runCli(args, { out: (line) => out.push(line), note: (line) => notes.push(line) }, env);
  return { code, out: out.join('\n'), notes: notes.join('\n') };
}

describe('modelfactory keys', () => {
  it('makes a key that works, prints it alone on standard output, lists it without it, and revokes it', async () => {
    const limits = ['--models', 'legal', '--rpm', '7', '--tpm', '9000', '--concurrency', '2', '--budget', '2.50'];
    const made = await cli('keys', 'create', '--name', 'app', ...limits);
    expect(made).toMatchObject({ code: 0 });
    expect(made.out).toMatch(/^mf-[\w-]{43}$/);
    const models = await fetch(`${env.MODELFACTORY_URL}/v1/models`, {
      headers: { authorization: `Bearer ${made.out}` },
    });
    expect(models.status).toBe(200);
    const { data } = (await models.json()) as { data: { id: string }[] };
    expect(data.map(({ id }) => id)).toEqual(['legal']);

    const listed = await cli('keys', 'list');
    const line = listed.out.split('\n').find((one) => one.includes(' app ')) as string;
    expect(line).toMatch(/inference\s+legal\s+7\s+9000\s+2\s+0 \/ 2.5/);
    expect(listed.out).not.toContain(made.out);

    const id = line.split(/\s/, 1)[0] as string;
    expect((await cli('keys', 'revoke', id)).code).toBe(0);
    const after = await fetch(`${env.MODELFACTORY_URL}/v1/models`, {
      headers: { authorization: `Bearer ${made.out}` },
    });
    expect(after.status).toBe(401);
    expect((await cli('keys', 'list')).out).toMatch(new RegExp(`${id} .*revoked`));
  });

  it('speaks JSON when asked', async () => {
    const made = JSON.parse(
      (await cli('keys', 'create', '--name', 'j', '--scopes', 'inference,metrics', '--json')).out,
    );
    expect(made).toMatchObject({ name: 'j', scopes: ['inference', 'metrics'] });
    const listed = JSON.parse((await cli('keys', 'list', '--json')).out);
    expect(listed.some((key: { id: string }) => key.id === made.id)).toBe(true);
  });

  it.each([
    [['keys', 'create'], /required option '--name <name>'/],
    [['keys', 'create', '--name', 'x', '--rpm', '-1'], /whole number from 1/],
    [['keys', 'create', '--name', 'x', '--budget', '1e9'], /--budget is "1e9"/],
    [['keys', 'create', '--name', 'x', '--scopes', 'root'], /scopes/],
    [['keys', 'revoke', 'key_none'], /no key with this id/],
    [['frobnicate'], /unknown command/],
  ])('answers %j with a sentence and exit code 1', async (args, sentence) => {
    const answer = await cli(...args);
    expect(answer.code).toBe(1);
    expect(answer.notes).toMatch(sentence);
    expect(answer.notes).not.toMatch(/\n {4}at /);
  });
});

describe('modelfactory adapters', () => {
  function peftFolder(name: string, files: Record<string, string | Buffer>): string {
    const path = join(folder, name);
    mkdirSync(path, { recursive: true });
    for (const [file, content] of Object.entries(files)) writeFileSync(join(path, file), content);
    return path;
  }

  it('uploads what an adapter is made of and nothing else, then lists and removes it', async () => {
    const weights = Buffer.alloc(700_000, 1);
    const path = peftFolder('good', {
      'adapter_config.json': '{}',
      'adapter_model.safetensors': weights,
      'optimizer.pt': Buffer.alloc(1_000_000),
      'README.md': 'x',
    });
    const added = await cli('adapters', 'add', path, '--name', 'mine');
    expect(added).toMatchObject({ code: 0, notes: '' });
    const upload = rig.daemon.uploads.at(-1);
    expect(upload?.name).toBe('mine');
    expect(upload?.bytes).toBeGreaterThan(weights.length);
    expect(upload?.bytes).toBeLessThan(weights.length + 2_000);
    expect((await cli('adapters', 'list')).out).toMatch(/^mine /m);
    expect((await cli('adapters', 'remove', 'mine')).code).toBe(0);
    expect((await cli('adapters', 'list')).out).not.toMatch(/^mine /m);
    expect((await cli('adapters', 'remove', 'mine')).code).toBe(1);
  });

  it('lets the server fetch from the hub', async () => {
    const added = await cli('adapters', 'add', 'hf:owner/repo', '--name', 'hub', '--json');
    expect(added).toMatchObject({ code: 0 });
    expect(JSON.parse(added.out)).toMatchObject({ name: 'hub' });
  });

  it('says what is wrong with a path before anything is sent', async () => {
    const before = rig.daemon.uploads.length;
    const cases: [string, RegExp][] = [
      [join(folder, 'nowhere'), /There is no .*nowhere/],
      [peftFolder('empty', {}), /no adapter_config.json/],
      [peftFolder('weightless', { 'adapter_config.json': '{}' }), /no adapter_model.safetensors/],
      [
        peftFolder('pickle', { 'adapter_config.json': '{}', 'adapter_model.bin': 'x' }),
        /a pickle, which is never loaded/,
      ],
      [join(peftFolder('file', { 'a.safetensors': 'x' }), 'a.safetensors'), /not a .gguf file/],
    ];
    for (const [path, sentence] of cases) {
      const answer = await cli('adapters', 'add', path, '--name', 'x');
      expect(answer.code).toBe(1);
      expect(answer.notes).toMatch(sentence);
    }
    expect(rig.daemon.uploads).toHaveLength(before);
  });

  it('sends bodies that a standard parser reads back, with the promised length', async () => {
    const path = join(folder, 'odd "name".gguf');
    writeFileSync(path, 'GGUF-bytes');
    const seen: number[] = [];
    const { body, contentType, contentLength } = multipart(
      { name: 'n' },
      [{ path, name: 'odd "name".gguf', bytes: 10 }],
      (done) => seen.push(done),
    );
    const chunks: Uint8Array[] = [];
    for await (const chunk of body) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    expect(bytes).toHaveLength(contentLength);
    expect(seen.at(-1)).toBe(contentLength);
    const form = await new Response(bytes, { headers: { 'content-type': contentType } }).formData();
    expect(form.get('name')).toBe('n');
    expect(await (form.get('files') as File).text()).toBe('GGUF-bytes');
  });
});

describe('modelfactory models and receipts', () => {
  it('lists what is served', async () => {
    const listed = await cli('models', 'list');
    expect(listed.code).toBe(0);
    expect(listed.out).toMatch(/^MODEL +KIND +SIZE +TIER +PINNED +DIGEST +SINCE$/m);
    expect(listed.out).toMatch(/^tiny-base +base +\d+\.\d MB +- +- +[0-9a-f]{12} /m);
    expect(listed.out).toMatch(/^legal +adapter +1\.0 kB +slot +no +b{12} +2023-11-14$/m);
  });

  it('writes a receipt to a file, and says so when there is none', async () => {
    const answer = await rig.call('POST', '/v1/chat/completions', {
      model: 'tiny-base',
      messages: [{ role: 'user', content: 'Hi' }],
    });
    const id = answer.headers.get('x-receipt-id') as string;
    const file = join(folder, 'receipt.json');
    const saved = await cli('receipt', id, '--out', file);
    expect(saved.code).toBe(0);
    expect(JSON.parse(readFileSync(file, 'utf8'))).toHaveProperty('inclusionProof');
    expect(await cli('receipt', 'rcpt_none')).toMatchObject({ code: 1 });
  });

  it('exits with 1 for a file that proves nothing', async () => {
    const file = join(folder, 'bad.json');
    writeFileSync(file, '{"entry":"{}"}');
    expect(await cli('verify', file)).toMatchObject({ code: 1, out: expect.stringContaining('NOT VERIFIED') });
    expect(await cli('verify', join(folder, 'none.json'))).toMatchObject({ code: 1 });
    const json = await cli('verify', file, '--json');
    expect(JSON.parse(json.out)).toMatchObject({ ok: false });
  });
});

describe('the way to the gateway', () => {
  it('is missing: says how to start it', async () => {
    env.MODELFACTORY_URL = 'http://127.0.0.1:9';
    expect(await cli('keys', 'list')).toMatchObject({
      code: 1,
      notes: expect.stringContaining('Start it with `npm start`'),
    });
  });
  it('is locked: says which key to set', async () => {
    env.MODELFACTORY_KEY = 'mf-wrong';
    const answer = await cli('keys', 'list');
    expect(answer.code).toBe(1);
    expect(answer.notes).toMatch(/^error: The key was not accepted: .*MODELFACTORY_KEY/);
    expect(answer.notes).not.toContain('mf-wrong');
  });
  it('takes the key from admin.key of the data folder', async () => {
    delete env.MODELFACTORY_KEY;
    env.MODELFACTORY_DATA = join(folder, 'data');
    expect(await cli('keys', 'list')).toMatchObject({ code: 1, notes: expect.stringContaining('admin.key') });
    mkdirSync(env.MODELFACTORY_DATA);
    writeFileSync(join(env.MODELFACTORY_DATA, 'admin.key'), `${rig.admin}\n`);
    expect(await cli('keys', 'list')).toMatchObject({ code: 0 });
  });
});

describe('what is printed', () => {
  it('counts money exactly', () => {
    expect(parseMoney('0.1')).toBe(100_000);
    expect(parseMoney('19.999999')).toBe(19_999_999);
    for (const bad of ['', '-1', '1.', '.5', '1.2345678', 'NaN', '1 000']) expect(parseMoney(bad)).toBeNull();
  });
  it('lets no control characters of other people through to the terminal', () => {
    expect(table(['A'], [['x\u001b[2Jy\u009b']], '')).toBe('A\nx?[2Jy?');
  });
});
