/** Lays out GGUF files of version 3: the head as bytes, and where each tensor goes. Format: see gguf.ts. */
import { STRING_TYPE, TENSOR_TYPES, VALUE_TYPES } from './gguf-types.ts';

const VERSION = 3;
const TYPE_IDS = new Map([...TENSOR_TYPES].map(([id, info]) => [info.name, { id, info }]));
const VALUE_IDS = new Map([...VALUE_TYPES].map(([id, { name }]) => [name, id]));

export interface TensorPlan {
  name: string;
  /** GGUF order: shape[0] is the row length. */
  shape: readonly number[];
  /** ggml's name of the type in lower case. */
  type: string;
}

export interface GgufLayout {
  /** Everything before the tensor data, padding included. */
  head: Buffer;
  /** In the given order; `padding` bytes of zeros follow each. */
  tensors: { bytes: number; padding: number }[];
  fileBytes: number;
}

/** `entries`: metadata as encoded by `entry…` or copied from another file. */
export function layoutGguf(
  entries: readonly Uint8Array[],
  tensors: readonly TensorPlan[],
  alignment: number = 32,
): GgufLayout {
  const start = Buffer.alloc(24);
  start.write('GGUF', 'latin1');
  start.writeUInt32LE(VERSION, 4);
  start.writeBigUInt64LE(BigInt(tensors.length), 8);
  start.writeBigUInt64LE(BigInt(entries.length), 16);
  const parts: Uint8Array[] = [start, ...entries];
  let offset = 0;
  const placed = tensors.map(({ name, shape, type }) => {
    const { id } = known(type);
    const numbers = Buffer.alloc(4 + shape.length * 8 + 4 + 8);
    numbers.writeUInt32LE(shape.length, 0);
    for (const [i, size] of shape.entries()) numbers.writeBigUInt64LE(BigInt(size), 4 + i * 8);
    numbers.writeUInt32LE(id, 4 + shape.length * 8);
    numbers.writeBigUInt64LE(BigInt(offset), 8 + shape.length * 8);
    parts.push(string(name), numbers);
    const bytes = tensorBytes(type, shape);
    const padding = paddingOf(bytes, alignment);
    offset += bytes + padding;
    return { bytes, padding };
  });
  const headBytes = parts.reduce((sum, part) => sum + part.byteLength, 0);
  parts.push(Buffer.alloc(paddingOf(headBytes, alignment)));
  const head = Buffer.concat(parts);
  return { head, tensors: placed, fileBytes: head.byteLength + offset };
}

/** Bytes of a tensor, or of some of its rows: `shape` may be [width, rows]. */
export function tensorBytes(type: string, shape: readonly number[]): number {
  const { info } = known(type);
  return (shape.reduce((a, b) => a * b, 1) / info.blockElements) * info.blockBytes;
}

/** ggml's number of a type. */
export function tensorTypeId(type: string): number {
  return known(type).id;
}

/** Values that a type packs together; rows are multiples of it. */
export function blockElements(type: string): number {
  return known(type).info.blockElements;
}

export function entryString(key: string, value: string): Buffer {
  return Buffer.concat([string(key), u32(STRING_TYPE), string(value)]);
}

export function entryU32(key: string, value: number): Buffer {
  return Buffer.concat([string(key), u32(VALUE_IDS.get('u32') as number), u32(value)]);
}

export function entryF32(key: string, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return Buffer.concat([string(key), u32(VALUE_IDS.get('f32') as number), bytes]);
}

function known(type: string): { id: number; info: { blockElements: number; blockBytes: number } } {
  const found = TYPE_IDS.get(type);
  if (!found) throw new Error(`invariant broken: ${type} is no tensor type`);
  return found;
}

function paddingOf(bytes: number, alignment: number): number {
  return (alignment - (bytes % alignment)) % alignment;
}

function string(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8');
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(bytes.length));
  return Buffer.concat([length, bytes]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}
