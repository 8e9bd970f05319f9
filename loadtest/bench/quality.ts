/**
 * `npm run bench -- quality`: our logits against libllama's on the same file and the same kernels, teacher-forced, and greedy
 * continuations, for the base and for an adapter.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type Engine, loadModel } from '../../addon/index.ts';
import { type RandomAdapter, randomAdapter, SMOLLM2_135M } from './adapters.ts';
import { type ReferenceSequence, reference } from './libllama.ts';
import { peersFolder } from './processes.ts';
import { qualityPrompts } from './prompts.ts';
import { number, type Report } from './report.ts';
import { argmax, klDivergence, margin, mean, quantile } from './stats.ts';

export interface QualityOptions {
  modelPath: string;
  prompts: number;
  greedyTokens: number;
  rank: number;
  threads: number;
}
export const QUALITY_DEFAULTS = { prompts: qualityPrompts.length, greedyTokens: 32, rank: 8, threads: 2 } as const;

/** Strong enough that an engine that leaves the adapter out fails by orders of magnitude. */
const ADAPTER_STRENGTH = 8;
const SLOT = 0;
const SEQUENCE = 0;
/** A first difference with less than this between our best and second-best logit counts as a near-tie (reported, not excused). */
const NEAR_TIE = 0.05;

/** Logits of all rows of one chunk of one sequence; row i predicts the token after tokens[i]. */
export function logitsOf(
  engine: Engine,
  tokens: Int32Array,
  position: number,
  slot: number,
  vocabulary: number,
): Float32Array[] {
  const count = tokens.length;
  const result = engine.step({
    tokens,
    positions: Int32Array.from({ length: count }, (_, i) => position + i),
    sequences: new Int32Array(count).fill(SEQUENCE),
    slots: new Int32Array(count).fill(slot),
    outputs: Int32Array.from({ length: count }, (_, i) => i),
    samplers: new Int32Array(count).fill(-1),
    wantLogits: true,
  });
  const logits = result.logits;
  if (!logits || logits.length !== count * vocabulary) throw new Error('the engine gave no logits');
  return Array.from({ length: count }, (_, i) => logits.subarray(i * vocabulary, (i + 1) * vocabulary));
}

interface PromptResult {
  positions: number;
  /** Mean over the positions, nats. */
  kl: number;
  klMax: number;
  top1: number;
  greedyEqual: boolean;
  /** Index of the first token that differs, and our margin there. */
  firstDifference?: { index: number; margin: number };
}

export function comparePrompt(
  engine: Engine,
  expected: ReferenceSequence,
  slot: number,
  vocabulary: number,
): PromptResult {
  engine.trimSequence(SEQUENCE, 0);
  const rows = logitsOf(engine, expected.tokens, 0, slot, vocabulary);
  const kls = rows.map((row, i) => klDivergence(expected.logits[i] as Float32Array, row));
  const agree = rows.filter((row, i) => argmax(row) === argmax(expected.logits[i] as Float32Array)).length;
  const result: PromptResult = {
    positions: rows.length,
    kl: mean(kls),
    klMax: quantile(kls, 1),
    top1: agree / rows.length,
    greedyEqual: true,
  };
  let row = rows.at(-1) as Float32Array;
  for (let i = 0; i < expected.greedy.length; i++) {
    const token = argmax(row);
    if (token !== expected.greedy[i]) {
      result.greedyEqual = false;
      result.firstDifference = { index: i, margin: margin(row) };
      break;
    }
    if (i + 1 < expected.greedy.length) {
      row = logitsOf(engine, Int32Array.of(token), expected.tokens.length + i, slot, vocabulary)[0] as Float32Array;
    }
  }
  return result;
}

/** Two answers of libllama itself, computed with and without flash attention: mathematically equal, rounded differently. */
export function compareReferences(a: ReferenceSequence, b: ReferenceSequence): PromptResult {
  const kls = a.logits.map((row, i) => klDivergence(row, b.logits[i] as Float32Array));
  const agree = a.logits.filter((row, i) => argmax(row) === argmax(b.logits[i] as Float32Array)).length;
  return {
    positions: kls.length,
    kl: mean(kls),
    klMax: quantile(kls, 1),
    top1: agree / kls.length,
    greedyEqual: a.greedy.every((token, i) => token === b.greedy[i]),
  };
}

interface Summed {
  prompts: PromptResult[];
  kl: number;
  klMax: number;
  top1: number;
  greedyEqual: number;
  nearTies: number;
}

interface Side {
  name: string;
  /** Ours against libllama. */
  ours: Summed;
  /** libllama against itself: what rounding alone does with this file. */
  itself: Summed;
  /** Mean KL when the adapter is left out on our side: what the comparison would show if it were ignored. NaN for the base. */
  withoutAdapterKl: number;
}

function sum(prompts: PromptResult[]): Summed {
  const positions = prompts.reduce((total, p) => total + p.positions, 0);
  const weighted = (pick: (p: PromptResult) => number) =>
    prompts.reduce((total, p) => total + pick(p) * p.positions, 0) / positions;
  return {
    prompts,
    kl: weighted((p) => p.kl),
    klMax: Math.max(...prompts.map((p) => p.klMax)),
    top1: weighted((p) => p.top1),
    greedyEqual: prompts.filter((p) => p.greedyEqual).length / prompts.length,
    nearTies: prompts.filter((p) => p.firstDifference && p.firstDifference.margin < NEAR_TIE).length,
  };
}

async function measureFile(
  modelPath: string,
  title: string,
  loraPath: string,
  adapter: RandomAdapter,
  options: QualityOptions,
  log: (line: string) => void,
): Promise<Side[]> {
  const model = loadModel({ path: modelPath, device: 'cpu', threads: options.threads });
  const engine = model.createEngine({
    kvCells: 2048,
    sequencesMax: 2,
    batchTokensMax: 512,
    slots: 1,
    slotRankMax: options.rank,
  });
  try {
    const vocabulary = model.info.vocabulary;
    const image = await model.buildAdapter(adapter.file, adapter.pairs);
    engine.setSlot(SLOT, image);
    const sides: Side[] = [];
    for (const { name, slot, lora } of [
      { name: `${title}, base`, slot: -1, lora: {} },
      { name: `${title}, adapter`, slot: SLOT, lora: { loraPath } },
    ]) {
      const asked = {
        modelPath,
        sequences: qualityPrompts.slice(0, options.prompts),
        greedy: options.greedyTokens,
        threads: options.threads,
        ...lora,
      };
      const ours: PromptResult[] = [];
      const itself: PromptResult[] = [];
      const without: number[] = [];
      // All at once would not fit into memory: both references are read side by side.
      const others = reference({ ...asked, flash: 'off' });
      for (const expected of reference(asked)) {
        itself.push(compareReferences(expected, others.next().value as ReferenceSequence));
        ours.push(comparePrompt(engine, expected, slot, vocabulary));
        if (slot < 0) continue;
        engine.trimSequence(SEQUENCE, 0);
        const rows = logitsOf(engine, expected.tokens, 0, -1, vocabulary);
        without.push(mean(rows.map((row, i) => klDivergence(expected.logits[i] as Float32Array, row))));
      }
      // Lets the second reference remove its files.
      others.return(undefined);
      const side = { name, ours: sum(ours), itself: sum(itself), withoutAdapterKl: mean(without) };
      sides.push(side);
      log(
        `${name}: mean KL ${number(side.ours.kl)} (libllama against itself ${number(side.itself.kl)}), greedy equal ${number(100 * side.ours.greedyEqual)} %`,
      );
    }
    image.release();
    return sides;
  } finally {
    engine.close();
    model.close();
  }
}

/** The same weights as float32, made by the peer's llama-quantize; undefined where that program is not there. */
function dequantised(modelPath: string, work: string): string | undefined {
  const { folder } = peersFolder();
  if (folder === undefined) return undefined;
  const home = path.join(folder, 'llama.cpp');
  const file = path.join(work, 'float32.gguf');
  spawnSync(path.join(home, 'llama-quantize'), ['--allow-requantize', modelPath, file, 'F32', '2'], {
    stdio: 'ignore',
    env: { ...process.env, LD_LIBRARY_PATH: home },
  });
  return existsSync(file) ? file : undefined;
}

export async function quality(
  options: QualityOptions,
  log: (line: string) => void,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const work = mkdtempSync(path.join(os.tmpdir(), 'bench-quality-'));
  try {
    const adapter = randomAdapter(SMOLLM2_135M, options.rank, 7, ADAPTER_STRENGTH);
    const loraPath = path.join(work, 'adapter.gguf');
    writeFileSync(loraPath, adapter.file);
    const sides = await measureFile(options.modelPath, 'the file', loraPath, adapter, options, log);
    const float32 = dequantised(options.modelPath, work);
    if (float32 !== undefined)
      sides.push(...(await measureFile(float32, 'as float32', loraPath, adapter, options, log)));
    return { report: qualityReport(sides, options, float32 !== undefined), versions: { libllama: 'v0.5.0' } };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function qualityReport(sides: Side[], options: QualityOptions, hasFloat32: boolean): Report {
  const percent = (x: number) => `${number(100 * x)} %`;
  return {
    name: 'quality',
    tables: [
      {
        title: `Our logits against libllama's, ${options.prompts} prompts, teacher-forced; ${options.greedyTokens} greedy tokens`,
        columns: [
          'weights, side',
          'against libllama',
          'mean KL',
          'worst KL',
          'top-1 equal',
          'greedy equal',
          'of the unequal: near-ties',
          'mean KL without the adapter',
        ],
        rows: sides.flatMap((s) => [
          [
            s.name,
            'ours',
            number(s.ours.kl),
            number(s.ours.klMax),
            percent(s.ours.top1),
            percent(s.ours.greedyEqual),
            String(s.ours.nearTies),
            number(s.withoutAdapterKl),
          ],
          [
            s.name,
            'libllama without flash attention',
            number(s.itself.kl),
            number(s.itself.klMax),
            percent(s.itself.top1),
            percent(s.itself.greedyEqual),
            '',
            '',
          ],
        ]),
      },
    ],
    checks: sides.flatMap((s) => [
      { name: `${s.name}: mean KL`, value: s.ours.kl, target: { op: '<=' as const, value: 1e-4 } },
      {
        name: `${s.name}: greedy continuations equal`,
        value: s.ours.greedyEqual,
        target: { op: '>=' as const, value: 0.95 },
      },
    ]),
    notes: [
      `KL(libllama ‖ ours) in nats, mean over all prompt positions; libllama with its defaults, both on the CPU. The adapter is random, rank ${options.rank}, on all seven linear layers.`,
      'ggml rounds the activations to 8 bits before it multiplies them with quantised weights, which turns any difference in the order of additions into a visible one. The rows "libllama without flash attention" show how far libllama is from itself for that reason alone; with float32 weights there is no such rounding.',
      `Near-tie: our two best logits were less than ${NEAR_TIE} apart where the first token differed.`,
      ...(hasFloat32
        ? []
        : ['The float32 rows were skipped: no llama.cpp/llama-quantize in the folder that MODELFACTORY_PEERS names.']),
    ],
    data: { options: { ...options, modelPath: path.basename(options.modelPath) }, sides },
  };
}
