/** adapter_config.json of HF PEFT: what it must say for the adapter to be served, and whom it concerns. */
import { z } from 'zod';
import { AdapterError } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { compilePattern, type Pattern, PatternError } from './pattern.ts';
import { parseStrictJson } from './strict-json.ts';

const stringOrList = z.union([z.string(), z.array(z.string()).max(ADAPTER_LIMITS.patternsMax)]);
const alpha = z.number().min(-ADAPTER_LIMITS.alphaMax).max(ADAPTER_LIMITS.alphaMax);

/** Only what matters here; PEFT writes about fifty fields, most of them for training. */
const schema = z.object({
  peft_type: z.string(),
  r: z.number().int().min(1).max(65_536).default(8),
  lora_alpha: alpha.default(8),
  use_rslora: z.boolean().nullish(),
  rank_pattern: z.record(z.string(), z.number().int().min(1).max(65_536)).nullish(),
  alpha_pattern: z.record(z.string(), alpha).nullish(),
  target_modules: stringOrList.nullish(),
  exclude_modules: stringOrList.nullish(),
  layers_to_transform: z.union([z.number().int(), z.array(z.number().int()).max(4096)]).nullish(),
  layers_pattern: stringOrList.nullish(),
  init_lora_weights: z.union([z.boolean(), z.string()]).nullish(),
  bias: z.string().nullish(),
  base_model_name_or_path: z.string().nullish(),
});
type RawConfig = z.output<typeof schema>;

/** Fields that change what the model computes in ways the engine does not; each is refused unless it is off. */
const MUST_BE_OFF: Record<string, string> = {
  use_dora:
    'it uses DoRA (weight-decomposed LoRA), which rescales every base weight; merge it into the model or train plain LoRA',
  modules_to_save:
    'it replaces whole modules of the base model (modules_to_save), and the base is shared by all adapters; train without modules_to_save',
  lora_bias: 'it adds biases to the LoRA layers (lora_bias); train without them',
  trainable_token_indices:
    'it changes embeddings of single tokens (trainable_token_indices), and the base is shared by all adapters',
  target_parameters: 'it targets bare parameters (target_parameters), not linear layers',
  layer_replication: 'it repeats layers of the base model (layer_replication), and the base is shared by all adapters',
  alora_invocation_tokens: 'it is an activated LoRA (aLoRA), which applies only after its invocation tokens',
  use_qalora: 'it uses QA-LoRA, which pools the inputs; train plain LoRA',
  use_bdlora: 'it uses block-diagonal LoRA (use_bdlora); train plain LoRA',
  kasa_config: 'it uses KaSA, which truncates the base weights; train plain LoRA',
  monteclora_config: 'it uses MonteCLoRA; train plain LoRA',
  arrow_config: 'it routes between several adapters (Arrow); add them one by one',
  megatron_config: 'it is made for Megatron layers; convert it to plain LoRA',
};

/** Initialisations that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA move part of the base into the adapter. */
const HARMLESS_INITS = new Set(['gaussian', 'eva', 'orthogonal', 'mica']);

export interface PeftConfig {
  /** A hint, shown to people; shapes decide. */
  baseHint: string;
  /** Rank and scale (alpha / r, or alpha / √r) of a module, by its name in the HF model: `model.layers.0.self_attn.q_proj`. */
  rankAndScale(module: string): { rank: number; scale: number };
  /** Whether the adapter says that it changes this module of this layer. */
  concerns(module: string, layer: number): boolean;
}

/** @throws AdapterError */
export function parsePeftConfig(bytes: Uint8Array): PeftConfig {
  if (bytes.byteLength > ADAPTER_LIMITS.configBytesMax) {
    throw new AdapterError(
      'too_large',
      `adapter_config.json has ${bytes.byteLength} bytes; at most ${ADAPTER_LIMITS.configBytesMax} are read`,
    );
  }
  const json = readJson(bytes);
  const type = json.peft_type;
  if (type !== 'LORA') {
    throw unsupported(`adapter_config.json is of peft_type ${JSON.stringify(type)?.slice(0, 64)}; only LORA is served`);
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new AdapterError('corrupt', `adapter_config.json: ${issue?.path.join('.').slice(0, 128)}: ${issue?.message}`);
  }
  for (const [field, why] of Object.entries(MUST_BE_OFF)) {
    if (isOn(json[field])) throw unsupported(`this adapter cannot be served: ${why}`);
  }
  const config = parsed.data;
  if (config.bias && config.bias !== 'none') {
    throw unsupported(
      `this adapter cannot be served: it trained biases of the base model (bias: "${config.bias.slice(0, 32)}"), and the base is shared by all adapters; train with bias "none"`,
    );
  }
  checkInit(config.init_lora_weights);
  // fan_in_fan_out concerns how merged weights are laid out; PEFT itself ignores it for linear layers.
  return {
    baseHint: (config.base_model_name_or_path ?? '').slice(0, 256),
    rankAndScale: rankAndScaleOf(config),
    concerns: concernsOf(config),
  };
}

function readJson(bytes: Uint8Array): Record<string, unknown> {
  let json: unknown;
  try {
    json = parseStrictJson(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    const what = error instanceof SyntaxError ? error.message : 'it is not UTF-8';
    throw new AdapterError('corrupt', `adapter_config.json is not valid JSON: ${what.slice(0, 200)}`);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new AdapterError('corrupt', 'adapter_config.json is no JSON object');
  }
  return json as Record<string, unknown>;
}

function isOn(value: unknown): boolean {
  if (value === undefined || value === null || value === false) return false;
  if (Array.isArray(value)) return value.length > 0;
  return typeof value !== 'object' || Object.keys(value).length > 0;
}

function checkInit(init: boolean | string | null | undefined): void {
  if (typeof init !== 'string' || HARMLESS_INITS.has(init.toLowerCase())) return;
  throw unsupported(
    `this adapter cannot be served: it was initialised by "${init.slice(0, 32)}", which moves part of the base model's weights into the adapter; convert it to plain LoRA when saving (path_initial_model_for_weight_conversion)`,
  );
}

function rankAndScaleOf(config: RawConfig): PeftConfig['rankAndScale'] {
  const ranks = compileTable('rank_pattern', config.rank_pattern);
  const alphas = compileTable('alpha_pattern', config.alpha_pattern);
  return (module) => {
    const rank = ranks(module) ?? config.r;
    const by = alphas(module) ?? config.lora_alpha;
    return { rank, scale: by / (config.use_rslora ? Math.sqrt(rank) : rank) };
  };
}

/** The value of the first pattern, in the file's order, that matches the end of a module's name. */
function compileTable(
  field: string,
  table: Record<string, number> | null | undefined,
): (module: string) => number | undefined {
  const entries = Object.entries(table ?? {});
  checkCount(field, entries.length);
  const compiled = entries.map(([source, value]) => ({ pattern: compile(field, source), value }));
  return (module) => compiled.find(({ pattern }) => pattern.matchesModule(module))?.value;
}

function concernsOf(config: RawConfig): PeftConfig['concerns'] {
  const target = moduleTest('target_modules', config.target_modules);
  const excluded = moduleTest('exclude_modules', config.exclude_modules);
  if (!target) throw new AdapterError('corrupt', 'adapter_config.json names no target_modules');
  const layers = config.layers_to_transform;
  const indexes = layers === null || layers === undefined ? null : [layers].flat();
  if (indexes?.length && typeof config.target_modules === 'string') {
    throw new AdapterError(
      'corrupt',
      'layers_to_transform goes with a list of target_modules, not with a pattern (as in PEFT)',
    );
  }
  const lists = [config.layers_pattern ?? []].flat().filter((name) => name !== '');
  if (lists.some((name) => !/^[\w.]{1,128}$/.test(name))) {
    throw unsupported('layers_pattern is a regular expression; only names of module lists such as "layers" are served');
  }
  return (module, layer) => {
    if (excluded?.(module) || !target(module)) return false;
    if (!indexes?.length) return true;
    const named = lists.length === 0 || lists.some((name) => `.${module}`.includes(`.${name}.${layer}.`));
    return named && indexes.includes(layer);
  };
}

/** A string is a pattern for the whole name, a list holds names or ends of names (PEFT's check_target_module_exists). */
function moduleTest(field: string, value: string | string[] | null | undefined): ((module: string) => boolean) | null {
  if (value === null || value === undefined || value.length === 0) return null;
  // All linear layers but the output layer: the seven that exist here.
  if (value === 'all-linear' && field === 'target_modules') return () => true;
  if (typeof value === 'string') {
    const pattern = compile(field, value);
    return (module) => pattern.matchesAll(module);
  }
  checkCount(field, value.length);
  const names = new Set(value);
  return (module) => {
    for (let at = 0; at >= 0; ) {
      if (names.has(module.slice(at))) return true;
      const dot = module.indexOf('.', at);
      at = dot < 0 ? -1 : dot + 1;
    }
    return false;
  };
}

function checkCount(field: string, count: number): void {
  if (count > ADAPTER_LIMITS.patternsMax) {
    throw new AdapterError(
      'too_large',
      `${field} has ${count} entries; at most ${ADAPTER_LIMITS.patternsMax} are read`,
    );
  }
}

function compile(field: string, source: string): Pattern {
  try {
    return compilePattern(source);
  } catch (error) {
    if (!(error instanceof PatternError)) throw error;
    throw unsupported(`the pattern "${source.slice(0, 64)}" in ${field} cannot be read: ${error.message}`);
  }
}

function unsupported(message: string): AdapterError {
  return new AdapterError('unsupported', message);
}
