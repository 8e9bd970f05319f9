/** The weights of an adapter on disk, pair by pair, in the order of rows and the type that an export wants. */
import type { FileHandle } from 'node:fs/promises';
import { convertRows } from '../../../addon/quantize.ts';
import type { AdapterTensorPair, ModelInfo } from '../../../addon/types.ts';
import { tensorTypeId } from '../../models/gguf-write.ts';
import type { BaseShape } from '../../models/inspect.ts';
import { AdapterError } from '../errors.ts';
import { type AdapterFormat, DTYPE_BYTES, type Dtype } from '../parsed.ts';

export type RowOrder = 'hf' | 'base';

/** Everything that must be known of an adapter to write it down again. */
export interface AdapterFacts {
  format: AdapterFormat;
  pairs: readonly AdapterTensorPair[];
  base: BaseShape;
}

export type HalfName = 'a' | 'b';

/** PEFT files have HF's order, GGUF files the base's. */
export function orderOf(format: AdapterFormat): RowOrder {
  return format === 'peft' ? 'hf' : 'base';
}

/** Heads whose rows the base holds in another order than HF; 0: the two orders are one. */
export function permutedHeads(pair: AdapterTensorPair, base: BaseShape): number {
  if (!base.ropePermuted) return 0;
  return pair.target === 'attn_q' ? base.heads : pair.target === 'attn_k' ? base.kvHeads : 0;
}

/** Row-major: A is [rank, in], B is [out, rank]. */
export function halfShape(
  pair: AdapterTensorPair,
  half: HalfName,
  base: Pick<ModelInfo, 'targets'>,
): [rows: number, columns: number] {
  const size = base.targets[pair.target];
  return half === 'a' ? [pair.rank, size.in] : [size.out, pair.rank];
}

export function halfBytes(
  pair: AdapterTensorPair,
  half: HalfName,
  base: Pick<ModelInfo, 'targets'>,
  dtype: Dtype,
): number {
  const [rows, columns] = halfShape(pair, half, base);
  return rows * columns * DTYPE_BYTES[dtype];
}

export interface ReadHalf {
  order: RowOrder;
  /** Default: as stored. */
  dtype?: Dtype;
  /** Multiplies every weight; default 1. Only with dtype f32. */
  factor?: number;
}

/** One half of a pair as bytes. @throws AdapterError if the file is shorter than it was */
export async function readHalf(
  file: FileHandle,
  { format, base }: Pick<AdapterFacts, 'format' | 'base'>,
  pair: AdapterTensorPair,
  half: HalfName,
  { order, dtype = pair[half].dtype, factor = 1 }: ReadHalf,
): Promise<Buffer> {
  const stored = pair[half].dtype;
  const [rows, columns] = halfShape(pair, half, base);
  let bytes = await readRange(file, pair[half].offset, rows * columns * DTYPE_BYTES[stored]);
  const heads = half === 'b' && orderOf(format) !== order ? permutedHeads(pair, base) : 0;
  if (heads > 0) bytes = permuteRows(bytes, rows, heads, order);
  if (dtype !== stored) bytes = asBuffer(convertRows({ from: tensorTypeId(stored), to: dtype, bytes, width: columns }));
  if (factor !== 1) {
    const values = floatsOf(bytes);
    for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) * factor;
    bytes = asBuffer(values);
  }
  return bytes;
}

/**
 * Rows of q and k within each head: HF has first the even rows, then the odd ones of what llama-architecture GGUF files have in
 * turn (llama.cpp's `permute` in its conversion scripts).
 */
export function permuteRows(bytes: Buffer, rows: number, heads: number, to: RowOrder): Buffer {
  const rowBytes = bytes.byteLength / rows;
  const headRows = rows / heads;
  const half = headRows / 2;
  const out = Buffer.allocUnsafeSlow(bytes.byteLength);
  for (let head = 0; head < heads; head++) {
    for (let i = 0; i < headRows; i++) {
      const hf = head * headRows + i;
      const base = head * headRows + (i < half ? 2 * i : 2 * (i - half) + 1);
      const [from, at] = to === 'base' ? [hf, base] : [base, hf];
      bytes.copy(out, at * rowBytes, from * rowBytes, (from + 1) * rowBytes);
    }
  }
  return out;
}

/** Little-endian float32, copied where the bytes do not lie on a multiple of four. */
export function floatsOf(bytes: Uint8Array): Float32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : Uint8Array.prototype.slice.call(bytes);
  return new Float32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}

function asBuffer(view: Uint8Array | Float32Array): Buffer {
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}

export async function readRange(file: FileHandle, offset: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(bytes);
  for (let filled = 0; filled < bytes; ) {
    const { bytesRead } = await file.read(buffer, filled, bytes - filled, offset + filled);
    if (bytesRead === 0) {
      throw new AdapterError(
        'corrupt',
        'the adapter file on disk was changed or damaged; remove the adapter and add it again',
      );
    }
    filled += bytesRead;
  }
  return buffer;
}
