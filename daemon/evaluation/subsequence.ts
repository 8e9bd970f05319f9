/**
 * Length of the longest common subsequence of two lists of symbols, 32 positions of `a` at a time
 * (H. Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004): |a| · |b| / 32 operations and |a| bits of memory.
 */
export function commonSubsequence<T>(a: ArrayLike<T>, b: ArrayLike<T>): number {
  if (a.length === 0 || b.length === 0) return 0;
  const words = Math.ceil(a.length / 32);
  const places = new Map<T, Int32Array>();
  for (let i = 0; i < a.length; i += 1) {
    const symbol = a[i] as T;
    let bits = places.get(symbol);
    if (bits === undefined) {
      bits = new Int32Array(words);
      places.set(symbol, bits);
    }
    bits[i >>> 5] = (bits[i >>> 5] as number) | (1 << (i & 31));
  }
  // A zero at place i: the longest common subsequence of a[0 … i] and what was read of b is longer than that of a[0 … i − 1].
  const row = new Int32Array(words).fill(-1);
  for (let j = 0; j < b.length; j += 1) {
    const bits = places.get(b[j] as T);
    if (bits === undefined) continue;
    let carry = 0;
    for (let w = 0; w < words; w += 1) {
      const v = row[w] as number;
      const match = v & (bits[w] as number);
      const sum = (v >>> 0) + (match >>> 0) + carry;
      carry = sum > 0xffff_ffff ? 1 : 0;
      row[w] = sum | 0 | (v & ~match);
    }
  }
  let length = 0;
  for (let i = 0; i < a.length; i += 1) if ((((row[i >>> 5] as number) >>> (i & 31)) & 1) === 0) length += 1;
  return length;
}
