/** An adapter as HF PEFT's save_pretrained writes it: adapter_config.json and adapter_model.safetensors. */
import type { FileHandle } from 'node:fs/promises';
import type { AdapterTensorPair, Target } from '../../../addon/types.ts';
import { TARGETS } from '../../../addon/types.ts';
import { DTYPE_BYTES, type Dtype } from '../parsed.ts';
import { PEFT_MODULES } from '../peft.ts';
import { type AdapterFacts, type HalfName, halfShape, readHalf } from './weights.ts';

const DTYPES: Record<Dtype, string> = { f32: 'F32', f16: 'F16', bf16: 'BF16' };

export interface Safetensors {
  bytes: number;
  chunks: AsyncGenerator<Uint8Array, void, undefined>;
}

const moduleOf = (pair: Pick<AdapterTensorPair, 'layer' | 'target'>): string =>
  `model.layers.${pair.layer}.${PEFT_MODULES[pair.target]}`;

/** Weights in HF's names and order of rows, each in the type it has. */
export function writeSafetensors(facts: AdapterFacts & { file: FileHandle }): Safetensors {
  const { pairs, base, file } = facts;
  const halves = pairs.flatMap((pair) =>
    (['a', 'b'] as const).map((half): [AdapterTensorPair, HalfName] => [pair, half]),
  );
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let at = 0;
  for (const [pair, half] of halves) {
    const { dtype } = pair[half];
    const shape = halfShape(pair, half, base);
    const end = at + shape[0] * shape[1] * DTYPE_BYTES[dtype];
    const name = `base_model.model.${moduleOf(pair)}.lora_${half.toUpperCase()}.weight`;
    header[name] = { dtype: DTYPES[dtype], shape, data_offsets: [at, end] };
    at = end;
  }
  // Padded with blanks to a multiple of eight, as safetensors itself does, so that the data is aligned.
  const text = Buffer.from(JSON.stringify(header));
  const json = Buffer.alloc(Math.ceil(text.byteLength / 8) * 8, ' ');
  text.copy(json);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.byteLength));

  async function* write(): AsyncGenerator<Uint8Array, void, undefined> {
    yield Buffer.concat([length, json]);
    for (const [pair, half] of halves) yield await readHalf(file, facts, pair, half, { order: 'hf' });
  }
  return { bytes: 8 + json.byteLength + at, chunks: write() };
}

/** A configuration that gives every pair its rank and scale; patterns name the modules that differ from the rest. */
export function peftConfig({ pairs, base }: AdapterFacts, baseName: string): Record<string, unknown> {
  const rank = mostCommon(pairs.map((pair) => pair.rank));
  const alphaOf = (pair: AdapterTensorPair): number => tidy(pair.scale * pair.rank);
  const alpha = mostCommon(pairs.map(alphaOf));
  const differing = (value: (pair: AdapterTensorPair) => number, usual: number): Record<string, number> =>
    Object.fromEntries(pairs.filter((pair) => value(pair) !== usual).map((pair) => [moduleOf(pair), value(pair)]));
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: baseName,
    inference_mode: true,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: 0,
    bias: 'none',
    fan_in_fan_out: false,
    init_lora_weights: true,
    use_rslora: false,
    use_dora: false,
    modules_to_save: null,
    target_modules: targetModules(pairs, base.layers),
    rank_pattern: differing((pair) => pair.rank, rank),
    alpha_pattern: differing(alphaOf, alpha),
  };
}

/** Short names where all layers have them, else every module by its whole name. */
function targetModules(pairs: readonly AdapterTensorPair[], layers: number): string[] {
  const present = (target: Target) => pairs.filter((pair) => pair.target === target);
  const targets = TARGETS.filter((target) => present(target).length > 0);
  const whole = targets.every((target) => present(target).length === layers);
  return whole ? targets.map((target) => PEFT_MODULES[target].split('.').at(-1) as string) : pairs.map(moduleOf);
}

function mostCommon(values: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort((x, y) => y[1] - x[1])[0]?.[0] as number;
}

/** 15.999999999999998 was 16: scale was alpha / rank once. */
function tidy(value: number): number {
  const rounded = Number(value.toPrecision(12));
  return Math.abs(rounded - value) <= Math.abs(value) * 1e-12 ? rounded : value;
}
