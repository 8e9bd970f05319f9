/** Writes safetensors files and whole PEFT adapters for tests. Format: https://github.com/huggingface/safetensors#format */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Target } from '../../addon/types.ts';
import { TARGETS } from '../../addon/types.ts';
import { encodeValues } from './gguf-writer.ts';
import { normals } from './tiny-models.ts';

export interface SafetensorsInput {
  dtype: string;
  shape: readonly number[];
  bytes: Uint8Array;
}

export function encodeSafetensors(
  tensors: Record<string, SafetensorsInput>,
  metadata: Record<string, string> = { format: 'pt' },
): Buffer {
  const header: Record<string, unknown> = { __metadata__: metadata };
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [at, at + bytes.byteLength] };
    at += bytes.byteLength;
    parts.push(bytes);
  }
  return frameSafetensors(JSON.stringify(header), Buffer.concat(parts));
}

/** Any header text before any data, right or wrong. */
export function frameSafetensors(header: string, data: Uint8Array): Buffer {
  const text = Buffer.from(header.padEnd(Math.ceil(Buffer.byteLength(header) / 8) * 8, ' '));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

const MODULES: Record<Target, string> = {
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

export interface PeftShape {
  layers: number;
  targets: Record<Target, { in: number; out: number }>;
}

export interface PeftAdapterOptions {
  seed?: number;
  rank?: number;
  alpha?: number;
  dtype?: 'F32' | 'F16' | 'BF16';
  targets?: readonly Target[];
  layers?: readonly number[];
  /** Another rank for some pairs; goes into rank_pattern. */
  rankOf?: (target: Target, layer: number) => number | undefined;
  /** Standard deviation of the weights; large enough that answers change. */
  deviation?: number;
  /** Merged into adapter_config.json. */
  config?: Record<string, unknown>;
  /** Between lora_A and weight, e.g. `default`. */
  innerName?: string;
}

/** adapter_config.json and the tensors of a random adapter that fits the model. */
export function peftAdapter(
  model: PeftShape,
  options: PeftAdapterOptions = {},
): { config: Record<string, unknown>; tensors: Record<string, SafetensorsInput> } {
  const { seed = 1, rank = 4, alpha = 8, dtype = 'F32', deviation = 0.05 } = options;
  const targets = options.targets ?? TARGETS;
  const layers = options.layers ?? Array.from({ length: model.layers }, (_, i) => i);
  const inner = options.innerName ? `.${options.innerName}` : '';
  const tensors: Record<string, SafetensorsInput> = {};
  const rankPattern: Record<string, number> = {};
  for (const layer of layers) {
    for (const target of targets) {
      const module = `model.layers.${layer}.${MODULES[target]}`;
      const own = options.rankOf?.(target, layer);
      if (own !== undefined) rankPattern[module] = own;
      const r = own ?? rank;
      const add = (half: 'A' | 'B', shape: [number, number]): void => {
        const values = normals(`${seed}/${module}/${half}`, shape[0] * shape[1], deviation);
        const bytes = encodeValues(dtype.toLowerCase() as 'f32' | 'f16' | 'bf16', values);
        tensors[`base_model.model.${module}.lora_${half}${inner}.weight`] = { dtype, shape, bytes };
      };
      add('A', [r, model.targets[target].in]);
      add('B', [model.targets[target].out, r]);
    }
  }
  const config = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: 'tiny/random',
    r: rank,
    lora_alpha: alpha,
    lora_dropout: 0,
    bias: 'none',
    fan_in_fan_out: false,
    init_lora_weights: true,
    use_rslora: false,
    use_dora: false,
    modules_to_save: null,
    target_modules: targets.map((target) => MODULES[target].split('.')[1]),
    layers_to_transform: options.layers ? [...layers] : null,
    rank_pattern: rankPattern,
    alpha_pattern: {},
    ...options.config,
  };
  return { config, tensors };
}

/** Writes such an adapter into a folder, as PEFT's save_pretrained does. */
export function writePeftAdapter(folder: string, model: PeftShape, options: PeftAdapterOptions = {}): void {
  const { config, tensors } = peftAdapter(model, options);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'adapter_config.json'), JSON.stringify(config, null, 2));
  writeFileSync(join(folder, 'adapter_model.safetensors'), encodeSafetensors(tensors));
}
