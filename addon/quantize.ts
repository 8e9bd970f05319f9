/** Rows of weights from one ggml type to another. The way to merged models and to 4-bit bases. */

import { call, check, checkInteger, checkNumber } from './checks.ts';
import { native } from './index.ts';

/** Types that rows can become, with ggml's numbers. IQ4_NL has sixteen unevenly spaced levels, ggml's nearest to QLoRA's NF4. */
export const QUANTIZED_TYPES = {
  f32: 0,
  f16: 1,
  bf16: 30,
  q4_0: 2,
  q4_1: 3,
  q5_0: 6,
  q5_1: 7,
  q8_0: 8,
  q2_k: 10,
  q3_k: 11,
  q4_k: 12,
  q5_k: 13,
  q6_k: 14,
  iq4_nl: 20,
  iq4_xs: 23,
} as const;
export type QuantizedType = keyof typeof QUANTIZED_TYPES;

/** Added to the rows before they are packed: scale · B · A. Row-major: A is [rank, width], B is [rows, rank]. */
export interface LowRankChange {
  rank: number;
  scale: number;
  a: Float32Array;
  b: Float32Array;
}

export interface ConvertOptions {
  /** ggml's number of the type that `bytes` is in; any type that ggml can expand. */
  from: number;
  to: QuantizedType;
  /** Whole rows, one after the other. */
  bytes: Uint8Array;
  /** Values of a row. */
  width: number;
  /** Threads to compute with, the calling one included; default 1. The result is the same. */
  threads?: number;
  change?: LowRankChange | null;
  /**
   * Where an engine serves in the same process: the share of the time, above 0 and below 1, that computing may take while it is busy,
   * together with training. Absent: computes at once, whoever else does.
   */
  share?: number;
}

/**
 * Synchronous: a few milliseconds for a million values, more for types that search for their scales (iq4_nl, k-quants).
 * @throws AddonError `argument_invalid`; `compute_failed` if a value is NaN, infinite or too large for the type
 */
export function convertRows(options: ConvertOptions): Uint8Array {
  const { from, to, bytes, width, threads = 1, change = null, share = null } = options;
  checkInteger(from, 0, 1024, 'from');
  check(Object.hasOwn(QUANTIZED_TYPES, to), `rows cannot be made into ${String(to)}`);
  const number = QUANTIZED_TYPES[to];
  check(bytes instanceof Uint8Array, 'bytes must be a Uint8Array');
  checkInteger(width, 1, 1 << 24, 'width');
  checkInteger(threads, 1, 512, 'threads');
  if (change !== null) {
    checkInteger(change.rank, 1, 4096, 'rank');
    checkNumber(change.scale, -3e38, 3e38, 'scale');
  }
  if (share !== null) checkNumber(share, 0.001, 0.999, 'share');
  const addon = native();
  return call(() => addon.convertRows(from, number, bytes, width, threads, change, share));
}
