/** Small statistics over measured samples. Every function says what it does with an empty list: NaN, never a made-up 0. */

/** The q-quantile (0 ≤ q ≤ 1) by linear interpolation between closest ranks (Hyndman–Fan type 7, numpy's default). */
export function quantile(samples: readonly number[], q: number): number {
  if (!(q >= 0 && q <= 1)) throw new RangeError(`quantile wants 0 ≤ q ≤ 1, got ${q}`);
  if (samples.length === 0) return Number.NaN;
  const sorted = Float64Array.from(samples).sort();
  const rank = (sorted.length - 1) * q;
  const low = Math.floor(rank);
  const high = Math.ceil(rank);
  const below = sorted[low] as number;
  const above = sorted[high] as number;
  return below + (above - below) * (rank - low);
}

export const median = (samples: readonly number[]): number => quantile(samples, 0.5);

export function mean(samples: readonly number[]): number {
  if (samples.length === 0) return Number.NaN;
  return samples.reduce((sum, x) => sum + x, 0) / samples.length;
}

export interface Summary {
  count: number;
  median: number;
  min: number;
  max: number;
  p90: number;
  p99: number;
}

export function summarize(samples: readonly number[]): Summary {
  return {
    count: samples.length,
    median: median(samples),
    min: quantile(samples, 0),
    max: quantile(samples, 1),
    p90: quantile(samples, 0.9),
    p99: quantile(samples, 0.99),
  };
}

/**
 * Ratio ours ÷ theirs of rounds that were measured next to each other: each round gives one ratio, so that a machine
 * that slows down for a while slows both sides of a ratio. Lists of different length are a programming error.
 */
export function pairedRatios(ours: readonly number[], theirs: readonly number[]): Summary {
  if (ours.length !== theirs.length) throw new RangeError(`${ours.length} rounds against ${theirs.length}`);
  return summarize(ours.map((x, i) => x / (theirs[i] as number)));
}

/** KL(p‖q) in nats of two rows of logits, each softmaxed in double precision. */
export function klDivergence(logitsP: Float32Array, logitsQ: Float32Array): number {
  if (logitsP.length !== logitsQ.length) throw new RangeError('rows of different vocabularies');
  const normP = logSumExp(logitsP);
  const normQ = logSumExp(logitsQ);
  let sum = 0;
  for (let i = 0; i < logitsP.length; i++) {
    const logP = (logitsP[i] as number) - normP;
    const logQ = (logitsQ[i] as number) - normQ;
    sum += Math.exp(logP) * (logP - logQ);
  }
  // Rounding may leave a tiny negative value for equal rows; KL itself is never negative.
  return Math.max(0, sum);
}

export function logSumExp(row: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  for (const x of row) if (x > max) max = x;
  let sum = 0;
  for (const x of row) sum += Math.exp(x - max);
  return max + Math.log(sum);
}

export function argmax(row: ArrayLike<number>): number {
  let at = 0;
  for (let i = 1; i < row.length; i++) if ((row[i] as number) > (row[at] as number)) at = i;
  return at;
}

/** Difference between the best and the second-best value of a row. */
export function margin(row: ArrayLike<number>): number {
  let first = Number.NEGATIVE_INFINITY;
  let second = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < row.length; i++) {
    const x = row[i] as number;
    if (x > first) {
      second = first;
      first = x;
    } else if (x > second) second = x;
  }
  return first - second;
}
