/** Integers and orders that are the same on every machine for the same seed. */

/** mulberry32 (Tommy Ettinger, public domain): 32 bits of state, passes gjrand; used for orders, never for secrets. */
export function uniform(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

/** A seed of its own for each purpose, so that two orders drawn from one recipe do not resemble each other (murmur3's finaliser). */
export function mix(seed: number, purpose: number): number {
  let h = (seed ^ Math.imul(purpose + 1, 0x9e37_79b1)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85eb_ca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2_ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Fisher and Yates, as Durstenfeld wrote it: shuffles in place. */
export function shuffle(values: Int32Array, seed: number): Int32Array {
  const random = uniform(seed);
  for (let i = values.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    const kept = values[i] as number;
    values[i] = values[j] as number;
    values[j] = kept;
  }
  return values;
}
