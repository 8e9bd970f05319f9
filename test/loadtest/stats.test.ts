import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  argmax,
  klDivergence,
  margin,
  mean,
  median,
  pairedRatios,
  quantile,
  summarize,
} from '../../loadtest/bench/stats.ts';

describe('quantiles', () => {
  it('agree with numpy.percentile on a list worked out by hand', () => {
    const samples = [15, 20, 35, 40, 50];
    expect(quantile(samples, 0)).toBe(15);
    expect(quantile(samples, 0.4)).toBeCloseTo(29, 12);
    expect(quantile(samples, 0.5)).toBe(35);
    expect(quantile(samples, 0.99)).toBeCloseTo(49.6, 12);
    expect(quantile(samples, 1)).toBe(50);
    expect(median([1, 2, 3, 10])).toBe(2.5);
  });

  it('sort by value, not by text, and leave their input alone', () => {
    const samples = [10, 9, 100];
    expect(median(samples)).toBe(10);
    expect(samples).toEqual([10, 9, 100]);
  });

  it('of nothing are NaN, and a quantile outside [0, 1] is refused', () => {
    expect(quantile([], 0.5)).toBeNaN();
    expect(mean([])).toBeNaN();
    expect(() => quantile([1], 99)).toThrow(RangeError);
  });

  it('rise with q, stay between the extremes, and do not depend on the order', () => {
    const list = fc.array(fc.double({ min: -1e6, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 50 });
    const share = fc.double({ min: 0, max: 1, noNaN: true });
    fc.assert(
      fc.property(list, share, share, (samples, p, q) => {
        const [low, high] = p < q ? [p, q] : [q, p];
        const { min, max } = summarize(samples);
        expect(quantile(samples, low)).toBeLessThanOrEqual(quantile(samples, high) + 1e-6);
        expect(quantile(samples, low)).toBeGreaterThanOrEqual(min);
        expect(quantile(samples, high)).toBeLessThanOrEqual(max + 1e-6);
        expect(quantile([...samples].reverse(), p)).toBe(quantile(samples, p));
      }),
    );
  });
});

describe('paired ratios', () => {
  it('are taken round by round, so that a machine slowing down does not shift them', () => {
    // Both sides lose a factor of 4 in the last round; the ratio is 2 throughout.
    const ratios = pairedRatios([200, 200, 50], [100, 100, 25]);
    expect([ratios.min, ratios.median, ratios.max]).toEqual([2, 2, 2]);
  });
  it('refuse rounds that have no partner', () => {
    expect(() => pairedRatios([1, 2], [1])).toThrow(RangeError);
  });
});

describe('KL divergence of logits', () => {
  it('is that of the probabilities, worked out by hand', () => {
    // p = (3/4, 1/4), q = (1/2, 1/2)
    const p = Float32Array.of(Math.log(3), 0);
    const q = Float32Array.of(0, 0);
    expect(klDivergence(p, q)).toBeCloseTo(0.75 * Math.log(1.5) + 0.25 * Math.log(0.5), 6);
  });
  it('is 0 for logits that differ by a constant, positive otherwise, and survives large logits', () => {
    const row = fc.array(fc.double({ min: -5, max: 5, noNaN: true }), { minLength: 2, maxLength: 20 });
    fc.assert(
      fc.property(row, (values) => {
        const a = Float32Array.from(values);
        const shifted = Float32Array.from(values, (x) => Math.fround(x) + 64);
        expect(klDivergence(a, shifted)).toBeLessThan(1e-9);
        const other = Float32Array.from(a);
        other[0] = (other[0] as number) + 1;
        expect(klDivergence(a, other)).toBeGreaterThan(0);
      }),
    );
    expect(klDivergence(Float32Array.of(1000, 0), Float32Array.of(1000, 0))).toBe(0);
  });
  it('refuses rows of different vocabularies', () => {
    expect(() => klDivergence(new Float32Array(2), new Float32Array(3))).toThrow(RangeError);
  });
});

it('argmax takes the first of equals, margin is the distance to the runner-up wherever it stands', () => {
  expect(argmax([1, 5, 5])).toBe(1);
  expect(margin([1, 5, 4])).toBe(1);
  expect(margin([4, 5, 1])).toBe(1);
  expect(margin([5, 5])).toBe(0);
});
