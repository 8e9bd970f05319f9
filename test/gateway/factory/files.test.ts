/** /v1/files over a real socket: uploads are streamed, checked, owned and bounded; what fails leaves nothing behind. */
import { mkdtemp, open, readdir, rm, writeFile } from 'node:fs/promises';
import { request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { serve } from '@hono/node-server';
import OpenAI, { toFile } from 'openai';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { runCli } from '../../../bin/cli/program.ts';
import { readForm } from '../../../gateway/factory/files/multipart.ts';
import { diskStorage } from '../../../gateway/factory/files/storage.ts';
import { eventually } from '../../support/eventually.ts';
import { assertOpenAi, hasOpenAiSchema } from '../openai-schema.ts';
import { errorOf } from '../rig.ts';
import { chatLines, type FactoryRig, startFactoryRig } from './rig.ts';

let now = Date.parse('2026-10-01T00:00:00Z');
let rig: FactoryRig;
let server: Server;
let url: string;
let client: OpenAI;

beforeAll(async () => {
  rig = await startFactoryRig({ now: () => now });
  server = serve({ fetch: rig.app.fetch, hostname: '127.0.0.1', port: 0 }) as Server;
  // On a busy machine the client would otherwise be using a connection that the server is about to close.
  server.keepAliveTimeout = 120_000;
  await new Promise((done) => server.once('listening', done));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  client = new OpenAI({ apiKey: rig.admin, baseURL: `${url}/v1`, maxRetries: 0 });
});
afterAll(async () => {
  await new Promise((done) => {
    server.close(done);
    server.closeAllConnections();
  });
  await rig.close();
});

const names = async () => (await readdir(rig.filesFolder).catch(() => [])).sort();
const authorization = () => ({ authorization: `Bearer ${rig.admin}` });

describe('files', () => {
  test('upload, list, get, content, delete: every byte comes back, the shapes are OpenAI’s', async () => {
    const bytes = Buffer.from(chatLines(500));
    const file = await client.files.create({ file: await toFile(bytes, 'dir/train.jsonl'), purpose: 'fine-tune' });
    expect(file).toMatchObject({ bytes: bytes.length, filename: 'train.jsonl', status: 'processed' });
    expect(Buffer.from(await (await client.files.content(file.id)).arrayBuffer()).equals(bytes)).toBe(true);
    const list = await (await rig.call('GET', '/v1/files?purpose=fine-tune&limit=1')).json();
    expect(list).toMatchObject({ first_id: file.id, last_id: file.id, has_more: false });
    if (hasOpenAiSchema) {
      assertOpenAi('OpenAIFile', await (await rig.call('GET', `/v1/files/${file.id}`)).json());
      assertOpenAi('ListFilesResponse', list);
    }
    expect(await client.files.delete(file.id)).toEqual({ id: file.id, object: 'file', deleted: true });
    await expect(client.files.retrieve(file.id)).rejects.toMatchObject({ status: 404 });
    expect(await names()).toEqual([]);
  });

  test('of uploads at the same moment, none gets past the quota of the others', async () => {
    const { files } = rig.app.services.factory;
    const row = (id: string) => {
      const facts = { filename: 'a', purpose: 'evals', bytes: 10, sha256: '', createdAt: now };
      return { ...facts, id, keyId: 'key_quota', owner: 'key_quota', format: null, columns: null, expiresAt: null };
    };
    for (const quota of [
      { count: 3, bytes: 1_000 },
      { count: 100, bytes: 39 },
    ]) {
      const ids = Array.from({ length: 8 }, (_, index) => `file-quota${index}`);
      const taken = await Promise.all(ids.map((id) => files.insertWithin(row(id), quota)));
      expect(taken.filter(Boolean)).toHaveLength(3);
      expect(await files.known(ids)).toEqual(new Set(ids.filter((_, index) => taken[index])));
      for (const id of ids) await files.remove(id);
    }
  });

  test('lists in both orders, by pages and purpose', async () => {
    const ids: string[] = [];
    for (const purpose of ['user_data', 'evals', 'user_data'] as const)
      ids.push((await client.files.create({ file: await toFile(Buffer.from('x'), 'a.txt'), purpose })).id);
    const all = await client.files.list({ order: 'asc' });
    expect(all.data.map(({ id }) => id)).toEqual(ids);
    const paged: string[] = [];
    for await (const { id } of client.files.list({ limit: 1, order: 'desc' })) paged.push(id);
    expect(paged).toEqual([...ids].reverse());
    expect((await client.files.list({ purpose: 'evals' })).data).toHaveLength(1);
    for (const id of ids) await client.files.delete(id);
  });

  test('files expire when their uploader said so, batch files after thirty days', async () => {
    const text = await toFile(Buffer.from('x'), 'a.txt');
    const expires_after = { anchor: 'created_at' as const, seconds: 3600 };
    const short = await client.files.create({ file: text, purpose: 'user_data', expires_after });
    expect(short.expires_at).toBe(short.created_at + 3600);
    const batch = await client.files.create({ file: text, purpose: 'batch' });
    expect(batch.expires_at).toBe(batch.created_at + 2_592_000);
    now += 3_600_001;
    await expect(client.files.retrieve(short.id)).rejects.toMatchObject({ status: 404 });
    await rig.app.services.factory.removeExpired();
    expect(await names()).toEqual([batch.id]);
    await client.files.delete(batch.id);
  });

  const form = (fields: Record<string, string | [string, string]>) => {
    const data = new FormData();
    for (const [name, value] of Object.entries(fields)) {
      if (typeof value === 'string') data.append(name, value);
      else data.append(name, new Blob([value[1]]), value[0]);
    }
    return data;
  };
  const good: [string, string] = ['a.jsonl', chatLines(2)];
  const refused: [name: string, fields: Parameters<typeof form>[0], param: string | null, message: RegExp][] = [
    ['no purpose', { file: good }, 'purpose', /Missing/],
    ['no file', { purpose: 'fine-tune' }, 'file', /Missing/],
    ['a file without a name', { purpose: 'fine-tune', file: 'text' }, 'file', /must be a file/],
    ['an unknown purpose', { purpose: 'fun', file: good }, 'purpose', /fine-tune/],
    ['an unknown field', { purpose: 'fine-tune', file: good, color: 'red' }, 'color', /Unknown/],
    [
      'half an expiry',
      { purpose: 'user_data', file: good, 'expires_after[seconds]': '4000' },
      'expires_after[anchor]',
      /Missing/,
    ],
    [
      'an expiry too soon',
      { purpose: 'user_data', file: good, 'expires_after[anchor]': 'created_at', 'expires_after[seconds]': '10' },
      'seconds',
      /3600/,
    ],
    ['another extension', { purpose: 'fine-tune', file: ['a.pdf', 'x'] }, 'file', /\.jsonl/],
    ['an empty file', { purpose: 'fine-tune', file: ['a.jsonl', ''] }, 'file', /empty/],
    [
      'a line that is none',
      { purpose: 'fine-tune', file: ['a.jsonl', `${chatLines(1)}\n"x"`] },
      'file',
      /^Expected file to have JSONL format, where every line is a JSON dictionary\. Line 2 is not a dictionary/,
    ],
    ['columns that are no JSON', { purpose: 'fine-tune', file: good, columns: '{' }, 'columns', /JSON/],
    [
      'a damaged Parquet file',
      { purpose: 'fine-tune', file: ['a.parquet', 'PAR1 and then nothing'] },
      'file',
      /Parquet/,
    ],
  ];
  test.each(refused)('%s is refused, and nothing stays', async (_, fields, param, message) => {
    const response = await fetch(`${url}/v1/files`, { method: 'POST', headers: authorization(), body: form(fields) });
    const error = await errorOf(response);
    expect(response.status).toBe(400);
    expect(error.param).toBe(param);
    expect(error.message).toMatch(message);
    expect(await names()).toEqual([]);
  });

  test('a body that is no form, a broken form, and an upload that is broken off', async () => {
    const json = await fetch(`${url}/v1/files`, {
      method: 'POST',
      headers: { ...authorization(), 'content-type': 'application/json' },
      body: '{}',
    });
    expect(json.status).toBe(400);
    const broken = await fetch(`${url}/v1/files`, {
      method: 'POST',
      headers: { ...authorization(), 'content-type': 'multipart/form-data; boundary=x' },
      body: '--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"a":',
    });
    expect((await errorOf(broken)).code).toBe('invalid_form');
    await new Promise<void>((resolve) => {
      const headers = {
        ...authorization(),
        'content-type': 'multipart/form-data; boundary=x',
        'content-length': '100000',
      };
      const request = httpRequest(`${url}/v1/files`, { method: 'POST', headers });
      request.on('error', () => resolve());
      request.write('--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"a":');
      setTimeout(() => request.destroy(), 50);
    });
    await eventually(async () => expect(await names()).toEqual([]));
  });

  test('an upload that stands still is given up; one that is slow is not', async () => {
    const form = (part: string) =>
      `--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n${part}`;
    const read = async (parts: string[]) => {
      const written: string[] = [];
      const body = new ReadableStream({
        async pull(controller) {
          // What came before has arrived by then; the clock goes on by itself, however slow the machine is.
          for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
          vi.advanceTimersByTime(200);
          const next = parts.shift();
          // Then nothing, for ever.
          if (next === undefined) {
            vi.advanceTimersByTime(200);
            await new Promise(() => {});
          }
          controller.enqueue(Buffer.from(next as string));
          if (next?.endsWith('--x--\r\n')) controller.close();
        },
      });
      const headers = { 'content-type': 'multipart/form-data; boundary=x' };
      const request = new Request('http://gateway.test', {
        method: 'POST',
        body,
        headers,
        duplex: 'half',
      } as RequestInit);
      const sink = { write: async (chunk: Uint8Array) => void written.push(Buffer.from(chunk).toString()) };
      await readForm(request, async () => sink, 250);
      return written.join('');
    };
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      expect(await read([form('one '), 'two ', 'three ', 'four ', 'five ', 'six', '\r\n--x--\r\n'])).toBe(
        'one two three four five six',
      );
      await expect(read([form('one '), 'two'])).rejects.toMatchObject({ status: 408, code: 'upload_stalled' });
    } finally {
      vi.useRealTimers();
    }
  });

  test('512 MB and no more: a declared length is refused at once', async () => {
    const status = await new Promise<number>((resolve, reject) => {
      const headers = {
        ...authorization(),
        'content-type': 'multipart/form-data; boundary=x',
        'content-length': String(600 * 1024 * 1024),
      };
      const request = httpRequest(`${url}/v1/files`, { method: 'POST', headers }, (response) =>
        resolve(response.statusCode ?? 0),
      );
      request.on('error', reject);
      request.flushHeaders();
      // What a client sends is read past, so that it can read why.
      setTimeout(() => request.destroy(), 500).unref();
    }).catch(() => 0);
    expect([0, 413]).toContain(status);
    expect(await names()).toEqual([]);
  });
});

test('a disk that fills up while a file is written: said in the error’s words, nothing left', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'mf-full-'));
  try {
    const full = (async (...args: Parameters<typeof open>) => {
      const file = await open(...args);
      let room = 10_000;
      return new Proxy(file, {
        get(target, name) {
          if (name !== 'write') {
            const value = Reflect.get(target, name);
            return typeof value === 'function' ? value.bind(target) : value;
          }
          return async (buffer: Uint8Array, offset: number, length: number) => {
            room -= length;
            if (room < 0) throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
            return target.write(buffer, offset, length);
          };
        },
      });
    }) as typeof open;
    const draft = await diskStorage(folder, full).draft('file-x', 0);
    await draft.write(new Uint8Array(6_000));
    await expect(draft.write(new Uint8Array(6_000))).rejects.toMatchObject({
      status: 507,
      code: 'insufficient_storage',
    });
    await draft.drop();
    expect(await readdir(folder)).toEqual([]);
    await expect(diskStorage(folder).draft('file-y', Number.MAX_SAFE_INTEGER)).rejects.toMatchObject({ status: 507 });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

describe('modelfactory train, jobs, files', () => {
  const cli = async (...args: string[]) => {
    const out: string[] = [];
    const notes: string[] = [];
    const env = { MODELFACTORY_URL: url, MODELFACTORY_KEY: rig.admin };
    const code = await runCli(args, { out: (line) => out.push(line), note: (line) => notes.push(line) }, env);
    return { code, out: out.join('\n'), notes: notes.join('\n') };
  };

  test('train --watch: estimate first, then every step, then the model’s name alone on standard output', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'mf-cli-'));
    try {
      const path = join(folder, 'data.csv');
      const rows = Array.from({ length: 12 }, (_, i) => `meaning ${i},"text, ${i}"`).join('\n');
      await writeFile(path, `mr,ref\n${rows}\n`);
      const trained = await cli(
        ...['train', path, '--name', 'support', '--columns', 'prompt=mr,completion=ref'],
        ...['--epochs', '2', '--rank', '4', '--lr', '1e-3', '--batch', '2', '--watch'],
      );
      expect(trained.notes).toMatch(
        /12 examples.*\n2 epochs, batch 2, rank 4: 12 steps, about 12 s, memory 2\.0 of 8\.0 GB, cost/,
      );
      expect(trained.notes).toMatch(/step 6\/6 · loss 0\.333 · 1000 tokens\/s · 0 s left · 1\.00 GB/);
      expect(trained.out).toMatch(/^ft:tiny-base:local:support:[0-9a-f]{8}$/);
      expect(trained.code).toBe(0);
      const [run] = [...rig.training.runs.values()];
      expect(run?.run.request.recipe).toMatchObject({ epochs: 2, batchSize: 2, learningRate: 1e-3 });
      const listed = await cli('jobs', 'list');
      expect(listed.out).toContain('succeeded');
      expect(listed.out).toContain('6/6');

      const bad = join(folder, 'bad.jsonl');
      await writeFile(bad, '{"messages":[{"role":"user","content":"x"}]}\n');
      const refused = await cli('train', bad);
      expect(refused.code).toBe(1);
      expect(refused.notes).toMatch(
        /line 1: At least one message with the role assistant.*\nerror: .*nothing was started/,
      );
      const files = await cli('files', 'list');
      expect(files.out).toContain('data.csv');
      expect(files.out).not.toContain('bad.jsonl');
      const id = /file-\w+/.exec(files.out)?.[0] as string;
      expect((await cli('files', 'remove', id)).out).toBe(`${id} is removed.`);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });

  test('pause, resume, cancel, and watching a job that is over', async () => {
    Object.assign(rig.training, { steps: 10_000, stepMs: 10 });
    const file = await rig.upload('train.jsonl', chatLines(12));
    const { id } = await client.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    await rig.until(id, 'running');
    expect((await cli('jobs', 'pause', id)).out).toBe(`${id} is paused.`);
    expect((await cli('jobs', 'resume', id)).out).toMatch(/is (queued|running)\.$/);
    expect((await cli('jobs', 'cancel', id)).out).toBe(`${id} is cancelled.`);
    const watched = await cli('jobs', 'watch', id);
    expect(watched).toMatchObject({ code: 1, out: '' });
    expect(watched.notes).toContain('The job is cancelled.');
    expect((await cli('jobs', 'watch', 'ftjob-none')).code).toBe(1);
  });
});
