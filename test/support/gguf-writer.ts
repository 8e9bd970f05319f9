/**
 * Writes GGUF v3 files for tests: metadata and tensors in f32, f16, bf16, q8_0, q4_0, q4_1.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (little endian throughout).
 */
import { writeFileSync } from 'node:fs';

export type GgufScalarType =
  | 'u8'
  | 'i8'
  | 'u16'
  | 'i16'
  | 'u32'
  | 'i32'
  | 'f32'
  | 'bool'
  | 'string'
  | 'u64'
  | 'i64'
  | 'f64';
/** Numbers of the format's value types; 9 is the array. */
const VALUE_TYPES: Record<GgufScalarType, number> = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  u64: 10,
  i64: 11,
  f64: 12,
};
const ARRAY_TYPE = 9;

export type GgufScalar = number | bigint | boolean | string;
export type GgufValue =
  | { type: GgufScalarType; value: GgufScalar }
  | { array: GgufScalarType; values: readonly GgufScalar[] };

export const u32 = (value: number): GgufValue => ({ type: 'u32', value });
export const f32 = (value: number): GgufValue => ({ type: 'f32', value });
export const bool = (value: boolean): GgufValue => ({ type: 'bool', value });
export const str = (value: string): GgufValue => ({ type: 'string', value });
export const array = (type: GgufScalarType, values: readonly GgufScalar[]): GgufValue => ({ array: type, values });

export type TensorType = 'f32' | 'f16' | 'bf16' | 'q8_0' | 'q4_0' | 'q4_1';
export const TENSOR_TYPE_IDS: Record<TensorType, number> = { f32: 0, f16: 1, q4_0: 2, q4_1: 3, q8_0: 8, bf16: 30 };
/** Elements of a block for the quantised types. */
const BLOCK = 32;

export interface GgufTensor {
  name: string;
  /** GGUF order: shape[0] is the row length (the input width of a linear layer). */
  shape: readonly number[];
  type: TensorType;
  /** As many values as the shape's product, rows one after the other. */
  values: Float32Array;
}

export interface GgufFile {
  metadata: Record<string, GgufValue>;
  tensors: readonly GgufTensor[];
  /** Default 32. */
  alignment?: number;
}

/** Grows by doubling; keeps the write calls short. */
class ByteWriter {
  private bytes = Buffer.alloc(1 << 16);
  private used = 0;

  private room(size: number): number {
    const at = this.used;
    while (at + size > this.bytes.length) this.bytes = Buffer.concat([this.bytes, Buffer.alloc(this.bytes.length)]);
    this.used = at + size;
    return at;
  }
  u32(value: number): void {
    const at = this.room(4);
    this.bytes.writeUInt32LE(value, at);
  }
  u64(value: number | bigint): void {
    const at = this.room(8);
    this.bytes.writeBigUInt64LE(BigInt(value), at);
  }
  string(value: string): void {
    const data = Buffer.from(value, 'utf8');
    this.u64(data.length);
    this.raw(data);
  }
  raw(data: Uint8Array): void {
    const at = this.room(data.length);
    this.bytes.set(data, at);
  }
  scalar(type: GgufScalarType, value: GgufScalar): void {
    if (type === 'string') {
      this.string(String(value));
      return;
    }
    const size = { u8: 1, i8: 1, bool: 1, u16: 2, i16: 2, u32: 4, i32: 4, f32: 4, u64: 8, i64: 8, f64: 8 }[type];
    const at = this.room(size);
    const b = this.bytes;
    if (type === 'u8' || type === 'bool') b.writeUInt8(Number(value), at);
    else if (type === 'i8') b.writeInt8(Number(value), at);
    else if (type === 'u16') b.writeUInt16LE(Number(value), at);
    else if (type === 'i16') b.writeInt16LE(Number(value), at);
    else if (type === 'u32') b.writeUInt32LE(Number(value), at);
    else if (type === 'i32') b.writeInt32LE(Number(value), at);
    else if (type === 'f32') b.writeFloatLE(Number(value), at);
    else if (type === 'f64') b.writeDoubleLE(Number(value), at);
    else if (type === 'u64') b.writeBigUInt64LE(BigInt(value as number), at);
    else b.writeBigInt64LE(BigInt(value as number), at);
  }
  align(alignment: number): void {
    const rest = this.used % alignment;
    // The buffer is zeroed when made, so padding is only a longer `used`.
    if (rest !== 0) this.room(alignment - rest);
  }
  get length(): number {
    return this.used;
  }
  take(): Buffer {
    return this.bytes.subarray(0, this.used);
  }
}

/** The whole file as bytes. */
export function encodeGguf(file: GgufFile): Buffer {
  const alignment = file.alignment ?? 32;
  const metadata = Object.entries(file.metadata);
  if (file.alignment !== undefined) metadata.push(['general.alignment', u32(alignment)]);
  const w = new ByteWriter();
  w.raw(Buffer.from('GGUF'));
  w.u32(3);
  w.u64(file.tensors.length);
  w.u64(metadata.length);
  for (const [key, value] of metadata) {
    w.string(key);
    if ('array' in value) {
      w.u32(ARRAY_TYPE);
      w.u32(VALUE_TYPES[value.array]);
      w.u64(value.values.length);
      for (const item of value.values) w.scalar(value.array, item);
    } else {
      w.u32(VALUE_TYPES[value.type]);
      w.scalar(value.type, value.value);
    }
  }
  const blobs = file.tensors.map(encodeTensor);
  let offset = 0;
  file.tensors.forEach((tensor, index) => {
    w.string(tensor.name);
    w.u32(tensor.shape.length);
    for (const size of tensor.shape) w.u64(size);
    w.u32(TENSOR_TYPE_IDS[tensor.type]);
    w.u64(offset);
    offset += Math.ceil((blobs[index] as Buffer).length / alignment) * alignment;
  });
  w.align(alignment);
  for (const blob of blobs) {
    w.raw(blob);
    w.align(alignment);
  }
  return Buffer.from(w.take());
}

export function writeGguf(path: string, file: GgufFile): void {
  writeFileSync(path, encodeGguf(file));
}

function encodeTensor(tensor: GgufTensor): Buffer {
  const elements = tensor.shape.reduce((a, b) => a * b, 1);
  if (elements !== tensor.values.length)
    throw new Error(`${tensor.name}: ${elements} by shape, ${tensor.values.length} given`);
  if (tensor.type.startsWith('q') && (tensor.shape[0] ?? 0) % BLOCK !== 0) {
    throw new Error(`${tensor.name}: rows of ${tensor.shape[0]} do not divide into blocks of ${BLOCK}`);
  }
  return encodeValues(tensor.type, tensor.values);
}

export function encodeValues(type: TensorType, values: Float32Array): Buffer {
  if (type === 'f32') return Buffer.from(values.slice().buffer);
  if (type === 'f16' || type === 'bf16') {
    const out = Buffer.alloc(values.length * 2);
    const convert = type === 'f16' ? toHalf : toBrainFloat;
    values.forEach((value, i) => {
      out.writeUInt16LE(convert(value), i * 2);
    });
    return out;
  }
  const blockBytes = { q8_0: 34, q4_0: 18, q4_1: 20 }[type];
  const out = Buffer.alloc((values.length / BLOCK) * blockBytes);
  for (let i = 0; i * BLOCK < values.length; i++) {
    const block = values.subarray(i * BLOCK, (i + 1) * BLOCK);
    const at = out.subarray(i * blockBytes, (i + 1) * blockBytes);
    if (type === 'q8_0') quantizeQ8(block, at);
    else if (type === 'q4_0') quantizeQ4Symmetric(block, at);
    else quantizeQ4Affine(block, at);
  }
  return out;
}

/** Block: f16 scale, 32 × i8. */
function quantizeQ8(block: Float32Array, out: Buffer): void {
  const scale = block.reduce((most, x) => Math.max(most, Math.abs(x)), 0) / 127;
  out.writeUInt16LE(toHalf(scale), 0);
  block.forEach((x, i) => {
    out.writeInt8(scale === 0 ? 0 : Math.round(x / scale), 2 + i);
  });
}

/** Block: f16 scale, 16 bytes; low nibbles hold the first half. The scale's sign makes the largest value exactly −8. */
function quantizeQ4Symmetric(block: Float32Array, out: Buffer): void {
  const extreme = block.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most), 0);
  const scale = extreme / -8;
  out.writeUInt16LE(toHalf(scale), 0);
  const nibble = (x: number): number => (scale === 0 ? 8 : Math.min(15, Math.max(0, Math.floor(x / scale + 8.5))));
  for (let i = 0; i < 16; i++) out[2 + i] = nibble(block[i] as number) | (nibble(block[i + 16] as number) << 4);
}

/** Block: f16 scale, f16 minimum, 16 bytes. */
function quantizeQ4Affine(block: Float32Array, out: Buffer): void {
  const least = Math.min(...block);
  const scale = (Math.max(...block) - least) / 15;
  out.writeUInt16LE(toHalf(scale), 0);
  out.writeUInt16LE(toHalf(least), 2);
  const nibble = (x: number): number =>
    scale === 0 ? 0 : Math.min(15, Math.max(0, Math.floor((x - least) / scale + 0.5)));
  for (let i = 0; i < 16; i++) out[4 + i] = nibble(block[i] as number) | (nibble(block[i + 16] as number) << 4);
}

const scratch = new DataView(new ArrayBuffer(4));

/** IEEE binary16, round to nearest even. */
export function toHalf(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fff_ffff;
  if (magnitude > 0x7f80_0000) return sign | 0x7e00;
  if (magnitude >= 0x4780_0000) return sign | 0x7c00;
  if (magnitude < 0x3880_0000) {
    // Subnormal halves are multiples of 2^-24; the product is exact in a double, so only this rounding happens.
    scratch.setUint32(0, magnitude);
    return sign | roundHalfEven(scratch.getFloat32(0) * 2 ** 24);
  }
  const exponentAndTop = magnitude - 0x3800_0000;
  const rounded = exponentAndTop + 0xfff + ((exponentAndTop >>> 13) & 1);
  return sign | (rounded >>> 13);
}

function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? low + 1 : low;
}

/** bfloat16: the upper half of a float32, round to nearest even. */
export function toBrainFloat(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  if ((bits & 0x7fff_ffff) > 0x7f80_0000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}
