import { describe, expect, it } from 'vitest';
import type { ModelInfo } from '../../../addon/types.ts';
import { warmUp } from '../../../daemon/engine/warm-up.ts';
import { describeTinyModel } from '../../support/tiny-models.ts';
import { DoubleEngine, DoubleImage } from './double.ts';

const info = { ...describeTinyModel('llama', ''), vocabulary: 97 } as unknown as ModelInfo;

function rig(size: { kvCells?: number; slots?: number; sequencesMax?: number } = {}) {
  const { kvCells = 512, slots = 2, sequencesMax = 16 } = size;
  const engine = new DoubleEngine({ kvCells, sequencesMax, batchTokensMax: 64, slots, slotRankMax: 8 });
  const images: DoubleImage[] = [];
  let released = 0;
  const seen = new Set<string>();
  const step = engine.step.bind(engine);
  engine.step = (batch) => {
    seen.add(`${batch.tokens.length} rows, ${batch.slots[0] === -1 ? 'base' : 'adapter'}`);
    return step(batch);
  };
  const model = {
    info,
    buildAdapter: async () => {
      const image = new DoubleImage(5);
      image.release = () => {
        released += 1;
      };
      images.push(image);
      return image;
    },
  };
  const options = { model, engine, slots, slotRankMax: 8, sequencesMax, rowsMax: 64 };
  return { engine, options, images, seen, released: () => released };
}

describe('warm-up', () => {
  it('computes prompts and batches with and without an adapter, and leaves no trace', async () => {
    const { engine, options, images, seen, released } = rig();
    await warmUp(options);
    const rows = [1, 2, 4, 8, 48];
    expect([...seen].sort()).toEqual(rows.flatMap((n) => [`${n} rows, base`, `${n} rows, adapter`]).sort());
    expect(engine.kvCellsFree).toBe(engine.kvCells);
    expect(engine.samplersOpen).toBe(0);
    for (let sequence = 0; sequence < 16; sequence += 1) expect(engine.sequenceLength(sequence)).toBe(0);
    expect([images.length, released()]).toEqual([1, 1]);
    // The slot is empty again: a row under it is refused.
    const one = (value: number) => Int32Array.of(value);
    const row = { tokens: one(1), positions: one(0), sequences: one(0), outputs: one(0), samplers: one(-1) };
    expect(() => engine.step({ ...row, slots: one(0) })).toThrow(/slot 0 is empty/);
  });

  it('keeps within small engines', async () => {
    for (const size of [{ kvCells: 4 }, { sequencesMax: 2 }, { kvCells: 60, slots: 1 }]) {
      const { engine, options } = rig(size);
      await warmUp(options);
      expect(engine.steps).toBeGreaterThan(0);
      expect(engine.kvCellsFree).toBe(engine.kvCells);
    }
  });

  it('ends early where steps take long', async () => {
    const { engine, options } = rig();
    await warmUp({ ...options, now: () => engine.steps * 1_000 });
    expect(engine.steps).toBe(1);
    expect(engine.kvCellsFree).toBe(engine.kvCells);
  });
});
