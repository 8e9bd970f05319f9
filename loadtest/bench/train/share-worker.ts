/** A thread that decodes, or trains, for as long as it is told: see share.ts. */
import { readFileSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { loadModel, type Model, TARGETS } from '../../../addon/index.ts';
import { microBatchRows } from '../../../daemon/training/plan.ts';
import type { Example, TrainingData } from './data.ts';
import type { Job } from './job.ts';
import { pack, split } from './pack.ts';

export type ShareOrder = { kind: 'training'; job: Job; share: number } | { kind: 'chat'; job: Job; streams: number };

export interface ShareWindow {
  tokens: number;
  seconds: number;
  /** Chat: between one step's tokens and the next's. */
  gapsMs: number[];
  /** Training: the longest that it held the cores without a moment at which chat could have had them. */
  longestHoldMs: number;
}

const CONTEXT = 512;
const PROMPT = 90;

interface Work {
  /** Returns its tokens. */
  unit: () => number;
  /** Since it was last asked. */
  longestHoldMs: () => number;
}

function trainer(model: Model, { job, share }: Extract<ShareOrder, { kind: 'training' }>): Work {
  const { examples } = JSON.parse(readFileSync(job.data, 'utf8')) as TrainingData;
  const rowsMax = Math.max(microBatchRows(model.info), ...examples.map((e) => e.tokens.length));
  const native = model.createTrainer({
    method: 'lora',
    targets: [...TARGETS],
    rank: job.rank,
    scale: job.scale,
    dropout: 0,
    prefixTokens: 1,
    seed: job.seed,
    rowsMax,
    recompute: false,
    share,
  });
  const parts = split(examples, 0, rowsMax);
  let at = 0;
  const unit = () => {
    const part = parts[at++ % parts.length] as Example[];
    const rows = pack(part, 0);
    native.accumulate(rows, 1000);
    if (at % 4 === 0) {
      native.update({ learningRate: 1e-5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, clipNorm: 1 });
    }
    return rows.tokens.length;
  };
  return { unit, longestHoldMs: () => native.longestHoldMs() };
}

/** One token for each stream. Streams begin again with a short context before theirs is full. */
function chat(model: Model, { streams }: Extract<ShareOrder, { kind: 'chat' }>): Work {
  const engine = model.createEngine({
    kvCells: streams * CONTEXT,
    sequencesMax: streams,
    batchTokensMax: CONTEXT,
    slots: 0,
    slotRankMax: 1,
  });
  const all = Array.from({ length: streams }, (_, i) => i);
  const step = (tokens: number[], positions: number[], sequences: number[]): void => {
    engine.step({
      tokens: Int32Array.from(tokens),
      positions: Int32Array.from(positions),
      sequences: Int32Array.from(sequences),
      slots: new Int32Array(tokens.length).fill(-1),
      outputs: Int32Array.from(tokens.keys()).subarray(-streams),
      samplers: new Int32Array(Math.min(streams, tokens.length)).fill(-1),
      wantLogits: true,
    });
  };
  // What the tokens are makes no difference to the time.
  const token = (n: number): number => (n * 7919) % model.info.vocabulary;
  for (const sequence of all) {
    const prompt = Array.from({ length: PROMPT }, (_, i) => i);
    step(
      prompt.map(token),
      prompt,
      prompt.map(() => sequence),
    );
  }
  let position = PROMPT;
  const unit = () => {
    if (position === CONTEXT) {
      for (const sequence of all) engine.trimSequence(sequence, PROMPT);
      position = PROMPT;
    }
    step(
      all.map((i) => token(position + i)),
      all.map(() => position),
      all,
    );
    position += 1;
    return streams;
  };
  return { unit, longestHoldMs: () => 0 };
}

const order = workerData as ShareOrder;
const model = loadModel({ path: order.job.model, device: 'cpu' });
const work = order.kind === 'training' ? trainer(model, order) : chat(model, order);
const port = parentPort as NonNullable<typeof parentPort>;
port.on('message', (seconds: number) => {
  const started = performance.now();
  const window: ShareWindow = { tokens: 0, seconds: 0, gapsMs: [], longestHoldMs: 0 };
  work.longestHoldMs();
  let last = started;
  while (last - started < seconds * 1000) {
    window.tokens += work.unit();
    const now = performance.now();
    if (order.kind === 'chat') window.gapsMs.push(now - last);
    last = now;
  }
  window.seconds = (last - started) / 1000;
  window.longestHoldMs = work.longestHoldMs();
  port.postMessage(window);
});
port.postMessage('ready');
