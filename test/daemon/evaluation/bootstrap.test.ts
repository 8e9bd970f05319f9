import { describe, expect, it } from 'vitest';
import { bootstrap, seededSample, xoshiro128 } from '../../../daemon/evaluation/bootstrap.ts';

/** Sum and count: a mean. */
const mean = { mean: (sums: Float64Array) => (sums[0] as number) / (sums[1] as number) };

function rowsOf(values: number[]): Float64Array {
  return Float64Array.from(values.flatMap((value) => [value, 1]));
}

describe('bootstrap intervals', () => {
  it('cover the true mean about 95 times in 100', () => {
    const random = xoshiro128(7);
    let covered = 0;
    const trials = 300;
    for (let trial = 0; trial < trials; trial += 1) {
      // Exponential with mean 1: skewed, as losses are.
      const values = Array.from({ length: 60 }, () => -Math.log(1 - random()));
      const { low, high } = bootstrap(rowsOf(values), 2, mean, { seed: trial, resamples: 400 }).mean;
      if (low <= 1 && 1 <= high) covered += 1;
    }
    // The percentile method covers a little less than it says on small skewed samples: 91–95 % here.
    expect(covered / trials).toBeGreaterThan(0.88);
    expect(covered / trials).toBeLessThan(0.99);
  });

  it('are the same for the same seed, and narrower for more examples', () => {
    const random = xoshiro128(3);
    const values = Array.from({ length: 400 }, random);
    const few = bootstrap(rowsOf(values.slice(0, 40)), 2, mean, { seed: 1 }).mean;
    const many = bootstrap(rowsOf(values), 2, mean, { seed: 1 }).mean;
    expect(bootstrap(rowsOf(values), 2, mean, { seed: 1 }).mean).toEqual(many);
    expect(bootstrap(rowsOf(values), 2, mean, { seed: 2 }).mean.low).not.toBe(many.low);
    expect(many.high - many.low).toBeLessThan((few.high - few.low) / 2);
    expect(many.low).toBeLessThan(many.value);
    expect(many.high).toBeGreaterThan(many.value);
  });

  it('of one example are the value itself, and what cannot be divided is left out', () => {
    expect(bootstrap(rowsOf([0.25]), 2, mean, { seed: 0 }).mean).toEqual({ value: 0.25, low: 0.25, high: 0.25 });
    const some = Float64Array.from([1, 1, 0, 0, 0, 0]);
    const measured = bootstrap(some, 2, mean, { seed: 0 }).mean;
    expect(measured).toEqual({ value: 1, low: 1, high: 1 });
  });

  it('samples are drawn without repetition, evenly, and are all for a count that covers them', () => {
    expect(seededSample(5, 9, 1)).toEqual([0, 1, 2, 3, 4]);
    const hits = new Array<number>(10).fill(0);
    for (let seed = 0; seed < 2000; seed += 1) {
      const sample = seededSample(10, 3, seed);
      expect(new Set(sample).size).toBe(3);
      for (const index of sample) hits[index] = (hits[index] as number) + 1;
    }
    for (const count of hits) expect(Math.abs(count - 600)).toBeLessThan(100);
  });
});
