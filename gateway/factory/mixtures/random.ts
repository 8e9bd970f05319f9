/**
 * Integers that are the same on every machine and in every version for the same seed and purpose, since a job that goes on after a crash
 * must choose the same examples in the same order. sfc32 (Chris Doty-Humphrey, PractRand, public domain): 128 bits of state, period at
 * least 2^32; never for secrets.
 */
export class SeededRandom {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  /** @param seed 32 bits; `purpose` tells draws apart that come from one seed. */
  constructor(seed: number, purpose: number) {
    this.#a = seed | 0;
    this.#b = purpose | 0;
    this.#c = 0x6d6978; // "mix"
    // As its author does: the first words still resemble the seed.
    for (let round = 0; round < 15; round++) this.#next();
  }

  #next(): number {
    const sum = (((this.#a + this.#b) | 0) + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0;
    return sum >>> 0;
  }

  /** Each of 0 … bound − 1 equally often: what would favour the small ones is drawn again. @param bound 1 … 2^32 */
  below(bound: number): number {
    const even = 0x1_0000_0000 - (0x1_0000_0000 % bound);
    for (;;) {
      const drawn = this.#next();
      if (drawn < even) return drawn % bound;
    }
  }

  /** Fisher and Yates, as Durstenfeld wrote it, in place; with `count`, only the first so many places, which are then a sample. */
  shuffle(values: Uint32Array, count: number = values.length): Uint32Array {
    const last = Math.min(count, values.length - 1);
    for (let i = 0; i < last; i++) {
      const j = i + this.below(values.length - i);
      const kept = values[i] as number;
      values[i] = values[j] as number;
      values[j] = kept;
    }
    return values;
  }
}
