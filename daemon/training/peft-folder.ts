/** A trained adapter as HF PEFT saves it: adapter_config.json and adapter_model.safetensors, float32, in HF's order of rows. */
import type { Target, TrainedPair } from '../../addon/types.ts';
import { PEFT_MODULES } from '../adapters/peft.ts';
import { CONFIG_FILE, PEFT_WEIGHTS_FILE } from '../adapters/store.ts';
import type { BaseShape } from '../models/inspect.ts';

export interface PeftAdapter {
  pairs: readonly TrainedPair[];
  rank: number;
  alpha: number;
  rslora: boolean;
  dropout: number;
  base: BaseShape;
  /** Goes into `base_model_name_or_path`. */
  baseName: string;
}

export interface NamedBytes {
  name: string;
  bytes: Uint8Array;
}

/** The two files of the folder, in memory. Pairs as the trainer gives them: rows of B in the GGUF's order. */
export function encodePeftFolder(adapter: PeftAdapter): NamedBytes[] {
  const tensors: { name: string; shape: [number, number]; values: Float32Array }[] = [];
  for (const { target, layer, a, b } of adapter.pairs) {
    const { in: width, out } = adapter.base.targets[target];
    if (a.length !== adapter.rank * width || b.length !== adapter.rank * out) {
      throw new Error(`the pair of ${target} in layer ${layer} has not the shape of rank ${adapter.rank}`);
    }
    const module = `base_model.model.model.layers.${layer}.${PEFT_MODULES[target]}`;
    tensors.push({ name: `${module}.lora_A.weight`, shape: [adapter.rank, width], values: a });
    const rows = unpermuteRows(b, out, adapter.rank, permutedHeads(target, adapter.base));
    tensors.push({ name: `${module}.lora_B.weight`, shape: [out, adapter.rank], values: rows });
  }
  tensors.sort((x, y) => (x.name < y.name ? -1 : 1));
  return [
    { name: CONFIG_FILE, bytes: Buffer.from(`${JSON.stringify(peftConfig(adapter), null, 2)}\n`) },
    { name: PEFT_WEIGHTS_FILE, bytes: encodeSafetensors(tensors) },
  ];
}

/** Heads by which the GGUF file permutes the rows of a target; 0 = none. */
export function permutedHeads(target: Target, base: BaseShape): number {
  if (!base.ropePermuted) return 0;
  return target === 'attn_q' ? base.heads : target === 'attn_k' ? base.kvHeads : 0;
}

/**
 * From the GGUF's order of rows (each head's halves interleaved, for rotating neighbours) back to HF's (one half after the
 * other): row i of a head of width w lies at 2i if i < w / 2, else at 2 (i − w / 2) + 1.
 */
export function unpermuteRows(values: Float32Array, rows: number, columns: number, heads: number): Float32Array {
  if (heads === 0) return values;
  const width = rows / heads;
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    const within = row % width;
    const from = row - within + (within < width / 2 ? 2 * within : 2 * (within - width / 2) + 1);
    out.set(values.subarray(from * columns, (from + 1) * columns), row * columns);
  }
  return out;
}

function peftConfig(adapter: PeftAdapter): Record<string, unknown> {
  const targets = [...new Set(adapter.pairs.map(({ target }) => PEFT_MODULES[target].split('.')[1] as string))];
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: adapter.baseName,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    lora_alpha: adapter.alpha,
    lora_dropout: adapter.dropout,
    modules_to_save: null,
    r: adapter.rank,
    rank_pattern: {},
    alpha_pattern: {},
    target_modules: targets.sort(),
    use_dora: false,
    use_rslora: adapter.rslora,
  };
}

/** Format: https://github.com/huggingface/safetensors#format */
export function encodeSafetensors(
  tensors: readonly { name: string; shape: readonly number[]; values: Float32Array }[],
): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let at = 0;
  for (const { name, shape, values } of tensors) {
    header[name] = { dtype: 'F32', shape, data_offsets: [at, at + values.byteLength] };
    at += values.byteLength;
  }
  let json = JSON.stringify(header);
  // Tensors begin at a multiple of eight; the format fills up with spaces.
  json += ' '.repeat((8 - (Buffer.byteLength(json) % 8)) % 8);
  const head = Buffer.from(json);
  const file = Buffer.alloc(8 + head.byteLength + at);
  file.writeBigUInt64LE(BigInt(head.byteLength), 0);
  head.copy(file, 8);
  let offset = 8 + head.byteLength;
  for (const { values } of tensors) {
    // Every processor that ggml runs on here is little-endian, as the format is.
    file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), offset);
    offset += values.byteLength;
  }
  return file;
}
