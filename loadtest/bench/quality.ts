/**
 * The quality part of `npm run bench -- serve` (alone: `npm run bench -- quality`): our logits against libllama's on the same
 * file and the same kernels, teacher-forced, and greedy continuations; base and adapters, in the default and the exact mode.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type Engine, loadModel } from '../../addon/index.ts';
import { type ReferenceSequence, reference } from './libllama.ts';
import { costTable, type ModeCost, modeCost } from './mode-cost.ts';
import { peersFolder } from './processes.ts';
import { qualityPrompts } from './prompts.ts';
import { type QualityAdapter, qualityAdapters } from './quality-adapters.ts';
import { number, type Report } from './report.ts';
import { argmax, klDivergence, margin, mean, quantile } from './stats.ts';

export interface QualityOptions {
  modelPath: string;
  prompts: number;
  /** Prompts for the comparison on the same weights in float32, which takes several times as long. */
  float32Prompts: number;
  greedyTokens: number;
  /** PEFT folders and GGUF LoRA files to be compared; where there are none, a random adapter is. */
  adapters: readonly string[];
  threads: number;
  costRounds: number;
  costThreads: number;
}
export const QUALITY_DEFAULTS = {
  prompts: qualityPrompts.length,
  float32Prompts: 8,
  greedyTokens: 32,
  adapters: [],
  // No time is measured here, and ggml's threads spin where other programs want the cores.
  threads: 1,
  costRounds: 5,
  costThreads: 1,
} as const;

const MODES = ['default', 'exact'] as const;
export type Mode = (typeof MODES)[number];

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
  ours: Record<Mode, Summed>;
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

/** Base and adapters on one file. */
async function measureFile(
  modelPath: string,
  title: string,
  prompts: number,
  adapters: readonly QualityAdapter[],
  options: QualityOptions,
  log: (line: string) => void,
): Promise<Side[]> {
  const opened = MODES.map((mode) => {
    const model = loadModel({ path: modelPath, device: 'cpu', threads: options.threads, exact: mode === 'exact' });
    const engine = model.createEngine({
      kvCells: 2048,
      sequencesMax: 2,
      batchTokensMax: 512,
      slots: Math.max(1, adapters.length),
      slotRankMax: 256,
    });
    return { mode, model, engine };
  });
  try {
    const vocabulary = (opened[0] as (typeof opened)[0]).model.info.vocabulary;
    for (const { model, engine } of opened) {
      for (const [slot, { file, pairs }] of adapters.entries()) {
        const image = await model.loadAdapter(file, pairs);
        engine.setSlot(slot, image);
        image.release();
      }
    }
    const sides: Side[] = [];
    for (const [slot, adapter] of [undefined, ...adapters].map((one, i) => [i - 1, one] as const)) {
      const name = `${title}, ${adapter?.name ?? 'base'}`;
      const asked = {
        modelPath,
        sequences: qualityPrompts.slice(0, prompts),
        greedy: options.greedyTokens,
        threads: options.threads,
        ...(adapter ? { loraPath: adapter.gguf } : {}),
      };
      const ours: Record<Mode, PromptResult[]> = { default: [], exact: [] };
      const itself: PromptResult[] = [];
      const without: number[] = [];
      // All at once would not fit into memory: both references are read side by side.
      const others = reference({ ...asked, flash: 'off' });
      for (const expected of reference(asked)) {
        itself.push(compareReferences(expected, others.next().value as ReferenceSequence));
        for (const { mode, engine } of opened) {
          ours[mode].push(comparePrompt(engine, expected, slot, vocabulary));
          if (slot < 0 || mode === 'exact') continue;
          engine.trimSequence(SEQUENCE, 0);
          const rows = logitsOf(engine, expected.tokens, 0, -1, vocabulary);
          without.push(mean(rows.map((row, i) => klDivergence(expected.logits[i] as Float32Array, row))));
        }
      }
      // Lets the second reference remove its files.
      others.return(undefined);
      const side: Side = {
        name,
        ours: { default: sum(ours.default), exact: sum(ours.exact) },
        itself: sum(itself),
        withoutAdapterKl: mean(without),
      };
      sides.push(side);
      const told = (what: string, s: Summed) =>
        `${what} KL ${number(s.kl)}, greedy equal ${number(100 * s.greedyEqual)} %`;
      log(
        `${name}: ${told('exact', side.ours.exact)}; ${told('default', side.ours.default)}; ${told('libllama itself', side.itself)}`,
      );
    }
    return sides;
  } finally {
    for (const { model, engine } of opened) {
      engine.close();
      model.close();
    }
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
    const adapters = await qualityAdapters(options.modelPath, options.adapters, work);
    const sides = await measureFile(options.modelPath, 'the file', options.prompts, adapters, options, log);
    const float32 = dequantised(options.modelPath, work);
    if (float32 !== undefined)
      sides.push(
        ...(await measureFile(float32, 'as float32', options.float32Prompts, adapters.slice(0, 1), options, log)),
      );
    const costs = await modeCost(options.modelPath, adapters[0] as QualityAdapter, options, log);
    return { report: qualityReport(sides, costs, options, float32 !== undefined), versions: { libllama: 'v0.5.0' } };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function qualityReport(sides: Side[], costs: ModeCost[], options: QualityOptions, hasFloat32: boolean): Report {
  const percent = (x: number) => `${number(100 * x)} %`;
  const row = (side: Side, who: string, s: Summed, left = '') => [
    side.name,
    who,
    String(s.prompts.length),
    number(s.kl),
    number(s.klMax),
    percent(s.top1),
    percent(s.greedyEqual),
    who.startsWith('libllama') ? '' : String(s.nearTies),
    left,
  ];
  return {
    name: 'quality',
    tables: [
      {
        title: `Logits against libllama's on the same file, teacher-forced; ${options.greedyTokens} greedy tokens`,
        columns: [
          'weights, side',
          'against libllama',
          'prompts',
          'mean KL',
          'worst KL',
          'top-1 equal',
          'greedy equal',
          'of the unequal: near-ties',
          'mean KL without the adapter',
        ],
        rows: sides.flatMap((s) => [
          row(s, 'ours, exact mode', s.ours.exact),
          row(s, 'ours, default mode', s.ours.default, number(s.withoutAdapterKl)),
          row(s, 'libllama without flash attention', s.itself),
        ]),
      },
      costTable(costs, options.costThreads),
    ],
    checks: sides.flatMap((s) =>
      (['exact', 'default'] as const).flatMap((mode) => [
        {
          name: `${s.name}, ${mode} mode: mean KL`,
          value: s.ours[mode].kl,
          target: { op: '<=' as const, value: 1e-4 },
        },
        {
          name: `${s.name}, ${mode} mode: greedy continuations equal`,
          value: s.ours[mode].greedyEqual,
          target: { op: '>=' as const, value: 0.95 },
        },
      ]),
    ),
    notes: [
      "KL(libllama ‖ ours) in nats, mean over all prompt positions; libllama with its defaults, both on the CPU, adapters by its own LoRA. The exact mode (`MODELFACTORY_EXACT=on`) computes ggml's operations in libllama's order; the default mode is our own kernels.",
      'ggml rounds the activations to 8 bits before it multiplies them with quantised weights, which turns any difference in the order of additions into a visible one. The rows "libllama without flash attention" show how far libllama is from itself for that reason alone: the default mode cannot meet 1e-4 on such a file, and neither can libllama in another configuration. With float32 weights there is no such rounding.',
      'PEFT adapters were given to us as they are and to libllama as the GGUF that `modelfactory export` writes. A random adapter has rank 8 on all seven linear layers.',
      `Near-tie: our two best logits were less than ${NEAR_TIE} apart where the first token differed.`,
      ...(hasFloat32
        ? []
        : ['The float32 rows were skipped: no llama.cpp/llama-quantize in the folder that MODELFACTORY_PEERS names.']),
    ],
    data: {
      options: {
        ...options,
        modelPath: path.basename(options.modelPath),
        adapters: options.adapters.map((one) => path.basename(one)),
      },
      sides,
      costs,
    },
  };
}
