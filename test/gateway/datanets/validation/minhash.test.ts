import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { uniform } from '../../../../daemon/training/random.ts';
import {
  bandsOf,
  NEAR_DUPLICATE,
  normalised,
  SIGNATURE_BYTES,
  shinglesOf,
  signatureOf,
  similarityOf,
} from '../../../../gateway/datanets/validation/minhash.ts';

function jaccard(a: string, b: string): number {
  const left = new Set(shinglesOf(a));
  const right = new Set(shinglesOf(b));
  let both = 0;
  for (const shingle of left) if (right.has(shingle)) both += 1;
  return both / (left.size + right.size - both);
}

const SYLLABLES = 'ka lo mi ter sen bra vol ing ode ast ure pel dom fi gra nu ex or la tho win ches al by re qua'.split(
  ' ',
);

function word(next: () => number): string {
  let made = '';
  for (let count = 1 + Math.floor(next() * 3); count > 0; count -= 1)
    made += SYLLABLES[Math.floor(next() * SYLLABLES.length)];
  return made;
}

const words = (next: () => number, count: number) => Array.from({ length: count }, () => word(next));

/** Pairs of texts of all similarities: one is the other with some of its words replaced. */
function pairs(count: number): { a: string; b: string; exact: number }[] {
  const next = uniform(7);
  return Array.from({ length: count }, () => {
    const text = words(next, 10 + Math.floor(next() * 120));
    const share = next() ** 2 * 0.5;
    const other = text.map((one) => (next() < share ? word(next) : one));
    const [a, b] = [text.join(' '), other.join(' ')];
    return { a, b, exact: jaccard(a, b) };
  });
}

const isCandidate = (a: Uint8Array, b: Uint8Array) => {
  const bands = new Set(bandsOf(a, 1));
  return bandsOf(b, 1).some((band) => bands.has(band));
};

describe('MinHash', () => {
  test('the same text has the same signature, whatever its case, white space and punctuation', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 200 }), (text) => {
        const signature = signatureOf(text);
        expect(signature.length).toBe(SIGNATURE_BYTES);
        expect(similarityOf(signature, signatureOf(text))).toBe(1);
      }),
    );
    const one = signatureOf('The quick brown fox, jumps over: the lazy dog!');
    expect(similarityOf(one, signatureOf('  the QUICK brown\nfox jumps  over the lazy dog'))).toBe(1);
    // Compatibility forms and composed letters are the same letters.
    expect(normalised('Ｓｔｒａße Cafe\u0301')).toBe(normalised('STRASSE Café'));
    expect(similarityOf(signatureOf('Straße im Café'), signatureOf('STRASSE IM CAFE\u0301'))).toBe(1);
  });

  test('signatures are the same on every machine and in every release', () => {
    const hex = (text: string) => Buffer.from(signatureOf(text)).toString('hex').slice(0, 32);
    expect(hex('A row of a Datanet, to be found again.')).toMatchInlineSnapshot(`"01e496a4c70b88e3aa4d7f3ee9cfd666"`);
    expect(hex('データネットの行')).toMatchInlineSnapshot(`"010a1415e8abfc8422e4e4069203620d"`);
    expect(bandsOf(signatureOf('A row of a Datanet, to be found again.'), 42).slice(0, 2)).toMatchInlineSnapshot(`
      [
        590064206681245,
        3479342169231194,
      ]
    `);
  });

  test('the estimate is within four standard errors of the exact Jaccard similarity', () => {
    let squares = 0;
    const all = pairs(400);
    for (const { a, b, exact } of all) {
      const estimate = similarityOf(signatureOf(a), signatureOf(b));
      const error = Math.sqrt((exact * (1 - exact)) / 128);
      expect(Math.abs(estimate - exact)).toBeLessThanOrEqual(4.5 * error + 0.01);
      squares += (estimate - exact) ** 2;
    }
    expect(Math.sqrt(squares / all.length)).toBeLessThan(0.05);
  });

  test('pairs of at least 0.85 are candidates, pairs of at most 0.4 hardly ever', () => {
    const near = { all: 0, found: 0 };
    const far = { all: 0, found: 0 };
    for (const { a, b, exact } of pairs(3000)) {
      const group = exact >= 0.85 ? near : exact <= 0.4 ? far : null;
      if (group === null) continue;
      group.all += 1;
      if (isCandidate(signatureOf(a), signatureOf(b))) group.found += 1;
    }
    expect(near.all).toBeGreaterThan(200);
    expect(far.all).toBeGreaterThan(200);
    expect(near.found / near.all).toBeGreaterThanOrEqual(0.99);
    expect(far.found / far.all).toBeLessThanOrEqual(0.02);
  });

  test('a changed word in a long text stays a near duplicate at every length', () => {
    const next = uniform(3);
    for (let count = 40; count < 600; count += 7) {
      const text = words(next, count);
      const longer = [...text.slice(0, count >> 1), 'somethingelse', ...text.slice((count >> 1) + 1)];
      // No length at which one text is cut up in another way than its neighbour.
      expect(jaccard(text.join(' '), longer.join(' '))).toBeGreaterThan(NEAR_DUPLICATE);
    }
  });

  test('texts without spaces, without words and without anything are told apart', () => {
    const far = (a: string, b: string) => expect(similarityOf(signatureOf(a), signatureOf(b))).toBeLessThan(0.5);
    far(
      '東京は日本の首都であり、世界で最も人口の多い都市圏です。',
      '富士山は日本で最も高い山で、標高は三千七百七十六メートルです。',
    );
    far('?!?!', '.....');
    far('', 'a');
    expect(similarityOf(signatureOf(''), signatureOf(''))).toBe(1);
  });

  test('bands are safe integers of their own Datanet', () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 80 }), fc.integer({ min: 1, max: 2 ** 40 }), (text, datanet) => {
        const bands = bandsOf(signatureOf(text), datanet);
        expect(bands).toHaveLength(14);
        expect(new Set(bands).size).toBe(14);
        for (const band of bands) expect(Number.isSafeInteger(band) && band >= 0).toBe(true);
        const other = new Set(bandsOf(signatureOf(text), datanet + 1));
        expect(bands.some((band) => other.has(band))).toBe(false);
      }),
    );
  });

  test('signatures of another length or version are never alike', () => {
    const signature = signatureOf('some text');
    const other = Uint8Array.from(signature);
    other[0] = 200;
    expect(similarityOf(signature, other)).toBe(0);
    expect(similarityOf(signature, signature.subarray(1))).toBe(0);
    expect(bandsOf(signature, 1).some((band) => bandsOf(other, 1).includes(band))).toBe(false);
  });
});
