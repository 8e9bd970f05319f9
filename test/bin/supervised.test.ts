import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { freePort } from '../../bin/supervisor/ports.ts';
import { Supervised, type SupervisedOptions } from '../../bin/supervisor/supervised.ts';

let folder: string;
let running: Supervised[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'supervised-'));
});
afterEach(async () => {
  for (const one of running) one.kill();
  await Promise.all(running.map((one) => one.stop()));
  running = [];
  rmSync(folder, { recursive: true, force: true });
});

interface Event {
  event: string;
  pid: number;
  at: number;
}
const events = (): Event[] =>
  readFileSync(join(folder, 'log'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Event);

async function supervise(mode: string, options: Partial<SupervisedOptions> = {}): Promise<Supervised> {
  const port = await freePort();
  const one = new Supervised({
    name: 'daemon',
    command: process.execPath,
    args: [join(import.meta.dirname, 'fixtures', 'child.mjs'), 'daemon'],
    cwd: folder,
    env: {
      ...process.env,
      CHILD_DAEMON: mode,
      CHILD_LOG: join(folder, 'log'),
      MODELFACTORY_DAEMON_PORT: String(port),
      MODELFACTORY_DAEMON_TOKEN: 'secret',
    },
    healthUrl: `http://127.0.0.1:${port}/health`,
    healthHeaders: { authorization: 'Bearer secret' },
    onOutput: (_, stream) => stream.resume(),
    onChange: () => {},
    backoffFirstMs: 50,
    stopTimeoutMs: 5_000,
    ...options,
  });
  running.push(one);
  return one;
}

const untilState = (one: Supervised, state: string) =>
  vi.waitFor(() => expect(one.report.state).toBe(state), { timeout: 15_000, interval: 10 });

describe('a supervised process', () => {
  it('is ready only when its health answers, and ends in good order when stopped', async () => {
    const one = await supervise('serve');
    one.start();
    expect(one.report.state).toBe('starting');
    await one.ready;
    expect(one.report).toMatchObject({ state: 'ready', restarts: 0, lastExit: null });
    await one.stop();
    expect(one.report).toMatchObject({ state: 'stopped', pid: null });
    expect(events().map(({ event }) => event)).toEqual(['start', 'term', 'end']);
  });

  it('comes back after kill -9, with another process and the count of restarts', async () => {
    const one = await supervise('serve');
    one.start();
    await one.ready;
    const first = one.report.pid as number;
    process.kill(first, 'SIGKILL');
    await untilState(one, 'waiting_to_restart');
    expect(one.report.lastExit).toBe('killed by SIGKILL');
    expect(one.report.nextStartAt).not.toBeNull();
    await untilState(one, 'ready');
    expect(one.report).toMatchObject({ restarts: 1, nextStartAt: null });
    expect(one.report.pid).not.toBe(first);
  });

  it('waits longer after every crash, and starts over with short waits after a stable run', async () => {
    const waits: number[] = [];
    const one = await supervise('serve', {
      stableAfterMs: 1_500,
      onChange: () => {
        const { state, nextStartAt, since } = one.report;
        if (state === 'waiting_to_restart') waits.push(Date.parse(nextStartAt as string) - Date.parse(since));
      },
    });
    one.start();
    await one.ready;
    for (const isStable of [false, false, true]) {
      await untilState(one, 'ready');
      if (isStable) await sleep(1_600);
      process.kill(one.report.pid as number, 'SIGKILL');
      await untilState(one, 'waiting_to_restart');
    }
    await untilState(one, 'ready');
    const rounded = waits.map((wait) => Math.round(wait / 50) * 50);
    expect(rounded).toEqual([50, 100, 50]);
  });

  it('is given up when it never becomes ready, rather than tried for ever', async () => {
    const one = await supervise('crash', { firstStartsMax: 3, backoffFirstMs: 10 });
    one.start();
    await expect(one.gaveUp).rejects.toThrow(/daemon did not start 3 times in a row \(exit code 3\)/);
    expect(one.report.state).toBe('failed');
    expect(events()).toHaveLength(3);
  });

  it('is given up at once when it says that its configuration is wrong', async () => {
    const one = await supervise('misconfigured');
    one.start();
    await expect(one.gaveUp).rejects.toThrow(/because of its configuration/);
    expect(events()).toHaveLength(1);
  });

  it('is given up when its program does not exist', async () => {
    const one = await supervise('serve', { command: join(folder, 'missing'), firstStartsMax: 1 });
    one.start();
    await expect(one.gaveUp).rejects.toThrow(/could not be started/);
  });

  it('is killed when it does not end in time', async () => {
    const one = await supervise('deaf', { stopTimeoutMs: 200 });
    one.start();
    await one.ready;
    const pid = one.report.pid as number;
    await one.stop();
    expect(events().map(({ event }) => event)).toEqual(['start', 'ignored']);
    expect(() => process.kill(pid, 0)).toThrow();
    expect(one.report.lastExit).toBe('killed by SIGKILL');
  });

  it('is not started again when it was stopped while waiting', async () => {
    const one = await supervise('crash', { firstStartsMax: 99, backoffFirstMs: 60_000 });
    one.start();
    await untilState(one, 'waiting_to_restart');
    await one.stop();
    expect(one.report.state).toBe('stopped');
    expect(events()).toHaveLength(1);
  });
});
