/** Our side of a training run: `node --import tsx ours.ts JOB.json`; see job.ts. Prints JSON lines, as peer.py does. */
import { readFileSync, writeFileSync } from 'node:fs';
import { loadModel, TARGETS, type TrainedPair, type Trainer } from '../../../addon/index.ts';
import { learningRate, microBatchRows } from '../../../daemon/training/plan.ts';
import type { Example, TrainingData } from './data.ts';
import type { Job } from './job.ts';
import { pack, split } from './pack.ts';
import { encodeTrained } from './trained.ts';

/** Once the target is reached, validation is this many times rarer. */
const SPARSE = 10;

const say = (facts: object): void => void process.stdout.write(`${JSON.stringify(facts)}\n`);

/** Of the whole process. Linux: not what a parent had before exec, as getrusage would count it. */
function peakMb(): number {
  try {
    return Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) / 1024;
  } catch {
    return process.resourceUsage().maxRSS / 1024;
  }
}

/** The product's schedule, or the same rate throughout. */
function rateOf(job: Job, step: number): number {
  if (job.cosine !== true) return job.learningRate;
  const schedule = { learningRate: job.learningRate, scheduler: 'cosine', warmupRatio: 0.03 } as const;
  return learningRate(schedule, step, job.steps);
}

const answerTokens = (examples: readonly Example[]): number =>
  examples.reduce((total, e) => total + e.tokens.length - e.prompt, 0);

function readInitialA(file: string, pairs: TrainedPair[]): TrainedPair[] {
  const bytes = readFileSync(file);
  const all = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const order = [...pairs].sort((x, y) => x.layer - y.layer || TARGETS.indexOf(x.target) - TARGETS.indexOf(y.target));
  let at = 0;
  return order.map((pair) => {
    const a = all.slice(at, at + pair.a.length);
    at += pair.a.length;
    return { ...pair, a };
  });
}

function validate(trainer: Trainer, data: TrainingData, rowsMax: number): number {
  let loss = 0;
  let weight = 0;
  for (const part of split(data.validation, 0, rowsMax)) {
    const sums = trainer.evaluate(pack(part, 0), true);
    loss += sums.loss;
    weight += sums.weight;
  }
  return loss / weight;
}

function main(job: Job): void {
  const data = JSON.parse(readFileSync(job.data, 'utf8')) as TrainingData;
  const longest = Math.max(job.padTo, ...[...data.examples, ...data.validation].map((e) => e.tokens.length));
  const model = loadModel({ path: job.model, device: 'cpu' });
  // As many rows together as the product computes; longer batches are computed in parts.
  const rowsMax = Math.max(microBatchRows(model.info), longest);
  const trainer = model.createTrainer({
    method: job.method,
    targets: [...TARGETS],
    rank: job.rank,
    scale: job.scale,
    dropout: 0,
    prefixTokens: job.prefixTokens,
    seed: job.seed,
    rowsMax,
    recompute: job.recompute,
    share: 0.95,
  });
  if (job.initialA) trainer.setPairs(readInitialA(job.initialA, trainer.pairs()));
  say({ loaded: true, peakMb: peakMb(), parameters: trainer.parameters });
  let seconds = 0;
  const every = job.validateEvery ?? 0;
  let interval = every;
  const check = (step: number): void => {
    const validation = validate(trainer, data, rowsMax);
    say({ validation, step, trainSeconds: seconds });
    if (job.target !== undefined && validation <= job.target) interval = every * SPARSE;
  };
  if (every > 0) check(0);
  for (let step = 1; step <= job.steps; step++) {
    const batch = Array.from(
      { length: job.batch },
      (_, j) => data.examples[((step - 1) * job.batch + j) % data.examples.length] as Example,
    );
    const started = performance.now();
    const divisor = answerTokens(batch);
    let loss = 0;
    for (const part of split(batch, job.padTo, rowsMax))
      loss += trainer.accumulate(pack(part, job.padTo), divisor).loss;
    const { gradientNorm, applied } = trainer.update({
      learningRate: rateOf(job, step),
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0,
      clipNorm: job.clipNorm,
    });
    const took = (performance.now() - started) / 1000;
    seconds += took;
    if (!applied) throw new Error(`step ${step}: the gradient is not finite`);
    const tokens = batch.reduce((total, e) => total + e.tokens.length, 0);
    say({ step, loss: loss / divisor, gradientNorm, tokens, seconds: took });
    if (every > 0 && (step % interval === 0 || step === job.steps)) check(step);
  }
  say({ done: true, peakMb: peakMb(), trainerMb: trainer.bytes / 2 ** 20 });
  if (job.saveTo) writeFileSync(job.saveTo, encodeTrained(job, trainer));
  trainer.close();
  model.close();
}

main(JSON.parse(readFileSync(process.argv[2] as string, 'utf8')) as Job);
