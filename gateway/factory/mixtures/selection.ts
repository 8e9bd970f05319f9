/**
 * Which examples make an epoch of a mixture, and in which order: a function of the sources' sizes, their weights and the job's seed, and of
 * nothing else. An epoch has as many examples as the sources have together. A source whose share is more than it has is taken whole as
 * often as it fits, and the rest is a sample of it; one whose share is less is sampled without replacement.
 */
import { SeededRandom } from './random.ts';
import { sharesOf } from './shares.ts';

export interface Selection {
  /** Examples of the epoch by source. */
  shares: number[];
  /**
   * The epoch in order. An example is the number of those before its source, all sources laid end to end, plus its place in it:
   * example 0 of the second source is `sizes[0]`.
   */
  order: Uint32Array;
  /** Where each source begins in that count. */
  starts: number[];
}

/** Purposes of draws: the order of the whole, then one for each source. */
const ORDER = 0;

/** Places (from 0) of a sample without replacement, in no particular order. `position` is the source's place in the mixture. */
export function sampleOf(size: number, count: number, seed: number, position: number): Uint32Array {
  const places = Uint32Array.from({ length: size }, (_, index) => index);
  return new SeededRandom(seed, position + 1).shuffle(places, count).subarray(0, count);
}

/** Whether the places of a source are used, all of them or a sample: null = all. */
export function usedPlaces(size: number, share: number, seed: number, position: number): Uint32Array | null {
  return share >= size ? null : sampleOf(size, share, seed, position);
}

/** @param sizes examples of each source, each at least 1; @param weights whole numbers > 0 */
export function selectionOf(sizes: readonly number[], weights: readonly number[], seed: number): Selection {
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const shares = sharesOf(total, weights);
  const starts: number[] = [];
  const order = new Uint32Array(total);
  let start = 0;
  let at = 0;
  for (const [position, size] of sizes.entries()) {
    starts.push(start);
    const share = shares[position] as number;
    for (let whole = 0; whole < Math.floor(share / size); whole++) {
      for (let place = 0; place < size; place++) order[at++] = start + place;
    }
    for (const place of sampleOf(size, share % size, seed, position)) order[at++] = start + place;
    start += size;
  }
  return { shares, starts, order: new SeededRandom(seed, ORDER).shuffle(order) };
}

/** The source that an example of `order` belongs to. */
export function sourceOfExample(starts: readonly number[], example: number): number {
  let source = starts.length - 1;
  while (source > 0 && (starts[source] as number) > example) source -= 1;
  return source;
}
