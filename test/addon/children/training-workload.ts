/**
 * A compact run through everything the trainer does, for the sanitizers: sizes that no vector width divides, examples of one row
 * and of many, sliding windows, prefixes, preferences, dropout, activations computed again, quantised bases. Prints a digest of
 * all gradients and losses, which must not depend on the number of threads.
 */
import { createHash } from 'node:crypto';
import { loadModel, TARGETS, type Trainer, type TrainingRows } from '../../../addon/index.ts';
import { type TinyArchitecture, writeTinyModel } from '../../support/tiny-models.ts';
import { ENGINE, errorCode, randomTokens, temporaryFolder } from '../rig.ts';

const threads = Number(process.argv[2] ?? 2);
const folder = temporaryFolder();
const digest = createHash('sha256');

const BASE = {
  method: 'lora',
  targets: [...TARGETS],
  rank: 5,
  scale: 1.5,
  dropout: 0,
  prefixTokens: 7,
  seed: 3,
  rowsMax: 128,
  recompute: false,
  share: 0.5,
} as const;
const STEP = { learningRate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, clipNorm: 1 };

/** Examples of the given lengths; the last row of each predicts nothing. */
function rowsOf(lengths: readonly number[], vocabulary: number): TrainingRows {
  const starts = Int32Array.from([0, ...lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b))]);
  const count = starts.at(-1) as number;
  const weights = Float32Array.from({ length: count }, (_, i) => (starts.includes(i + 1) ? 0 : 0.5 + (i % 3)));
  return { tokens: randomTokens(count, vocabulary, count), starts, weights };
}

function exercise(trainer: Trainer, vocabulary: number): void {
  const tell = (...numbers: number[]) => {
    if (!numbers.every(Number.isFinite)) throw new Error(`not a number among ${numbers}`);
    digest.update(Float64Array.from(numbers));
  };
  for (const lengths of [[37, 1, 2, 16, 33], [97], [1]]) {
    const rows = rowsOf(lengths, vocabulary);
    tell(trainer.accumulate(rows, 50).loss, trainer.evaluate(rows, true).loss, trainer.evaluate(rows, false).loss);
    tell(...trainer.logProbabilities(rows, true));
  }
  const pairs = rowsOf([9, 17, 1, 5, 34, 2], vocabulary);
  tell(trainer.accumulatePreference(pairs, trainer.logProbabilities(pairs, false), 0.1, 3).loss);
  for (const { a, b } of trainer.gradients()) digest.update(a).update(b);
  const snapshot = trainer.snapshot();
  tell(trainer.update(STEP).gradientNorm);
  for (const { a, b } of trainer.pairs()) digest.update(a).update(b);
  trainer.setPairs(trainer.pairs());
  for (const { k, v } of trainer.prefix()) digest.update(k).update(v);
  trainer.restore(snapshot);
  if (errorCode(() => trainer.restore(snapshot.subarray(0, snapshot.length - 3))) === undefined) {
    throw new Error('a short snapshot was taken');
  }
}

const ODD = { embedding: 100, feedForward: 90, headDim: 16, heads: 3, kvHeads: 1, layers: 2 };
const BASES: [TinyArchitecture, object][] = [
  ['llama', { ...ODD, type: 'f32' }],
  ['gemma3', { ...ODD, type: 'f32', slidingWindow: 5 }],
  ['qwen3', { ...ODD, heads: 4, kvHeads: 2, headDim: 48, type: 'f16' }],
  ['qwen2', { layers: 2, embedding: 96, feedForward: 160, headDim: 32, heads: 5, kvHeads: 5, type: 'q4_1' }],
  ['llama', { layers: 2, feedForward: 224, type: 'q8_0' }],
  ['gemma3', { layers: 2, type: 'q4_0' }],
];
for (const [i, [architecture, options]] of BASES.entries()) {
  const tiny = writeTinyModel(architecture, `${folder.path}/${i}.gguf`, { seed: 5, ...options });
  const model = loadModel({ path: tiny.path, device: 'cpu', threads });
  for (const more of [
    {},
    { dropout: 0.3, recompute: true },
    { rank: 1, targets: ['attn_v', 'ffn_down'] as const },
    { rank: 33, targets: ['attn_q', 'ffn_up'] as const, recompute: true },
    { method: 'prefix' } as const,
    { method: 'prefix', prefixTokens: 33, recompute: true } as const,
  ]) {
    const trainer = model.createTrainer({ ...BASE, ...more, targets: [...(more.targets ?? TARGETS)] });
    exercise(trainer, tiny.vocabulary);
    if (trainer.prefix().length > 0) {
      const engine = model.createEngine(ENGINE);
      engine.loadPrefix(0, trainer.prefix());
      engine.close();
    }
    trainer.close();
  }
  model.close();
}
folder.remove();
console.log(`finished ${digest.digest('hex')}`);
