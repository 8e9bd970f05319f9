import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  learningRate,
  microBatchRows,
  Plan,
  type PlanItem,
  type PlanShape,
  pack,
} from '../../../daemon/training/plan.ts';
import { describeTinyModel } from '../../support/tiny-models.ts';
import { testRecipe } from './support.ts';

const items = (rows: readonly number[]): PlanItem[][] =>
  rows.map((count, example) => [{ example, sequences: [example], rows: count }]);
const shapes = fc.record({
  batchSize: fc.integer({ min: 1, max: 9 }),
  epochs: fc.constantFrom(1, 2, 2.5, 0.3, 3),
  packing: fc.boolean(),
  seed: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
  rowsMax: fc.integer({ min: 40, max: 120 }),
});
const lengths = fc.array(fc.integer({ min: 2, max: 40 }), { minLength: 1, maxLength: 40 });

describe('plan', () => {
  it('has every example exactly once in an epoch, and no micro-batch above the limit', () => {
    fc.assert(
      fc.property(lengths, shapes, (rows, shape) => {
        const plan = new Plan(items(rows), shape);
        for (let epoch = 0; (epoch + 1) * plan.stepsPerEpoch <= plan.steps; epoch++) {
          const seen: number[] = [];
          for (let i = 1; i <= plan.stepsPerEpoch; i++) {
            const step = plan.step(epoch * plan.stepsPerEpoch + i);
            expect(step.items.length).toBeLessThanOrEqual(shape.batchSize);
            expect(step.epochEnds).toBe(i === plan.stepsPerEpoch || step.step === plan.steps);
            for (const batch of step.microBatches) {
              expect(batch.reduce((sum, item) => sum + item.rows, 0)).toBeLessThanOrEqual(shape.rowsMax);
              if (!shape.packing) expect(batch).toHaveLength(1);
            }
            const packed = step.microBatches.flat().map(({ example }) => example);
            expect([...packed].sort()).toEqual(step.items.map(({ example }) => example).sort());
            seen.push(...packed);
          }
          expect(seen.sort((a, b) => a - b)).toEqual(rows.map((_, i) => i));
        }
      }),
    );
  });

  it('is the same for the same recipe and data, from whichever step it is asked', () => {
    fc.assert(
      fc.property(lengths, shapes, (rows, shape) => {
        const whole = new Plan(items(rows), shape);
        const steps = Array.from({ length: whole.steps }, (_, i) => whole.step(i + 1));
        for (const step of [...steps].reverse()) expect(new Plan(items(rows), shape).step(step.step)).toEqual(step);
      }),
    );
  });

  it('orders each epoch anew, and by the seed', () => {
    const rows = Array.from({ length: 64 }, () => 4);
    const shape: PlanShape = { batchSize: 64, epochs: 2, packing: true, seed: 1, rowsMax: 1000 };
    const order = (seed: number, step: number) =>
      new Plan(items(rows), { ...shape, seed }).step(step).items.map(({ example }) => example);
    expect(order(1, 1)).not.toEqual(order(1, 2));
    expect(order(1, 1)).not.toEqual(order(2, 1));
    expect(order(1, 1)).toEqual(order(1, 1));
  });

  it('counts steps and rows as they come', () => {
    fc.assert(
      fc.property(
        lengths,
        shapes,
        fc.option(fc.integer({ min: 1, max: 20 }), { nil: undefined }),
        (rows, shape, stepsMax) => {
          const plan = new Plan(items(rows), { ...shape, stepsMax });
          const sum = Array.from({ length: plan.steps }, (_, i) => plan.step(i + 1).rows).reduce((a, b) => a + b, 0);
          expect(plan.rows).toBe(sum);
          expect(plan.steps).toBeGreaterThanOrEqual(1);
          if (stepsMax !== undefined) expect(plan.steps).toBeLessThanOrEqual(stepsMax);
          expect(plan.step(plan.steps).epochEnds).toBe(true);
        },
      ),
    );
  });

  it('packs by first fit, longest first', () => {
    const packed = pack(items([5, 9, 4, 1, 6]).flat(), 10, true);
    expect(packed.map((batch) => batch.map(({ rows }) => rows))).toEqual([[9, 1], [6, 4], [5]]);
  });

  it('takes as many rows as keep a model of that size busy', () => {
    const smol = { in: 576, out: 576 };
    const up = { in: 576, out: 1536 };
    const kv = { in: 576, out: 192 };
    const targets = {
      attn_q: smol,
      attn_k: kv,
      attn_v: kv,
      attn_output: smol,
      ffn_gate: up,
      ffn_up: up,
      ffn_down: { in: 1536, out: 576 },
    };
    expect(microBatchRows({ targets })).toBe(256);
    expect(microBatchRows(describeTinyModel('llama', ''))).toBe(1024);
  });
});

describe('learning rate', () => {
  const rates = (scheduler: 'cosine' | 'linear' | 'constant', warmupRatio: number, steps: number) => {
    const r = testRecipe({ scheduler, warmupRatio, learningRate: 1 });
    return Array.from({ length: steps }, (_, i) => learningRate(r, i + 1, steps));
  };

  it('rises over the warm-up and then falls to near zero, or stays', () => {
    expect(rates('constant', 0.4, 5)).toEqual([0.5, 1, 1, 1, 1]);
    expect(rates('linear', 0, 4)).toEqual([1, 0.75, 0.5, 0.25]);
    const cosine = rates('cosine', 0, 4);
    expect(cosine[0]).toBe(1);
    expect(cosine[2]).toBeCloseTo(0.5);
  });

  it('is always between zero and the rate that was asked for', () => {
    fc.assert(
      fc.property(
        fc.constantFrom('cosine' as const, 'linear' as const, 'constant' as const),
        fc.double({ min: 0, max: 0.5, noNaN: true }),
        fc.integer({ min: 1, max: 300 }),
        (scheduler, warmup, steps) => {
          for (const rate of rates(scheduler, warmup, steps)) {
            expect(rate).toBeGreaterThan(0);
            expect(rate).toBeLessThanOrEqual(1);
          }
        },
      ),
    );
  });
});
