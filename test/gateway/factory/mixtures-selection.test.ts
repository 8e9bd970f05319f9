/** Which examples make an epoch of a mixture: exact shares, the same for the same seed, nothing twice that need not be. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { SeededRandom } from '../../../gateway/factory/mixtures/random.ts';
import { selectionOf, sourceOfExample, usedPlaces } from '../../../gateway/factory/mixtures/selection.ts';
import { sharesOf, wholeWeights } from '../../../gateway/factory/mixtures/shares.ts';

const weight = fc.oneof(fc.integer({ min: 1, max: 1_000_000 }), fc.double({ min: 1e-6, max: 1e6, noNaN: true }));
const mixture = fc
  .array(fc.record({ size: fc.integer({ min: 1, max: 400 }), weight }), { minLength: 2, maxLength: 16 })
  .map((sources) => ({ sizes: sources.map(({ size }) => size), weights: sources.map((one) => one.weight) }));
const seed = fc.integer({ min: 0, max: 2_147_483_647 });

test('weights become the smallest whole numbers of the same proportions', () => {
  expect(wholeWeights([0.7, 0.3])).toEqual([7, 3]);
  expect(wholeWeights([70, 30])).toEqual([7, 3]);
  expect(wholeWeights([1_000_000, 0.000001])).toEqual([1_000_000_000_000, 1]);
  expect(wholeWeights([2.5, 2.5, 5])).toEqual([1, 1, 2]);
  expect(() => wholeWeights([1, 1e-9])).toThrow(RangeError);
});

test('the shares sum to the epoch, and each is within one of its exact part', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 1_000_000 }),
      fc.array(weight, { minLength: 2, maxLength: 16 }),
      (n, given) => {
        const weights = wholeWeights(given);
        const shares = sharesOf(n, weights);
        expect(shares.reduce((sum, share) => sum + share, 0)).toBe(n);
        const all = weights.reduce((sum, one) => sum + BigInt(one), 0n);
        for (const [index, share] of shares.entries()) {
          // |share − n·w/W| < 1, in whole numbers.
          const off = BigInt(share) * all - BigInt(n) * BigInt(weights[index] as number);
          expect(off < all && off > -all).toBe(true);
        }
      },
    ),
  );
  // Equal remainders: the first has it.
  expect(sharesOf(3, [1, 1])).toEqual([2, 1]);
});

test('an epoch is as long as its sources together; each example of a source comes as often as any other of it, or once more', () => {
  fc.assert(
    fc.property(mixture, seed, ({ sizes, weights }, drawn) => {
      const { shares, order, starts } = selectionOf(sizes, wholeWeights(weights), drawn);
      expect(order.length).toBe(sizes.reduce((sum, size) => sum + size, 0));
      const times = sizes.map((size) => new Array<number>(size).fill(0));
      for (const example of order) {
        const source = sourceOfExample(starts, example);
        const place = example - (starts[source] as number);
        (times[source] as number[])[place] = ((times[source] as number[])[place] as number) + 1;
      }
      for (const [source, counts] of times.entries()) {
        expect(counts.reduce((sum, one) => sum + one, 0)).toBe(shares[source]);
        expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
        // What marks are made by is what was trained on.
        const used = usedPlaces(sizes[source] as number, shares[source] as number, drawn, source);
        const seen = counts.flatMap((count, place) => (count > 0 ? [place] : []));
        if (used === null) expect(seen.length).toBe(sizes[source]);
        else expect([...used].sort((a, b) => a - b)).toEqual(seen);
      }
    }),
    { numRuns: 60 },
  );
});

test('the same seed is the same epoch, another seed another one', () => {
  fc.assert(
    fc.property(mixture, seed, ({ sizes, weights }, drawn) => {
      const whole = wholeWeights(weights);
      expect(selectionOf(sizes, whole, drawn).order).toEqual(selectionOf(sizes, whole, drawn).order);
    }),
    { numRuns: 30 },
  );
  const one = selectionOf([300, 200], [1, 1], 1).order;
  const two = selectionOf([300, 200], [1, 1], 2).order;
  expect(one).not.toEqual(two);
});

test('the draws are what they have always been: jobs go on after an update with the same data', () => {
  const random = new SeededRandom(42, 7);
  expect(Array.from({ length: 6 }, () => random.below(1_000_000))).toMatchInlineSnapshot(`
    [
      231626,
      859338,
      586178,
      577322,
      718232,
      913196,
    ]
  `);
  expect([...selectionOf([5, 3], [1, 3], 9).order]).toMatchInlineSnapshot(`
    [
      5,
      7,
      0,
      5,
      6,
      6,
      7,
      4,
    ]
  `);
});

test('sources are interleaved, and every place of a sample is as likely as any other', () => {
  const { order, starts } = selectionOf([1000, 1000], [1, 1], 3);
  let changes = 0;
  for (let at = 1; at < order.length; at++) {
    if (sourceOfExample(starts, order[at] as number) !== sourceOfExample(starts, order[at - 1] as number)) changes += 1;
  }
  // Half of 1999 in the mean, with a standard deviation of 22.
  expect(changes).toBeGreaterThan(850);
  expect(changes).toBeLessThan(1150);
  const hits = new Array<number>(20).fill(0);
  for (let drawn = 0; drawn < 4000; drawn++) {
    for (const place of usedPlaces(20, 5, drawn, 0) as Uint32Array) hits[place] = (hits[place] as number) + 1;
  }
  // 1000 each in the mean, with a standard deviation of 27.
  for (const count of hits) expect(Math.abs(count - 1000)).toBeLessThan(150);
});
