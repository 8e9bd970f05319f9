/** Bases in fewer bits: they serve, keep all that is said of them, and are there whole or not at all. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { loadModel } from '../../../addon/index.ts';
import type { QuantizedType } from '../../../addon/quantize.ts';
import { readGgufHeader } from '../../../daemon/models/gguf.ts';
import { inspectModel } from '../../../daemon/models/inspect.ts';
import { quantizeModel } from '../../../daemon/models/quantize.ts';
import { reference } from '../../../loadtest/bench/libllama.ts';
import { agreement, ENGINE, forward, randomTokens } from '../../addon/rig.ts';
import { writeTinyModel } from '../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'mf-quantize-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const wide = { embedding: 256, headDim: 64, feedForward: 512 };
const f16 = writeTinyModel('llama', join(folder, 'tiny.F16.gguf'), { ...wide, type: 'f16' });
const bf16 = writeTinyModel('qwen2', join(folder, 'tiny.BF16.gguf'), { ...wide, type: 'bf16' });
const f32 = writeTinyModel('gemma3', join(folder, 'tiny.F32.gguf'), { ...wide, type: 'f32' });
const tokens = randomTokens(40, 256, 8);

function logits(path: string): Float32Array[] {
  const model = loadModel({ path, device: 'cpu', threads: 1 });
  const engine = model.createEngine({ ...ENGINE, kvType: 'f32' });
  try {
    return forward(engine, tokens);
  } finally {
    engine.close();
    model.close();
  }
}

/** Mean KL to the source, nats: random weights have no slack, so a real model loses far less. */
test.each(
  (
    [
      [f16, 'q8_0', 'q8_0', 0.03],
      [f16, 'q4_0', 'q4_0', 1],
      [f16, 'q4_1', 'q4_1', 1],
      [f16, 'iq4_nl', 'iq4_nl', 1],
      [bf16, 'q4_k', 'q4_k', 1],
      [bf16, 'f16', 'f16', 1e-3],
      [f32, 'iq4_nl', 'iq4_nl', 1],
      [f32, 'iq4_xs', 'iq4_xs', 1],
    ] as const
  ).map(([source, ...rest]) => [source.architecture, ...rest, source] as const),
)('%s → %s', async (_, type, expected, limit, source) => {
  const target = join(folder, 'out', `${source.architecture}.${type}.gguf`);
  const seen: number[] = [];
  const made = await quantizeModel({
    source: source.path,
    target,
    type,
    onProgress: ({ doneBytes }) => seen.push(doneBytes),
  });
  expect(seen.at(-1)).toBe(made.bytes);
  expect(readFileSync(target).byteLength).toBe(made.bytes);
  const before = readGgufHeader(source.path);
  const after = readGgufHeader(target);
  const typeOf = new Map(after.tensors.map((tensor) => [tensor.name, tensor.type]));
  expect(typeOf.get('blk.0.ffn_up.weight')).toBe(expected);
  // Every token's error passes through these.
  expect(typeOf.get('token_embd.weight')).toBe(type === 'f16' ? 'f16' : 'q8_0');
  expect(typeOf.get('blk.0.attn_norm.weight')).toBe('f32');
  for (const [key, value] of before.metadata)
    if (key !== 'general.file_type') expect(after.metadata.get(key)).toEqual(value);
  expect(after.metadata.get('modelfactory.converted')?.value).toContain(type);
  expect(inspectModel(target).shape).toEqual(inspectModel(source.path).shape);
  const ours = logits(target);
  const lost = agreement(logits(source.path), ours).mean;
  expect(lost).toBeLessThan(limit);
  expect(lost).toBeGreaterThan(0);
  const [libllama] = [...reference({ modelPath: target, sequences: [[...tokens]], flash: 'off', kv: 'f32' })];
  expect(agreement(libllama?.logits ?? [], ours).mean).toBeLessThan(limit / 10);
});

test('rows that do not divide into a type of long blocks get the next best', async () => {
  const narrow = writeTinyModel('llama', join(folder, 'narrow.gguf'), { type: 'f16' });
  const made = await quantizeModel({ source: narrow.path, target: join(folder, 'narrow.q4_k.gguf'), type: 'q4_k' });
  expect(Object.keys(made.types).sort()).toEqual(['f32', 'q4_k', 'q5_0', 'q8_0']);
});

test('what is quantised already is refused, unless it is meant', async () => {
  const source = join(folder, 'once.gguf');
  await quantizeModel({ source: f16.path, target: source, type: 'q8_0' });
  const again = { source, target: join(folder, 'twice.gguf'), type: 'q4_0' as QuantizedType };
  await expect(quantizeModel(again)).rejects.toMatchObject({ message: expect.stringContaining('--requantize') });
  expect(existsSync(again.target)).toBe(false);
  await quantizeModel({ ...again, requantize: true });
  expect(inspectModel(again.target).architecture).toBe('llama');
});

test('nothing is left of what was stopped, damaged, or had nowhere to go', async () => {
  const place = join(folder, 'clean');
  mkdirSync(place);
  const target = join(place, 'out.gguf');
  const abort = new AbortController();
  const stopped = quantizeModel({
    source: f16.path,
    target,
    type: 'q4_0',
    onProgress: () => abort.abort(new Error('stopped')),
    signal: abort.signal,
  });
  await expect(stopped).rejects.toThrow('stopped');

  const bytes = readFileSync(f32.path);
  const { tensors } = readGgufHeader(f32.path);
  bytes.writeFloatLE(Number.NaN, tensors.find(({ name }) => name === 'blk.1.ffn_down.weight')?.offset as number);
  const damaged = join(folder, 'damaged.gguf');
  writeFileSync(damaged, bytes);
  await expect(quantizeModel({ source: damaged, target, type: 'q4_0' })).rejects.toThrow(
    /blk\.1\.ffn_down\.weight cannot be written as q4_0: a weight is NaN/,
  );

  await expect(quantizeModel({ source: f16.path, target: f16.path, type: 'q4_0' })).rejects.toThrow('same file');
  await expect(quantizeModel({ source: join(folder, 'none.gguf'), target, type: 'q4_0' })).rejects.toThrow('none.gguf');
  expect(readdirSync(place)).toEqual([]);
  // Root may write anywhere.
  if (process.getuid?.() !== 0) {
    chmodSync(place, 0o500);
    await expect(quantizeModel({ source: f16.path, target, type: 'q4_0' })).rejects.toThrow('EACCES');
    chmodSync(place, 0o700);
  }
});
