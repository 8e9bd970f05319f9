/** Runs a script of `children/` in a Node process of its own. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DeviceInfo } from '../../addon/index.ts';
import type { TinyModel } from '../support/tiny-models.ts';

export interface ChildResult {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export function runChild(
  script: string,
  args: readonly string[],
  env: Record<string, string> = {},
  flags: readonly string[] = [],
): ChildResult {
  const path = join(import.meta.dirname, 'children', script);
  const child = spawnSync(process.execPath, [...flags, '--import', 'tsx', path, ...args], {
    cwd: join(import.meta.dirname, '..', '..'),
    env: { ...process.env, ...env },
    encoding: 'utf8',
    timeout: 600_000,
    maxBuffer: 1 << 24,
  });
  return { status: child.status, signal: child.signal, stdout: child.stdout, stderr: child.stderr };
}

export interface MixedLogits {
  kernels: string;
  devices: string[];
  automatic: string;
  listed: DeviceInfo[];
  /** One list of rows per model. */
  rows: Float32Array[][];
}

/** Runs children/mixed-logits.ts. */
export function mixedLogits(
  out: string,
  order: { device: string; exact: boolean; models: TinyModel[]; part?: 'prefill' | 'decode' },
  env: Record<string, string> = {},
): MixedLogits {
  const child = runChild('mixed-logits.ts', [out, JSON.stringify(order)], env);
  if (child.status !== 0) throw new Error(`the child ended with ${child.status ?? child.signal}: ${child.stderr}`);
  const facts = JSON.parse(child.stdout.trim().split('\n').at(-1) as string) as Omit<MixedLogits, 'rows'>;
  const bytes = readFileSync(out);
  const all = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const vocabulary = order.models[0]?.vocabulary as number;
  const rowsPerModel = all.length / vocabulary / order.models.length;
  const rows = order.models.map((_, m) =>
    Array.from({ length: rowsPerModel }, (_, i) => {
      const at = (m * rowsPerModel + i) * vocabulary;
      return all.subarray(at, at + vocabulary);
    }),
  );
  return { ...facts, rows };
}
