import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { TARGETS, type TrainedPair } from '../../../addon/types.ts';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import { encodePeftFolder, unpermuteRows } from '../../../daemon/training/peft-folder.ts';
import { describeTinyModel, normals } from '../../support/tiny-models.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'peft-folder-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function pairsOf(model: ReturnType<typeof describeTinyModel>, rank: number): TrainedPair[] {
  return Array.from({ length: model.layers }, (_, layer) =>
    TARGETS.map((target) => ({
      target,
      layer,
      a: normals(`a${layer}${target}`, rank * model.targets[target].in, 0.1),
      b: normals(`b${layer}${target}`, rank * model.targets[target].out, 0.1),
    })),
  ).flat();
}

describe('the PEFT folder of a trained adapter', () => {
  it('undoes the order of rows that llama files have', () => {
    // Two heads of width four: HF rows 0 1 2 3 lie in the file as 0 2 1 3.
    const inFile = Float32Array.from([0, 2, 1, 3, 4, 6, 5, 7]);
    expect([...unpermuteRows(inFile, 8, 1, 2)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(unpermuteRows(inFile, 8, 1, 0)).toBe(inFile);
  });

  for (const architecture of ['llama', 'qwen2'] as const) {
    it(`is taken in by the adapter registry (${architecture})`, async () => {
      const model = describeTinyModel(architecture, 'unused');
      const adapter = {
        pairs: pairsOf(model, 4),
        rank: 4,
        alpha: 8,
        rslora: true,
        dropout: 0.1,
        base: model,
        baseName: 'tiny/random',
      };
      for (const file of encodePeftFolder(adapter)) writeFileSync(join(folder, file.name), file.bytes);
      const registry = await AdapterRegistry.open({ root: join(folder, 'registry'), base: model });
      const added = await registry.add({ name: 'trained', source: folder });
      expect(added).toMatchObject({ name: 'trained', rankMax: 4 });
      expect([...added.targets].sort()).toEqual([...TARGETS].sort());
      const handle = await registry.handle('trained');
      const q = handle.pairs.find((pair) => pair.target === 'attn_q' && pair.layer === 1);
      expect(q).toMatchObject({ rank: 4, scale: 4, permuteHeads: architecture === 'llama' ? model.heads : 0 });
    });
  }

  it('refuses weights of another shape', () => {
    const model = describeTinyModel('llama', 'unused');
    const pairs = pairsOf(model, 4);
    expect(() =>
      encodePeftFolder({ pairs, rank: 8, alpha: 8, rslora: false, dropout: 0, base: model, baseName: '' }),
    ).toThrow('shape');
  });
});
