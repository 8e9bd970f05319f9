import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { readGgufHeader } from '../../../daemon/models/gguf.ts';
import { ModelFileError } from '../../../daemon/models/gguf-errors.ts';
import { TENSOR_TYPES } from '../../../daemon/models/gguf-types.ts';
import { describeModel, inspectModel } from '../../../daemon/models/inspect.ts';
import { cpuMs } from '../../support/cost.ts';
import { array, encodeGguf, f32, type GgufFile, str, u32 } from '../../support/gguf-writer.ts';
import { TINY_ARCHITECTURES, tinyMetadata, tinyTensors, writeTinyModel } from '../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'gguf-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;

function written(bytes: Uint8Array): string {
  const path = join(folder, `${files++ % 8}.gguf`);
  writeFileSync(path, bytes);
  return path;
}

function codeOf(bytes: Uint8Array): string {
  try {
    readGgufHeader(written(bytes));
    return 'accepted';
  } catch (error) {
    if (error instanceof ModelFileError) return error.code;
    throw error;
  }
}

const tensor = (name: string, shape: number[]): GgufFile['tensors'][number] => ({
  name,
  shape,
  type: 'f32',
  values: new Float32Array(shape.reduce((a, b) => a * b, 1)),
});
const small: GgufFile = {
  metadata: {
    'general.architecture': str('llama'),
    'a.number': u32(7),
    'a.list': array('f32', [1, 2, 3]),
    'a.vocabulary': array('string', ['a', 'bc', 'é']),
    'a.flag': { type: 'bool', value: true },
    'a.large': { type: 'u64', value: 2n ** 60n },
  },
  tensors: [tensor('one', [4, 3]), tensor('two', [5])],
};
const good = encodeGguf(small);

/** Bytes with `count` bytes at the place of `marker` + `after` replaced. */
function patched(marker: string, after: number, replacement: Buffer): Buffer {
  const copy = Buffer.from(good);
  const at = copy.indexOf(marker);
  expect(at).toBeGreaterThan(0);
  replacement.copy(copy, at + marker.length + after);
  return copy;
}
const u64le = (value: bigint): Buffer => {
  const b = Buffer.alloc(8);
  b.writeBigUInt64LE(value);
  return b;
};
const u32le = (value: number): Buffer => {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(value);
  return b;
};

describe('a good file', () => {
  test('is read as it was written', () => {
    const header = readGgufHeader(written(good));
    expect(header.version).toBe(3);
    expect(header.metadata.get('a.number')).toEqual({ type: 'u32', value: 7 });
    expect(header.metadata.get('a.list')?.value).toEqual({ elementType: 'f32', length: 3, values: [1, 2, 3] });
    expect(header.metadata.get('a.vocabulary')?.value).toEqual({ elementType: 'string', length: 3 });
    expect(header.metadata.get('a.large')?.value).toBe(2n ** 60n);
    expect(header.tensors.map(({ name, shape, bytes, type }) => ({ name, shape, bytes, type }))).toEqual([
      { name: 'one', shape: [4, 3], bytes: 48, type: 'f32' },
      { name: 'two', shape: [5], bytes: 20, type: 'f32' },
    ]);
    expect(header.tensors[0]?.offset).toBe(header.dataOffset);
    expect((header.tensors[1]?.offset ?? 0) % 32).toBe(0);
  });

  test.each([8, 64, 4096])('may align its tensors to %i', (alignment) => {
    const header = readGgufHeader(written(encodeGguf({ ...small, alignment })));
    expect(header.alignment).toBe(alignment);
    expect(header.tensors.every(({ offset }) => offset % alignment === 0)).toBe(true);
  });

  test.each(TINY_ARCHITECTURES)('of the architecture %s is described by its own numbers', (architecture) => {
    const path = join(folder, `${architecture}.gguf`);
    const model = writeTinyModel(architecture, path, { type: 'q4_0' });
    const found = inspectModel(path);
    expect(found).toMatchObject({
      architecture,
      layers: model.layers,
      embedding: model.embedding,
      headDim: model.headDim,
      vocabulary: model.vocabulary,
      contextTrained: model.context,
      hasChatTemplate: true,
    });
    expect(found.shape).toEqual({
      architecture,
      layers: model.layers,
      heads: model.heads,
      kvHeads: model.kvHeads,
      targets: model.targets,
      ropePermuted: model.ropePermuted,
    });
  });

  test('with a long vocabulary is read in a window, not in memory', () => {
    const words = Array.from({ length: 200_000 }, (_, i) => `token number ${i}`);
    const path = written(encodeGguf({ ...small, metadata: { ...small.metadata, words: array('string', words) } }));
    const before = process.memoryUsage();
    const header = readGgufHeader(path);
    const after = process.memoryUsage();
    expect(header.metadata.get('words')?.value).toEqual({ elementType: 'string', length: 200_000 });
    expect(after.external + after.arrayBuffers - before.external - before.arrayBuffers).toBeLessThan(4 * 1024 * 1024);
  });
});

describe('a broken file is refused by name', () => {
  const cases: [string, Buffer, string][] = [
    ['an empty file', Buffer.alloc(0), 'not_gguf'],
    ['another magic number', Buffer.concat([Buffer.from('GGML'), good.subarray(4)]), 'not_gguf'],
    ['version 1', Buffer.concat([good.subarray(0, 4), u32le(1), good.subarray(8)]), 'not_gguf'],
    ['big-endian', Buffer.concat([good.subarray(0, 4), u32le(0x0300_0000), good.subarray(8)]), 'not_gguf'],
    ['2^63 tensors', Buffer.concat([good.subarray(0, 8), u64le(2n ** 63n), good.subarray(16)]), 'corrupt'],
    ['a million tensors', Buffer.concat([good.subarray(0, 8), u64le(1_000_000n), good.subarray(16)]), 'too_large'],
    ['a billion entries', Buffer.concat([good.subarray(0, 16), u64le(10n ** 9n), good.subarray(24)]), 'too_large'],
    ['a key of 2^40 bytes', Buffer.concat([good.subarray(0, 24), u64le(2n ** 40n), good.subarray(32)]), 'corrupt'],
    ['a value of an unknown type', patched('a.number', 0, u32le(77)), 'corrupt'],
    ['an array of arrays', patched('a.list', 4, u32le(9)), 'corrupt'],
    ['an array of 2^50 elements', patched('a.list', 8, u64le(2n ** 50n)), 'too_large'],
    ['an array beyond the end', patched('a.list', 8, u64le(5000n)), 'truncated'],
    ['a key that is not UTF-8', patched('a.numb', 0, Buffer.from([0xff])), 'corrupt'],
    ['five dimensions', patched('one', 0, u32le(5)), 'corrupt'],
    ['no dimension', patched('one', 0, u32le(0)), 'corrupt'],
    ['a dimension of 0', patched('one', 4, u64le(0n)), 'corrupt'],
    ['dimensions whose product overflows', patched('one', 4, u64le(2n ** 52n)), 'corrupt'],
    ['an unknown tensor type', patched('one', 20, u32le(4)), 'unsupported'],
    ['rows that do not divide into blocks', patched('one', 20, u32le(2)), 'corrupt'],
    ['an unaligned offset', patched('two', 16, u64le(65n)), 'corrupt'],
    ['an overlap', patched('two', 16, u64le(0n)), 'corrupt'],
    ['a gap', patched('two', 16, u64le(96n)), 'corrupt'],
    ['a tensor twice', patched('tw', -2, Buffer.from('one')), 'corrupt'],
  ];
  test.each(cases)('%s', (_name, bytes, code) => {
    expect(codeOf(bytes)).toBe(code);
  });

  test('a metadata key twice', () => {
    const twin = encodeGguf({ ...small, metadata: { 'key.a': u32(1), 'key.b': u32(2) } });
    twin.write('a', twin.indexOf('key.b') + 4);
    expect(codeOf(twin)).toBe('corrupt');
  });

  test.each([0, 3, 24, 131_072])('an alignment of %i', (alignment) => {
    const file = encodeGguf({ ...small, metadata: { ...small.metadata, 'general.alignment': u32(alignment) } });
    expect(codeOf(file)).toBe('corrupt');
  });

  test('a header without end stops at its limit', () => {
    const big = encodeGguf({ metadata: { text: str('x'.repeat(300_000)) }, tensors: [] });
    expect(() => readGgufHeader(written(big), 100_000)).toThrow(/header does not end within/);
  });

  test('what is no file, or a pipe, or a folder', () => {
    expect(() => readGgufHeader(join(folder, 'none.gguf'))).toThrow(/ENOENT/);
    expect(() => readGgufHeader(folder)).toThrow(ModelFileError);
  });

  test('every truncation', () => {
    for (let length = 0; length < good.length; length++) {
      // The last tensor needs 20 bytes; the padding after it may be missing.
      const code = codeOf(good.subarray(0, length));
      if (length >= good.length - 12) expect(code).toBe('accepted');
      else expect(['truncated', 'not_gguf']).toContain(code);
    }
  });

  test('any bytes flipped: an answer at once, never a crash, and what is accepted lies inside the file', () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ at: fc.nat(good.length - 1), value: fc.nat(255) }), { minLength: 1, maxLength: 6 }),
        (flips) => {
          const bytes = Buffer.from(good);
          for (const { at, value } of flips) bytes[at] = value;
          const cost = cpuMs(() => {
            try {
              const header = readGgufHeader(written(bytes));
              for (const { offset, bytes: size } of header.tensors)
                expect(offset + size).toBeLessThanOrEqual(bytes.length);
            } catch (error) {
              expect(error).toBeInstanceOf(ModelFileError);
            }
          });
          expect(cost).toBeLessThan(2_000);
        },
      ),
      { numRuns: 1500 },
    );
  });
});

describe('a model is refused that the engine could not compute', () => {
  const model = writeTinyModel('llama', join(folder, 'tiny.gguf'));
  const refused = (
    change: (file: { metadata: GgufFile['metadata']; tensors: GgufFile['tensors'] }) => void,
  ): string => {
    const file = { metadata: tinyMetadata(model), tensors: [...tinyTensors(model)] };
    change(file);
    try {
      describeModel(readGgufHeader(written(encodeGguf(file))));
      return 'accepted';
    } catch (error) {
      if (error instanceof ModelFileError) return `${error.code}: ${error.message}`;
      throw error;
    }
  };

  test('unless nothing is wrong with it', () => {
    expect(refused(() => {})).toBe('accepted');
  });
  test('another architecture', () => {
    expect(refused(({ metadata }) => (metadata['general.architecture'] = str('mamba')))).toMatch(
      /unsupported: .*mamba/,
    );
  });
  test('an adapter', () => {
    expect(refused(({ metadata }) => (metadata['general.type'] = str('adapter')))).toMatch(/unsupported: .*adapter/);
  });
  test('a mixture of experts', () => {
    expect(refused(({ metadata }) => (metadata['llama.expert_count'] = u32(8)))).toMatch(/unsupported: .*experts/);
  });
  test('one part of a split model', () => {
    expect(refused(({ metadata }) => (metadata['split.count'] = { type: 'u16', value: 3 }))).toMatch(
      /unsupported: .*split/,
    );
  });
  test.each(['block_count', 'embedding_length', 'attention.head_count', 'context_length'])('no %s', (key) => {
    expect(refused(({ metadata }) => delete metadata[`llama.${key}`])).toMatch(/corrupt: .*missing/);
  });
  test.each([0, 100_000])('%i layers', (count) => {
    expect(refused(({ metadata }) => (metadata['llama.block_count'] = u32(count)))).toMatch(/^corrupt/);
  });
  test('a layer more than there are tensors', () => {
    expect(refused(({ metadata }) => (metadata['llama.block_count'] = u32(4)))).toMatch(/blk\.3\..* is missing/);
  });
  test('heads that cannot share', () => {
    expect(refused(({ metadata }) => (metadata['llama.attention.head_count_kv'] = u32(3)))).toMatch(/corrupt/);
  });
  test('an epsilon of NaN', () => {
    expect(refused(({ metadata }) => (metadata['llama.attention.layer_norm_rms_epsilon'] = f32(Number.NaN)))).toMatch(
      /corrupt/,
    );
  });
  test('no vocabulary', () => {
    expect(refused(({ metadata }) => delete metadata['tokenizer.ggml.tokens'])).toMatch(/corrupt: .*vocabulary/);
  });
  test('a matrix of another shape', () => {
    expect(
      refused((file) => {
        file.tensors = file.tensors.map((t) =>
          t.name === 'blk.1.ffn_up.weight' ? { ...t, shape: [...t.shape].reverse() } : t,
        );
      }),
    ).toMatch(/blk\.1\.ffn_up\.weight has the shape/);
  });
});

test('block sizes are those of ggml: a row of 256 has the bytes that llama.cpp gives it', () => {
  const bytesOf256 = (name: string): number => {
    const info = [...TENSOR_TYPES.values()].find((type) => type.name === name);
    return info ? (256 / info.blockElements) * info.blockBytes : Number.NaN;
  };
  const known = {
    f32: 1024,
    f16: 512,
    bf16: 512,
    q8_0: 272,
    q4_0: 144,
    q4_1: 160,
    q5_0: 176,
    q4_k: 144,
    q6_k: 210,
    iq4_nl: 144,
  };
  for (const [name, bytes] of Object.entries(known)) expect([name, bytesOf256(name)]).toEqual([name, bytes]);
});
