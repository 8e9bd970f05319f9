/** A model of its own: the base with the adapter's change added to its weights, W' = W + scale · B · A. */
import { type FileHandle, open, stat } from 'node:fs/promises';
import type { LowRankChange, QuantizedType } from '../../../addon/quantize.ts';
import type { AdapterTensorPair } from '../../../addon/types.ts';
import { type GgufTensor, readGgufHeader } from '../../models/gguf.ts';
import { ModelFileError } from '../../models/gguf-errors.ts';
import { entryString, entryU32 } from '../../models/gguf-write.ts';
import { type BaseShape, describeModel } from '../../models/inspect.ts';
import { rewriteModel } from '../../models/rewrite.ts';
import { chooseType, FILE_TYPES, isFloatType } from '../../models/tensor-choice.ts';
import { AdapterError } from '../errors.ts';
import type { AdapterFormat } from '../parsed.ts';
import { floatsOf, readHalf } from './weights.ts';

/** Plain data: it crosses to the thread that merges. */
export interface MergeJob {
  model: { path: string; id: string; digest: string; bytes: number; modifiedMs: number };
  base: BaseShape;
  adapter: { name: string; digest: string; file: string; format: AdapterFormat; pairs: readonly AdapterTensorPair[] };
  /** null: every tensor keeps its type, but those that are changed get at least 8 bits. */
  type: QuantizedType | null;
  threads?: number;
  /** Of the cores' time while the engine serves (ConvertOptions.share). */
  share?: number;
}

export interface Merge {
  fileBytes: number;
  chunks: AsyncGenerator<Uint8Array, void, undefined>;
  close(): Promise<void>;
}

/**
 * Opens both files at once: what happens to their names afterwards does not matter. Memory: one piece of rows and the pair of
 * one tensor.
 * @throws AdapterError, ModelFileError
 */
export async function openMerge(job: MergeJob): Promise<Merge> {
  const { model, base, adapter, type } = job;
  const file = await openAdapter(adapter.file);
  try {
    await checkUnchanged(model);
    const header = readGgufHeader(model.path);
    const pairs = new Map(adapter.pairs.map((pair) => [`blk.${pair.layer}.${pair.target}.weight`, pair]));
    checkShape(describeModel(header).shape, base);
    const typeOf = (tensor: GgufTensor): string =>
      type === null ? ownType(tensor, pairs.has(tensor.name)) : chooseType(tensor, type);
    const entries = new Map([
      [
        'modelfactory.merged',
        entryString(
          'modelfactory.merged',
          `adapter ${adapter.name} (sha256:${adapter.digest}) into ${model.id} (sha256:${model.digest})`,
        ),
      ],
    ]);
    const widened = header.tensors.some((tensor) => typeOf(tensor) !== tensor.type);
    if (widened) {
      entries.set('general.file_type', entryU32('general.file_type', FILE_TYPES[type ?? 'q8_0']));
      entries.set('general.quantization_version', entryU32('general.quantization_version', 2));
    }
    const rewrite = rewriteModel({
      path: model.path,
      header,
      typeOf,
      entries,
      changeOf: async (tensor) => {
        const pair = pairs.get(tensor.name);
        return pair ? await changeOf(file, { format: adapter.format, base }, pair) : null;
      },
      ...(job.threads !== undefined && { threads: job.threads }),
      ...(job.share !== undefined && { share: job.share }),
    });
    const close = async (): Promise<void> => {
      rewrite.close();
      await file.close();
    };
    return { fileBytes: rewrite.fileBytes, chunks: rewrite.chunks, close };
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function changeOf(
  file: FileHandle,
  facts: { format: AdapterFormat; base: BaseShape },
  pair: AdapterTensorPair,
): Promise<LowRankChange> {
  const half = async (which: 'a' | 'b') =>
    floatsOf(await readHalf(file, facts, pair, which, { order: 'base', dtype: 'f32' }));
  return { rank: pair.rank, scale: pair.scale, a: await half('a'), b: await half('b') };
}

/**
 * A weight of few bits lies on a level; most changes are smaller than half a step to the next, and rounding would take them all
 * back. So what is changed gets at least 8 bits.
 */
function ownType(tensor: GgufTensor, isChanged: boolean): string {
  if (!isChanged || isFloatType(tensor.type) || tensor.type === 'q8_0') return tensor.type;
  return chooseType(tensor, 'q8_0');
}

export async function openAdapter(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') throw new AdapterError('not_found', 'the adapter was removed just now', 'model');
    throw error;
  }
}

async function checkUnchanged({ path, bytes, modifiedMs }: MergeJob['model']): Promise<void> {
  const now = await stat(path).catch(() => null);
  if (now === null || now.size !== bytes || now.mtimeMs !== modifiedMs) throw changed();
}

function checkShape(found: BaseShape, expected: BaseShape): void {
  if (JSON.stringify(found.targets) !== JSON.stringify(expected.targets) || found.layers !== expected.layers)
    throw changed();
}

function changed(): ModelFileError {
  return new ModelFileError(
    'corrupt',
    'the base model file was changed since the daemon started, so a merge would be with another model; put the file back or restart the daemon',
  );
}
