/** Adapters as HF PEFT saves them: adapter_config.json and adapter_model.safetensors. */
import type { Target } from '../../addon/types.ts';
import { TARGETS } from '../../addon/types.ts';
import type { BaseShape } from '../models/inspect.ts';
import { AdapterError } from './errors.ts';
import { type Dtype, type Half, type ParsedAdapter, pairUp } from './parsed.ts';
import { type PeftConfig, parsePeftConfig } from './peft-config.ts';
import type { SafetensorsHeader, SafetensorsTensor } from './safetensors.ts';

/** PEFT's module of each target, within a layer. */
export const PEFT_MODULES: Record<Target, string> = {
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};
const TARGET_OF = new Map(TARGETS.map((target) => [PEFT_MODULES[target], target]));
const DTYPES: Record<string, Dtype> = { F32: 'f32', F16: 'f16', BF16: 'bf16' };

/**
 * The base's path to a layer differs by how the model was loaded: as a causal language model (`model.layers`), as the
 * bare model (`layers`), or as the text part of a multimodal one (`…language_model…`). Fixed and anchored.
 */
const NAME =
  /^base_model\.model\.((?:model\.|language_model\.){0,3}layers\.(\d{1,4})\.(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))\.lora_(A|B)(?:\.([^.]{1,64}))?\.weight$/;

export interface ParsedPeft extends ParsedAdapter {
  format: 'peft';
  /** What the configuration says the base was called. */
  baseHint: string;
}

/** @throws AdapterError */
export function parsePeft(configBytes: Uint8Array, header: SafetensorsHeader, base: BaseShape): ParsedPeft {
  const config = parsePeftConfig(configBytes);
  /** The adapter's name inside the keys (`lora_A.default.weight`) must be one and the same. */
  const innerNames = new Set<string>();
  const modules = new Map<string, { layer: number; target: Target }>();
  const moduleOf = new Map<string, string>();
  const halves = header.tensors.map((tensor): Half => {
    const match = NAME.exec(tensor.name);
    if (!match) throw refuseTensor(tensor.name);
    const [, module, layerText, inLayer, letter, inner] = match as unknown as string[];
    const target = TARGET_OF.get(inLayer as string) as Target;
    const layer = Number(layerText);
    innerNames.add(inner ?? '');
    modules.set(module as string, { layer, target });
    moduleOf.set(`${layer}/${target}`, module as string);
    return half(tensor, target, layer, letter === 'A' ? 'a' : 'b');
  });
  if (innerNames.size > 1) {
    throw new AdapterError('unsupported', 'the file holds more than one adapter; save each to a file of its own');
  }
  const joined = pairUp(halves, base, (target, layer, rank, name) => {
    const module = moduleOf.get(`${layer}/${target}`) as string;
    const said = config.rankAndScale(module);
    if (said.rank !== rank) {
      throw new AdapterError(
        'corrupt',
        `${name} has rank ${rank} but adapter_config.json says ${said.rank}; the two files do not belong together`,
      );
    }
    return { scale: said.scale, permuteHeads: permuteHeads(target, base) };
  });
  checkCoverage(config, modules, base);
  return { format: 'peft', ...joined, baseHint: config.baseHint };
}

/** llama-architecture GGUF files hold the rows of q and k in another order than HF; lora_B's rows must follow. */
function permuteHeads(target: Target, base: BaseShape): number {
  if (!base.ropePermuted) return 0;
  return target === 'attn_q' ? base.heads : target === 'attn_k' ? base.kvHeads : 0;
}

function half(tensor: SafetensorsTensor, target: Target, layer: number, which: 'a' | 'b'): Half {
  const dtype = DTYPES[tensor.dtype];
  if (!dtype) {
    throw new AdapterError(
      'unsupported',
      `${tensor.name} is of type ${tensor.dtype}; save the adapter in float32, float16 or bfloat16`,
    );
  }
  const [rows, columns] = tensor.shape;
  if (tensor.shape.length !== 2 || rows === undefined || columns === undefined) {
    throw new AdapterError('corrupt', `${tensor.name} has the shape [${tensor.shape}]; LoRA weights are matrices`);
  }
  return { name: tensor.name, target, layer, half: which, dtype, rows, columns, offset: tensor.offset };
}

/**
 * The configuration and the file must speak of the same modules. PEFT would leave out what is missing and go on; whoever
 * serves would then answer with half an adapter.
 */
function checkCoverage(
  config: PeftConfig,
  modules: ReadonlyMap<string, { layer: number; target: Target }>,
  base: BaseShape,
): void {
  for (const [module, { layer }] of modules) {
    if (!config.concerns(module, layer)) {
      throw new AdapterError(
        'corrupt',
        `the file has weights for ${module}, which adapter_config.json does not target; the two files do not belong together`,
      );
    }
  }
  const first = modules.keys().next().value as string;
  const prefix = first.slice(0, first.indexOf('layers.'));
  for (let layer = 0; layer < base.layers; layer++) {
    for (const target of TARGETS) {
      const module = `${prefix}layers.${layer}.${PEFT_MODULES[target]}`;
      if (!modules.has(module) && config.concerns(module, layer)) {
        throw new AdapterError(
          'incomplete',
          `adapter_config.json targets ${module} but the file has no weights for it; the file is incomplete or the adapter was made for a model with fewer layers`,
        );
      }
    }
  }
}

function refuseTensor(name: string): AdapterError {
  const shown = name.slice(0, 160);
  if (/\.lora_magnitude_vector/.test(name)) {
    return new AdapterError('unsupported', `${shown} belongs to DoRA, which is not served; train plain LoRA`);
  }
  if (/embed_tokens|lm_head|lora_embedding_|\.wte\./.test(name)) {
    return new AdapterError(
      'unsupported',
      `${shown} changes the embeddings or the output layer, which all adapters share; train only the linear layers inside the blocks`,
    );
  }
  if (/\.lora_(A|B)(\.[^.]+)?\.bias$/.test(name)) {
    return new AdapterError('unsupported', `${shown} is a bias of a LoRA layer; train without lora_bias`);
  }
  if (/\.lora_/.test(name)) {
    return new AdapterError(
      'wrong_base',
      `${shown} changes a layer that the base model does not have or the engine does not adapt; it was made for another kind of model`,
    );
  }
  return new AdapterError(
    'unsupported',
    `${shown} is no LoRA weight but a replacement of the base model's own (modules_to_save, biases or norms), and the base is shared by all adapters`,
  );
}
