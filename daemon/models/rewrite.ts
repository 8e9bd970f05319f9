/**
 * A model file written anew, tensor by tensor: other types, or weights with a low-rank change added. All metadata is kept to the
 * byte but for the entries given. Each piece computes and reads without pause: for a worker thread or a program of its own, never the thread that serves.
 */
import { closeSync, readSync } from 'node:fs';
import { convertRows, type LowRankChange, type QuantizedType } from '../../addon/quantize.ts';
import { type GgufHeader, type GgufTensor, openRegularFile } from './gguf.ts';
import { ModelFileError } from './gguf-errors.ts';
import { layoutGguf, tensorBytes, tensorTypeId } from './gguf-write.ts';

/** Values expanded at a time: 4 MB as float32, besides the same rows in their two types. */
const CHUNK_VALUES = 1024 * 1024;

export interface RewriteOptions {
  path: string;
  header: GgufHeader;
  /** Type of each tensor in the new file. */
  typeOf: (tensor: GgufTensor) => string;
  /** The change of a tensor's rows, in the file's order; read when its turn comes. */
  changeOf?: (tensor: GgufTensor) => Promise<LowRankChange | null>;
  /** Metadata that replaces or joins what is there, by key. */
  entries: ReadonlyMap<string, Uint8Array>;
  threads?: number;
  /** Of the cores' time, beside an engine that serves in the same process (ConvertOptions.share). */
  share?: number;
}

export interface Rewrite {
  fileBytes: number;
  /** The new file from front to back. Its end closes the source, also an early one; one that is never begun needs `close`. */
  chunks: AsyncGenerator<Uint8Array, void, undefined>;
  close(): void;
}

/** Opens the source at once; what is asked of it later is there whatever happens to its name. @throws ModelFileError */
export function rewriteModel(options: RewriteOptions): Rewrite {
  const { path, header, typeOf } = options;
  const { fd, bytes } = openRegularFile(path);
  try {
    if (bytes !== header.fileBytes)
      throw new ModelFileError('corrupt', `${path} was changed while it was read; try again`);
    const kept = [...header.spans].map(
      ([key, span]) => options.entries.get(key) ?? readExactly(fd, span.offset, span.bytes),
    );
    const added = [...options.entries].filter(([key]) => !header.spans.has(key)).map(([, entry]) => entry);
    const plans = header.tensors.map((tensor) => ({ name: tensor.name, shape: tensor.shape, type: typeOf(tensor) }));
    const layout = layoutGguf([...kept, ...added], plans, header.alignment);
    let isOpen = true;
    const close = () => {
      if (isOpen) closeSync(fd);
      isOpen = false;
    };
    return { fileBytes: layout.fileBytes, chunks: write(), close };

    async function* write(): AsyncGenerator<Uint8Array, void, undefined> {
      try {
        yield layout.head;
        for (const [i, tensor] of header.tensors.entries()) {
          yield* rewriteTensor(fd, tensor, (plans[i] as { type: string }).type, options);
          const padding = layout.tensors[i]?.padding ?? 0;
          if (padding > 0) yield Buffer.alloc(padding);
        }
      } finally {
        close();
      }
    }
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

async function* rewriteTensor(
  fd: number,
  tensor: GgufTensor,
  type: string,
  { changeOf, threads, share }: RewriteOptions,
): AsyncGenerator<Uint8Array, void, undefined> {
  const change = (await changeOf?.(tensor)) ?? null;
  const width = tensor.shape[0] as number;
  const rows = tensor.shape.slice(1).reduce((a, b) => a * b, 1);
  const rowsAtOnce = Math.max(1, Math.floor(CHUNK_VALUES / width));
  const rowBytes = tensorBytes(tensor.type, [width]);
  for (let row = 0; row < rows; row += rowsAtOnce) {
    const count = Math.min(rowsAtOnce, rows - row);
    const bytes = readExactly(fd, tensor.offset + row * rowBytes, count * rowBytes);
    if (change === null && type === tensor.type) {
      yield bytes;
      continue;
    }
    const part = change && { ...change, b: change.b.subarray(row * change.rank, (row + count) * change.rank) };
    try {
      const from = tensorTypeId(tensor.type);
      const cores = { ...(threads && { threads }), ...(share && { share }) };
      yield convertRows({ from, to: type as QuantizedType, bytes, width, ...cores, change: part });
    } catch (error) {
      if ((error as { code?: string }).code !== 'compute_failed') throw error;
      throw new ModelFileError(
        'unsupported',
        `${tensor.name} cannot be written as ${type}: ${(error as Error).message}`,
      );
    }
  }
}

/** @throws ModelFileError if the file is shorter than it was */
export function readExactly(fd: number, offset: number, bytes: number): Buffer {
  const buffer = Buffer.allocUnsafeSlow(bytes);
  for (let filled = 0; filled < bytes; ) {
    const read = readSync(fd, buffer, filled, bytes - filled, offset + filled);
    if (read === 0) throw new ModelFileError('truncated', 'the file became shorter while it was read; get it again');
    filled += read;
  }
  return buffer;
}
