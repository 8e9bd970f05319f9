/** The addon under AddressSanitizer and UndefinedBehaviorSanitizer. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { runChild } from './child.ts';

const root = join(import.meta.dirname, '..', '..');

/** Path of a sanitizer's run-time library, or '' where the compiler has none. */
function runtime(name: string): string {
  if (process.platform !== 'linux') return '';
  const found =
    spawnSync(process.env.CXX ?? 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout?.trim() ?? '';
  return found.startsWith('/') && existsSync(found) ? found : '';
}

const libraries = [runtime('libasan.so'), runtime('libubsan.so')];
const reason = libraries.includes('') ? 'the compiler has no libasan or libubsan' : '';
if (reason) console.info(`skipped: ${reason}`);

describe.skipIf(reason !== '')('under the sanitizers', () => {
  beforeAll(() => {
    execFileSync(process.execPath, [join(root, 'bin', 'native.mjs'), '--sanitize'], { stdio: 'pipe' });
  }, 900_000);

  test.each([
    ['serving', 'workload.ts', ''],
    ['training', 'training-workload.ts', ''],
    ['training, plain kernels', 'training-workload.ts', 'baseline'],
    ['training, kernels of 8 lanes', 'training-workload.ts', 'avx2'],
  ])('a run through all of %s finishes without a finding', { timeout: 600_000 }, (_, script, kernels) => {
    const child = runChild(script, [], {
      MODELFACTORY_KERNELS: kernels,
      LD_PRELOAD: libraries.join(':'),
      // Node and ggml keep memory until the process ends; Node's own handlers stay.
      ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=0:handle_segv=1',
      UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
      MODELFACTORY_SANITIZED_ADDON: '1',
    });
    const findings = child.stderr.split('\n').filter((line) => /runtime error|AddressSanitizer/.test(line));
    expect(findings, child.stderr.slice(0, 4000)).toEqual([]);
    expect(child.status, child.stderr.slice(-4000)).toBe(0);
    expect(child.stdout).toMatch(/finished/);
  });
});
