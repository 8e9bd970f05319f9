/** How much memory there is to be had: of the machine, and of the control group that a container lives in. */
import { readFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { join } from 'node:path';
import type { TrainerMemory } from '../../addon/types.ts';
import { TRAINING_LIMITS } from '../limits.ts';

/** Bytes that this process can still take without anything being swapped or killed. `root`: for tests. */
export function availableBytes(root = '/'): number {
  const limits = [machineBytes(root), groupBytes(root)].filter((bytes) => bytes !== null);
  return limits.length === 0 ? freemem() : Math.max(0, Math.min(...limits));
}

function machineBytes(root: string): number | null {
  const match = /^MemAvailable:\s+(\d+) kB$/m.exec(read(join(root, 'proc/meminfo')) ?? '');
  return match === null ? null : Number(match[1]) * 1024;
}

/** Of the group and of all that it lies in, the least. File pages count as used there, but give way. */
function groupBytes(root: string): number | null {
  const groups = read(join(root, 'proc/self/cgroup')) ?? '';
  const second = /^0::(.*)$/m.exec(groups)?.[1];
  const first = /^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(.*)$/m.exec(groups)?.[1];
  const found: number[] = [];
  const look = (base: string, path: string, limit: string, usage: string) => {
    const parts = path.split('/').filter((part) => part !== '' && part !== '..');
    for (let depth = parts.length; depth >= 0; depth--) {
      const folder = join(root, base, ...parts.slice(0, depth));
      const most = Number(read(join(folder, limit))?.trim());
      const used = Number(read(join(folder, usage))?.trim());
      // "max", and the number that version 1 has for it, are no limits.
      if (!Number.isFinite(most) || !Number.isFinite(used) || most > 2 ** 60) continue;
      const files = /^(?:total_)?inactive_file (\d+)$/m.exec(read(join(folder, 'memory.stat')) ?? '')?.[1];
      found.push(most - used + Number(files ?? 0));
    }
  };
  if (second !== undefined) look('sys/fs/cgroup', second, 'memory.max', 'memory.current');
  if (first !== undefined) look('sys/fs/cgroup/memory', first, 'memory.limit_in_bytes', 'memory.usage_in_bytes');
  return found.length === 0 ? null : Math.min(...found);
}

function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

/** What training takes beside what the daemon has already: the trainer, and a snapshot of it while it is saved. */
export function neededBytes(memory: TrainerMemory): number {
  return 2 * memory.parameters + memory.activations + memory.transposedWeights + TRAINING_LIMITS.workerBytes;
}

export function megabytes(bytes: number): string {
  return `${Math.ceil(bytes / 1e6).toLocaleString('en-US')} MB`;
}
