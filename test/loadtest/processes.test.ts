import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { familyOf, ProcessTree, sleep } from '../../loadtest/bench/processes.ts';
import { until } from '../support/eventually.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'processes-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const isAlive = (pid: number) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

it('a family is a process and all that descend from it, nobody else', () => {
  const table: [number, number][] = [
    [2, 1],
    [30, 20],
    [20, 10],
    [11, 10],
    [40, 2],
  ];
  expect(familyOf(10, table)).toEqual([10, 20, 11, 30]);
});

describe.skipIf(process.platform === 'win32')('a process tree', () => {
  /** A parent whose child counts, detached into a group of its own as the supervisor's children are. */
  const script = `
    const { spawn } = require('node:child_process');
    const child = spawn(process.execPath, ['-e', 'let n = 0; setInterval(() => console.log(process.pid, ++n), 10)'], { detached: true, stdio: ['ignore', 'inherit', 'inherit'] });
    process.on('SIGTERM', () => { child.kill(); process.exit(0); });
    setInterval(() => {}, 1000);`;
  const lines = (tree: ProcessTree) => tree.logTail().trim().split('\n');
  const child = (tree: ProcessTree) => Number(lines(tree)[0]?.split(' ')[0]);

  it('stands still with all its descendants when paused, and goes on when resumed', async () => {
    const tree = new ProcessTree('counter', process.execPath, ['-e', script], {
      cwd: folder,
      env: process.env,
      logFile: path.join(folder, 'a.log'),
    });
    try {
      await until(() => lines(tree).length > 3);
      tree.pause();
      await sleep(100);
      const paused = readFileSync(tree.logFile, 'utf8').length;
      await sleep(200);
      expect(readFileSync(tree.logFile, 'utf8').length).toBe(paused);
      tree.resume();
      await until(() => readFileSync(tree.logFile, 'utf8').length > paused);
      if (process.platform === 'linux') expect(tree.cpuMs()).toBeGreaterThan(0);
    } finally {
      const pid = child(tree);
      await tree.stop();
      expect(tree.alive).toBe(false);
      await until(() => !isAlive(pid));
    }
  });

  it('can be stopped while it is paused', async () => {
    const tree = new ProcessTree('counter', process.execPath, ['-e', script], {
      cwd: folder,
      env: process.env,
      logFile: path.join(folder, 'b.log'),
    });
    await until(() => lines(tree).length > 3);
    const pid = child(tree);
    tree.pause();
    await tree.stop();
    expect(tree.alive).toBe(false);
    await until(() => !isAlive(pid));
  });

  it('that ends while starting says why', async () => {
    const tree = new ProcessTree(
      'broken',
      process.execPath,
      ['-e', 'console.error("no model here"); process.exit(3)'],
      {
        cwd: folder,
        env: process.env,
        logFile: path.join(folder, 'c.log'),
      },
    );
    await expect(tree.ready('http://127.0.0.1:9/health')).rejects.toThrow(/ended while starting:[\s\S]*no model here/);
  });
});
