/**
 * `npm run bench -- quality`: our logits against libllama's on the same file and the same kernels, teacher-forced, and greedy
 * continuations, for the base and for an adapter.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type Engine, loadModel } from '../../addon/index.ts';
import { type RandomAdapter, randomAdapter, SMOLLM2_135M } from './adapters.ts';
import { type ReferenceSequence, reference } from './libllama.ts';
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

interface Side {
  name: string;
  prompts: PromptResult[];
  kl: number;
  klMax: number;
  top1: number;
  greedyEqual: number;
  nearTies: number;
  /** Mean KL when the adapter is left out on our side: what the comparison would show if it were ignored. */
  withoutAdapterKl: number;
}

function condense(name: string, prompts: PromptResult[], withoutAdapterKl: number): Side {
  const positions = prompts.reduce((sum, p) => sum + p.positions, 0);
  const weighted = (pick: (p: PromptResult) => number) =>
    prompts.reduce((sum, p) => sum + pick(p) * p.positions, 0) / positions;
  return {
    name,
    prompts,
    kl: weighted((p) => p.kl),
    klMax: Math.max(...prompts.map((p) => p.klMax)),
    top1: weighted((p) => p.top1),
    greedyEqual: prompts.filter((p) => p.greedyEqual).length / prompts.length,
    nearTies: prompts.filter((p) => p.firstDifference && p.firstDifference.margin < NEAR_TIE).length,
    withoutAdapterKl,
  };
}

export async function quality(
  options: QualityOptions,
  log: (line: string) => void,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const work = mkdtempSync(path.join(os.tmpdir(), 'bench-quality-'));
  const model = loadModel({ path: options.modelPath, device: 'cpu', threads: options.threads });
  const engine = model.createEngine({
    kvCells: 2048,
    sequencesMax: 2,
    batchTokensMax: 512,
    slots: 1,
    slotRankMax: options.rank,
  });
  try {
    const vocabulary = model.info.vocabulary;
    const texts = qualityPrompts.slice(0, options.prompts);
    const adapter: RandomAdapter = randomAdapter(SMOLLM2_135M, options.rank, 7, ADAPTER_STRENGTH);
    const loraPath = path.join(work, 'adapter.gguf');
    writeFileSync(loraPath, adapter.file);
    const image = await model.buildAdapter(adapter.file, adapter.pairs);
    engine.setSlot(SLOT, image);

    const common = {
      modelPath: options.modelPath,
      sequences: texts,
      greedy: options.greedyTokens,
      threads: options.threads,
    };
    const sides: Side[] = [];
    for (const { name, slot, lora } of [
      { name: 'base', slot: -1, lora: undefined },
      { name: `adapter (random, rank ${options.rank})`, slot: SLOT, lora: loraPath },
    ]) {
      const results: PromptResult[] = [];
      const without: number[] = [];
      for (const expected of reference({ ...common, ...(lora === undefined ? {} : { loraPath: lora }) })) {
        results.push(comparePrompt(engine, expected, slot, vocabulary));
        if (lora !== undefined) {
          engine.trimSequence(SEQUENCE, 0);
          const rows = logitsOf(engine, expected.tokens, 0, -1, vocabulary);
          without.push(mean(rows.map((row, i) => klDivergence(expected.logits[i] as Float32Array, row))));
        }
      }
      const side = condense(name, results, mean(without));
      sides.push(side);
      log(`${name}: mean KL ${number(side.kl)}, greedy equal ${number(100 * side.greedyEqual)} %`);
    }
    image.release();
    return { report: qualityReport(sides, options), versions: { libllama: 'v0.5.0' } };
  } finally {
    engine.close();
    model.close();
    rmSync(work, { recursive: true, force: true });
  }
}

function qualityReport(sides: Side[], options: QualityOptions): Report {
  return {
    name: 'quality',
    tables: [
      {
        title: `Our logits against libllama's, ${options.prompts} prompts, teacher-forced; ${options.greedyTokens} greedy tokens`,
        columns: [
          'side',
          'mean KL',
          'worst KL',
          'top-1 equal',
          'greedy equal',
          'of the unequal: near-ties',
          'mean KL without the adapter',
        ],
        rows: sides.map((s) => [
          s.name,
          number(s.kl),
          number(s.klMax),
          `${number(100 * s.top1)} %`,
          `${number(100 * s.greedyEqual)} %`,
          String(s.nearTies),
          number(s.withoutAdapterKl),
        ]),
      },
    ],
    checks: sides.flatMap((s) => [
      { name: `${s.name}: mean KL`, value: s.kl, target: { op: '<=' as const, value: 1e-4 } },
      {
        name: `${s.name}: greedy continuations equal`,
        value: s.greedyEqual,
        target: { op: '>=' as const, value: 0.95 },
      },
    ]),
    notes: [
      'KL(libllama ‖ ours) in nats, mean over all prompt positions. libllama with its defaults (flash attention auto, f16 KV cache, repacked weights), both on the CPU.',
      `Near-tie: our two best logits were less than ${NEAR_TIE} apart where the first token differed.`,
    ],
    data: { options: { ...options, modelPath: path.basename(options.modelPath) }, sides },
  };
}
