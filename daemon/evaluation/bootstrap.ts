/**
 * 95 % intervals by the percentile bootstrap (B. Efron, 1979) over examples: a metric is a function of column sums, so a
 * corpus metric (BLEU, perplexity) is resampled as a whole and not averaged over examples.
 */
import type { Measured } from '../protocol.ts';
import { EVALUATION_LIMITS } from './limits.ts';

export type Statistic = (sums: Float64Array) => number;

export interface BootstrapOptions {
  /** 32 bits. The same seed and number of examples draw the same resamples, so models on one set are compared in pairs. */
  seed: number;
  resamples?: number;
}

/**
 * `rows`: per example its columns, row-major. Each statistic gets the columns' sums.
 * A statistic that is not finite on a resample (nothing to divide by) is left out of that one's interval.
 */
export function bootstrap<K extends string>(
  rows: Float64Array,
  columns: number,
  statistics: Record<K, Statistic>,
  options: BootstrapOptions,
): Record<K, Measured> {
  const examples = columns === 0 ? 0 : rows.length / columns;
  const resamples = options.resamples ?? EVALUATION_LIMITS.resamples;
  const names = Object.keys(statistics) as K[];
  const drawn = names.map(() => new Float64Array(resamples));
  const random = xoshiro128(options.seed);
  const sums = new Float64Array(columns);
  const value = new Float64Array(columns);
  for (let i = 0; i < examples; i += 1) add(value, rows, i * columns);
  for (let b = 0; b < resamples && examples > 0; b += 1) {
    sums.fill(0);
    for (let i = 0; i < examples; i += 1) add(sums, rows, Math.floor(random() * examples) * columns);
    for (const [k, name] of names.entries()) (drawn[k] as Float64Array)[b] = statistics[name](sums);
  }
  const result = {} as Record<K, Measured>;
  for (const [k, name] of names.entries()) result[name] = interval(statistics[name](value), drawn[k] as Float64Array);
  return result;
}

function add(sums: Float64Array, rows: Float64Array, from: number): void {
  for (let c = 0; c < sums.length; c += 1) sums[c] = (sums[c] as number) + (rows[from + c] as number);
}

function interval(value: number, drawn: Float64Array): Measured {
  const sorted = drawn.filter(Number.isFinite).sort();
  if (sorted.length === 0) return { value, low: value, high: value };
  return { value, low: quantile(sorted, 0.025), high: quantile(sorted, 0.975) };
}

/** Linear between the two nearest. */
function quantile(sorted: Float64Array, q: number): number {
  const at = q * (sorted.length - 1);
  const below = sorted[Math.floor(at)] as number;
  const above = sorted[Math.ceil(at)] as number;
  return below + (above - below) * (at - Math.floor(at));
}

/** xoshiro128** (Blackman and Vigna), seeded by splitmix32; numbers in [0, 1) with 32 random bits. */
export function xoshiro128(seed: number): () => number {
  let z = seed >>> 0;
  const next = () => {
    z = (z + 0x9e3779b9) >>> 0;
    let t = z ^ (z >>> 16);
    t = Math.imul(t, 0x21f0aaad);
    t ^= t >>> 15;
    t = Math.imul(t, 0x735a2d97);
    return (t ^ (t >>> 15)) >>> 0;
  };
  let [a, b, c, d] = [next(), next(), next(), next()] as [number, number, number, number];
  return () => {
    const scaled = Math.imul(b, 5);
    const result = Math.imul((scaled << 7) | (scaled >>> 25), 9) >>> 0;
    const t = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = (d << 11) | (d >>> 21);
    return result / 0x1_0000_0000;
  };
}

/** The first `count` of 0 … n − 1 in seeded order (Fisher and Yates), then in rising order. */
export function seededSample(n: number, count: number, seed: number): number[] {
  const all = Array.from({ length: n }, (_, i) => i);
  if (count >= n) return all;
  const random = xoshiro128(seed);
  for (let i = 0; i < count; i += 1) {
    const j = i + Math.floor(random() * (n - i));
    [all[i], all[j]] = [all[j] as number, all[i] as number];
  }
  return all.slice(0, count).sort((x, y) => x - y);
}
