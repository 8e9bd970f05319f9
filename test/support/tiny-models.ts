/**
 * Tiny random models of every architecture the engine speaks, as GGUF files that libllama loads: real tokenizer, real
 * chat template, a few layers. The weights are scaled so that logits vary (standard deviation of a few units) and
 * attention looks at more than one place; nothing they say means anything.
 */

import { createHash } from 'node:crypto';
import type { Target } from '../../addon/types.ts';
import { uniform } from '../../daemon/training/random.ts';
import {
  array,
  bool,
  f32,
  type GgufTensor,
  type GgufValue,
  str,
  type TensorType,
  u32,
  writeGguf,
} from './gguf-writer.ts';

export const TINY_ARCHITECTURES = ['llama', 'qwen2', 'qwen3', 'gemma3'] as const;
export type TinyArchitecture = (typeof TINY_ARCHITECTURES)[number];

export interface TinyShape {
  layers: number;
  embedding: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  feedForward: number;
  context: number;
  /** gemma3 only: positions a sliding layer sees, itself included. */
  slidingWindow: number;
  /** gemma3 only: every n-th layer sees everything. */
  slidingPattern: number;
  /** The output matrix is the embedding matrix. */
  tied: boolean;
}

export interface TinyModelOptions extends Partial<TinyShape> {
  seed?: number;
  /** Type of the matrices; norms and biases are f32. Default f32. */
  type?: TensorType;
  /** Type of the embedding (and, if not tied, output) matrix. Default: as `type`. */
  embeddingType?: TensorType;
}

export interface TinyModel extends TinyShape {
  path: string;
  architecture: TinyArchitecture;
  vocabulary: number;
  /** llama files carry q and k with their rows permuted for interleaved RoPE. */
  ropePermuted: boolean;
  targets: Record<Target, { in: number; out: number }>;
}

const SHAPES: Record<TinyArchitecture, TinyShape> = {
  llama: shape({ layers: 3, heads: 4, kvHeads: 2, headDim: 32, feedForward: 256 }),
  qwen2: shape({ layers: 3, heads: 4, kvHeads: 2, headDim: 32, feedForward: 256 }),
  qwen3: shape({ layers: 2, heads: 4, kvHeads: 2, headDim: 64, feedForward: 192, tied: true }),
  gemma3: shape({ layers: 4, heads: 4, kvHeads: 1, headDim: 64, feedForward: 256, tied: true }),
};

function shape(
  given: Pick<TinyShape, 'layers' | 'heads' | 'kvHeads' | 'headDim' | 'feedForward'> & Partial<TinyShape>,
): TinyShape {
  return { embedding: 128, context: 512, slidingWindow: 16, slidingPattern: 2, tied: false, ...given };
}

/** What `writeTinyModel` would write, without writing it. */
export function describeTinyModel(
  architecture: TinyArchitecture,
  path: string,
  options: TinyModelOptions = {},
): TinyModel {
  const { seed: _seed, type: _type, embeddingType: _embeddingType, ...given } = options;
  const s: TinyShape = { ...SHAPES[architecture], ...given };
  const q = s.heads * s.headDim;
  const kv = s.kvHeads * s.headDim;
  return {
    ...s,
    path,
    architecture,
    vocabulary: vocabulary().tokens.length,
    ropePermuted: architecture === 'llama',
    targets: {
      attn_q: { in: s.embedding, out: q },
      attn_k: { in: s.embedding, out: kv },
      attn_v: { in: s.embedding, out: kv },
      attn_output: { in: q, out: s.embedding },
      ffn_gate: { in: s.embedding, out: s.feedForward },
      ffn_up: { in: s.embedding, out: s.feedForward },
      ffn_down: { in: s.feedForward, out: s.embedding },
    },
  };
}

export function writeTinyModel(
  architecture: TinyArchitecture,
  path: string,
  options: TinyModelOptions = {},
): TinyModel {
  const model = describeTinyModel(architecture, path, options);
  writeGguf(path, { metadata: tinyMetadata(model), tensors: tinyTensors(model, options) });
  return model;
}

export function tinyMetadata(m: TinyModel): Record<string, GgufValue> {
  const a = m.architecture;
  const v = vocabulary();
  const metadata: Record<string, GgufValue> = {
    'general.architecture': str(a),
    'general.type': str('model'),
    'general.name': str(`tiny-${a}`),
    'general.quantization_version': u32(2),
    [`${a}.block_count`]: u32(m.layers),
    [`${a}.context_length`]: u32(m.context),
    [`${a}.embedding_length`]: u32(m.embedding),
    [`${a}.feed_forward_length`]: u32(m.feedForward),
    [`${a}.attention.head_count`]: u32(m.heads),
    [`${a}.attention.head_count_kv`]: u32(m.kvHeads),
    [`${a}.attention.key_length`]: u32(m.headDim),
    [`${a}.attention.value_length`]: u32(m.headDim),
    [`${a}.attention.layer_norm_rms_epsilon`]: f32(1e-5),
    [`${a}.rope.freq_base`]: f32(a === 'qwen2' || a === 'gemma3' ? 1e6 : 1e4),
    [`${a}.rope.dimension_count`]: u32(m.headDim),
    [`${a}.vocab_size`]: u32(m.vocabulary),
    'tokenizer.ggml.model': str('gpt2'),
    'tokenizer.ggml.pre': str(a.startsWith('qwen') ? 'qwen2' : 'gpt-2'),
    'tokenizer.ggml.tokens': array('string', v.tokens),
    'tokenizer.ggml.token_type': array('i32', v.types),
    'tokenizer.ggml.merges': array('string', v.merges),
    'tokenizer.ggml.bos_token_id': u32(v.start),
    'tokenizer.ggml.eos_token_id': u32(v.end),
    'tokenizer.ggml.padding_token_id': u32(v.endOfText),
    'tokenizer.ggml.add_bos_token': bool(false),
    'tokenizer.chat_template': str(CHATML),
  };
  if (a === 'gemma3') {
    metadata['gemma3.attention.sliding_window'] = u32(m.slidingWindow);
    metadata['gemma3.attention.sliding_window_pattern'] = u32(m.slidingPattern);
    metadata['gemma3.rope.freq_base_swa'] = f32(1e4);
  }
  return metadata;
}

export function tinyTensors(m: TinyModel, options: TinyModelOptions = {}): GgufTensor[] {
  const type = options.type ?? 'f32';
  const embeddingType = options.embeddingType ?? type;
  const seed = options.seed ?? 1;
  const tensors: GgufTensor[] = [];

  const matrix = (name: string, rowLength: number, rows: number, gain: number, as: TensorType = type): void => {
    // 1/√in keeps the variance of what goes through; the gain then sets it.
    const values = normals(`${seed}/${name}`, rowLength * rows, gain / Math.sqrt(rowLength));
    tensors.push({ name, shape: [rowLength, rows], type: as, values });
  };
  const vector = (name: string, size: number, mean: number, deviation: number): void => {
    const values = normals(`${seed}/${name}`, size, deviation).map((x) => x + mean);
    tensors.push({ name, shape: [size], type: 'f32', values });
  };
  const norm = (name: string, size: number): void => vector(name, size, 1, 0.15);

  // Gain 2.5 as the output matrix: logits of a normalised state have a standard deviation of about 2.5.
  matrix('token_embd.weight', m.embedding, m.vocabulary, 2.5, embeddingType);
  if (m.tied) {
    // A tied output would favour the token just read; norm weights of either sign take that away.
    const values = normals(`${seed}/output_norm.weight`, m.embedding, 0.15).map((x, i) =>
      i % 2 === 0 ? 1 + x : -1 - x,
    );
    tensors.push({ name: 'output_norm.weight', shape: [m.embedding], type: 'f32', values });
  } else {
    norm('output_norm.weight', m.embedding);
    matrix('output.weight', m.embedding, m.vocabulary, 2.5, embeddingType);
  }
  for (let layer = 0; layer < m.layers; layer++) {
    const at = (name: string): string => `blk.${layer}.${name}`;
    const linear = (target: Target, gain: number): void =>
      matrix(at(`${target}.weight`), m.targets[target].in, m.targets[target].out, gain);
    norm(at('attn_norm.weight'), m.embedding);
    linear('attn_q', 1.5);
    linear('attn_k', 1.5);
    linear('attn_v', 1);
    linear('attn_output', 1.2);
    if (m.architecture === 'qwen2') {
      for (const target of ['attn_q', 'attn_k', 'attn_v'] as const)
        vector(at(`${target}.bias`), m.targets[target].out, 0, 0.3);
    }
    if (m.architecture === 'qwen3' || m.architecture === 'gemma3') {
      vector(at('attn_q_norm.weight'), m.headDim, 1.2, 0.2);
      vector(at('attn_k_norm.weight'), m.headDim, 1.2, 0.2);
    }
    if (m.architecture === 'gemma3') norm(at('post_attention_norm.weight'), m.embedding);
    norm(at('ffn_norm.weight'), m.embedding);
    linear('ffn_gate', 1.5);
    linear('ffn_up', 1.5);
    linear('ffn_down', 1.2);
    if (m.architecture === 'gemma3') norm(at('post_ffw_norm.weight'), m.embedding);
  }
  return tensors;
}

/**
 * Roughly normal numbers (sum of four uniforms) from a seeded generator; only integer and IEEE basic operations, so the
 * same on every machine. Each tensor has its own stream: changing one leaves the others.
 */
export function normals(seed: string, count: number, deviation: number): Float32Array {
  const next = uniform(createHash('sha256').update(seed).digest().readUInt32LE(0));
  // The sum of four uniforms has mean 2 and variance 1/3.
  const factor = deviation * Math.sqrt(3);
  return Float32Array.from({ length: count }, () => (next() + next() + next() + next() - 2) * factor);
}

const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** Merges in order; each makes a token of its two halves ("Ġ" is the byte-level alphabet's space). */
const MERGES =
  'Ġ t|h e|i n|Ġ a|o n|r e|Ġt he|e r|Ġ s|a t|Ġ w|Ġ o|e n|Ġ c|i t|i s|a n|o r|e s|Ġ b|e d|Ġ f|in g|Ġ p|o u|Ġa n|a l|a r|Ġt o|Ġ m|Ġo f|Ġ in|Ġ d|Ġ h|Ġan d|l l|Ġth e|h a'.split(
    '|',
  );

interface TinyVocabulary {
  tokens: string[];
  /** 1 = normal, 3 = control, 5 = unused. */
  types: number[];
  merges: string[];
  endOfText: number;
  start: number;
  end: number;
}

let cached: TinyVocabulary | undefined;

/** Byte-level BPE: 256 byte tokens, the merges, three control tokens, and unused ones up to a multiple of 32. */
function vocabulary(): TinyVocabulary {
  if (cached) return cached;
  const bytes = byteAlphabet();
  const known = new Set(bytes);
  const merges: string[] = [];
  for (const merge of MERGES) {
    const [left, right] = merge.split(' ') as [string, string];
    if (!known.has(left) || !known.has(right) || known.has(left + right)) continue;
    known.add(left + right);
    merges.push(merge);
  }
  const tokens = [...known];
  const types = tokens.map(() => 1);
  const endOfText = tokens.length;
  tokens.push('<|endoftext|>', '<|im_start|>', '<|im_end|>');
  types.push(3, 3, 3);
  while (tokens.length % 32 !== 0) {
    types.push(5);
    tokens.push(`<|unused_${tokens.length}|>`);
  }
  cached = { tokens, types, merges, endOfText, start: endOfText + 1, end: endOfText + 2 };
  return cached;
}

/** GPT-2's printable stand-in for each of the 256 bytes. */
function byteAlphabet(): string[] {
  const printable = (b: number): boolean => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable(b) ? b : next++));
}
