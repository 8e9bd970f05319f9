import { describe, expect, test } from 'vitest';
import { encodeValues, type TensorType, toBrainFloat, toHalf } from './gguf-writer.ts';
import { normals } from './tiny-models.ts';

/** Reads back what the writer wrote, by the format's definition. */
function decode(type: TensorType, bytes: Buffer): number[] {
  const half = (at: number): number => {
    const bits = bytes.readUInt16LE(at);
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  };
  const values: number[] = [];
  if (type === 'f16') for (let at = 0; at < bytes.length; at += 2) values.push(half(at));
  if (type === 'q8_0') {
    for (let at = 0; at < bytes.length; at += 34) {
      for (let i = 0; i < 32; i++) values.push(half(at) * bytes.readInt8(at + 2 + i));
    }
  }
  if (type === 'q4_0' || type === 'q4_1') {
    const head = type === 'q4_0' ? 2 : 4;
    for (let at = 0; at < bytes.length; at += head + 16) {
      for (let i = 0; i < 32; i++) {
        const byte = bytes[at + head + (i % 16)] as number;
        const nibble = i < 16 ? byte & 15 : byte >> 4;
        values.push(type === 'q4_0' ? half(at) * (nibble - 8) : half(at) * nibble + half(at + 2));
      }
    }
  }
  return values;
}

describe('quantised test weights are near what they stand for', () => {
  const values = normals('quantise', 32 * 64, 1);
  test.each([
    ['f16', 0.001],
    ['q8_0', 0.01],
    ['q4_0', 0.12],
    ['q4_1', 0.1],
  ] as const)('%s', (type, rms) => {
    const back = decode(type, encodeValues(type, values));
    const error = Math.sqrt(back.reduce((sum, x, i) => sum + (x - (values[i] as number)) ** 2, 0) / values.length);
    expect(back).toHaveLength(values.length);
    expect(error).toBeLessThan(rms);
  });
});

test('half and brain floats round to nearest even, at the edges too', () => {
  expect(
    [0, -0, 1, -2, 65504, 65520, 1e-8, 2 ** -24, 2 ** -25, 3 * 2 ** -25, Number.POSITIVE_INFINITY].map(toHalf),
  ).toEqual([0, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x7c00, 0, 1, 0, 2, 0x7c00]);
  expect(toHalf(1 + 2 ** -11)).toBe(0x3c00);
  expect(toHalf(1 + 3 * 2 ** -11)).toBe(0x3c02);
  expect(toHalf(Number.NaN) & 0x7fff).toBeGreaterThan(0x7c00);
  expect([1, -1, 1 + 2 ** -8, 1 + 3 * 2 ** -8].map(toBrainFloat)).toEqual([0x3f80, 0xbf80, 0x3f80, 0x3f82]);
});
