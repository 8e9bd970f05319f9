import { describe, expect, test } from 'vitest';
import type { Target } from '../../../addon/types.ts';
import { AdapterError } from '../../../daemon/adapters/errors.ts';
import { type ParsedPeft, parsePeft } from '../../../daemon/adapters/peft.ts';
import { parseSafetensorsHeader } from '../../../daemon/adapters/safetensors.ts';
import {
  encodeSafetensors,
  type PeftAdapterOptions,
  peftAdapter,
  type SafetensorsInput,
} from '../../support/safetensors-writer.ts';
import { describeTinyModel } from '../../support/tiny-models.ts';

const base = describeTinyModel('llama', '');

function parse(
  options: PeftAdapterOptions = {},
  change: (tensors: Record<string, SafetensorsInput>) => void = () => {},
  model = base,
): ParsedPeft {
  const { config, tensors } = peftAdapter(base, options);
  change(tensors);
  const file = encodeSafetensors(tensors);
  return parsePeft(Buffer.from(JSON.stringify(config)), parseSafetensorsHeader(file, file.length), model);
}

function refusal(...args: Parameters<typeof parse>): string {
  try {
    parse(...args);
    return 'accepted';
  } catch (error) {
    if (error instanceof AdapterError) return `${error.reason}: ${error.message}`;
    throw error;
  }
}
const pairOf = (parsed: ParsedPeft, target: Target, layer: number): ParsedPeft['pairs'][number] => {
  const pair = parsed.pairs.find((p) => p.target === target && p.layer === layer);
  if (!pair) throw new Error('no such pair');
  return pair;
};
const Q0 = 'base_model.model.model.layers.0.self_attn.q_proj';

describe('a PEFT adapter is understood', () => {
  test('all seven targets of all layers, with the scale alpha / r', () => {
    const parsed = parse({ rank: 4, alpha: 8 });
    expect(parsed.pairs).toHaveLength(7 * base.layers);
    expect(new Set(parsed.pairs.map(({ scale }) => scale))).toEqual(new Set([2]));
    expect(parsed).toMatchObject({ rankMax: 4, layers: [0, 1, 2], baseHint: 'tiny/random' });
  });

  test('offsets point at the bytes of A and B', () => {
    const { config, tensors } = peftAdapter(base, { dtype: 'F16' });
    const file = encodeSafetensors(tensors);
    const parsed = parsePeft(Buffer.from(JSON.stringify(config)), parseSafetensorsHeader(file, file.length), base);
    const pair = pairOf(parsed, 'attn_q', 0);
    const a = tensors[`${Q0}.lora_A.weight`]?.bytes as Buffer;
    const b = tensors[`${Q0}.lora_B.weight`]?.bytes as Buffer;
    expect(pair.a.dtype).toBe('f16');
    expect(file.subarray(pair.a.offset, pair.a.offset + a.length)).toEqual(a);
    expect(file.subarray(pair.b.offset, pair.b.offset + b.length)).toEqual(b);
  });

  test('rsLoRA scales by alpha / √r', () => {
    expect(parse({ rank: 4, alpha: 8, config: { use_rslora: true } }).pairs[0]?.scale).toBe(4);
  });

  test('only q and k of a llama file have their rows permuted, each by its own heads', () => {
    const permuted = Object.fromEntries(
      parse()
        .pairs.filter((p) => p.layer === 0)
        .map((p) => [p.target, p.permuteHeads]),
    );
    expect(permuted).toEqual({
      attn_q: base.heads,
      attn_k: base.kvHeads,
      attn_v: 0,
      attn_output: 0,
      ffn_gate: 0,
      ffn_up: 0,
      ffn_down: 0,
    });
    const qwen = { ...base, architecture: 'qwen2' as const, ropePermuted: false };
    expect(parse({}, undefined, qwen).pairs.every((p) => p.permuteHeads === 0)).toBe(true);
  });

  test('rank_pattern and alpha_pattern: the first pattern that matches the end of the name decides', () => {
    const parsed = parse({
      rank: 4,
      alpha: 8,
      rankOf: (target, layer) => (target === 'attn_q' ? 16 : target === 'attn_v' && layer === 1 ? 2 : undefined),
      config: {
        rank_pattern: { 'model.layers.1.self_attn.v_proj': 2, q_proj: 16 },
        alpha_pattern: { '^model.layers.0.self_attn.q_proj': 48, 'q_proj|k_proj': 64, q_proj: 1 },
      },
    });
    expect(pairOf(parsed, 'attn_q', 0)).toMatchObject({ rank: 16, scale: 3 });
    expect(pairOf(parsed, 'attn_q', 1)).toMatchObject({ rank: 16, scale: 4 });
    expect(pairOf(parsed, 'attn_k', 1)).toMatchObject({ rank: 4, scale: 16 });
    expect(pairOf(parsed, 'attn_v', 1)).toMatchObject({ rank: 2, scale: 4 });
    expect(pairOf(parsed, 'attn_v', 2)).toMatchObject({ rank: 4, scale: 2 });
    expect(parsed.rankMax).toBe(16);
  });

  test('a subset of layers and targets', () => {
    const parsed = parse({ layers: [0, 2], targets: ['ffn_up'] });
    expect(parsed.pairs.map(({ layer, target }) => [layer, target])).toEqual([
      [0, 'ffn_up'],
      [2, 'ffn_up'],
    ]);
  });

  test.each([
    ['all-linear', {}],
    [String.raw`.*\.(q|v)_proj`, { targets: ['attn_q', 'attn_v'] as const }],
    [['self_attn.q_proj', 'model.layers.1.mlp.up_proj'], { rename: true }],
  ])('target_modules given as %j', (targetModules, options) => {
    const drop = (tensors: Record<string, SafetensorsInput>): void => {
      for (const name of Object.keys(tensors)) {
        if (!/q_proj|layers\.1\.mlp\.up_proj/.test(name)) delete tensors[name];
      }
    };
    const change = 'rename' in options ? drop : undefined;
    expect(refusal({ ...options, config: { target_modules: targetModules } }, change)).toBe('accepted');
  });

  test('exclude_modules, layers_to_transform as a number, layers_pattern', () => {
    const noK = (tensors: Record<string, SafetensorsInput>): void => {
      for (const name of Object.keys(tensors)) if (name.includes('k_proj')) delete tensors[name];
    };
    expect(refusal({ config: { exclude_modules: ['k_proj'] } }, noK)).toBe('accepted');
    expect(refusal({ config: { exclude_modules: '.*k_proj' } }, noK)).toBe('accepted');
    expect(refusal({}, noK)).toMatch(/incomplete/);
    expect(refusal({ layers: [1], config: { layers_to_transform: 1, layers_pattern: 'layers' } })).toBe('accepted');
  });

  test('the adapter name inside the keys, and a model loaded in another class', () => {
    expect(refusal({ innerName: 'default' })).toBe('accepted');
    for (const path of ['base_model.model.layers.', 'base_model.model.model.language_model.layers.']) {
      const renamed = (tensors: Record<string, SafetensorsInput>): void => {
        for (const [name, tensor] of Object.entries(tensors)) {
          delete tensors[name];
          tensors[name.replace('base_model.model.model.layers.', path)] = tensor;
        }
      };
      expect(refusal({}, renamed)).toBe('accepted');
    }
  });

  test.each(['gaussian', 'eva', 'orthogonal', true, false])('weights initialised by %s', (init) => {
    expect(refusal({ config: { init_lora_weights: init } })).toBe('accepted');
  });
});

describe('what cannot be served is refused with a sentence that says why', () => {
  test.each([
    [{ use_dora: true }, /unsupported: .*DoRA/],
    [{ modules_to_save: ['norm'] }, /unsupported: .*modules_to_save/],
    [{ bias: 'lora_only' }, /unsupported: .*bias/],
    [{ lora_bias: true }, /unsupported: .*lora_bias/],
    [{ trainable_token_indices: [1, 2] }, /unsupported: .*tokens/],
    [{ target_parameters: ['x.weight'] }, /unsupported: .*target_parameters/],
    [{ layer_replication: [[0, 2]] }, /unsupported: .*layer_replication/],
    [{ alora_invocation_tokens: [5] }, /unsupported: .*aLoRA/],
    [{ use_qalora: true }, /unsupported: .*QA-LoRA/],
    [{ kasa_config: { beta: 1 } }, /unsupported: .*KaSA/],
    [{ peft_type: 'PROMPT_TUNING' }, /unsupported: .*PROMPT_TUNING/],
    [{ peft_type: undefined }, /unsupported: .*peft_type/],
    [{ init_lora_weights: 'pissa' }, /unsupported: .*pissa/],
    [{ init_lora_weights: 'pissa_niter_16' }, /unsupported: .*pissa_niter_16/],
    [{ init_lora_weights: 'olora' }, /unsupported: .*olora/],
    [{ init_lora_weights: 'corda' }, /unsupported: .*corda/],
    [{ init_lora_weights: 'loftq' }, /unsupported: .*loftq/],
    [{ rank_pattern: { '(?=q)q_proj': 4 } }, /unsupported: .*pattern/],
    [{ layers_pattern: '(a+)+', layers_to_transform: [0] }, /unsupported: .*layers_pattern/],
    [{ r: 0 }, /corrupt: .*r:/],
    [{ r: -4 }, /corrupt: .*r:/],
    [{ r: 2.5 }, /corrupt: .*r:/],
    [{ lora_alpha: 1e9 }, /corrupt: .*lora_alpha/],
    [{ lora_alpha: 'many' }, /corrupt: .*lora_alpha/],
    [{ target_modules: null }, /corrupt: .*target_modules/],
    [{ target_modules: '.*_proj', layers_to_transform: [0, 1, 2] }, /corrupt: .*layers_to_transform/],
    [{ r: 8 }, /corrupt: .*rank 4 but adapter_config\.json says 8/],
    [{ target_modules: ['q_proj'] }, /corrupt: .*does not target/],
  ])('%j', (config, sentence) => {
    expect(refusal({ config })).toMatch(sentence);
  });

  const put =
    (name: string, shape: number[], dtype = 'F32') =>
    (tensors: Record<string, SafetensorsInput>): void => {
      const size = dtype === 'F32' ? 4 : dtype === 'F64' ? 8 : 1;
      tensors[name] = { dtype, shape, bytes: Buffer.alloc(shape.reduce((a, b) => a * b, size)) };
    };
  test.each([
    ['a magnitude vector', put(`${Q0}.lora_magnitude_vector`, [128]), /unsupported: .*DoRA/],
    [
      'LoRA on the embeddings',
      put('base_model.model.model.embed_tokens.lora_embedding_A', [4, 320]),
      /unsupported: .*embeddings/,
    ],
    [
      'LoRA on the output layer',
      put('base_model.model.lm_head.lora_A.weight', [4, 128]),
      /unsupported: .*output layer/,
    ],
    ['a bias of a LoRA layer', put(`${Q0}.lora_B.bias`, [128]), /unsupported: .*bias/],
    ['a norm', put('base_model.model.model.layers.0.input_layernorm.weight', [128]), /unsupported: .*replacement/],
    [
      'LoRA on another kind of layer',
      put('base_model.model.transformer.h.0.attn.c_attn.lora_A.weight', [4, 128]),
      /wrong_base/,
    ],
    [
      'a layer too many',
      put('base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight', [4, 128]),
      /wrong_base: .*layer 3 .* 3 layers/,
    ],
    ['A with other inputs', put(`${Q0}.lora_A.weight`, [4, 64]), /wrong_base: .*64 inputs/],
    ['B with other outputs', put(`${Q0}.lora_B.weight`, [96, 4]), /wrong_base: .*96 outputs/],
    ['halves of different rank', put(`${Q0}.lora_B.weight`, [128, 8]), /corrupt: .*rank 4 but/],
    ['A without a second dimension', put(`${Q0}.lora_A.weight`, [512]), /corrupt: .*matrices/],
    ['rank 0', put(`${Q0}.lora_A.weight`, [0, 128]), /corrupt: .*rank 0/],
    ['double precision', put(`${Q0}.lora_A.weight`, [4, 128], 'F64'), /unsupported: .*F64/],
    ['8-bit floats', put(`${Q0}.lora_A.weight`, [4, 128], 'F8_E4M3'), /unsupported: .*F8_E4M3/],
    ['two adapters in one file', put(`${Q0}.lora_A.other.weight`, [4, 128]), /unsupported: .*more than one adapter/],
  ])('%s', (_name, change, sentence) => {
    expect(refusal({}, change)).toMatch(sentence);
  });

  test('a missing half, a missing pair, no weights at all', () => {
    expect(refusal({}, (tensors) => delete tensors[`${Q0}.lora_B.weight`])).toMatch(/incomplete: .*no lora_B/);
    expect(refusal({}, (tensors) => delete tensors[`${Q0}.lora_A.weight`])).toMatch(/incomplete: .*no lora_A/);
    const noQ0 = (tensors: Record<string, SafetensorsInput>): void => {
      delete tensors[`${Q0}.lora_A.weight`];
      delete tensors[`${Q0}.lora_B.weight`];
    };
    expect(refusal({}, noQ0)).toMatch(/incomplete: .*layers\.0\.self_attn\.q_proj/);
    const none = (tensors: Record<string, SafetensorsInput>): void => {
      for (const name of Object.keys(tensors)) delete tensors[name];
    };
    expect(refusal({}, none)).toMatch(/corrupt: .*no LoRA weights/);
  });

  test('an adapter of a model with fewer layers', () => {
    expect(refusal({}, undefined, { ...base, layers: 5 })).toMatch(/incomplete: .*fewer layers/);
  });

  test('a rank over the limit', () => {
    expect(refusal({ rank: 300, targets: ['attn_k'] })).toMatch(/unsupported: .*rank 300/);
  });

  test('a configuration that is no JSON, says a key twice, or is huge', () => {
    const file = encodeSafetensors(peftAdapter(base).tensors);
    const header = parseSafetensorsHeader(file, file.length);
    for (const [text, sentence] of [
      ['{"peft_type":', /not valid JSON/],
      ['[]', /no JSON object/],
      ['{"peft_type":"LORA","r":4,"r":8}', /"r" occurs twice/],
      ['{"peft_type":"LORA","lora_alpha":NaN}', /not valid JSON/],
      [`{"x":"${'y'.repeat(300_000)}"}`, /at most/],
    ] as const) {
      expect(() => parsePeft(Buffer.from(text), header, base)).toThrow(sentence);
    }
  });
});
