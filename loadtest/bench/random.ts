/** Seeded random numbers, so that every run measures the same prompts and adapters. */
import { uniformSource } from '../schedule.js';

export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
  /** Uniform integer in [low, high). */
  integer(low: number, high: number): number;
  /** Standard normal (Box–Muller). */
  normal(): number;
}

/** 32 bits of state: plenty for test data; not for anything that must be unpredictable. */
export function seededRandom(seed: number): Random {
  const next = uniformSource(seed);
  let spare: number | undefined;
  return {
    next,
    integer: (low, high) => low + Math.floor(next() * (high - low)),
    normal() {
      if (spare !== undefined) {
        const kept = spare;
        spare = undefined;
        return kept;
      }
      const radius = Math.sqrt(-2 * Math.log(1 - next()));
      const angle = 2 * Math.PI * next();
      spare = radius * Math.sin(angle);
      return radius * Math.cos(angle);
    },
  };
}
