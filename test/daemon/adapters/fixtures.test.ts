/** Real adapters, made by HF PEFT for the default model and kept beside the checkout. Skipped where they are not. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AdapterTensorPair } from '../../../addon/types.ts';
import { AdapterError } from '../../../daemon/adapters/errors.ts';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import type { BaseShape } from '../../../daemon/models/inspect.ts';

const FIXTURES = join(import.meta.dirname, '../../../../shared/fixtures/adapters');
const present = existsSync(FIXTURES);
if (!present) console.info('skipped: real PEFT adapters are not beside this checkout');

/** SmolLM2-135M. */
const base: BaseShape = {
  architecture: 'llama',
  layers: 30,
  heads: 9,
  kvHeads: 3,
  ropePermuted: true,
  targets: {
    attn_q: { in: 576, out: 576 },
    attn_k: { in: 576, out: 192 },
    attn_v: { in: 576, out: 192 },
    attn_output: { in: 576, out: 576 },
    ffn_gate: { in: 576, out: 1536 },
    ffn_up: { in: 576, out: 1536 },
    ffn_down: { in: 1536, out: 576 },
  },
};

describe.skipIf(!present)('real PEFT adapters', () => {
  const root = mkdtempSync(join(tmpdir(), 'fixtures-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  let registry: AdapterRegistry;
  beforeAll(async () => {
    registry = await AdapterRegistry.open({ root, base });
  });
  const load = async (file: string): Promise<{ pairs: AdapterTensorPair[]; bytes: Buffer }> => {
    const name = file.replace('/', '-');
    if (!registry.get(name)) await registry.add({ name, source: join(FIXTURES, file) });
    const { pairs, file: path } = await registry.handle(name);
    return { pairs, bytes: readFileSync(path) };
  };
  const find = (pairs: AdapterTensorPair[], target: string, layer: number): AdapterTensorPair =>
    pairs.find((pair) => pair.target === target && pair.layer === layer) as AdapterTensorPair;

  test.each([
    ['e2e', 210, 8, 2, 'f32'],
    ['alpaca', 210, 8, 2, 'f32'],
    ['e2e.gguf', 210, 8, 2, 'f32'],
    ['bf16-all-r2', 210, 2, 2, 'bf16'],
    ['layers-subset-r8', 6, 8, 2, 'f32'],
    // use_rslora: 8 / √4.
    ['rslora-qv-r4', 60, 4, 4, 'f32'],
  ])('%s: %i pairs of rank %i and scale %f', async (name, count, rank, scale, dtype) => {
    const { pairs } = await load(name);
    expect(pairs).toHaveLength(count);
    expect(new Set(pairs.map((pair) => pair.rank))).toEqual(new Set([rank]));
    expect(new Set(pairs.map((pair) => pair.scale))).toEqual(new Set([scale]));
    expect(new Set(pairs.map((pair) => pair.a.dtype))).toEqual(new Set([dtype]));
  });

  test('patterns-attn: ranks and alphas by pattern, also for one module of one layer', async () => {
    const { pairs } = await load('patterns-attn');
    expect(pairs).toHaveLength(120);
    expect(find(pairs, 'attn_q', 7)).toMatchObject({ rank: 16, scale: 4 });
    expect(find(pairs, 'attn_v', 3)).toMatchObject({ rank: 2, scale: 4 });
    expect(find(pairs, 'attn_v', 4)).toMatchObject({ rank: 4, scale: 2 });
    expect(find(pairs, 'attn_k', 3)).toMatchObject({ rank: 4, scale: 2 });
  });

  test('layers-subset-r8 changes the layers it names', async () => {
    const { pairs } = await load('layers-subset-r8');
    expect([...new Set(pairs.map(({ layer }) => layer))]).toEqual([0, 5, 29]);
    expect([...new Set(pairs.map(({ target }) => target))]).toEqual(['ffn_up', 'ffn_down']);
  });

  test.each([
    ['refused-dora', /DoRA/],
    ['refused-modules-to-save', /modules_to_save/],
  ])('%s is refused with the reason', async (name, reason) => {
    const adding = registry.add({ name, source: join(FIXTURES, name) });
    await expect(adding).rejects.toBeInstanceOf(AdapterError);
    await expect(adding).rejects.toThrow(reason);
    expect(registry.get(name)).toBeUndefined();
  });

  test('the same adapter as PEFT and as GGUF: equal weights once the rows of q and k are permuted as said', async () => {
    const peft = await load('e2e');
    const gguf = await load('e2e.gguf');
    for (const ours of peft.pairs) {
      const theirs = find(gguf.pairs, ours.target, ours.layer);
      const size = base.targets[ours.target];
      const slice = (from: { bytes: Buffer }, offset: number, rows: number, columns: number): Buffer =>
        from.bytes.subarray(offset, offset + rows * columns * 4);
      expect(theirs).toMatchObject({ rank: ours.rank, scale: ours.scale, permuteHeads: 0 });
      const a = slice(peft, ours.a.offset, ours.rank, size.in);
      expect(a.equals(slice(gguf, theirs.a.offset, ours.rank, size.in))).toBe(true);
      const b = slice(peft, ours.b.offset, size.out, ours.rank);
      const permuted = ours.permuteHeads ? permuteRows(b, size.out, ours.rank * 4, ours.permuteHeads) : b;
      expect(permuted.equals(slice(gguf, theirs.b.offset, size.out, ours.rank))).toBe(true);
    }
  });
});

/** Row j of half s of a head (rotate-half order) becomes row 2 j + s (interleaved order). */
function permuteRows(bytes: Buffer, rows: number, rowBytes: number, heads: number): Buffer {
  const out = Buffer.alloc(bytes.length);
  const dim = rows / heads;
  for (let row = 0; row < rows; row++) {
    const head = Math.floor(row / dim);
    const inHead = row % dim;
    const half = inHead < dim / 2 ? 0 : 1;
    const to = head * dim + 2 * (inHead - half * (dim / 2)) + half;
    bytes.copy(out, to * rowBytes, row * rowBytes, (row + 1) * rowBytes);
  }
  return out;
}
