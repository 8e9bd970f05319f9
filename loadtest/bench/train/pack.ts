/** Examples → rows of one call of the trainer. */
import type { TrainingRows } from '../../../addon/index.ts';
import type { Example } from './data.ts';

/** Examples behind one another; padding is rows without weight at the end of each. */
export function pack(examples: readonly Example[], padTo: number): TrainingRows {
  const lengths = examples.map((e) => Math.max(padTo, e.tokens.length));
  const count = lengths.reduce((total, n) => total + n, 0);
  const rows = { tokens: new Int32Array(count), starts: Int32Array.of(0), weights: new Float32Array(count) };
  const starts = [0];
  examples.forEach((e, i) => {
    const start = starts[i] as number;
    rows.tokens.set(e.tokens, start);
    rows.weights.fill(1, start + e.prompt - 1, start + e.tokens.length - 1);
    starts.push(start + (lengths[i] as number));
  });
  return { ...rows, starts: Int32Array.from(starts) };
}

/** Splits a batch so that each part has at most `rowsMax` rows (one example may be longer). */
export function split(examples: readonly Example[], padTo: number, rowsMax: number): Example[][] {
  const parts: Example[][] = [];
  let rows = Number.POSITIVE_INFINITY;
  for (const example of examples) {
    const length = Math.max(padTo, example.tokens.length);
    if (rows + length > rowsMax) {
      parts.push([]);
      rows = 0;
    }
    (parts.at(-1) as Example[]).push(example);
    rows += length;
  }
  return parts;
}
