/** What a model file says it is, checked against its own tensor table: a file that passes has every tensor the engine reads, in the right shape. */
import type { ModelInfo, Target } from '../../addon/types.ts';
import { TARGETS } from '../../addon/types.ts';
import { type GgufHeader, type GgufTensor, readGgufHeader } from './gguf.ts';
import { ModelFileError } from './gguf-errors.ts';
import { GGUF_LIMITS } from './gguf-limits.ts';

export const ARCHITECTURES = ['llama', 'qwen2', 'qwen3', 'gemma3'] as const;
export type Architecture = (typeof ARCHITECTURES)[number];

/** What decides whether an adapter fits; both an open model's `info` and an inspected file's `shape` have it. */
export type BaseShape = Pick<ModelInfo, 'architecture' | 'layers' | 'heads' | 'kvHeads' | 'targets' | 'ropePermuted'>;

export interface InspectedModel {
  architecture: Architecture;
  /** `general.name`, or ''. */
  name: string;
  shape: BaseShape;
  layers: number;
  embedding: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  feedForward: number;
  vocabulary: number;
  contextTrained: number;
  hasChatTemplate: boolean;
  /** Bytes of all tensors. */
  weightBytes: number;
  fileBytes: number;
  tensors: GgufTensor[];
}

/** @throws ModelFileError */
export function inspectModel(path: string): InspectedModel {
  return describeModel(readGgufHeader(path));
}

/** @throws ModelFileError */
export function describeModel(header: GgufHeader): InspectedModel {
  const { metadata } = header;
  const text = (key: string): string => {
    const value = metadata.get(key)?.value;
    return typeof value === 'string' ? value : '';
  };
  const kind = text('general.type');
  if (kind !== '' && kind !== 'model') {
    throw new ModelFileError(
      'unsupported',
      `the file is of general.type "${kind}", not a model; adapters are added with "adapters add"`,
    );
  }
  const architecture = architectureOf(text('general.architecture'));

  /** An integer of the architecture's own metadata within its bounds. */
  const size = (key: string, most: number, fallback?: number): number => {
    const full = `${architecture}.${key}`;
    const entry = metadata.get(full);
    if (!entry && fallback !== undefined) return fallback;
    if (!entry) throw new ModelFileError('corrupt', `metadata ${full} is missing; convert the model anew`);
    const value = typeof entry.value === 'bigint' ? Number(entry.value) : entry.value;
    if (typeof value === 'object' && 'length' in value) {
      throw new ModelFileError('unsupported', `${full} differs from layer to layer, which the engine does not compute`);
    }
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > most) {
      throw new ModelFileError('corrupt', `${full} is ${String(value)}; a whole number from 1 to ${most} is due`);
    }
    return value;
  };
  if (metadata.has('split.count') && metadata.get('split.count')?.value !== 1) {
    throw new ModelFileError(
      'unsupported',
      'the model is split over several files; join them with llama-gguf-split --merge',
    );
  }
  const experts = metadata.get(`${architecture}.expert_count`)?.value;
  if (experts !== undefined && experts !== 0) {
    throw new ModelFileError('unsupported', 'the model is a mixture of experts, which the engine does not compute');
  }

  const layers = size('block_count', GGUF_LIMITS.layersMax);
  const embedding = size('embedding_length', GGUF_LIMITS.embeddingMax);
  const feedForward = size('feed_forward_length', GGUF_LIMITS.feedForwardMax);
  const heads = size('attention.head_count', GGUF_LIMITS.headsMax);
  const kvHeads = size('attention.head_count_kv', GGUF_LIMITS.headsMax, heads);
  const contextTrained = size('context_length', GGUF_LIMITS.contextMax);
  const headDim = size('attention.key_length', GGUF_LIMITS.headDimMax, Math.floor(embedding / heads));
  const valueDim = size('attention.value_length', GGUF_LIMITS.headDimMax, headDim);
  if (valueDim !== headDim) {
    throw new ModelFileError(
      'unsupported',
      `keys have ${headDim} dimensions and values ${valueDim}; the engine needs them equal`,
    );
  }
  if (heads % kvHeads !== 0) {
    throw new ModelFileError(
      'corrupt',
      `${heads} attention heads can't share ${kvHeads} key/value heads; convert the model anew`,
    );
  }
  const epsilon = metadata.get(`${architecture}.attention.layer_norm_rms_epsilon`)?.value;
  if (typeof epsilon !== 'number' || !(epsilon > 0 && epsilon < 1)) {
    throw new ModelFileError(
      'corrupt',
      `${architecture}.attention.layer_norm_rms_epsilon is missing or no small positive number`,
    );
  }
  const list = metadata.get('tokenizer.ggml.tokens')?.value;
  const vocabulary = typeof list === 'object' && 'length' in list && list.elementType === 'string' ? list.length : 0;
  if (vocabulary < 1 || vocabulary > GGUF_LIMITS.vocabularyMax) {
    throw new ModelFileError('corrupt', 'the file has no vocabulary (tokenizer.ggml.tokens); convert the model anew');
  }

  const q = heads * headDim;
  const kv = kvHeads * headDim;
  const targets: Record<Target, { in: number; out: number }> = {
    attn_q: { in: embedding, out: q },
    attn_k: { in: embedding, out: kv },
    attn_v: { in: embedding, out: kv },
    attn_output: { in: q, out: embedding },
    ffn_gate: { in: embedding, out: feedForward },
    ffn_up: { in: embedding, out: feedForward },
    ffn_down: { in: feedForward, out: embedding },
  };
  checkTensors(header.tensors, { architecture, layers, embedding, headDim, vocabulary, targets });
  return {
    architecture,
    name: text('general.name'),
    shape: { architecture, layers, heads, kvHeads, targets, ropePermuted: architecture === 'llama' },
    layers,
    embedding,
    heads,
    kvHeads,
    headDim,
    feedForward,
    vocabulary,
    contextTrained,
    hasChatTemplate: metadata.get('tokenizer.chat_template')?.type === 'string',
    weightBytes: header.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0),
    fileBytes: header.fileBytes,
    tensors: header.tensors,
  };
}

function architectureOf(name: string): Architecture {
  const found = ARCHITECTURES.find((known) => known === name);
  if (found) return found;
  throw new ModelFileError(
    'unsupported',
    `the model's architecture is "${name.slice(0, 64)}"; the engine computes ${ARCHITECTURES.join(', ')}`,
  );
}

interface Dimensions {
  architecture: Architecture;
  layers: number;
  embedding: number;
  headDim: number;
  vocabulary: number;
  targets: Record<Target, { in: number; out: number }>;
}

function checkTensors(tensors: readonly GgufTensor[], d: Dimensions): void {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const need = (name: string, shape: readonly number[], optional = false): void => {
    const tensor = byName.get(name);
    if (!tensor) {
      if (optional) return;
      throw new ModelFileError(
        'unsupported',
        `tensor ${name} is missing; the file is incomplete or a variant of ${d.architecture} that the engine does not compute`,
      );
    }
    if (tensor.shape.length !== shape.length || tensor.shape.some((size, i) => size !== shape[i])) {
      throw new ModelFileError(
        'corrupt',
        `tensor ${name} has the shape [${tensor.shape}] where [${shape}] is due; convert the model anew`,
      );
    }
  };
  need('token_embd.weight', [d.embedding, d.vocabulary]);
  need('output_norm.weight', [d.embedding]);
  need('output.weight', [d.embedding, d.vocabulary], true);
  for (let layer = 0; layer < d.layers; layer++) {
    for (const target of TARGETS) {
      need(`blk.${layer}.${target}.weight`, [d.targets[target].in, d.targets[target].out]);
      need(
        `blk.${layer}.${target}.bias`,
        [d.targets[target].out],
        !(d.architecture === 'qwen2' && /_[qkv]$/.test(target)),
      );
    }
    need(`blk.${layer}.attn_norm.weight`, [d.embedding]);
    need(`blk.${layer}.ffn_norm.weight`, [d.embedding]);
    if (d.architecture === 'qwen3' || d.architecture === 'gemma3') {
      need(`blk.${layer}.attn_q_norm.weight`, [d.headDim]);
      need(`blk.${layer}.attn_k_norm.weight`, [d.headDim]);
    }
    if (d.architecture === 'gemma3') {
      need(`blk.${layer}.post_attention_norm.weight`, [d.embedding]);
      need(`blk.${layer}.post_ffw_norm.weight`, [d.embedding]);
    }
  }
}
