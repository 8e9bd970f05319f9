/** An adapter as one GGUF file, as llama.cpp's convert_lora_to_gguf.py writes it, for `llama-server --lora` and the like. */
import type { FileHandle } from 'node:fs/promises';
import { convertRows } from '../../../addon/quantize.ts';
import type { AdapterTensorPair } from '../../../addon/types.ts';
import { entryF32, entryString, entryU32, layoutGguf, type TensorPlan, tensorTypeId } from '../../models/gguf-write.ts';
import { FILE_TYPES } from '../../models/tensor-choice.ts';
import type { Dtype } from '../parsed.ts';
import { type AdapterFacts, type HalfName, halfShape, readHalf } from './weights.ts';

/** llama.cpp takes alpha 0 for "no alpha" and scales by 1. */
const ALPHA_IF_ALL_ARE_ZERO = 1;

export interface LoraGgufOptions extends AdapterFacts {
  file: FileHandle;
  name: string;
  /** What the adapter's base is called. */
  baseName: string;
  /** Type of all weights. Default float32, as in llama.cpp's own converter: with 16-bit weights it rounds the activations too. */
  dtype?: Dtype;
}

export interface LoraGguf {
  fileBytes: number;
  chunks: AsyncGenerator<Uint8Array, void, undefined>;
}

export function writeLoraGguf(options: LoraGgufOptions): LoraGguf {
  const { file, base, pairs, name, baseName, dtype = 'f32' } = options;
  const alpha = commonAlpha(pairs);
  const halves = pairs.flatMap((pair) =>
    (['a', 'b'] as const).map((half): [AdapterTensorPair, HalfName] => [pair, half]),
  );
  const tensors = halves.map(([pair, half]): TensorPlan => {
    const [rows, columns] = halfShape(pair, half, base);
    return { name: `blk.${pair.layer}.${pair.target}.weight.lora_${half}`, shape: [columns, rows], type: dtype };
  });
  const layout = layoutGguf(
    [
      entryString('general.architecture', base.architecture),
      entryString('general.type', 'adapter'),
      entryString('adapter.type', 'lora'),
      entryString('general.name', name),
      ...(baseName === ''
        ? []
        : [entryU32('general.base_model.count', 1), entryString('general.base_model.0.name', baseName)]),
      // In float32 as all readers have it.
      entryF32('adapter.lora.alpha', alpha),
      entryU32('general.file_type', FILE_TYPES[dtype]),
    ],
    tensors,
  );
  return { fileBytes: layout.fileBytes, chunks: write() };

  /** A GGUF has one alpha and each pair is scaled by alpha / rank; what differs goes into B. */
  function factorOf(pair: AdapterTensorPair): number {
    const factor = (pair.scale * pair.rank) / alpha;
    return Math.abs(factor - 1) < 1e-6 ? 1 : factor;
  }

  async function* write(): AsyncGenerator<Uint8Array, void, undefined> {
    yield layout.head;
    for (const [i, [pair, half]] of halves.entries()) {
      const factor = half === 'b' ? factorOf(pair) : 1;
      // Multiplied in float32, then made narrower, so that it is rounded once.
      const between = factor === 1 ? dtype : 'f32';
      const bytes = await readHalf(file, options, pair, half, { order: 'base', dtype: between, factor });
      const width = halfShape(pair, half, base)[1];
      yield between === dtype ? bytes : convertRows({ from: tensorTypeId(between), to: dtype, bytes, width });
      const padding = layout.tensors[i]?.padding ?? 0;
      if (padding > 0) yield Buffer.alloc(padding);
    }
  }
}

/** The alpha that most pairs have, so that fewest weights are touched. */
function commonAlpha(pairs: readonly AdapterTensorPair[]): number {
  const counts = new Map<number, number>();
  for (const { scale, rank } of pairs) {
    const alpha = Math.fround(scale * rank);
    if (alpha !== 0 && Number.isFinite(alpha)) counts.set(alpha, (counts.get(alpha) ?? 0) + 1);
  }
  return [...counts].sort((x, y) => y[1] - x[1])[0]?.[0] ?? ALPHA_IF_ALL_ARE_ZERO;
}
