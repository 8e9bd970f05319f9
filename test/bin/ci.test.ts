/** `.ci/run` with a stand-in for npm: its last line and exit code are what others read. */
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..', '..');
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ci-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function ci(npm: string): { status: number | null; lastLine: string | undefined } {
  cpSync(join(root, '.ci'), join(folder, '.ci'), { recursive: true });
  const bin = join(folder, 'path');
  mkdirSync(bin);
  // Nothing may be installed by a test.
  for (const [name, script] of Object.entries({ npm, 'apt-get': 'exit 1' })) {
    writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(bin, name), 0o755);
  }
  const { status, stdout } = spawnSync('bash', [join(folder, '.ci', 'run')], {
    encoding: 'utf8',
    env: { PATH: `${bin}:${process.env.PATH}`, HOME: folder },
  });
  return { status, lastLine: stdout.trimEnd().split('\n').at(-1) };
}

describe('.ci/run', () => {
  it('ends with the line of the tests and their exit code', () => {
    expect(ci('echo noise >&2; echo "12 passed, 0 failed, 3 skipped"')).toEqual({
      status: 0,
      lastLine: '12 passed, 0 failed, 3 skipped',
    });
  });
  it('fails when tests fail', () => {
    expect(ci('echo "12 passed, 1 failed, 0 skipped"; exit 1')).toEqual({
      status: 1,
      lastLine: '12 passed, 1 failed, 0 skipped',
    });
  });
  it('counts a run that died before its line as one failure, also if it claims success', () => {
    expect(ci('echo Killed; exit 137')).toEqual({ status: 137, lastLine: '0 passed, 1 failed' });
  });
  it('does not believe a silent success', () => {
    expect(ci('exit 0')).toEqual({ status: 1, lastLine: '0 passed, 1 failed' });
  });
});
