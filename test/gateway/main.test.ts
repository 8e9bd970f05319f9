/** The gateway as a process: how it starts, what it leaves on disk, how it ends. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DAEMON_TOKEN, type ScriptedDaemon, sayHello, startScriptedDaemon } from '../support/scripted-daemon.ts';
import { CHAT } from './rig.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
let folder: string;
let daemon: ScriptedDaemon;
const children = new Set<ChildProcess>();

function run(env: Record<string, string>): {
  child: ChildProcess;
  ready: Promise<{ url: string; adminKeyPath: string }>;
  exit: Promise<number | null>;
  output: () => string;
} {
  const child = spawn(process.execPath, ['--import', 'tsx', 'gateway/main.ts'], {
    cwd: root,
    env: {
      PATH: process.env.PATH,
      PORT: '0',
      MODELFACTORY_DATA: folder,
      MODELFACTORY_DAEMONS: daemon.url,
      MODELFACTORY_DAEMON_TOKEN: DAEMON_TOKEN,
      ...env,
    },
  });
  children.add(child);
  let output = '';
  const ready = new Promise<{ url: string; adminKeyPath: string }>((resolve, reject) => {
    child.stdout.on('data', (chunk) => {
      output += chunk;
      const line = output.split('\n').find((one) => one.includes('"ready":true'));
      if (line !== undefined) resolve(JSON.parse(line));
    });
    child.stderr.on('data', (chunk) => {
      output += chunk;
    });
    child.on('exit', () => reject(new Error(`ended before it was ready: ${output}`)));
  });
  ready.catch(() => {});
  return { child, ready, exit: new Promise((resolve) => child.on('exit', resolve)), output: () => output };
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mf-gateway-main-'));
  daemon = await startScriptedDaemon();
});
afterAll(async () => {
  for (const child of children) child.kill('SIGKILL');
  await daemon.stop();
  await rm(folder, { recursive: true, force: true });
});

describe('the gateway process', () => {
  test('without the daemon’s secret it does not start, and says what to set', async () => {
    const { exit, output } = run({ MODELFACTORY_DAEMON_TOKEN: '' });
    expect(await exit).toBe(78);
    expect(output()).toMatch(/MODELFACTORY_DAEMON_TOKEN.*at least 32 characters/);
  });

  test('first start makes admin.key (mode 0600, the key and nothing else); a second start keeps it; a lost database gets a new one', async () => {
    const first = run({});
    const { url, adminKeyPath } = await first.ready;
    expect((await stat(adminKeyPath)).mode & 0o777).toBe(0o600);
    const key = await readFile(adminKeyPath, 'utf8');
    expect(key).toMatch(/^mf-[A-Za-z0-9_-]{43}$/);
    const client = new OpenAI({ apiKey: key, baseURL: `${url}/v1`, maxRetries: 0 });
    expect((await client.models.list()).data[0]?.id).toBe('tiny-base');

    // An orderly end: the stream under way is finished, then the process goes with status 0.
    let release = () => {};
    daemon.script = async (request, line) => {
      line.start();
      line.emit({ type: 'delta', choice: 0, content: 'first ' });
      await new Promise<void>((resolve) => {
        release = resolve;
      });
      line.emit({ type: 'delta', choice: 0, content: 'last' });
      line.emit({ type: 'finish', choice: 0, reason: 'stop' });
      line.end(2);
      void request;
    };
    const stream = (await client.chat.completions.create({
      ...CHAT,
      stream: true,
    } as never)) as unknown as AsyncIterable<OpenAI.ChatCompletionChunk>;
    let text = '';
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      if (text === 'first ') {
        first.child.kill('SIGTERM');
        setTimeout(release, 100);
      }
    }
    expect(text).toBe('first last');
    expect(await first.exit).toBe(0);
    expect(first.output()).not.toContain(key);

    daemon.script = sayHello;
    const second = run({});
    await second.ready;
    expect(await readFile(adminKeyPath, 'utf8')).toBe(key);
    second.child.kill('SIGTERM');
    await second.exit;

    await writeFile(adminKeyPath, `mf-${'x'.repeat(43)}`);
    const third = run({});
    const again = await third.ready;
    const fresh = await readFile(adminKeyPath, 'utf8');
    expect(fresh).not.toBe(`mf-${'x'.repeat(43)}`);
    expect((await fetch(`${again.url}/v1/models`, { headers: { authorization: `Bearer ${fresh}` } })).status).toBe(200);
    // Over real sockets: a client that hangs up mid-stream stops the generation.
    let closed: Promise<void> | undefined;
    daemon.script = async (_, line) => {
      line.start();
      line.emit({ type: 'delta', choice: 0, content: 'x' });
      closed = line.gone;
      await line.gone;
    };
    for (const body of [{ ...CHAT, stream: true }, CHAT]) {
      closed = undefined;
      const abort = new AbortController();
      const pending = fetch(`${again.url}/v1/chat/completions`, {
        method: 'POST',
        signal: abort.signal,
        headers: { authorization: `Bearer ${fresh}`, 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
      pending.then((response) => response.text()).catch(() => {});
      while (closed === undefined) await new Promise((resolve) => setTimeout(resolve, 5));
      abort.abort();
      await closed;
    }
    // kill -9, then a start over the same files.
    third.child.kill('SIGKILL');
    await third.exit;
    const fourth = run({});
    expect((await fetch(`${(await fourth.ready).url}/health`)).status).toBe(200);
    fourth.child.kill('SIGTERM');
    expect(await fourth.exit).toBe(0);
  });
});

test('whoever sends too much gets the answer, not a broken connection', async () => {
  const { ready, child } = run({});
  const { url, adminKeyPath } = await ready;
  const key = (await readFile(adminKeyPath, 'utf8')).trim();
  const text = 'x'.repeat(12 * 2 ** 20);
  const inPieces = () =>
    new ReadableStream({
      start(controller) {
        for (let i = 0; i < 200; i += 1) controller.enqueue(Buffer.alloc(2 ** 16, 'x'));
        controller.close();
      },
    });
  const send = async (body: () => string | ReadableStream, credential: string) => {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${credential}`, 'content-type': 'application/json' },
      body: body(),
      duplex: 'half',
    } as RequestInit);
    return { status: response.status, body: await response.json() };
  };
  for (let i = 0; i < 20; i += 1) {
    const body = i % 2 === 0 ? () => text : inPieces;
    expect(await send(body, key)).toMatchObject({ status: 413, body: { error: { code: 'request_too_large' } } });
    expect(await send(body, 'mf-nobody')).toMatchObject({ status: 401 });
  }
  child.kill('SIGTERM');
});
