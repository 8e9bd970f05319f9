import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { freePort } from '../../bin/supervisor/ports.ts';
import type { ProcessReport } from '../../bin/supervisor/state.ts';
import { Supervised, type SupervisedOptions } from '../../bin/supervisor/supervised.ts';
import { eventually, until } from '../support/eventually.ts';

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

const untilState = (one: Supervised, state: string) => eventually(() => expect(one.report.state).toBe(state));

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
    let waiting: ProcessReport | null = null;
    const one = await supervise('serve', {
      onChange: () => {
        if (one.report.state === 'waiting_to_restart') waiting = one.report;
      },
    });
    one.start();
    await one.ready;
    const first = one.report.pid as number;
    process.kill(first, 'SIGKILL');
    await until(() => waiting !== null);
    expect(waiting).toMatchObject({ lastExit: 'killed by SIGKILL', nextStartAt: expect.any(String), pid: null });
    await untilState(one, 'ready');
    expect(one.report).toMatchObject({ restarts: 1, nextStartAt: null });
    expect(one.report.pid).not.toBe(first);
  });

  it.each([
    ['waits longer after every crash', Number.POSITIVE_INFINITY, [50, 100, 200]],
    ['waits shortly again after a stable run', 0, [50, 50, 50]],
  ])('%s', async (_, stableAfterMs, expected) => {
    const waits: number[] = [];
    const one = await supervise('serve', {
      stableAfterMs,
      onChange: () => {
        const { state, nextStartAt, since } = one.report;
        if (state === 'waiting_to_restart') waits.push(Date.parse(nextStartAt as string) - Date.parse(since));
      },
    });
    one.start();
    for (const count of [1, 2, 3]) {
      await untilState(one, 'ready');
      process.kill(one.report.pid as number, 'SIGKILL');
      await until(() => waits.length === count);
    }
    expect(waits).toEqual(expected);
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
