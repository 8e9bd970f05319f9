import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { availableBytes } from '../../../daemon/training/memory.ts';
import { temporaryFolder } from './support.ts';

let root: ReturnType<typeof temporaryFolder>;
beforeEach(() => {
  root = temporaryFolder();
});
afterEach(() => root.remove());

function files(given: Record<string, string>): number {
  for (const [path, text] of Object.entries(given)) {
    mkdirSync(dirname(join(root.path, path)), { recursive: true });
    writeFileSync(join(root.path, path), text);
  }
  return availableBytes(root.path);
}
const machine = { 'proc/meminfo': 'MemTotal:  8000 kB\nMemAvailable:    4000 kB\n' };

describe('available memory', () => {
  it('is what the machine has where nothing limits it', () => {
    expect(
      files({
        ...machine,
        'proc/self/cgroup': '0::/\n',
        'sys/fs/cgroup/memory.max': 'max\n',
        'sys/fs/cgroup/memory.current': '5\n',
      }),
    ).toBe(4_096_000);
  });

  it('is what the tightest group leaves, with file pages that give way', () => {
    const group = 'sys/fs/cgroup/outer';
    const bytes = files({
      ...machine,
      'proc/self/cgroup': '0::/outer/inner\n',
      [`${group}/memory.max`]: '1000000\n',
      [`${group}/memory.current`]: '700000\n',
      [`${group}/memory.stat`]: 'anon 5\ninactive_file 100000\n',
      [`${group}/inner/memory.max`]: 'max\n',
      [`${group}/inner/memory.current`]: '1\n',
    });
    expect(bytes).toBe(400_000);
  });

  it('reads the groups of version 1 too, and never goes below nothing', () => {
    const group = 'sys/fs/cgroup/memory/box';
    const given = {
      ...machine,
      'proc/self/cgroup': '11:cpu,cpuacct:/box\n7:memory:/box\n',
      [`${group}/memory.limit_in_bytes`]: '500000\n',
      [`${group}/memory.usage_in_bytes`]: '200000\n',
    };
    expect(files(given)).toBe(300_000);
    expect(files({ ...given, [`${group}/memory.usage_in_bytes`]: '600000\n' })).toBe(0);
  });

  it('is a number on this machine', () => {
    expect(availableBytes()).toBeGreaterThan(1e6);
  });
});
