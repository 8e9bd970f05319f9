/** What every part of the benchmark gets: options, files of this run, and what it hands back. */
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel, type ModelInfo, openVocabulary, type Vocabulary } from '../../../addon/index.ts';
import type { Check, Table } from '../report.ts';
import { encode, readPairs, shuffled, type Task, tasksOf, writeInitialA } from './data.ts';
import type { Job, Python } from './job.ts';

export const PARTS = ['speed', 'loss', 'prefix', 'quality', 'share', 'estimate'] as const;
export type Part = (typeof PARTS)[number];

export interface TrainBenchOptions {
  modelPath: string;
  only: readonly Part[];
  python?: string | undefined;
  dataFolder?: string | undefined;
  rounds: number;
  seed: number;
  rank: number;
  /** Speed: examples a step. */
  batch: number;
  speedSteps: number;
  lossBatch: number;
  lossSteps: number;
  /** LoRA against prefix tuning. */
  prefix: {
    tokens: number;
    batch: number;
    /** Of each timed run; two more warm up. */
    speedSteps: number;
    /** The padded set-up fills every example up to so many tokens. */
    padTo: number;
    paddedSteps: number;
    /** Races of the two, each with other examples. */
    races: number;
    /** After so many steps prefix tuning's validation loss is the mark that LoRA has to reach. */
    steps: number;
    /** Prefix tuning's learning rates: the best after so many steps is the one that goes on. */
    trialSteps: number;
    rates: readonly number[];
    loraRate: number;
    validation: number;
    /** Meaning representations answered for ROUGE-2. */
    answers: number;
  };
  quality: { steps: number; batch: number; learningRate: number; tasks: number };
  share: { seconds: number; rounds: number; streams: readonly number[]; share: number };
  estimate: { examples: number; rounds: number };
}

/** Training's share of the time while chats run: the product's default. */
const SHARE = 0.25;

export const TRAIN_DEFAULTS: Omit<TrainBenchOptions, 'modelPath'> = {
  only: PARTS,
  rounds: 3,
  seed: 1,
  rank: 8,
  batch: 8,
  speedSteps: 6,
  lossBatch: 4,
  lossSteps: 60,
  prefix: {
    tokens: 128,
    batch: 4,
    speedSteps: 4,
    padTo: 512,
    paddedSteps: 2,
    races: 3,
    steps: 300,
    trialSteps: 60,
    rates: [3e-3, 1e-2, 3e-2],
    loraRate: 1e-3,
    validation: 32,
    answers: 64,
  },
  quality: { steps: Number.POSITIVE_INFINITY, batch: 8, learningRate: 5e-4, tasks: Number.POSITIVE_INFINITY },
  share: { seconds: 8, rounds: 3, streams: [1, 8], share: SHARE },
  estimate: { examples: 96, rounds: 3 },
};

/** Proves the code in a few minutes; measures nothing. */
export const TRAIN_QUICK: Partial<TrainBenchOptions> = {
  rounds: 1,
  batch: 2,
  speedSteps: 2,
  lossBatch: 2,
  lossSteps: 4,
  prefix: {
    tokens: 16,
    batch: 2,
    speedSteps: 2,
    padTo: 192,
    paddedSteps: 2,
    races: 1,
    steps: 6,
    trialSteps: 2,
    rates: [1e-2, 3e-2],
    loraRate: 1e-3,
    validation: 4,
    answers: 4,
  },
  quality: { steps: 6, batch: 4, learningRate: 5e-4, tasks: 6 },
  share: { seconds: 1.5, rounds: 1, streams: [1], share: SHARE },
  estimate: { examples: 12, rounds: 1 },
};

export interface Bench {
  options: TrainBenchOptions;
  python: Python;
  /** Temporary; gone afterwards. */
  folder: string;
  vocabulary: Vocabulary;
  info: ModelInfo;
  /** Training examples (shuffled dev set without the validation examples) and validation examples. */
  dataFile: string;
  validationTasks: Task[];
  testTasks: Task[];
  examples: number;
  meanTokens: number;
  initialA: string;
  log: (line: string) => void;
}

export interface PartResult {
  tables: Table[];
  checks: Check[];
  notes: string[];
  data: unknown;
  /** File name suffix → SVG. */
  charts: Record<string, string>;
}

export function prepare(
  options: TrainBenchOptions,
  data: string,
  folder: string,
  python: Python,
  log: Bench['log'],
): Bench {
  const vocabulary = openVocabulary(options.modelPath);
  const model = loadModel({ path: options.modelPath, device: 'cpu' });
  const { info } = model;
  model.close();
  const pairs = shuffled(readPairs(path.join(data, 'e2e-devset.csv')), options.seed);
  // Validation holds out whole meaning representations: another wording of one seen in training would be easier.
  const tasks = tasksOf(pairs);
  const held = new Set<string>();
  const count = Math.max(options.prefix.validation, options.prefix.answers);
  for (const task of tasks.slice(0, count)) held.add(task.meaning);
  const examples = pairs
    .filter((pair) => !held.has(pair.meaning))
    .map((pair) => encode(vocabulary, pair.meaning, pair.reference));
  const validationTasks = tasks.slice(0, count);
  const validation = validationTasks
    .slice(0, options.prefix.validation)
    .map((task) => encode(vocabulary, task.meaning, task.references[0] as string));
  const dataFile = path.join(folder, 'data.json');
  writeFileSync(dataFile, JSON.stringify({ examples, validation }));
  const initialA = path.join(folder, 'initial-a.f32');
  writeInitialA(initialA, info, options.rank, options.seed);
  return {
    options,
    python,
    folder,
    vocabulary,
    info,
    dataFile,
    validationTasks,
    testTasks: tasksOf(readPairs(path.join(data, 'e2e-testset_w_refs.csv'))),
    examples: examples.length,
    meanTokens: examples.reduce((sum, e) => sum + e.tokens.length, 0) / examples.length,
    initialA,
    log,
  };
}

/** A LoRA job of this benchmark; parts change what they need. */
export function jobOf(bench: Bench, change: Partial<Job>): Job {
  const { options } = bench;
  return {
    model: options.modelPath,
    data: bench.dataFile,
    method: 'lora',
    rank: options.rank,
    scale: 2,
    prefixTokens: options.prefix.tokens,
    dtype: 'float32',
    steps: 0,
    batch: options.batch,
    learningRate: 2e-4,
    clipNorm: 1,
    padTo: 0,
    recompute: false,
    seed: options.seed,
    ...change,
  };
}
