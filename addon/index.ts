/** Opens the native addon. See types.ts for what it can do. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { asAddonError, call, check, checkInteger, checkNumber, INT32_MAX } from './checks.ts';
import { answerDepth, checkMessages, checkSchema, checkTools, JSON_DEPTH_MAX, jsonDepth } from './json-bounds.ts';
import { createTrainer, type NativeTrainer, type NativeTrainerModel, trainerMemory } from './trainer.ts';
import {
  type AdapterImage,
  type AdapterTensorPair,
  AddonError,
  type ChatPrompt,
  type ChatPromptInput,
  type DeviceInfo,
  type Engine,
  type EngineOptions,
  type Model,
  type ModelInfo,
  type ModelOptions,
  type ParsedMessage,
  type SamplerOptions,
  type StepBatch,
  type StepResult,
  TARGETS,
  type Vocabulary,
} from './types.ts';

export * from './types.ts';

/** What the C++ side exports; only this file sees it. */
export interface Native {
  kernels: string;
  loadBackends(cpuFolder: string, gpuLibraries: string[]): void;
  listDevices(): DeviceInfo[];
  Model: new (path: string, device: string, threads: number, exact: boolean) => NativeModel;
  Engine: new (model: NativeModel, options: EngineOptions) => Engine;
  AdapterImage: new (external: unknown) => AdapterImage;
  Trainer: new (model: NativeTrainerModel, options: object) => NativeTrainer;
  Vocabulary: new (path: string) => NativeVocabulary;
  convertRows(
    from: number,
    to: number,
    bytes: Uint8Array,
    width: number,
    threads: number,
    change: object | null,
    share: number | null,
  ): Uint8Array;
}
interface NativeModel extends NativeTrainerModel {
  facts(): ModelInfo;
  /** `file`: bytes or a path; `pairs`: see `packPairs`. */
  buildAdapter(image: Native['AdapterImage'], file: Uint8Array | string, pairs: Float64Array): Promise<AdapterImage>;
  close(): void;
}
interface NativeVocabulary {
  facts(): { size: number; bos: number; eos: number; addBos: boolean; endTokens: Int32Array };
  tokenize(text: string, special: boolean, addBos: boolean): Int32Array;
  tokenBytes(token: number, special: boolean): Uint8Array;
  chatPrompt(input: ChatPromptInput): ChatPrompt;
  parseChat(text: string, format: number, parser: string, generationPrompt: string, partial: boolean): ParsedMessage;
  schemaToGrammar(schema: string): string;
  close(): void;
}

const here = dirname(fileURLToPath(import.meta.url));
const packages = join(here, '..', 'node_modules', '@node-llama-cpp');

/** Packages of prebuilt ggml libraries by platform: the one the addon is linked with, and those with GPU backends. */
const LIBRARIES: Record<string, { cpu: string; gpu: string[] }> = {
  'linux-x64': { cpu: 'linux-x64', gpu: ['linux-x64-cuda', 'linux-x64-vulkan'] },
  'linux-arm64': { cpu: 'linux-arm64', gpu: [] },
  'darwin-arm64': { cpu: 'mac-arm64-metal', gpu: [] },
  'darwin-x64': { cpu: 'mac-x64', gpu: [] },
  'win32-x64': { cpu: 'win-x64', gpu: ['win-x64-cuda', 'win-x64-vulkan'] },
  'win32-arm64': { cpu: 'win-arm64', gpu: [] },
};

let opened: Native | undefined;

/** Loads the addon at the first call. For the files of this folder. */
export function native(): Native {
  if (opened) return opened;
  const folder = process.env.MODELFACTORY_SANITIZED_ADDON === '1' ? 'build-asan' : 'build';
  const file = join(here, folder, 'Release', 'modelfactory.node');
  const libraries = LIBRARIES[`${process.platform}-${process.arch}`];
  if (!libraries || !existsSync(file)) {
    throw new AddonError('not_built', `The native addon is not built (${file}); run \`npm run build:addon\`.`);
  }
  const addon = createRequire(import.meta.url)(file) as Native;
  const binaries = (name: string) => join(packages, name, 'bins', name);
  const gpu = libraries.gpu.flatMap((name) => {
    const bins = binaries(name);
    if (!existsSync(bins)) return [];
    return readdirSync(bins)
      .filter((entry) => /^(lib)?ggml-(vulkan|cuda)\.(so|dll)$/.test(entry))
      .map((entry) => join(bins, entry));
  });
  call(() => addon.loadBackends(binaries(libraries.cpu), gpu));
  opened = addon;
  return addon;
}

const TEXT_BYTES_MAX = 16 * 1024 * 1024;

export function listDevices(): DeviceInfo[] {
  return call(() => native().listDevices());
}

/** Which of the addon's own kernels this processor runs: avx512, avx2 or baseline. */
export function kernelVariant(): string {
  return native().kernels;
}

export function loadModel(options: ModelOptions): Model {
  check(options.path.length > 0 && options.path.length < 4096, 'path must name a GGUF file');
  check(
    ['auto', 'cpu', 'vulkan', 'cuda', 'metal'].includes(options.device),
    'device is not one of auto, cpu, vulkan, cuda, metal',
  );
  const threads = options.threads ?? availableParallelism();
  checkInteger(threads, 1, 512, 'threads');
  const addon = native();
  const model = call(() => new addon.Model(options.path, options.device, threads, options.exact ?? false));
  const info = call(() => model.facts());
  return {
    info,
    buildAdapter: async (file, pairs) => {
      check(file instanceof Uint8Array, 'file must be bytes');
      return await buildAdapter(addon, model, file, packPairs(info, pairs, file.byteLength));
    },
    loadAdapter: async (path, pairs) => {
      // In this thread: an asynchronous call would answer only when the engine's step has ended, and takes longer than this.
      const file = statSync(path);
      check(file.isFile(), 'path must name a file');
      return await buildAdapter(addon, model, path, packPairs(info, pairs, file.size));
    },
    createEngine: (engineOptions) => createEngine(addon, model, info, engineOptions),
    createTrainer: (trainerOptions) => createTrainer(addon.Trainer, model, info, trainerOptions),
    trainerMemory: (trainerOptions) => trainerMemory(model, info, trainerOptions),
    close: () => model.close(),
  };
}

async function buildAdapter(
  addon: Native,
  model: NativeModel,
  file: Uint8Array | string,
  pairs: Float64Array,
): Promise<AdapterImage> {
  try {
    return await call(() => model.buildAdapter(addon.AdapterImage, file, pairs));
  } catch (error) {
    throw asAddonError(error);
  }
}

/** Float types as C++ numbers them, and their bytes. */
const FLOATS = { f32: { id: 0, bytes: 4 }, f16: { id: 1, bytes: 2 }, bf16: { id: 2, bytes: 2 } } as const;

/**
 * Pairs checked and as nine numbers each: target, layer, rank, scale, offset and type of A, of B, heads. One array crosses
 * into C++ in a hundredth of the time that objects take, and this is the thread that computes.
 */
function packPairs(info: ModelInfo, pairs: AdapterTensorPair[], fileBytes: number): Float64Array {
  checkInteger(pairs.length, 1, info.layers * TARGETS.length, 'the number of adapter tensors');
  const packed = new Float64Array(9 * pairs.length);
  for (const [i, pair] of pairs.entries()) {
    const target = TARGETS.indexOf(pair.target);
    check(target >= 0, `unknown adapter target ${pair.target}`);
    checkInteger(pair.layer, 0, info.layers - 1, 'layer');
    checkInteger(pair.rank, 1, 4096, 'rank');
    checkNumber(pair.scale, -65504, 65504, 'scale');
    checkInteger(pair.permuteHeads, 0, 4096, 'permuteHeads');
    const size = info.targets[pair.target];
    const half = ({ offset, dtype }: AdapterTensorPair['a'], width: number): [number, number] => {
      checkInteger(offset, 0, fileBytes, 'offset');
      if (!Object.hasOwn(FLOATS, dtype))
        throw new AddonError('adapter_invalid', 'adapter tensors must be f32, f16 or bf16');
      const float = FLOATS[dtype];
      if (offset + pair.rank * width * float.bytes > fileBytes)
        throw new AddonError('adapter_invalid', 'the adapter file is shorter than its header says');
      return [offset, float.id];
    };
    packed.set(
      [
        target,
        pair.layer,
        pair.rank,
        pair.scale,
        ...half(pair.a, size.in),
        ...half(pair.b, size.out),
        pair.permuteHeads,
      ],
      9 * i,
    );
  }
  return packed;
}

function createEngine(addon: Native, model: NativeModel, info: ModelInfo, options: EngineOptions): Engine {
  checkInteger(options.kvCells, 1, 1 << 26, 'kvCells');
  checkInteger(options.sequencesMax, 1, 1 << 16, 'sequencesMax');
  checkInteger(options.batchTokensMax, 1, 8192, 'batchTokensMax');
  checkInteger(options.slots, 0, 1 << 14, 'slots');
  checkInteger(options.slotRankMax, 1, 1024, 'slotRankMax');
  const kvType = options.kvType ?? 'f16';
  check(kvType === 'f16' || kvType === 'f32', 'kvType is f16 or f32');
  const engine = call(() => new addon.Engine(model, { ...options, kvType }));
  return {
    get kvCells() {
      return call(() => engine.kvCells);
    },
    get kvCellsFree() {
      return call(() => engine.kvCellsFree);
    },
    setSlot(slot, image) {
      checkInteger(slot, 0, options.slots - 1, 'slot');
      call(() => engine.setSlot(slot, image));
    },
    clearSlot(slot) {
      checkInteger(slot, 0, options.slots - 1, 'slot');
      call(() => engine.clearSlot(slot));
    },
    trimSequence(sequence, length) {
      checkInteger(sequence, 0, options.sequencesMax - 1, 'sequence');
      checkInteger(length, 0, INT32_MAX, 'length');
      call(() => engine.trimSequence(sequence, length));
    },
    shareSequence(source, destination, length) {
      checkInteger(source, 0, options.sequencesMax - 1, 'source');
      checkInteger(destination, 0, options.sequencesMax - 1, 'destination');
      checkInteger(length, 0, INT32_MAX, 'length');
      call(() => engine.shareSequence(source, destination, length));
    },
    sequenceLength(sequence) {
      checkInteger(sequence, 0, options.sequencesMax - 1, 'sequence');
      return call(() => engine.sequenceLength(sequence));
    },
    createSampler(sampler) {
      checkSampler(sampler, info);
      return call(() => engine.createSampler(sampler));
    },
    acceptTokens(sampler, tokens) {
      checkInteger(sampler, 0, INT32_MAX, 'sampler');
      check(tokens instanceof Int32Array, 'tokens must be an Int32Array');
      call(() => engine.acceptTokens(sampler, tokens));
    },
    freeSampler(sampler) {
      checkInteger(sampler, 0, INT32_MAX, 'sampler');
      call(() => engine.freeSampler(sampler));
    },
    step(batch: StepBatch): StepResult {
      // Values are checked row by row in C++, which has the cache to compare them with; the types are checked here.
      for (const key of ['tokens', 'positions', 'sequences', 'slots', 'outputs', 'samplers'] as const) {
        check(batch[key] instanceof Int32Array, `${key} must be an Int32Array`);
      }
      check(batch.targets === undefined || batch.targets instanceof Int32Array, 'targets must be an Int32Array');
      return call(() => engine.step(batch));
    },
    loadPrefix(sequence, layers) {
      checkInteger(sequence, 0, options.sequencesMax - 1, 'sequence');
      check(layers.length === info.layers, `a prefix has ${info.layers} layers`);
      const width = info.kvHeads * info.headDim;
      const length = layers[0]!.k.length / width;
      checkInteger(length, 1, options.kvCells, 'the prefix length');
      for (const { k, v } of layers) {
        check(
          k instanceof Float32Array &&
            v instanceof Float32Array &&
            k.length === length * width &&
            v.length === k.length,
          'the layers of a prefix are Float32Arrays of the same shape',
        );
      }
      call(() => engine.loadPrefix(sequence, layers));
    },
    close: () => engine.close(),
  };
}

function checkSampler(s: SamplerOptions, info: ModelInfo): void {
  checkNumber(s.temperature, 0, 100, 'temperature');
  checkInteger(s.topK, 0, INT32_MAX, 'topK');
  checkNumber(s.topP, 0, 1, 'topP');
  checkNumber(s.minP, 0, 1, 'minP');
  checkNumber(s.repeatPenalty, 0.01, 100, 'repeatPenalty');
  checkNumber(s.frequencyPenalty, -100, 100, 'frequencyPenalty');
  checkNumber(s.presencePenalty, -100, 100, 'presencePenalty');
  checkInteger(s.penaltyLast, 0, 1 << 16, 'penaltyLast');
  checkInteger(s.seed, 0, 0xffff_ffff, 'seed');
  checkInteger(s.topLogprobs, -1, 1024, 'topLogprobs');
  checkInteger(s.logitBias.length, 0, 1 << 16, 'the number of logit biases');
  for (const { token, bias } of s.logitBias) {
    checkInteger(token, 0, info.vocabulary - 1, 'logit_bias token');
    checkNumber(bias, -1e6, 1e6, 'logit bias');
  }
  check(s.grammar.length <= TEXT_BYTES_MAX, 'the grammar is too long');
}

export function openVocabulary(path: string): Vocabulary {
  check(path.length > 0 && path.length < 4096, 'path must name a GGUF file');
  const addon = native();
  const vocabulary = call(() => new addon.Vocabulary(path));
  const facts = call(() => vocabulary.facts());
  return {
    ...facts,
    tokenize(text, { special, addBos }) {
      check(text.length <= TEXT_BYTES_MAX, 'the text is too long to tokenise');
      return call(() => vocabulary.tokenize(text, special, addBos));
    },
    tokenBytes(token, special) {
      checkInteger(token, 0, facts.size - 1, 'token');
      return call(() => vocabulary.tokenBytes(token, special));
    },
    chatPrompt(input) {
      checkMessages(input.messagesJson);
      checkTools(input.toolsJson);
      checkSchema(input.jsonSchema);
      for (const value of Object.values(input.templateArguments ?? {})) {
        check(jsonDepth(value) <= JSON_DEPTH_MAX, `a template argument is nested deeper than ${JSON_DEPTH_MAX} levels`);
      }
      return call(() => vocabulary.chatPrompt(input));
    },
    parseChat(text, prompt, partial) {
      if (answerDepth(text) > JSON_DEPTH_MAX) {
        throw new AddonError('template_invalid', `the answer is nested deeper than ${JSON_DEPTH_MAX} levels`);
      }
      return call(() => vocabulary.parseChat(text, prompt.format, prompt.parser, prompt.generationPrompt, partial));
    },
    schemaToGrammar(schema) {
      checkSchema(schema);
      return call(() => vocabulary.schemaToGrammar(schema));
    },
    close: () => vocabulary.close(),
  };
}
