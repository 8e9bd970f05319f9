/** Memory returns when models go, threads share weights, and neither a killed worker nor an exit takes the process down. */
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { type TinyModel, writeTinyModel } from '../support/tiny-models.ts';
import { runChild } from './child.ts';
import { temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);
const MIB = 1 << 20;

/** About 26 MiB of weights: a copy that stays is easily seen. */
const heavy = writeTinyModel('llama', join(folder.path, 'heavy.gguf'), {
  type: 'f16',
  layers: 6,
  embedding: 512,
  heads: 8,
  kvHeads: 4,
  headDim: 64,
  feedForward: 1536,
});
const light = writeTinyModel('llama', join(folder.path, 'light.gguf'), { type: 'f32' });

function run(what: string, tiny: TinyModel): unknown {
  const child = runChild('lives.ts', [what, JSON.stringify(tiny)], {}, ['--expose-gc']);
  expect(child.signal, child.stderr).toBe(null);
  expect(child.status, child.stderr).toBe(0);
  return JSON.parse(child.stdout.trim().split('\n').at(-1) as string);
}

test('two dozen loads and unloads of a model with engine and adapter leave no memory behind', () => {
  const { sizes, external, imageBytes } = run('unload', heavy) as {
    sizes: number[];
    external: number[];
    imageBytes: number;
  };
  // The first rounds fill pools and caches; one round leaked would be 26 MiB and more.
  const growth = (sizes.at(-1) as number) - (sizes[9] as number);
  expect(growth / 14).toBeLessThan(MIB / 2);
  expect((external.at(-1) as number) - (external[9] as number)).toBeLessThan(4 * imageBytes);
});

test('adapters that come and go use the same memory again; of many that went, a bounded part is kept', () => {
  const { sizes, full, empty, imageBytes } = run('loads', heavy) as Record<'full' | 'empty' | 'imageBytes', number> & {
    sizes: number[];
  };
  expect((sizes.at(-1) as number) - (sizes[9] as number)).toBeLessThan(2 * imageBytes);
  // Thirty images are 220 MiB, of which 64 MiB may stay.
  expect(full - (sizes.at(-1) as number)).toBeGreaterThan(20 * imageBytes);
  expect(empty - (sizes.at(-1) as number)).toBeLessThan(80 * MIB);
});

test('threads share the weights and compute the same', () => {
  const { answers } = run('workers', heavy) as { answers: { digest: string; rssBefore: number; rssAfter: number }[] };
  expect(new Set(answers.map((a) => a.digest)).size).toBe(1);
  const third = answers[2] as { rssBefore: number; rssAfter: number };
  expect(third.rssAfter - third.rssBefore).toBeLessThan(12 * MIB);
});

test('workers terminated in the middle of their steps do no harm', () => {
  expect(run('terminate', light)).toMatchObject({ digest: expect.stringMatching(/^[0-9a-f]{64}$/) });
});

test('a process that exits with everything open exits cleanly', () => {
  expect(run('exit', light)).toEqual({ left: 'open' });
});
