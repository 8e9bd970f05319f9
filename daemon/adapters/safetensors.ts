/**
 * Strict reading of safetensors headers: eight bytes of length, that many of JSON, then the tensors' bytes without gaps.
 * Format: https://github.com/huggingface/safetensors#format
 */
import { z } from 'zod';
import { AdapterError } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { parseStrictJson } from './strict-json.ts';

const DTYPE_BYTES: ReadonlyMap<string, number> = new Map([
  ['BOOL', 1],
  ['U8', 1],
  ['I8', 1],
  ['F8_E4M3', 1],
  ['F8_E5M2', 1],
  ['F8_E8M0', 1],
  ['I16', 2],
  ['U16', 2],
  ['F16', 2],
  ['BF16', 2],
  ['I32', 4],
  ['U32', 4],
  ['F32', 4],
  ['I64', 8],
  ['U64', 8],
  ['F64', 8],
  ['C64', 8],
]);

export interface SafetensorsTensor {
  name: string;
  dtype: string;
  /** As in PyTorch: the last is the row length. */
  shape: number[];
  /** First byte, from the beginning of the file. */
  offset: number;
  bytes: number;
}

export interface SafetensorsHeader {
  metadata: Record<string, string>;
  tensors: SafetensorsTensor[];
  fileBytes: number;
}

const whole = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const entrySchema = z.strictObject({
  dtype: z.string(),
  shape: z.array(whole).max(8),
  data_offsets: z.tuple([whole, whole]),
});
const metadataSchema = z.record(z.string(), z.string());

/** Bytes of the JSON header, from the first eight bytes of the file. */
export function safetensorsHeaderBytes(first: Uint8Array, fileBytes: number): number {
  if (first.byteLength < 8 || fileBytes < 8) {
    throw corrupt(`the safetensors file has ${fileBytes} bytes, too few for a header; save it again`);
  }
  const length = Buffer.from(first.buffer, first.byteOffset, 8).readBigUInt64LE(0);
  if (length > BigInt(fileBytes - 8)) {
    throw corrupt(
      `the safetensors header claims ${length} bytes but the file has ${fileBytes}; it is no safetensors file or was cut short, get it again`,
    );
  }
  if (length > BigInt(ADAPTER_LIMITS.headerBytesMax)) {
    throw new AdapterError(
      'too_large',
      `the safetensors header has ${length} bytes; at most ${ADAPTER_LIMITS.headerBytesMax} are read for an adapter`,
    );
  }
  return Number(length);
}

/**
 * `head`: the file's bytes from the beginning to at least the end of the header.
 * @throws AdapterError
 */
export function parseSafetensorsHeader(head: Uint8Array, fileBytes: number): SafetensorsHeader {
  const headerBytes = safetensorsHeaderBytes(head.subarray(0, 8), fileBytes);
  if (head.byteLength < 8 + headerBytes) throw corrupt('the safetensors header was cut short; get the file again');
  const parsed = parseHeaderJson(head.subarray(8, 8 + headerBytes));
  const dataAt = 8 + headerBytes;

  const { __metadata__: rawMetadata, ...entries } = parsed;
  const metadata = metadataSchema.safeParse(rawMetadata ?? {});
  if (!metadata.success) throw corrupt('__metadata__ of the safetensors file is no map of strings; save it again');
  const names = Object.keys(entries);
  if (names.length > ADAPTER_LIMITS.tensorsMax) {
    throw new AdapterError(
      'too_large',
      `the file has ${names.length} tensors; at most ${ADAPTER_LIMITS.tensorsMax} are read for an adapter`,
    );
  }
  const tensors = names.map((name) => readEntry(name, entries[name], dataAt));
  checkLayout(tensors, dataAt, fileBytes);
  return { metadata: metadata.data, tensors, fileBytes };
}

function parseHeaderJson(bytes: Uint8Array): Record<string, unknown> {
  if (bytes[0] !== 0x7b) throw corrupt('the safetensors header does not begin with "{"; this is no safetensors file');
  let parsed: unknown;
  try {
    parsed = parseStrictJson(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    const what = error instanceof SyntaxError ? error.message : 'it is not UTF-8';
    throw corrupt(`the safetensors header is not valid (${what.slice(0, 200)}); save the file again`);
  }
  // It begins with "{" and it parsed, so it is an object.
  return parsed as Record<string, unknown>;
}

function readEntry(name: string, entry: unknown, dataAt: number): SafetensorsTensor {
  const shown = name.slice(0, 128);
  if (name.length > ADAPTER_LIMITS.tensorNameBytesMax) throw corrupt(`a tensor name has ${name.length} characters`);
  const result = entrySchema.safeParse(entry);
  if (!result.success) {
    throw corrupt(`the header's entry for tensor ${shown} is not {dtype, shape, data_offsets}; save the file again`);
  }
  const {
    dtype,
    shape,
    data_offsets: [begin, end],
  } = result.data;
  const size = DTYPE_BYTES.get(dtype);
  if (size === undefined) {
    throw new AdapterError(
      'unsupported',
      `tensor ${shown} is of type ${dtype.slice(0, 32)}; save the adapter in float32, float16 or bfloat16`,
    );
  }
  const bytes = shape.reduce((product, dimension) => product * dimension, size);
  if (!Number.isSafeInteger(bytes) || end - begin !== bytes) {
    throw corrupt(
      `tensor ${shown} of shape [${shape}] and type ${dtype} needs ${bytes} bytes but has ${end - begin}; save the file again`,
    );
  }
  return { name, dtype, shape, offset: dataAt + begin, bytes };
}

/** The format demands tensors one after the other from the first to the last byte: no gap, no overlap, nothing hidden. */
function checkLayout(tensors: readonly SafetensorsTensor[], dataAt: number, fileBytes: number): void {
  let expected = dataAt;
  for (const tensor of [...tensors].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
    if (tensor.offset !== expected) {
      const what = tensor.offset < expected ? 'overlaps the one before' : 'leaves a gap before it';
      throw corrupt(`tensor ${tensor.name.slice(0, 128)} ${what}; save the file again`);
    }
    expected += tensor.bytes;
  }
  if (expected !== fileBytes) {
    throw corrupt(
      `the tensors end at byte ${expected} but the file has ${fileBytes}; it was cut short or added to, get it again`,
    );
  }
}

function corrupt(message: string): AdapterError {
  return new AdapterError('corrupt', message);
}
