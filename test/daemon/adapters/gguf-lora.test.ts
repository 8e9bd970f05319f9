import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { AdapterError } from '../../../daemon/adapters/errors.ts';
import { type ParsedGgufLora, readGgufLora } from '../../../daemon/adapters/gguf-lora.ts';
import {
  array,
  encodeGguf,
  f32,
  type GgufFile,
  type GgufTensor,
  str,
  type TensorType,
  u32,
} from '../../support/gguf-writer.ts';
import { describeTinyModel, tinyMetadata, tinyTensors } from '../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'gguf-lora-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const path = join(folder, 'adapter.gguf');
const base = describeTinyModel('llama', '');

function lora(name: string, shape: [number, number], type: TensorType = 'f16'): GgufTensor {
  return { name, shape, type, values: new Float32Array(shape[0] * shape[1]).fill(0.5) };
}
function file(change: Partial<GgufFile> = {}): GgufFile {
  return {
    metadata: {
      'general.architecture': str('llama'),
      'general.type': str('adapter'),
      'adapter.type': str('lora'),
      'adapter.lora.alpha': f32(16),
      ...change.metadata,
    },
    tensors: change.tensors ?? [
      lora('blk.0.attn_q.weight.lora_a', [128, 8]),
      lora('blk.0.attn_q.weight.lora_b', [8, 128]),
      lora('blk.2.ffn_down.weight.lora_a', [256, 4], 'f32'),
      lora('blk.2.ffn_down.weight.lora_b', [4, 128], 'bf16'),
    ],
  };
}
function read(input: GgufFile): ParsedGgufLora {
  writeFileSync(path, encodeGguf(input));
  return readGgufLora(path, base);
}
function refusal(input: GgufFile): string {
  try {
    read(input);
    return 'accepted';
  } catch (error) {
    if (error instanceof AdapterError) return `${error.reason}: ${error.message}`;
    throw error;
  }
}

test('a GGUF LoRA is understood: alpha / rank by pair, rows as they are', () => {
  const parsed = read(file());
  expect(
    parsed.pairs.map(({ target, layer, rank, scale, permuteHeads }) => ({ target, layer, rank, scale, permuteHeads })),
  ).toEqual([
    { target: 'attn_q', layer: 0, rank: 8, scale: 2, permuteHeads: 0 },
    { target: 'ffn_down', layer: 2, rank: 4, scale: 4, permuteHeads: 0 },
  ]);
  expect(parsed.pairs[1]).toMatchObject({ a: { dtype: 'f32' }, b: { dtype: 'bf16' } });
  expect(parsed.rankMax).toBe(8);
});

test('alpha 0 means no alpha, so a scale of 1, as in llama.cpp', () => {
  expect(read(file({ metadata: { 'adapter.lora.alpha': f32(0) } })).pairs[0]?.scale).toBe(1);
});

describe('what cannot be served is refused', () => {
  const extra = (...tensors: GgufTensor[]): GgufFile => file({ tensors: [...file().tensors, ...tensors] });
  test.each([
    ['a model', { metadata: tinyMetadata(base), tensors: tinyTensors(base) }, /unsupported: .*a model, not an adapter/],
    ['another architecture', file({ metadata: { 'general.architecture': str('qwen2') } }), /wrong_base: .*qwen2/],
    ['a control vector', file({ metadata: { 'adapter.type': str('control') } }), /unsupported: .*control/],
    [
      'an activated LoRA',
      file({ metadata: { 'adapter.alora.invocation_tokens': array('u32', [1, 2]) } }),
      /unsupported: .*aLoRA/,
    ],
    ['alpha of another type', file({ metadata: { 'adapter.lora.alpha': u32(16) } }), /corrupt: .*alpha/],
    ['alpha NaN', file({ metadata: { 'adapter.lora.alpha': f32(Number.NaN) } }), /corrupt: .*alpha/],
    [
      'quantised weights',
      file({
        tensors: [lora('blk.0.attn_q.weight.lora_a', [128, 8], 'q8_0'), lora('blk.0.attn_q.weight.lora_b', [8, 128])],
      }),
      /unsupported: .*quantised \(q8_0\)/,
    ],
    ['embeddings', extra(lora('token_embd.weight.lora_a', [128, 4])), /unsupported: token_embd/],
    ['a norm', extra(lora('blk.0.attn_norm.weight', [128, 1])), /unsupported: blk\.0\.attn_norm/],
    ['half a pair', extra(lora('blk.1.attn_k.weight.lora_a', [128, 4])), /incomplete/],
    [
      'a layer too many',
      extra(lora('blk.3.attn_k.weight.lora_a', [128, 4]), lora('blk.3.attn_k.weight.lora_b', [4, 64])),
      /wrong_base: .*layer 3/,
    ],
    [
      'A of another width',
      extra(lora('blk.1.attn_k.weight.lora_a', [96, 4]), lora('blk.1.attn_k.weight.lora_b', [4, 64])),
      /wrong_base: .*96 inputs/,
    ],
    ['no weights', file({ tensors: [] }), /corrupt: .*no LoRA weights/],
  ])('%s', (_name, input, sentence) => {
    expect(refusal(input as GgufFile)).toMatch(sentence);
  });

  test('a truncated file, and one that is no GGUF', () => {
    writeFileSync(path, encodeGguf(file()).subarray(0, 900));
    expect(() => readGgufLora(path, base)).toThrow(/cut short/);
    writeFileSync(path, 'PK\u0003\u0004');
    expect(() => readGgufLora(path, base)).toThrow(/does not begin with "GGUF"/);
  });
});
