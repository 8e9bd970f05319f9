/** The trainer's explicit backward pass: against PyTorch's autograd (a stored answer) and against finite differences. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadModel, type Model, type TrainedPair, type Trainer, type TrainingRows } from '../../addon/index.ts';
import { normals, TINY_ARCHITECTURES, type TinyModel } from '../support/tiny-models.ts';
import { caseModel, caseOptions, casePairs, caseRows, DIVISOR, readReference } from './gradient-case.ts';
import { temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

const LIMIT = 1e-3;

const norm = (x: Float32Array): number => Math.hypot(...x);

/** |x − y| / |y|. */
function relativeError(x: Float32Array, y: Float32Array): number {
  expect(x.length).toBe(y.length);
  return norm(x.map((v, i) => v - (y[i] as number))) / norm(y);
}

/** The worst relative error over all tensors, and where it is. */
function worst(got: readonly TrainedPair[], expected: readonly TrainedPair[]): { error: number; where: string } {
  expect(got.length).toBe(expected.length);
  let found = { error: 0, where: '' };
  for (const want of expected) {
    const have = got.find((p) => p.layer === want.layer && p.target === want.target) as TrainedPair;
    for (const half of ['a', 'b'] as const) {
      const error = relativeError(have[half], want[half]);
      // NaN must not pass as small.
      if (!(error <= found.error)) found = { error, where: `${want.layer}.${want.target}.${half}` };
    }
  }
  return found;
}

function part(rows: TrainingRows, example: number): TrainingRows {
  const [start, end] = [rows.starts[example] as number, rows.starts[example + 1] as number];
  return {
    tokens: rows.tokens.slice(start, end),
    starts: Int32Array.of(0, end - start),
    weights: rows.weights.slice(start, end),
  };
}

describe.each(TINY_ARCHITECTURES)('%s', (architecture) => {
  let tiny: TinyModel;
  let model: Model;
  let trainer: Trainer;
  let rows: TrainingRows;
  const start = (more: Parameters<typeof caseOptions>[0] = {}): Trainer => {
    const made = model.createTrainer(caseOptions(more));
    made.setPairs(casePairs(tiny));
    return made;
  };

  beforeAll(() => {
    tiny = caseModel(architecture, join(folder.path, `${architecture}.gguf`));
    model = loadModel({ path: tiny.path, device: 'cpu' });
    rows = caseRows(tiny.vocabulary);
    trainer = start();
    return () => {
      trainer.close();
      model.close();
    };
  });

  test('loss and the gradient of every A and B are PyTorch’s, two examples packed', () => {
    const expected = readReference(tiny);
    const sums = trainer.accumulate(rows, DIVISOR);
    const found = worst(trainer.gradients(), expected.gradients);
    trainer.update({ learningRate: 0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, clipNorm: 0 });
    expect(Math.abs(sums.loss / expected.loss - 1)).toBeLessThan(1e-4);
    expect(sums.weight).toBeCloseTo(
      rows.weights.reduce((sum, w) => sum + w, 0),
      4,
    );
    expect(found.error, found.where).toBeLessThanOrEqual(LIMIT);
  });

  test('example by example gives the gradient of the packed batch: nothing leaks between examples', () => {
    const packed = start();
    packed.accumulate(rows, DIVISOR);
    const single = start();
    for (const example of [0, 1]) single.accumulate(part(rows, example), DIVISOR);
    const found = worst(single.gradients(), packed.gradients());
    packed.close();
    single.close();
    expect(found.error, found.where).toBeLessThan(1e-5);
  });

  test('computing activations again on the way back changes no bit', () => {
    const kept = start();
    kept.accumulate(rows, DIVISOR);
    const recomputed = start({ recompute: true });
    recomputed.accumulate(rows, DIVISOR);
    expect(recomputed.gradients()).toEqual(kept.gradients());
    kept.close();
    recomputed.close();
  });

  test('finite differences of evaluate() along random directions of every tensor', () => {
    const fresh = start();
    fresh.accumulate(rows, 1);
    const gradients = fresh.gradients();
    const pairs = casePairs(tiny);
    const step = 1e-2;
    const lossAt = (index: number, half: 'a' | 'b', direction: Float32Array, factor: number): number => {
      const moved = (pairs[index] as TrainedPair)[half].map((x, i) => x + factor * (direction[i] as number));
      fresh.setPairs(pairs.map((pair, i) => (i === index ? { ...pair, [half]: moved } : pair)));
      return fresh.evaluate(rows, true).loss;
    };
    pairs.forEach((pair, index) => {
      for (const half of ['a', 'b'] as const) {
        const where = `${pair.layer}.${pair.target}.${half}`;
        const raw = normals(`direction/${where}`, pair[half].length, 1);
        const length = norm(raw);
        const direction = raw.map((x) => x / length);
        const gradient = (gradients.find((g) => g.layer === pair.layer && g.target === pair.target) as TrainedPair)[
          half
        ];
        const expected = gradient.reduce((sum, g, i) => sum + g * (direction[i] as number), 0);
        const measured = (lossAt(index, half, direction, step) - lossAt(index, half, direction, -step)) / (2 * step);
        // What a random direction sees of the gradient is about |g| / √n; the error is measured against that.
        const scale = norm(gradient) / Math.sqrt(gradient.length);
        expect(Math.abs(measured - expected) / scale, where).toBeLessThan(0.05);
      }
    });
    fresh.close();
  });

  test('finite differences of the preference loss along the gradient and across it', () => {
    const beta = 0.3;
    const fresh = start();
    // Of the rows' two examples the first is the chosen answer, the second the rejected one.
    const reference = fresh.logProbabilities(rows, false);
    fresh.accumulatePreference(rows, reference, beta, 1);
    const gradients = fresh.gradients();
    const pairs = casePairs(tiny);
    const loss = (): number => {
      const own = fresh.logProbabilities(rows, true);
      const margin = own.map((x, i) => x - (reference[i] as number));
      return Math.log1p(Math.exp(-beta * ((margin[0] as number) - (margin[1] as number))));
    };
    const whole = Math.sqrt(gradients.reduce((sum, g) => sum + norm(g.a) ** 2 + norm(g.b) ** 2, 0));
    const along = (direction: TrainedPair[], step: number): number => {
      const at = (factor: number): number => {
        const move = (x: Float32Array, d: Float32Array): Float32Array => x.map((v, i) => v + factor * (d[i] as number));
        fresh.setPairs(
          pairs.map((pair) => {
            const d = direction.find((g) => g.layer === pair.layer && g.target === pair.target) as TrainedPair;
            return { ...pair, a: move(pair.a, d.a), b: move(pair.b, d.b) };
          }),
        );
        return loss();
      };
      return (at(step) - at(-step)) / (2 * step);
    };
    // One long direction, unit length in sum: the gradient itself, then a random one.
    const unit = gradients.map((g) => ({ ...g, a: g.a.map((x) => x / whole), b: g.b.map((x) => x / whole) }));
    expect(Math.abs(along(unit, 2e-3) / whole - 1)).toBeLessThan(0.02);
    const noise = gradients.map((g) => ({
      ...g,
      a: normals(`${g.layer}${g.target}a`, g.a.length, 1e-2),
      b: normals(`${g.layer}${g.target}b`, g.b.length, 1e-2),
    }));
    const dot = (x: Float32Array, y: Float32Array): number => x.reduce((sum, v, i) => sum + v * (y[i] as number), 0);
    const expected = gradients.reduce((sum, g, i) => {
      const d = noise[i] as TrainedPair;
      return sum + dot(g.a, d.a) + dot(g.b, d.b);
    }, 0);
    const size = Math.sqrt(noise.reduce((sum, d) => sum + norm(d.a) ** 2 + norm(d.b) ** 2, 0));
    const count = gradients.reduce((sum, g) => sum + g.a.length + g.b.length, 0);
    const measured = along(noise, 1e-2);
    fresh.close();
    expect(Math.abs(measured - expected) / ((whole * size) / Math.sqrt(count))).toBeLessThan(0.1);
  });
});
