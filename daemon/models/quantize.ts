/**
 * Base models in fewer bits: a GGUF in f32, f16 or bf16 becomes one in q4_0, iq4_nl, q8_0, …, tensor by tensor, so that memory
 * does not grow with the model. iq4_nl is ggml's nearest to the NF4 of QLoRA (Dettmers et al. 2023): sixteen uneven levels.
 */
import { randomUUID } from 'node:crypto';
import { closeSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, statfsSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { QuantizedType } from '../../addon/quantize.ts';
import { syncDirectory } from '../adapters/durable.ts';
import type { Progress } from './download.ts';
import { type GgufHeader, readGgufHeader } from './gguf.ts';
import { ModelFileError } from './gguf-errors.ts';
import { entryString, entryU32 } from './gguf-write.ts';
import { describeModel } from './inspect.ts';
import { rewriteModel } from './rewrite.ts';
import { chooseType, FILE_TYPES, isFloatType } from './tensor-choice.ts';

/** ggml's version of its block formats. */
const QUANTIZATION_VERSION = 2;
/** Left free on the disk. */
const DISK_RESERVE_BYTES = 64 * 1024 * 1024;

export interface QuantizeOptions {
  source: string;
  target: string;
  type: QuantizedType;
  /** Allow a source that is quantised already: its errors stay, and new ones come on top. */
  requantize?: boolean;
  threads?: number;
  onProgress?: (progress: Progress) => void;
  /** Between pieces, so that signals and progress get their turn. */
  signal?: AbortSignal;
}

export interface QuantizedModel {
  path: string;
  bytes: number;
  /** Of the source. */
  sourceBytes: number;
  /** How many weights got which type. */
  types: Record<string, number>;
  seconds: number;
}

/** The target is there whole or not at all. @throws ModelFileError */
export async function quantizeModel(options: QuantizeOptions): Promise<QuantizedModel> {
  const { source, target, type, onProgress, signal } = options;
  const header = readGgufHeader(source);
  const model = describeModel(header);
  checkSource(header, options);
  const entries = new Map([
    ['general.file_type', entryU32('general.file_type', FILE_TYPES[type])],
    ['general.quantization_version', entryU32('general.quantization_version', QUANTIZATION_VERSION)],
    [
      'modelfactory.converted',
      entryString(
        'modelfactory.converted',
        `${type} from ${typesOf(header)} (${model.name || 'a model without a name'}), tensor by tensor`,
      ),
    ],
  ]);
  const typeOf = (tensor: GgufHeader['tensors'][number]) => chooseType(tensor, type);
  const threads = options.threads === undefined ? {} : { threads: options.threads };
  const rewrite = rewriteModel({ path: source, header, typeOf, entries, ...threads });
  const started = performance.now();
  mkdirSync(dirname(target), { recursive: true });
  // Ends as models that are being fetched do, and is no .gguf until it is whole.
  const temporary = join(dirname(target), `.${randomUUID()}.part`);
  let fd: number | null = null;
  try {
    const { bavail, bsize } = statfsSync(dirname(target));
    if (bavail * bsize < rewrite.fileBytes + DISK_RESERVE_BYTES) throw diskFull(rewrite.fileBytes, target);
    fd = openSync(temporary, 'wx', 0o644);
    let doneBytes = 0;
    for await (const chunk of rewrite.chunks) {
      for (let at = 0; at < chunk.byteLength; ) at += writeSync(fd, chunk, at, chunk.byteLength - at);
      doneBytes += chunk.byteLength;
      onProgress?.({ label: `${type}`, doneBytes, totalBytes: rewrite.fileBytes });
      await new Promise((resolve) => setImmediate(resolve));
      signal?.throwIfAborted();
    }
    fsyncSync(fd);
    closeSync(fd);
    fd = null;
    renameSync(temporary, target);
    await syncDirectory(dirname(target));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw code === 'ENOSPC' || code === 'EDQUOT' ? diskFull(rewrite.fileBytes, target) : error;
  } finally {
    rewrite.close();
    if (fd !== null) closeSync(fd);
    rmSync(temporary, { force: true });
  }
  const types: Record<string, number> = {};
  for (const tensor of header.tensors) {
    const chosen = typeOf(tensor);
    types[chosen] = (types[chosen] ?? 0) + tensor.shape.reduce((a, b) => a * b, 1);
  }
  return {
    path: target,
    bytes: rewrite.fileBytes,
    sourceBytes: header.fileBytes,
    types,
    seconds: (performance.now() - started) / 1000,
  };
}

function checkSource(header: GgufHeader, { source, target, requantize }: QuantizeOptions): void {
  if (source === target)
    throw new ModelFileError('unreadable', 'source and target are the same file; name another target');
  const packed = header.tensors.find((tensor) => tensor.shape.length > 1 && !isFloatType(tensor.type));
  if (packed && !requantize) {
    throw new ModelFileError(
      'unsupported',
      `${packed.name} is quantised already (${packed.type}); convert from an f16, bf16 or f32 file, or say that losing precision twice is meant (--requantize)`,
    );
  }
}

/** The types of the matrices, most first. */
function typesOf(header: GgufHeader): string {
  const counts = new Map<string, number>();
  for (const { shape, type } of header.tensors) if (shape.length > 1) counts.set(type, (counts.get(type) ?? 0) + 1);
  return [...counts.entries()]
    .sort((a, b) => b[1] - a[1])
    .map(([type]) => type)
    .join(', ');
}

function diskFull(bytes: number, target: string): ModelFileError {
  return new ModelFileError(
    'unreadable',
    `the disk has too little room for ${(bytes / 1e6).toFixed(0)} MB in ${dirname(target)}; free some space and try again`,
  );
}
