/** convertRows: what ggml makes of rows, with and without a low-rank change. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { convertRows, QUANTIZED_TYPES, type QuantizedType } from '../../addon/quantize.ts';
import { normals } from '../support/tiny-models.ts';
import { errorCode } from './rig.ts';

const F32 = QUANTIZED_TYPES.f32;
const bytesOf = (values: Float32Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
const floatsOf = (bytes: Uint8Array): Float32Array => new Float32Array(bytes.slice().buffer);
const back = (type: QuantizedType, bytes: Uint8Array, width: number): Float32Array =>
  floatsOf(convertRows({ from: QUANTIZED_TYPES[type], to: 'f32', bytes, width }));

/** Root mean square error as a share of the values' own, for normal values: half a step of so many bits, with some room. */
const ERRORS: Record<QuantizedType, number> = {
  f32: 0,
  f16: 5e-4,
  bf16: 4e-3,
  q8_0: 0.01,
  q6_k: 0.03,
  q5_0: 0.06,
  q5_1: 0.06,
  q5_k: 0.06,
  q4_0: 0.12,
  q4_1: 0.12,
  q4_k: 0.12,
  iq4_nl: 0.1,
  iq4_xs: 0.1,
  q3_k: 0.25,
  q2_k: 0.5,
};

test.each(Object.entries(ERRORS) as [QuantizedType, number][])('%s loses no more than its bits', (type, limit) => {
  const width = 512;
  const values = normals(type, 16 * width, 0.02);
  const bytes = convertRows({ from: F32, to: type, bytes: bytesOf(values), width });
  const read = back(type, bytes, width);
  const squares = (of: (i: number) => number): number => values.reduce((sum, _, i) => sum + of(i) ** 2, 0);
  const error = Math.sqrt(
    squares((i) => (read[i] as number) - (values[i] as number)) / squares((i) => values[i] as number),
  );
  expect(error).toBeLessThanOrEqual(limit);
  if (limit > 0.005) expect(error).toBeGreaterThan(limit / 20);
});

test('beside an engine, in turns and on several threads, the same bytes come out, and a value that cannot be is still found', () => {
  const [width, rows, rank] = [576, 400, 3];
  const values = normals('shared', rows * width, 0.02);
  const change = { rank, scale: 0.5, a: normals('a', rank * width, 0.02), b: normals('b', rows * rank, 0.02) };
  const options = { from: F32, to: 'q8_0' as const, bytes: bytesOf(values), width, change };
  const alone = convertRows(options);
  for (const threads of [1, 2, 3]) expect(convertRows({ ...options, threads, share: 0.25 })).toEqual(alone);
  values[rows * width - 1] = Number.NaN;
  expect(errorCode(() => convertRows({ ...options, threads: 2, share: 0.25 }))).toBe('compute_failed');
  for (const share of [0, 1, Number.NaN])
    expect(errorCode(() => convertRows({ ...options, share }))).toBe('argument_invalid');
});

test('the nearest to NF4 loses less than the evenly spaced four bits', () => {
  const width = 256;
  const values = normals('nf4', 64 * width, 0.02);
  const error = (type: QuantizedType): number => {
    const read = back(type, convertRows({ from: F32, to: type, bytes: bytesOf(values), width }), width);
    return values.reduce((sum, value, i) => sum + (value - (read[i] as number)) ** 2, 0);
  };
  expect(error('iq4_nl')).toBeLessThan(error('q4_0'));
});

test('a change is scale · B · A, whatever the shape', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.integer({ min: 1, max: 70 }),
      fc.integer({ min: 1, max: 9 }),
      fc.double({ min: -4, max: 4, noNaN: true }),
      fc.integer({ min: 1, max: 4 }),
      (width, rows, rank, scale, threads) => {
        const values = normals('w', rows * width, 1);
        const a = normals('a', rank * width, 1);
        const b = normals('b', rows * rank, 1);
        const bytes = bytesOf(values);
        const made = floatsOf(
          convertRows({ from: F32, to: 'f32', bytes, width, threads, change: { rank, scale, a, b } }),
        );
        for (let r = 0; r < rows; r++) {
          for (let i = 0; i < width; i++) {
            let sum = values[r * width + i] as number;
            for (let k = 0; k < rank; k++) sum += scale * (b[r * rank + k] as number) * (a[k * width + i] as number);
            expect(Math.abs((made[r * width + i] as number) - sum)).toBeLessThan(1e-3);
          }
        }
      },
    ),
    { numRuns: 30 },
  );
});

test.each(['q4_0', 'iq4_nl', 'q6_k', 'f16'] as const)('%s: the same bytes with any number of threads', (type) => {
  const width = 256;
  const bytes = bytesOf(normals('threads', 133 * width, 0.1));
  const one = convertRows({ from: F32, to: type, bytes, width });
  for (const threads of [2, 3, 200]) expect(convertRows({ from: F32, to: type, bytes, width, threads })).toEqual(one);
});

describe('what cannot be is an error, never an abort', () => {
  const width = 64;
  const good = { from: F32, to: 'q8_0' as const, bytes: bytesOf(normals('x', 2 * width, 1)), width };
  test.each([
    ['a type that nothing is made into', { ...good, to: 'iq1_s' as QuantizedType }],
    ['a name of every object', { ...good, to: 'constructor' as QuantizedType }],
    ['a source that is no type', { ...good, from: 999 }],
    ['a source that was taken out of ggml', { ...good, from: 4 }],
    ['integers', { ...good, from: 26 }],
    ['a width that is no multiple of a block', { ...good, width: 16 }],
    ['bytes that are no whole rows', { ...good, bytes: good.bytes.subarray(0, 100) }],
    ['no bytes', { ...good, bytes: new Uint8Array(0) }],
    ['a width of nothing', { ...good, width: 0 }],
    [
      'an A that is too short',
      { ...good, change: { rank: 2, scale: 1, a: new Float32Array(width), b: new Float32Array(4) } },
    ],
    [
      'a B that is too long',
      { ...good, change: { rank: 1, scale: 1, a: new Float32Array(width), b: new Float32Array(9) } },
    ],
    [
      'a scale that is no number',
      { ...good, change: { rank: 1, scale: Number.NaN, a: new Float32Array(width), b: new Float32Array(2) } },
    ],
    [
      'an A of another kind',
      {
        ...good,
        change: { rank: 1, scale: 1, a: new Float64Array(width) as unknown as Float32Array, b: new Float32Array(2) },
      },
    ],
  ])('%s', (_, options) => {
    expect(errorCode(() => convertRows(options))).toBe('argument_invalid');
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY, 1e6])('the weight %d', (weight) => {
    const values = normals('x', 2 * width, 1);
    values[77] = weight;
    for (const to of ['f16', 'q4_0', 'iq4_nl'] as const)
      expect(errorCode(() => convertRows({ from: F32, to, bytes: bytesOf(values), width }))).toBe('compute_failed');
  });
});
