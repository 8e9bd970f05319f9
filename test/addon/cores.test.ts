/** The threads that serving and training share, and how they take turns, under ThreadSanitizer. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { temporaryFolder } from './rig.ts';

const root = join(import.meta.dirname, '..', '..');
const folder = temporaryFolder();
afterAll(folder.remove);

const compiler = process.env.CXX ?? 'g++';
const FLAGS = ['-std=c++17', '-O1', '-g', '-pthread', '-fsanitize=thread', `-I${join(root, 'addon', 'src')}`];

/** Why no program can be run under ThreadSanitizer here, or ''. */
function missing(): string {
  if (process.platform !== 'linux') return 'ThreadSanitizer is used on Linux only';
  const program = join(folder.path, 'empty');
  const made = spawnSync(compiler, [...FLAGS, '-x', 'c++', '-', '-o', program], { input: 'int main() { return 0; }' });
  if (made.status !== 0) return `${compiler} cannot build with -fsanitize=thread`;
  // Some kernels place memory where ThreadSanitizer does not expect it.
  return spawnSync(program).status === 0 ? '' : 'programs built with -fsanitize=thread do not run here';
}

const reason = missing();
if (reason) console.info(`skipped: ${reason}`);

describe.skipIf(reason !== '')('engines and trainers on one team', () => {
  test('no race, no item left out or done twice, nobody starves', () => {
    const program = join(folder.path, 'cores-stress');
    const sources = ['team.cpp', 'cores.cpp'].map((name) => join(root, 'addon', 'src', name));
    sources.push(join(import.meta.dirname, 'children', 'cores-stress.cpp'));
    const made = spawnSync(compiler, [...FLAGS, ...sources, '-o', program], { encoding: 'utf8' });
    expect(made.status, made.stderr).toBe(0);
    const run = spawnSync(program, ['2000'], {
      encoding: 'utf8',
      timeout: 300_000,
      env: { ...process.env, TSAN_OPTIONS: 'halt_on_error=1' },
    });
    expect(run.status, run.stderr.slice(0, 4000)).toBe(0);
    const { least, serving } = JSON.parse(run.stdout) as { least: number; serving: number };
    // Operations of whoever did fewest of five, all of whom want the cores all the time; they go on until this is so.
    expect(least).toBeGreaterThanOrEqual(100);
    // An engine that pauses for 0.3 ms between its steps, beside a trainer with a share of 0.3. About 0.6, less where the machine has
    // other work in the pauses; without shares it would be below 0.1 or above 0.95.
    expect(serving).toBeGreaterThan(0.2);
    expect(serving).toBeLessThan(0.85);
  });
});
