/** LoRA adapters in GGUF, as llama.cpp's convert_lora_to_gguf.py writes them. Their rows already lie as the base's do. */
import type { Target } from '../../addon/types.ts';
import { type GgufHeader, readGgufHeader } from '../models/gguf.ts';
import { ModelFileError } from '../models/gguf-errors.ts';
import { GGUF_LIMITS } from '../models/gguf-limits.ts';
import type { BaseShape } from '../models/inspect.ts';
import { AdapterError, type AdapterReason } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { type Dtype, type Half, type ParsedAdapter, pairUp } from './parsed.ts';

const NAME = /^blk\.(\d{1,4})\.(attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)\.weight\.lora_(a|b)$/;
const DTYPES = new Set(['f32', 'f16', 'bf16']);

export interface ParsedGgufLora extends ParsedAdapter {
  format: 'gguf';
  baseHint: string;
}

/** @throws AdapterError */
export function readGgufLora(path: string, base: BaseShape): ParsedGgufLora {
  let header: GgufHeader;
  try {
    header = readGgufHeader(path, GGUF_LIMITS.adapterHeaderBytesMax);
  } catch (error) {
    if (!(error instanceof ModelFileError)) throw error;
    const reasons: Partial<Record<ModelFileError['code'], AdapterReason>> = {
      too_large: 'too_large',
      unsupported: 'unsupported',
    };
    throw new AdapterError(reasons[error.code] ?? 'corrupt', error.message);
  }
  return parseGgufLora(header, base);
}

/** @throws AdapterError */
export function parseGgufLora(header: GgufHeader, base: BaseShape): ParsedGgufLora {
  const text = (key: string): string => {
    const value = header.metadata.get(key)?.value;
    return typeof value === 'string' ? value : '';
  };
  if (text('general.type') !== 'adapter') {
    throw new AdapterError('unsupported', 'the GGUF file is a model, not an adapter (general.type is not "adapter")');
  }
  if (text('adapter.type') !== 'lora') {
    throw new AdapterError(
      'unsupported',
      `the adapter is of type "${text('adapter.type').slice(0, 32)}"; only lora is served`,
    );
  }
  if (text('general.architecture') !== base.architecture) {
    throw new AdapterError(
      'wrong_base',
      `the adapter is for the architecture "${text('general.architecture').slice(0, 32)}" but the base model is ${base.architecture}`,
    );
  }
  if (header.metadata.has('adapter.alora.invocation_tokens')) {
    throw new AdapterError(
      'unsupported',
      'this adapter cannot be served: it is an activated LoRA (aLoRA), which applies only after its invocation tokens',
    );
  }
  const alpha = header.metadata.get('adapter.lora.alpha');
  if (alpha?.type !== 'f32' || typeof alpha.value !== 'number' || !(Math.abs(alpha.value) <= ADAPTER_LIMITS.alphaMax)) {
    throw new AdapterError('corrupt', 'adapter.lora.alpha is missing or no sane number; convert the adapter anew');
  }
  // llama.cpp takes alpha 0 for "no alpha" and then scales by 1.
  const alphaValue = alpha.value;
  const halves = header.tensors.map((tensor): Half => {
    const match = NAME.exec(tensor.name);
    if (!match) {
      throw new AdapterError(
        'unsupported',
        `${tensor.name} changes something else than the linear layers of a block, and the base is shared by all adapters`,
      );
    }
    if (!DTYPES.has(tensor.type)) {
      throw new AdapterError(
        'unsupported',
        `${tensor.name} is quantised (${tensor.type}); convert the adapter with --outtype f16 or f32`,
      );
    }
    const [columns, rows] = tensor.shape;
    if (tensor.shape.length !== 2 || columns === undefined || rows === undefined) {
      throw new AdapterError('corrupt', `${tensor.name} has the shape [${tensor.shape}]; LoRA weights are matrices`);
    }
    return {
      name: tensor.name,
      target: match[2] as Target,
      layer: Number(match[1]),
      half: match[3] as 'a' | 'b',
      dtype: tensor.type as Dtype,
      rows,
      columns,
      offset: tensor.offset,
    };
  });
  const joined = pairUp(halves, base, (_target, _layer, rank) => ({
    scale: alphaValue === 0 ? 1 : alphaValue / rank,
    permuteHeads: 0,
  }));
  return { format: 'gguf', ...joined, baseHint: text('general.base_model.0.name').slice(0, 256) };
}
