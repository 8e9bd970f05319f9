/** Which type each tensor of a model gets when the model is converted. */
import { QUANTIZED_TYPES, type QuantizedType } from '../../addon/quantize.ts';
import type { GgufTensor } from './gguf.ts';
import { blockElements } from './gguf-write.ts';

export const MODEL_TYPES = Object.keys(QUANTIZED_TYPES) as QuantizedType[];

/** Of 16 bits or more: nothing has been lost yet. */
const FLOAT_TYPES = new Set<string>(['f32', 'f16', 'bf16']);

/** Types with longer blocks than a row divides into give way to these (the same as llama.cpp's, ending at f16). */
const GIVES_WAY: Partial<Record<QuantizedType, QuantizedType>> = {
  q2_k: 'q4_0',
  q3_k: 'iq4_nl',
  iq4_xs: 'iq4_nl',
  q4_k: 'q5_0',
  q5_k: 'q5_1',
  q6_k: 'q8_0',
};

/** llama.cpp's number of "mostly this type" (enum llama_ftype), for general.file_type. */
export const FILE_TYPES: Record<QuantizedType, number> = {
  f32: 0,
  f16: 1,
  bf16: 32,
  q4_0: 2,
  q4_1: 3,
  q5_0: 8,
  q5_1: 9,
  q8_0: 7,
  q2_k: 10,
  q3_k: 12,
  q4_k: 15,
  q5_k: 17,
  q6_k: 18,
  iq4_nl: 25,
  iq4_xs: 30,
};

export function isModelType(text: string): text is QuantizedType {
  return Object.hasOwn(QUANTIZED_TYPES, text);
}

export function isFloatType(type: string): boolean {
  return FLOAT_TYPES.has(type);
}

/**
 * Norms and biases stay as they are. Embeddings and the output matrix get at least 8 bits: every token's error passes through
 * them, and where they are one and the same they would be hit twice.
 */
export function chooseType(tensor: GgufTensor, wanted: QuantizedType): string {
  if (tensor.shape.length < 2 || !tensor.name.endsWith('.weight') || tensor.name.includes('norm')) return tensor.type;
  const shared = tensor.name === 'token_embd.weight' || tensor.name === 'output.weight';
  return fitting(shared && !FLOAT_TYPES.has(wanted) ? 'q8_0' : wanted, tensor.shape[0] as number);
}

function fitting(type: QuantizedType, width: number): QuantizedType {
  if (width % blockElements(type) === 0) return type;
  const next = GIVES_WAY[type];
  return next === undefined ? 'f16' : fitting(next, width);
}
