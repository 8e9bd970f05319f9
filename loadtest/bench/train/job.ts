/** One training run of one side, in a process of its own: what it is told, what it says, how it is started. */
import { spawn, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { projectFolder } from '../report.ts';

/** Read by ours.ts and by peer.py. */
export interface Job {
  /** GGUF file. */
  model: string;
  /** JSON of TrainingData. */
  data: string;
  method: 'lora' | 'prefix';
  rank: number;
  /** alpha / rank. */
  scale: number;
  prefixTokens: number;
  /** The peer's arithmetic. */
  dtype: Dtype;
  steps: number;
  /** Examples per optimiser step. */
  batch: number;
  learningRate: number;
  clipNorm: number;
  /** Every example is filled up to so many tokens; 0: the peer pads to the longest of the batch, we do not pad. */
  padTo: number;
  /** Activation checkpointing. */
  recompute: boolean;
  seed: number;
  /** Float32 file with every A, layer by layer, in the order of TARGETS. */
  initialA?: string;
  /** Ours only: validation loss before the first and after every so many steps, outside the measured time; 0: never. */
  validateEvery?: number;
  /** Ours only: from this validation loss on, only every tenth of those. */
  target?: number;
  /** Ours only: warm-up and cosine to zero over all steps, the product's default; otherwise the rate stays the same. */
  cosine?: boolean;
  /** Ours only: where the trained parameters go. */
  saveTo?: string;
}

export type Dtype = 'float32' | 'bfloat16';
export const DTYPES: readonly Dtype[] = ['float32', 'bfloat16'];

export interface Step {
  step: number;
  loss: number;
  /** Without padding. */
  tokens: number;
  seconds: number;
}

export interface Outcome {
  steps: Step[];
  /** `seconds`: of training, up to there. */
  validations: { step: number; loss: number; seconds: number }[];
  parameters: number;
  /** Of the whole process. */
  peakMb: number;
  loadedMb: number;
  versions: Record<string, string>;
}

/** The first steps warm caches and allocators up. */
const WARM_UP = 2;

/** Non-padding tokens a second after the warm-up. */
export function tokensPerSecond(outcome: Outcome): number {
  const counted = outcome.steps.slice(warmUp(outcome));
  return sum(counted.map((s) => s.tokens)) / sum(counted.map((s) => s.seconds));
}

export function examplesPerSecond(outcome: Outcome, batch: number): number {
  const counted = outcome.steps.slice(warmUp(outcome));
  return (batch * counted.length) / sum(counted.map((s) => s.seconds));
}

/** Very short runs keep most of their steps. */
const warmUp = (outcome: Outcome): number => Math.min(WARM_UP, Math.floor(outcome.steps.length / 3));

export const trainingSeconds = (outcome: Outcome): number => sum(outcome.steps.map((s) => s.seconds));

export const sum = (values: readonly number[]): number => values.reduce((total, x) => total + x, 0);

export interface Python {
  program?: string;
  /** Why there is none. */
  sentence: string;
  versions: Record<string, string>;
}

const PYTHON_PROBE =
  'import json, torch, transformers, peft, gguf; print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}))';

/** A Python with the peer's packages, or the sentence that says that its columns are skipped. */
export function findPython(given?: string): Python {
  const program = given ?? process.env.MODELFACTORY_PYTHON ?? 'python3';
  const said = spawnSync(program, ['-c', PYTHON_PROBE], { encoding: 'utf8', timeout: 120_000 });
  if (said.status === 0) {
    return { program, sentence: '', versions: JSON.parse(said.stdout) as Record<string, string> };
  }
  return {
    versions: {},
    sentence:
      'The peer was skipped: no Python with torch, transformers, peft and gguf (`pip install torch transformers peft gguf`); name it with --python or MODELFACTORY_PYTHON.',
  };
}

const folderOf = (file: string): string => path.join(projectFolder, 'loadtest', 'bench', 'train', file);

export function runOurs(job: Job, folder: string, onStep?: (step: Step) => void): Promise<Outcome> {
  return runSide(process.execPath, ['--import', 'tsx', folderOf('ours.ts')], job, folder, onStep);
}

export function runPeer(python: string, job: Job, folder: string, onStep?: (step: Step) => void): Promise<Outcome> {
  return runSide(python, [folderOf('peer.py')], job, folder, onStep);
}

type Line = Partial<Step> &
  Partial<Outcome> & { validation?: number; loaded?: boolean; done?: boolean; trainSeconds?: number };

async function runSide(
  program: string,
  args: string[],
  job: Job,
  folder: string,
  onStep?: (step: Step) => void,
): Promise<Outcome> {
  const file = path.join(folder, 'job.json');
  writeFileSync(file, JSON.stringify(job));
  const threads = String(os.availableParallelism());
  const child = spawn(program, [...args, file], {
    cwd: projectFolder,
    env: { ...process.env, OMP_NUM_THREADS: threads, MKL_NUM_THREADS: threads },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const kill = () => child.kill('SIGKILL');
  process.on('exit', kill);
  let errors = '';
  child.stderr.on('data', (chunk: Buffer) => {
    errors = (errors + chunk.toString()).slice(-4000);
  });
  const outcome: Outcome = { steps: [], validations: [], parameters: 0, peakMb: Number.NaN, loadedMb: 0, versions: {} };
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve(code));
  });
  for await (const text of createInterface({ input: child.stdout })) {
    if (!text.startsWith('{')) continue;
    const line = JSON.parse(text) as Line;
    if (line.validation !== undefined) {
      outcome.validations.push({ step: line.step ?? 0, loss: line.validation, seconds: line.trainSeconds ?? 0 });
    } else if (line.step !== undefined) {
      const step = line as Step;
      outcome.steps.push(step);
      onStep?.(step);
    } else if (line.loaded) {
      outcome.parameters = line.parameters ?? 0;
      outcome.loadedMb = line.peakMb ?? 0;
      outcome.versions = line.versions ?? {};
    } else if (line.done) outcome.peakMb = line.peakMb ?? Number.NaN;
  }
  const code = await ended;
  process.off('exit', kill);
  if (code !== 0) throw new Error(`${path.basename(args.at(-1) as string)} ended with ${code}:\n${errors}`);
  return outcome;
}
