/** What was measured on what: a number without its machine is worth nothing. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import os from 'node:os';

export interface Machine {
  cpu: string;
  cores: number;
  /** Instruction sets that matter for quantised kernels, of those the processor has. */
  flags: string[];
  memoryGiB: number;
  platform: string;
  node: string;
}

export interface RunInfo {
  machine: Machine;
  /** UTC, ISO 8601. */
  date: string;
  /** Git commit, with `+changes` when the work tree differs from it. */
  commit: string;
  command: string;
  versions: Record<string, string>;
}

const FLAGS = [
  'avx2',
  'avx512f',
  'avx512_vnni',
  'avx512_bf16',
  'avx_vnni',
  'amx_tile',
  'amx_int8',
  'amx_bf16',
  'asimddp',
  'i8mm',
  'sve',
];

export function machine(): Machine {
  const cpus = os.cpus();
  let present: Set<string> = new Set();
  try {
    const line = readFileSync('/proc/cpuinfo', 'utf8').match(/^(?:flags|Features)\s*:\s*(.*)$/m);
    present = new Set(line?.[1]?.split(' ') ?? []);
  } catch {
    // Not Linux: the flags stay empty.
  }
  return {
    cpu: cpus[0]?.model.trim() ?? 'unknown',
    cores: cpus.length,
    flags: FLAGS.filter((flag) => present.has(flag)),
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    platform: `${os.platform()} ${os.arch()} ${os.release()}`,
    node: process.version,
  };
}

export function commit(folder: string): string {
  try {
    const git = (...args: string[]) =>
      execFileSync('git', args, { cwd: folder, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
    const head = git('rev-parse', '--short=12', 'HEAD');
    return git('status', '--porcelain', '--untracked-files=no', '--', '.', ':!loadtest/results') === ''
      ? head
      : `${head}+changes`;
  } catch {
    return 'unknown';
  }
}
