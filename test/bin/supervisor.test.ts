import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readable } from '../../bin/supervisor/log.ts';
import { banner, readSettings } from '../../bin/supervisor/main.ts';
import { freePort, urlFor } from '../../bin/supervisor/ports.ts';
import { readState } from '../../bin/supervisor/state.ts';
import { eventually } from '../support/eventually.ts';

const root = resolve(import.meta.dirname, '..', '..');
let folder: string;
let started: { child: ChildProcess; output: () => string; exit: Promise<number | string> }[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'supervisor-'));
  writeFileSync(join(folder, 'some.gguf'), 'GGUF');
});
afterEach(async () => {
  for (const { child, exit } of started) {
    child.kill('SIGKILL');
    await exit;
  }
  for (const { pid } of existsSync(join(folder, 'log')) ? events() : []) if (isAlive(pid)) process.kill(pid, 'SIGKILL');
  started = [];
  rmSync(folder, { recursive: true, force: true });
});

interface Event {
  name: string;
  event: string;
  pid: number;
  token?: string;
  daemons?: string;
}
const events = (): Event[] =>
  readFileSync(join(folder, 'log'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Event);
const state = () => readState(join(folder, 'data', 'supervisor.json'));

function launch(port: number, env: NodeJS.ProcessEnv = {}) {
  const child = spawn(process.execPath, ['--import', 'tsx', join(import.meta.dirname, 'fixtures', 'supervise.ts')], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      PORT: String(port),
      MODELFACTORY_DATA: join(folder, 'data'),
      MODELFACTORY_BASE: join(folder, 'some.gguf'),
      CHILD_LOG: join(folder, 'log'),
      ...env,
    },
  });
  let text = '';
  child.stdout.on('data', (chunk) => (text += chunk));
  child.stderr.on('data', (chunk) => (text += chunk));
  const exit = new Promise<number | string>((done) => child.on('close', (code, signal) => done(signal ?? code ?? -1)));
  const one = { child, output: () => text, exit };
  started.push(one);
  return one;
}

const untilReady = (one: { output: () => string }) =>
  eventually(() => expect(one.output()).toContain('modelfactory is ready at'));

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe('npm start', () => {
  it('starts both with one secret that is never printed, and stops the gateway before the daemon', async () => {
    const port = await freePort();
    const one = launch(port);
    await untilReady(one);
    expect(one.output()).toContain(`curl http://127.0.0.1:${port}/v1/chat/completions`);
    const starts = events().filter(({ event }) => event === 'start');
    const tokens = new Set(starts.map(({ token }) => token));
    expect(tokens.size).toBe(1);
    const [token] = tokens;
    expect(Buffer.from(token as string, 'base64url')).toHaveLength(32);
    expect(starts[0]?.daemons).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
    expect(state()).toMatchObject({
      url: `http://127.0.0.1:${port}`,
      processes: { daemon: { state: 'ready' }, gateway: { state: 'ready' } },
    });

    one.child.kill('SIGTERM');
    expect(await one.exit).toBe(0);
    const order = events().filter(({ event }) => event !== 'start');
    expect(order.map(({ name, event }) => `${name} ${event}`)).toEqual([
      'gateway term',
      'gateway end',
      'daemon term',
      'daemon end',
    ]);
    expect(one.output()).not.toContain(token);
    expect(state()).toBeNull();
  });

  it('brings a killed daemon back while the gateway stays, and the state file tells', async () => {
    const one = launch(await freePort());
    await untilReady(one);
    const gateway = state()?.processes.gateway?.pid;
    process.kill(state()?.processes.daemon?.pid as number, 'SIGKILL');
    await eventually(() => expect(state()?.processes.daemon?.lastExit).toBe('killed by SIGKILL'));
    await eventually(() =>
      expect(state()?.processes.daemon).toMatchObject({ state: 'ready', restarts: 1, lastExit: 'killed by SIGKILL' }),
    );
    expect(state()?.processes.gateway).toMatchObject({ pid: gateway, restarts: 0 });
  });

  it('leaves no process behind when it is itself killed with kill -9', async () => {
    const one = launch(await freePort());
    await untilReady(one);
    const pids = [...new Set(events().map(({ pid }) => pid))];
    expect(pids).toHaveLength(2);
    one.child.kill('SIGKILL');
    await eventually(() => expect(pids.filter(isAlive)).toEqual([]));
    expect(events().filter(({ event }) => event === 'end')).toHaveLength(2);
  });

  it('ends with a sentence when a process cannot start', async () => {
    const one = launch(await freePort(), { CHILD_DAEMON: 'misconfigured' });
    expect(await one.exit).toBe(1);
    expect(one.output()).toContain('error: The daemon did not start because of its configuration');
    expect(state()).toBeNull();
  });

  it('refuses a second start on the same data folder, and a port that is taken', async () => {
    const port = await freePort();
    const one = launch(port);
    await untilReady(one);
    const same = launch(await freePort());
    expect(await same.exit).toBe(1);
    expect(same.output()).toMatch(/error: modelfactory runs already on this data folder/);
    const other = launch(port, { MODELFACTORY_DATA: join(folder, 'other') });
    expect(await other.exit).toBe(1);
    expect(other.output()).toMatch(/error: Cannot listen on 127\.0\.0\.1 port \d+: another program uses it/);
  });

  it('starts no daemon where daemons are named', async () => {
    const one = launch(await freePort(), {
      MODELFACTORY_DAEMONS: 'http://127.0.0.1:9',
      MODELFACTORY_DAEMON_TOKEN: 'given',
    });
    await untilReady(one);
    expect(events().map(({ name, token, daemons }) => ({ name, token, daemons }))).toEqual([
      { name: 'gateway', token: 'given', daemons: 'http://127.0.0.1:9' },
    ]);
  });

  it('says which settings are wrong', () => {
    expect(() => readSettings({ PORT: 'http' })).toThrow(/PORT is "http"/);
    expect(() => readSettings({ PORT: '70000' })).toThrow(/1 to 65535/);
    expect(readSettings({}).port).toBe(8787);
  });
});

describe('what is printed', () => {
  it('quotes paths for the shell', () => {
    const text = banner('http://127.0.0.1:1', "/tmp/it's here", 'm');
    expect(text).toContain(`$(cat '/tmp/it'\\''s here/admin.key')`);
  });
  it('gives an address that can be connected to', () => {
    expect(urlFor('0.0.0.0', 80)).toBe('http://127.0.0.1:80');
    expect(urlFor('::1', 80)).toBe('http://[::1]:80');
  });
  it('turns JSON log lines into words and leaves others alone', () => {
    const line = readable('daemon', JSON.stringify({ level: 50, time: 0, pid: 1, msg: 'no', code: 'x', n: [1] }));
    expect(line).toMatch(/^\d\d:\d\d:\d\d daemon {2}ERROR no code=x n=\[1\]$/);
    expect(readable('gateway', '{not json')).toContain('gateway {not json');
  });
});
