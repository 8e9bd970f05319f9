import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { AdapterError } from '../../../daemon/adapters/errors.ts';
import { parseSafetensorsHeader } from '../../../daemon/adapters/safetensors.ts';
import { parseStrictJson } from '../../../daemon/adapters/strict-json.ts';
import { encodeSafetensors, frameSafetensors } from '../../support/safetensors-writer.ts';

const good = encodeSafetensors({
  a: { dtype: 'F32', shape: [2, 3], bytes: Buffer.alloc(24, 1) },
  b: { dtype: 'BF16', shape: [4], bytes: Buffer.alloc(8, 2) },
  empty: { dtype: 'F16', shape: [0, 4], bytes: Buffer.alloc(0) },
});

function reasonOf(bytes: Uint8Array): string {
  try {
    parseSafetensorsHeader(bytes, bytes.byteLength);
    return 'accepted';
  } catch (error) {
    if (error instanceof AdapterError) return error.reason;
    throw error;
  }
}
const framed = (header: unknown, dataBytes = 32): Buffer =>
  frameSafetensors(typeof header === 'string' ? header : JSON.stringify(header), Buffer.alloc(dataBytes));
const entry = (begin: number, end: number, shape = [(end - begin) / 4]): unknown => ({
  dtype: 'F32',
  shape,
  data_offsets: [begin, end],
});

test('a good header is read as it was written, with offsets from the beginning of the file', () => {
  const header = parseSafetensorsHeader(good, good.length);
  expect(header.metadata).toEqual({ format: 'pt' });
  const a = header.tensors.find(({ name }) => name === 'a');
  expect(a).toMatchObject({ dtype: 'F32', shape: [2, 3], bytes: 24 });
  expect(good.subarray(a?.offset, (a?.offset ?? 0) + 24)).toEqual(Buffer.alloc(24, 1));
});

describe('a broken header is refused', () => {
  test.each([
    ['nothing', Buffer.alloc(0), 'corrupt'],
    [
      'a length beyond the file',
      Buffer.concat([Buffer.from([255, 0, 0, 0, 0, 0, 0, 0]), good.subarray(8, 20)]),
      'corrupt',
    ],
    ['a length of 2^63', Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 0, 0, 128]), good.subarray(8)]), 'corrupt'],
    [
      'a header over the limit',
      frameSafetensors(`{"__metadata__":{"x":"${'y'.repeat(5_000_000)}"}}`, Buffer.alloc(0)),
      'too_large',
    ],
    ['no JSON', framed('{"a":'), 'corrupt'],
    ['an array', framed('[]'), 'corrupt'],
    ['space before the brace', framed(' {}', 0), 'corrupt'],
    [
      'bytes that are not UTF-8',
      frameSafetensors('{"\u00e9":1}', Buffer.alloc(0)).map((b) => (b === 0xc3 ? 0xff : b)),
      'corrupt',
    ],
    ['an entry that is a number', framed({ a: 1 }), 'corrupt'],
    ['an entry with a field more', framed({ a: { ...(entry(0, 32) as object), x: 1 } }), 'corrupt'],
    ['a shape that is negative', framed({ a: entry(0, 32, [-8]) }), 'corrupt'],
    ['a shape that is a fraction', framed({ a: entry(0, 32, [2.5]) }), 'corrupt'],
    ['a shape whose product overflows', framed({ a: entry(0, 32, [2 ** 40, 2 ** 40]) }), 'corrupt'],
    ['a shape that does not fill the extent', framed({ a: entry(0, 32, [7]) }), 'corrupt'],
    ['offsets that run backwards', framed({ a: entry(32, 0, [0]) }), 'corrupt'],
    ['an extent beyond the file', framed({ a: entry(0, 64) }), 'corrupt'],
    ['an overlap', framed({ a: entry(0, 20), b: entry(16, 32) }), 'corrupt'],
    ['a gap', framed({ a: entry(0, 12), b: entry(16, 32) }), 'corrupt'],
    ['bytes after the last tensor', framed({ a: entry(0, 28) }), 'corrupt'],
    ['data without tensors', framed({}), 'corrupt'],
    ['an unknown type', framed({ a: { dtype: 'Q4', shape: [8], data_offsets: [0, 32] } }), 'unsupported'],
    ['metadata that is no map of strings', framed({ __metadata__: { x: 1 }, a: entry(0, 32) }), 'corrupt'],
    ['a tensor twice', framed(`{"a":${JSON.stringify(entry(0, 32))},"a":${JSON.stringify(entry(0, 32))}}`), 'corrupt'],
    [
      'a tensor twice, once escaped',
      framed(`{"a":${JSON.stringify(entry(0, 32))},"\\u0061":${JSON.stringify(entry(0, 32))}}`),
      'corrupt',
    ],
    ['a field twice', framed('{"a":{"dtype":"F32","shape":[8],"shape":[8],"data_offsets":[0,32]}}'), 'corrupt'],
  ])('%s', (_name, bytes, reason) => {
    expect(reasonOf(bytes)).toBe(reason);
  });

  test('every truncation', () => {
    for (let length = 0; length < good.length; length++) expect(reasonOf(good.subarray(0, length))).toBe('corrupt');
  });

  test('any bytes flipped: an answer, never a crash, and what is accepted fills the file exactly', () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ at: fc.nat(good.length - 1), value: fc.nat(255) }), { minLength: 1, maxLength: 5 }),
        (flips) => {
          const bytes = Buffer.from(good);
          for (const { at, value } of flips) bytes[at] = value;
          try {
            const { tensors } = parseSafetensorsHeader(bytes, bytes.length);
            const used = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
            const first = Math.min(...tensors.map(({ offset }) => offset));
            expect(first + used).toBe(bytes.length);
          } catch (error) {
            expect(error).toBeInstanceOf(AdapterError);
          }
        },
      ),
      { numRuns: 3000 },
    );
  });
});

describe('strict JSON', () => {
  test('reads what JSON.parse reads when no key is twice', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const text = JSON.stringify(value);
        expect(parseStrictJson(text)).toEqual(JSON.parse(text));
      }),
      { numRuns: 500 },
    );
  });
  test('tells keys of different objects, and keys from values', () => {
    expect(parseStrictJson('[{"a":"a","b":{"a":"b"}},{"a":["a","a"]}]')).toBeTruthy();
    expect(parseStrictJson('{"a:b":"c\\"","c\\\\":1}')).toEqual({ 'a:b': 'c"', 'c\\': 1 });
  });
  test('refuses a key twice at any depth', () => {
    expect(() => parseStrictJson('{"x":[{"y":{"a":1,"b":2,"a" : 3}}]}')).toThrow(/"a" occurs twice/);
  });
});
