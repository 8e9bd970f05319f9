/** How many examples of an epoch come from each source of a mixture. Exact: whole numbers throughout. */

/** Digits behind the point that a weight may have. */
const DECIMALS = 6;

/**
 * The same proportions in the smallest whole numbers: [0.7, 0.3] and [70, 30] are both [7, 3]. Digits behind the sixth are rounded away.
 * @param weights > 0 @throws RangeError when one would be nothing
 */
export function wholeWeights(weights: readonly number[]): number[] {
  const scaled = weights.map((weight) => Math.round(weight * 10 ** DECIMALS));
  if (scaled.some((weight) => weight < 1)) throw new RangeError(`a weight is at least ${10 ** -DECIMALS}`);
  const divisor = scaled.reduce(greatestCommonDivisor);
  return scaled.map((weight) => weight / divisor);
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/**
 * `total` split by weight, by the method of the largest remainder (Hamilton): each share is its exact part rounded down, and what is left
 * goes one by one to the largest remainders; of equal ones to the first. So each share is within 1 of its exact part.
 */
export function sharesOf(total: number, weights: readonly number[]): number[] {
  const all = weights.reduce((sum, weight) => sum + BigInt(weight), 0n);
  const parts = weights.map((weight, position) => {
    const exact = BigInt(total) * BigInt(weight);
    return { position, share: Number(exact / all), remainder: exact % all };
  });
  let left = total - parts.reduce((sum, { share }) => sum + share, 0);
  const order = [...parts].sort((a, b) =>
    a.remainder === b.remainder ? a.position - b.position : a.remainder > b.remainder ? -1 : 1,
  );
  for (const part of order) {
    if (left === 0) break;
    part.share += 1;
    left -= 1;
  }
  return parts.map(({ share }) => share);
}
