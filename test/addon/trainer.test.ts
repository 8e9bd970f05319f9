/** The trainer beside its gradients: resuming, serving what was trained, prefixes, dropout, the optimiser, and bad input. */
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  type AdapterTensorPair,
  type Engine,
  loadModel,
  type Model,
  type TrainedPair,
  type Trainer,
  type TrainingRows,
  type UpdateOptions,
} from '../../addon/index.ts';
import { type TinyModel, writeTinyModel } from '../support/tiny-models.ts';
import { caseModel, caseOptions, casePairs, caseRows, DIVISOR, RANK, SCALE } from './gradient-case.ts';
import { batchOf, ENGINE, errorCode, forward, randomTokens, rowsOf, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

const STEP: UpdateOptions = {
  learningRate: 1e-2,
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.01,
  clipNorm: 1,
};

let files = 0;
const nextFile = (): string => join(folder.path, `${files++}.gguf`);

function withModel<T>(tiny: TinyModel, use: (model: Model) => T, threads = 2): T {
  const model = loadModel({ path: tiny.path, device: 'cpu', threads });
  try {
    return use(model);
  } finally {
    model.close();
  }
}

function withTrainer<T>(model: Model, use: (trainer: Trainer) => T, more: Parameters<typeof caseOptions>[0] = {}): T {
  const trainer = model.createTrainer(caseOptions(more));
  try {
    return use(trainer);
  } finally {
    trainer.close();
  }
}

/** Trains `steps` optimiser steps of two micro-batches each. */
function train(trainer: Trainer, rows: TrainingRows, steps: number): number {
  let loss = 0;
  for (let i = 0; i < steps; i++) {
    loss = trainer.accumulate(rows, 2 * DIVISOR).loss;
    trainer.accumulate(rows, 2 * DIVISOR);
    expect(trainer.update(STEP).applied).toBe(true);
  }
  return loss;
}

const bytesOf = (pairs: readonly TrainedPair[]): Buffer =>
  Buffer.concat(pairs.flatMap((p) => [p.a, p.b].map((x) => Buffer.from(x.buffer, x.byteOffset, x.byteLength))));

function logSoftmaxAt(logits: Float32Array, token: number): number {
  const top = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const sum = logits.reduce((total, x) => total + Math.exp(x - top), 0);
  return (logits[token] as number) - top - Math.log(sum);
}

/** Σ weight · −ln p over the rows, as the serving engine computes it. */
function servedLoss(engine: Engine, rows: TrainingRows, slot: number, prefixOf: number | null = null): number {
  let loss = 0;
  for (let e = 0; e + 1 < rows.starts.length; e++) {
    const [start, end] = [rows.starts[e] as number, rows.starts[e + 1] as number];
    const tokens = rows.tokens.slice(start, end);
    let logits: Float32Array[];
    if (prefixOf === null) {
      logits = forward(engine, tokens, { slot });
    } else {
      const length = engine.sequenceLength(prefixOf);
      engine.shareSequence(prefixOf, 1, length);
      logits = rowsOf(engine.step(batchOf([{ sequence: 1, tokens, position: length, slot }])));
      engine.trimSequence(1, 0);
    }
    for (let i = 0; i + 1 < tokens.length; i++) {
      loss -= (rows.weights[start + i] as number) * logSoftmaxAt(logits[i] as Float32Array, tokens[i + 1] as number);
    }
  }
  return loss;
}

/** The pairs as the bytes of a file and the places in it. */
function asFile(pairs: readonly TrainedPair[]): { file: Uint8Array; places: AdapterTensorPair[] } {
  const parts: Buffer[] = [];
  let at = 0;
  const put = (x: Float32Array) => {
    parts.push(Buffer.from(x.buffer, x.byteOffset, x.byteLength));
    at += x.byteLength;
    return { offset: at - x.byteLength, dtype: 'f32' as const };
  };
  const places = pairs.map(({ target, layer, a, b }) => ({
    target,
    layer,
    rank: RANK,
    scale: SCALE,
    a: put(a),
    b: put(b),
    permuteHeads: 0,
  }));
  return { file: new Uint8Array(Buffer.concat(parts)), places };
}

describe('what was trained', () => {
  test.each(['llama', 'gemma3'] as const)(
    '%s: the engine serves it with the loss that the trainer saw',
    async (name) => {
      const tiny = caseModel(name, nextFile());
      const model = loadModel({ path: tiny.path, device: 'cpu' });
      const trainer = model.createTrainer(caseOptions());
      const engine = model.createEngine({ ...ENGINE, kvType: 'f32' });
      const rows = caseRows(tiny.vocabulary);
      const before = trainer.evaluate(rows, true).loss;
      expect(trainer.evaluate(rows, false).loss).toBeCloseTo(before, 4); // B = 0
      expect(servedLoss(engine, rows, -1)).toBeCloseTo(before, 2);
      train(trainer, rows, 12);
      const after = trainer.evaluate(rows, true).loss;
      expect(after).toBeLessThan(before - 1);
      expect(trainer.evaluate(rows, false).loss).toBeCloseTo(before, 4);
      const { file, places } = asFile(trainer.pairs());
      const image = await model.buildAdapter(file, places);
      engine.setSlot(0, image);
      // Slots hold float16.
      expect(Math.abs(servedLoss(engine, rows, 0) / after - 1)).toBeLessThan(5e-3);
      image.release();
      for (const open of [engine, trainer, model]) open.close();
    },
  );

  test('quantised bases: the loss is that of serving, and training lowers it', () => {
    for (const type of ['q4_1', 'q8_0', 'q4_0', 'f16', 'bf16'] as const) {
      const tiny = writeTinyModel('llama', nextFile(), { type, layers: 2, seed: 3 });
      withModel(tiny, (model) => {
        const engine = model.createEngine({ ...ENGINE, kvType: 'f32' });
        const rows = caseRows(tiny.vocabulary);
        withTrainer(model, (trainer) => {
          const before = trainer.evaluate(rows, true).loss;
          expect(Math.abs(servedLoss(engine, rows, -1) / before - 1), type).toBeLessThan(2e-3);
          train(trainer, rows, 10);
          expect(trainer.evaluate(rows, true).loss, type).toBeLessThan(before - 1);
        });
        engine.close();
      });
    }
  });

  test('quantised bases: a gradient that a large divisor makes tiny keeps its bits', () => {
    const tiny = writeTinyModel('llama', nextFile(), { type: 'q4_1', layers: 2, seed: 3 });
    withModel(tiny, (model) =>
      withTrainer(model, (trainer) => {
        const rows = caseRows(tiny.vocabulary);
        trainer.setPairs(casePairs(tiny));
        const gradientWith = (divisor: number): number[] => {
          trainer.accumulate(rows, divisor);
          const all = trainer.gradients().flatMap((p) => [...p.a, ...p.b].map((x) => x * divisor));
          trainer.update({ ...STEP, learningRate: 0, weightDecay: 0 });
          return all;
        };
        const [usual, tinyOnes] = [gradientWith(1), gradientWith(2 ** 14)];
        const error = Math.hypot(...usual.map((x, i) => x - (tinyOnes[i] as number))) / Math.hypot(...usual);
        expect(error).toBeLessThan(1e-2);
      }),
    );
  });

  test('a prefix: gradient by finite differences through training, and the engine continues from it', () => {
    for (const name of ['llama', 'qwen3'] as const) {
      const tiny = caseModel(name, nextFile());
      withModel(tiny, (model) => {
        const rows = caseRows(tiny.vocabulary);
        const options = { method: 'prefix' as const, prefixTokens: 5, targets: [] };
        withTrainer(
          model,
          (trainer) => {
            expect(trainer.parameters).toBe(2 * tiny.layers * 5 * tiny.kvHeads * tiny.headDim);
            const before = trainer.evaluate(rows, true).loss;
            // A small step of plain descent along the gradient changes the loss by −rate · |g|².
            trainer.accumulate(rows, 1);
            const snapshot = trainer.snapshot();
            const { gradientNorm } = trainer.update({ ...STEP, learningRate: 0 });
            expect(gradientNorm).toBeGreaterThan(0);
            trainer.restore(snapshot);
            // Adam's first step is rate · g / (|g| + ε): with gradients far below ε = 1 it is plain descent.
            const divisor = 1e4;
            const rate = 2e-3;
            trainer.accumulate(rows, divisor);
            trainer.update({ ...STEP, learningRate: rate * divisor, epsilon: 1, weightDecay: 0, clipNorm: 0 });
            const fallen = before - trainer.evaluate(rows, true).loss;
            expect(Math.abs(fallen / (rate * gradientNorm ** 2) - 1), name).toBeLessThan(0.1);
            train(trainer, rows, 10);
            const after = trainer.evaluate(rows, true).loss;
            expect(after).toBeLessThan(before - 0.1);
            const engine = model.createEngine({ ...ENGINE, kvType: 'f32' });
            engine.loadPrefix(0, trainer.prefix());
            expect(engine.sequenceLength(0)).toBe(5);
            expect(Math.abs(servedLoss(engine, rows, -1, 0) / after - 1)).toBeLessThan(1e-3);
            expect(errorCode(() => engine.loadPrefix(0, trainer.prefix()))).toBe('argument_invalid');
            engine.close();
          },
          options,
        );
      });
    }
  });
});

describe('the same to the bit', () => {
  const tiny = writeTinyModel('llama', nextFile(), { type: 'q4_1', layers: 2, seed: 5 });
  const rows = caseRows(tiny.vocabulary);

  test.each([{}, { dropout: 0.3 }, { recompute: true, dropout: 0.1 }])(
    'going on from a snapshot, in another trainer: %o',
    (more) => {
      const straight = withModel(tiny, (model) =>
        withTrainer(
          model,
          (trainer) => {
            train(trainer, rows, 6);
            return trainer.snapshot();
          },
          more,
        ),
      );
      const half = withModel(tiny, (model) =>
        withTrainer(
          model,
          (trainer) => {
            train(trainer, rows, 3);
            const snapshot = trainer.snapshot();
            // What is under way when a process dies is not part of it.
            trainer.accumulate(rows, DIVISOR);
            return snapshot;
          },
          more,
        ),
      );
      const resumed = withModel(tiny, (model) =>
        withTrainer(
          model,
          (trainer) => {
            trainer.restore(half);
            train(trainer, rows, 3);
            return trainer.snapshot();
          },
          more,
        ),
      );
      expect(Buffer.from(resumed).equals(Buffer.from(straight))).toBe(true);
    },
  );

  test('one thread and two', () => {
    const run = (threads: number) =>
      withModel(
        tiny,
        (model) =>
          withTrainer(model, (trainer) => {
            train(trainer, rows, 4);
            return bytesOf(trainer.pairs());
          }),
        threads,
      );
    expect(run(1).equals(run(2))).toBe(true);
  });

  test('another seed starts elsewhere, the same one in the same place', () => {
    withModel(tiny, (model) => {
      const start = (seed: number) => withTrainer(model, (trainer) => bytesOf(trainer.pairs()), { seed });
      expect(start(4).equals(start(4))).toBe(true);
      expect(start(4).equals(start(5))).toBe(false);
    });
  });
});

test('A starts as PEFT’s does, uniform within 1/√in, and B with zeros', () => {
  const tiny = caseModel('qwen2', nextFile());
  withModel(tiny, (model) =>
    withTrainer(model, (trainer) => {
      const { a, b } = trainer.pairs().find((p) => p.target === 'ffn_down') as TrainedPair;
      const bound = 1 / Math.sqrt(tiny.feedForward);
      expect(b.every((x) => x === 0)).toBe(true);
      expect(a.every((x) => Math.abs(x) <= bound)).toBe(true);
      const deviation = Math.sqrt(a.reduce((sum, x) => sum + x * x, 0) / a.length);
      expect(deviation / (bound / Math.sqrt(3))).toBeCloseTo(1, 1);
    }),
  );
});

test('AdamW with clipping is the textbook’s', () => {
  const tiny = caseModel('llama', nextFile());
  withModel(tiny, (model) =>
    withTrainer(model, (trainer) => {
      const rows = caseRows(tiny.vocabulary);
      trainer.setPairs(casePairs(tiny));
      const flat = (pairs: TrainedPair[]) => pairs.flatMap((p) => [...p.a, ...p.b]);
      const m: number[] = [];
      const v: number[] = [];
      let p = flat(trainer.pairs());
      for (let t = 1; t <= 3; t++) {
        trainer.accumulate(rows, DIVISOR);
        const g = flat(trainer.gradients());
        const norm = Math.hypot(...g);
        const clip = Math.min(1, 0.5 / (norm + 1e-6));
        p = p.map((x, i) => {
          const gi = (g[i] as number) * clip;
          m[i] = 0.8 * (m[i] ?? 0) + 0.2 * gi;
          v[i] = 0.95 * (v[i] ?? 0) + 0.05 * gi * gi;
          const step = (m[i] as number) / (1 - 0.8 ** t) / (Math.sqrt((v[i] as number) / (1 - 0.95 ** t)) + 1e-6);
          return x * (1 - 0.01 * 0.1) - 0.01 * step;
        });
        const made = trainer.update({
          learningRate: 0.01,
          beta1: 0.8,
          beta2: 0.95,
          epsilon: 1e-6,
          weightDecay: 0.1,
          clipNorm: 0.5,
        });
        expect(made.gradientNorm).toBeCloseTo(norm, 4);
        const worst = flat(trainer.pairs()).reduce((w, x, i) => Math.max(w, Math.abs(x - (p[i] as number))), 0);
        expect(worst).toBeLessThan(2e-5);
        expect(flat(trainer.gradients()).every((x) => x === 0)).toBe(true);
        p = flat(trainer.pairs());
      }
    }),
  );
});

test('dropout leaves evaluation alone and is another mask in each call', () => {
  const tiny = caseModel('llama', nextFile());
  withModel(tiny, (model) => {
    const rows = caseRows(tiny.vocabulary);
    const losses = withTrainer(
      model,
      (trainer) => {
        trainer.setPairs(casePairs(tiny));
        return [
          trainer.evaluate(rows, true).loss,
          trainer.evaluate(rows, true).loss,
          trainer.accumulate(rows, 1).loss,
          trainer.accumulate(rows, 1).loss,
        ];
      },
      { dropout: 0.4 },
    );
    expect(losses[0]).toBe(losses[1]);
    expect(new Set(losses).size).toBe(3);
  });
});

test('a gradient that is not a number changes nothing and is said', () => {
  const tiny = caseModel('llama', nextFile());
  withModel(tiny, (model) =>
    withTrainer(model, (trainer) => {
      const rows = caseRows(tiny.vocabulary);
      const pairs = casePairs(tiny);
      (pairs[0] as TrainedPair).a[0] = 1e38;
      trainer.setPairs(pairs);
      const before = bytesOf(trainer.pairs());
      const sums = trainer.accumulate(rows, DIVISOR);
      const made = trainer.update(STEP);
      expect(Number.isFinite(sums.loss) && Number.isFinite(made.gradientNorm)).toBe(false);
      expect(made.applied).toBe(false);
      expect(bytesOf(trainer.pairs()).equals(before)).toBe(true);
    }),
  );
});

test('serving goes on while a trainer computes in the same process', async () => {
  const tiny = caseModel('qwen2', nextFile());
  const model = loadModel({ path: tiny.path, device: 'cpu' });
  const trainer = model.createTrainer(caseOptions());
  const engine = model.createEngine(ENGINE);
  const tokens = randomTokens(20, tiny.vocabulary, 1);
  const alone = forward(engine, tokens);
  const rows = caseRows(tiny.vocabulary);
  for (let i = 0; i < 5; i++) {
    trainer.accumulate(rows, DIVISOR);
    expect(forward(engine, tokens).at(-1)).toEqual(alone.at(-1));
  }
  for (const open of [engine, trainer, model]) open.close();
});

describe('bad input', () => {
  const tiny = caseModel('llama', nextFile());
  const rows = caseRows(tiny.vocabulary);

  test('options', () => {
    withModel(tiny, (model) => {
      for (const wrong of [
        { rank: 0 },
        { rank: 1.5 },
        { targets: [] },
        { targets: ['wq' as never] },
        { dropout: 1 },
        { scale: Number.NaN },
        { seed: -1 },
        { rowsMax: 0 },
        { share: 0 },
        { method: 'full' as never },
        { method: 'prefix' as const, prefixTokens: 0 },
      ]) {
        expect(
          errorCode(() => model.createTrainer(caseOptions(wrong))),
          JSON.stringify(wrong),
        ).toBe('argument_invalid');
      }
    });
  });

  test('rows', () => {
    withModel(tiny, (model) =>
      withTrainer(model, (trainer) => {
        const starts = (list: number[]) => ({ ...rows, starts: Int32Array.from(list) });
        const wrong: Record<string, TrainingRows> = {
          'a token outside': { ...rows, tokens: rows.tokens.with(0, tiny.vocabulary) },
          'a negative token': { ...rows, tokens: rows.tokens.with(0, -1) },
          'too few weights': { ...rows, weights: rows.weights.slice(1) },
          'a weight that is not finite': { ...rows, weights: rows.weights.with(4, Number.NaN) },
          'a weight on the last row': { ...rows, weights: rows.weights.with(rows.weights.length - 1, 1) },
          'starts that fall': starts([0, 23, 20, 37]),
          'starts that do not begin at 0': starts([1, 37]),
          'starts that end early': starts([0, 23, 36]),
          'no rows': { tokens: new Int32Array(), starts: Int32Array.of(0), weights: new Float32Array() },
          'another type': { ...rows, tokens: [...rows.tokens] as never },
          'more rows than rowsMax': {
            tokens: new Int32Array(65),
            starts: Int32Array.of(0, 65),
            weights: new Float32Array(65),
          },
        };
        for (const [what, bad] of Object.entries(wrong)) {
          expect(
            errorCode(() => trainer.accumulate(bad, 1)),
            what,
          ).toBe('argument_invalid');
          expect(
            errorCode(() => trainer.evaluate(bad, true)),
            what,
          ).toBe('argument_invalid');
        }
        expect(errorCode(() => trainer.accumulate(rows, 0))).toBe('argument_invalid');
        expect(errorCode(() => trainer.accumulatePreference(rows, new Float64Array(1), 0.1, 1))).toBe(
          'argument_invalid',
        );
        // Rows that train nothing are computed as such.
        const none = { ...rows, weights: new Float32Array(rows.weights.length) };
        expect(trainer.accumulate(none, 1)).toMatchObject({ loss: 0, counted: 0 });
      }),
    );
  });

  test('snapshots of another shape, cut short, or not snapshots at all', () => {
    withModel(tiny, (model) => {
      const other = withTrainer(model, (trainer) => trainer.snapshot(), { rank: 4 });
      withTrainer(model, (trainer) => {
        const good = trainer.snapshot();
        for (const bad of [other, good.slice(0, -1), good.slice(0, 12), new Uint8Array(100), new Uint8Array()]) {
          expect(errorCode(() => trainer.restore(bad))).toBe('argument_invalid');
        }
        trainer.restore(good);
        const pair = { ...(trainer.pairs()[0] as TrainedPair) };
        expect(errorCode(() => trainer.setPairs([{ ...pair, a: pair.a.slice(1) }]))).toBe('argument_invalid');
        expect(errorCode(() => trainer.setPairs([{ ...pair, layer: 99 }]))).toBe('argument_invalid');
      });
    });
  });

  test('a closed trainer says so', () => {
    withModel(tiny, (model) => {
      const trainer = model.createTrainer(caseOptions());
      trainer.close();
      expect(errorCode(() => trainer.accumulate(rows, 1))).toBe('closed');
      expect(errorCode(() => trainer.parameters)).toBe('closed');
    });
  });
});
