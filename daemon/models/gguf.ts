/**
 * Strict reading of GGUF headers, so that C++ opens only files whose every claim was checked against the file itself.
 * Reads the header and nothing else, in a bounded window.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
 */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { FileWindow } from './file-window.ts';
import { ModelFileError } from './gguf-errors.ts';
import { GGUF_LIMITS } from './gguf-limits.ts';
import { ARRAY_TYPE, STRING_TYPE, TENSOR_TYPES, VALUE_TYPES } from './gguf-types.ts';

export type GgufScalar = number | bigint | boolean | string;
export interface GgufArray {
  elementType: string;
  length: number;
  /** Only of short arrays of numbers; of the others the type and length are known. */
  values?: readonly (number | bigint | boolean)[];
}
/** A string longer than what is kept in memory. */
export interface GgufLongString {
  skippedBytes: number;
}
export type GgufValue = { type: string; value: GgufScalar | GgufArray | GgufLongString };

export interface GgufTensor {
  name: string;
  /** GGUF order: shape[0] is the row length. Between 1 and 4 dimensions. */
  shape: number[];
  /** ggml's name of the type in lower case: f32, q4_0, … */
  type: string;
  /** First byte, from the beginning of the file. */
  offset: number;
  bytes: number;
}

export interface GgufHeader {
  version: number;
  alignment: number;
  metadata: ReadonlyMap<string, GgufValue>;
  /** Where each entry lies in the file, from its key's length to its value's end, so that a copy keeps it to the byte. */
  spans: ReadonlyMap<string, { offset: number; bytes: number }>;
  tensors: GgufTensor[];
  /** Where the tensor data begins. */
  dataOffset: number;
  fileBytes: number;
}

/** Opens only regular files, and never waits for a pipe's other end. */
export function openRegularFile(path: string): { fd: number; bytes: number } {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'error';
    throw new ModelFileError('unreadable', `cannot open ${path} (${code}); check that the file exists and may be read`);
  }
  const stat = fstatSync(fd);
  if (!stat.isFile()) {
    closeSync(fd);
    throw new ModelFileError('unreadable', `${path} is not a regular file; give the path of a .gguf file`);
  }
  return { fd, bytes: stat.size };
}

/** @throws ModelFileError */
export function readGgufHeader(path: string, headerBytesMax: number = GGUF_LIMITS.headerBytesMax): GgufHeader {
  const { fd, bytes } = openRegularFile(path);
  try {
    return parseHeader(new FileWindow(fd, bytes, headerBytesMax, GGUF_LIMITS.windowBytes), bytes);
  } finally {
    closeSync(fd);
  }
}

function parseHeader(file: FileWindow, fileBytes: number): GgufHeader {
  if (fileBytes < 4 || file.bytes(4, 'the magic number').toString('latin1') !== 'GGUF') {
    throw new ModelFileError('not_gguf', 'the file does not begin with "GGUF"; give a model in GGUF format');
  }
  const version = file.u32('the version');
  if (version !== 2 && version !== 3) {
    const why = (version & 0xffff) === 0 ? 'it is big-endian' : `it is version ${version}`;
    throw new ModelFileError(
      'not_gguf',
      `${why}, and only little-endian GGUF of version 2 or 3 is read; convert it anew`,
    );
  }
  const tensorCount = limited(file.u64('the number of tensors'), GGUF_LIMITS.tensorsMax, 'tensors');
  const metadataCount = limited(
    file.u64('the number of metadata entries'),
    GGUF_LIMITS.metadataMax,
    'metadata entries',
  );

  const metadata = new Map<string, GgufValue>();
  const spans = new Map<string, { offset: number; bytes: number }>();
  for (let i = 0; i < metadataCount; i++) {
    const offset = file.position;
    const key = readName(file, GGUF_LIMITS.keyBytesMax, `metadata key ${i}`);
    if (metadata.has(key))
      throw new ModelFileError('corrupt', `metadata key ${key} occurs twice; convert the model anew`);
    metadata.set(key, readValue(file, key));
    spans.set(key, { offset, bytes: file.position - offset });
  }
  const alignment = alignmentOf(metadata);

  const names = new Set<string>();
  const tensors: GgufTensor[] = [];
  /** End of the tensor before, from the beginning of the data. */
  let expected = 0;
  for (let i = 0; i < tensorCount; i++) {
    const tensor = readTensor(file, i);
    if (names.has(tensor.name)) {
      throw new ModelFileError('corrupt', `tensor ${tensor.name} occurs twice; convert the model anew`);
    }
    names.add(tensor.name);
    // One after the other, padded: nothing overlaps, nothing hides between (ggml demands the same).
    if (tensor.offset !== expected) {
      throw new ModelFileError(
        'corrupt',
        `tensor ${tensor.name} is said to begin at ${tensor.offset} where ${expected} is due; convert the model anew`,
      );
    }
    expected = padded(expected + tensor.bytes, alignment);
    tensors.push(tensor);
  }

  const dataOffset = padded(file.position, alignment);
  for (const tensor of tensors) {
    tensor.offset += dataOffset;
    if (tensor.offset + tensor.bytes > fileBytes) {
      throw new ModelFileError(
        'truncated',
        `tensor ${tensor.name} ends at byte ${tensor.offset + tensor.bytes} but the file has ${fileBytes}; it was cut short, get it again`,
      );
    }
  }
  return { version, alignment, metadata, spans, tensors, dataOffset, fileBytes };
}

function limited(count: number, most: number, what: string): number {
  if (count > most)
    throw new ModelFileError('too_large', `the header claims ${count} ${what}; at most ${most} are read`);
  return count;
}

function padded(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment;
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

function readName(file: FileWindow, bytesMax: number, what: string): string {
  const length = file.u64(`the length of ${what}`);
  if (length === 0 || length > bytesMax) {
    throw new ModelFileError('corrupt', `${what} has ${length} bytes; between 1 and ${bytesMax} are allowed`);
  }
  return decode(file.bytes(length, what), what);
}

function decode(bytes: Buffer, what: string): string {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new ModelFileError('corrupt', `${what} is not UTF-8; the file is damaged, get it again`);
  }
}

function readValue(file: FileWindow, key: string): GgufValue {
  const type = file.u32(`the type of ${key}`);
  if (type === STRING_TYPE) return { type: 'string', value: readString(file, key) };
  if (type !== ARRAY_TYPE) {
    const info = valueType(type, key);
    return { type: info.name, value: readScalar(file, info, key) };
  }
  const elementType = file.u32(`the element type of ${key}`);
  const length = file.u64(`the length of ${key}`);
  if (length > GGUF_LIMITS.arrayElementsMax) {
    throw new ModelFileError(
      'too_large',
      `${key} claims ${length} elements; at most ${GGUF_LIMITS.arrayElementsMax} are read`,
    );
  }
  if (elementType === STRING_TYPE) {
    for (let i = 0; i < length; i++) file.skip(file.u64(`a string of ${key}`), `a string of ${key}`);
    return { type: 'array', value: { elementType: 'string', length } };
  }
  const info = valueType(elementType, key);
  if (length > GGUF_LIMITS.arrayKeptMax) {
    file.skip(length * info.bytes, key);
    return { type: 'array', value: { elementType: info.name, length } };
  }
  const values = Array.from({ length }, () => readScalar(file, info, key));
  return { type: 'array', value: { elementType: info.name, length, values } };
}

function valueType(type: number, key: string): { name: string; bytes: number } {
  const info = VALUE_TYPES.get(type);
  if (!info) {
    const what = type === ARRAY_TYPE ? 'an array of arrays' : `of the unknown type ${type}`;
    throw new ModelFileError('corrupt', `metadata ${key} is ${what}; convert the model anew`);
  }
  return info;
}

function readString(file: FileWindow, key: string): string | GgufLongString {
  const length = file.u64(`the length of ${key}`);
  if (length > GGUF_LIMITS.stringKeptBytesMax) {
    file.skip(length, key);
    return { skippedBytes: length };
  }
  return decode(file.bytes(length, key), key);
}

function readScalar(file: FileWindow, info: { name: string; bytes: number }, key: string): number | bigint | boolean {
  const b = file.bytes(info.bytes, key);
  switch (info.name) {
    case 'u8':
      return b.readUInt8(0);
    case 'i8':
      return b.readInt8(0);
    case 'u16':
      return b.readUInt16LE(0);
    case 'i16':
      return b.readInt16LE(0);
    case 'u32':
      return b.readUInt32LE(0);
    case 'i32':
      return b.readInt32LE(0);
    case 'f32':
      return b.readFloatLE(0);
    case 'bool':
      return b.readUInt8(0) !== 0;
    case 'u64':
      return b.readBigUInt64LE(0);
    case 'i64':
      return b.readBigInt64LE(0);
    default:
      return b.readDoubleLE(0);
  }
}

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>): number {
  const entry = metadata.get('general.alignment');
  if (!entry) return 32;
  const value = entry.value;
  const valid =
    entry.type === 'u32' &&
    typeof value === 'number' &&
    value >= 1 &&
    value <= GGUF_LIMITS.alignmentMax &&
    (value & (value - 1)) === 0;
  if (!valid) throw new ModelFileError('corrupt', 'general.alignment is no power of two; convert the model anew');
  return value;
}

/** `offset` is still relative to the data. */
function readTensor(file: FileWindow, index: number): GgufTensor {
  const name = readName(file, GGUF_LIMITS.tensorNameBytesMax, `the name of tensor ${index}`);
  const dimensions = file.u32(`the shape of ${name}`);
  if (dimensions < 1 || dimensions > 4) {
    throw new ModelFileError('corrupt', `tensor ${name} has ${dimensions} dimensions; ggml has 1 to 4`);
  }
  const shape: number[] = [];
  let elements = 1;
  for (let i = 0; i < dimensions; i++) {
    const size = file.u64(`the shape of ${name}`);
    elements *= size;
    if (size === 0 || !Number.isSafeInteger(elements)) {
      throw new ModelFileError(
        'corrupt',
        `tensor ${name} has a dimension of ${size}, which can't be; get the file again`,
      );
    }
    shape.push(size);
  }
  const typeId = file.u32(`the type of ${name}`);
  const info = TENSOR_TYPES.get(typeId);
  if (!info) {
    throw new ModelFileError('unsupported', `tensor ${name} is of type ${typeId}, which this ggml does not know`);
  }
  const rowLength = shape[0] as number;
  if (rowLength % info.blockElements !== 0) {
    throw new ModelFileError(
      'corrupt',
      `tensor ${name} has rows of ${rowLength}, no multiple of the ${info.blockElements} that ${info.name} packs together`,
    );
  }
  const bytes = (elements / info.blockElements) * info.blockBytes;
  if (!Number.isSafeInteger(bytes)) throw new ModelFileError('corrupt', `tensor ${name} is larger than any file`);
  return { name, shape, type: info.name, offset: file.u64(`the offset of ${name}`), bytes };
}
