/**
 * QLoRA: over a quantised base the gradient is that of the same weights made dense, but for the rounding of activations to
 * 8 bits that serving does too.
 */
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { loadModel, type TrainedPair } from '../../addon/index.ts';
import { convertRows } from '../../addon/quantize.ts';
import { encodeValues, type GgufTensor, TENSOR_TYPE_IDS, type TensorType, writeGguf } from '../support/gguf-writer.ts';
import { describeTinyModel, TINY_ARCHITECTURES, tinyMetadata, tinyTensors } from '../support/tiny-models.ts';
import { caseOptions, casePairs, caseRows, DIVISOR } from './gradient-case.ts';
import { temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

/** The values that a quantised tensor stands for. */
function dense(tensor: GgufTensor): GgufTensor {
  if (tensor.type === 'f32') return tensor;
  const bytes = encodeValues(tensor.type, tensor.values);
  const made = convertRows({ from: TENSOR_TYPE_IDS[tensor.type], to: 'f32', bytes, width: tensor.shape[0] as number });
  const values = new Float32Array(made.buffer.slice(made.byteOffset, made.byteOffset + made.byteLength));
  return { ...tensor, type: 'f32', values };
}

const flat = (pairs: readonly TrainedPair[]): number[] => pairs.flatMap(({ a, b }) => [...a, ...b]);

describe.each(TINY_ARCHITECTURES)('%s', (architecture) => {
  test.each(['q8_0', 'q4_0', 'q4_1'] as TensorType[])('over %s', (type) => {
    const shape = { layers: 2, embedding: 128 };
    const path = (name: string): string => join(folder.path, `${architecture}-${type}-${name}.gguf`);
    const tiny = describeTinyModel(architecture, path('quantised'), shape);
    const tensors = tinyTensors(tiny, { ...shape, type, seed: 7 });
    writeGguf(path('quantised'), { metadata: tinyMetadata(tiny), tensors });
    writeGguf(path('dense'), { metadata: tinyMetadata(tiny), tensors: tensors.map(dense) });
    const rows = caseRows(tiny.vocabulary);
    const run = (name: string): { loss: number; gradients: TrainedPair[] } => {
      const model = loadModel({ path: path(name), device: 'cpu' });
      const trainer = model.createTrainer(caseOptions());
      trainer.setPairs(casePairs(tiny));
      const { loss } = trainer.accumulate(rows, DIVISOR);
      const gradients = trainer.gradients();
      trainer.close();
      model.close();
      return { loss, gradients };
    };
    const quantised = run('quantised');
    const exact = run('dense');
    expect(Math.abs(quantised.loss / exact.loss - 1)).toBeLessThan(0.01);
    for (const want of exact.gradients) {
      const have = quantised.gradients.find((p) => p.layer === want.layer && p.target === want.target) as TrainedPair;
      const [x, y] = [flat([have]), flat([want])];
      const dot = x.reduce((sum, v, i) => sum + v * (y[i] as number), 0);
      const where = `${want.layer}.${want.target}`;
      expect(dot / (Math.hypot(...x) * Math.hypot(...y)), where).toBeGreaterThan(0.995);
      expect(Math.abs(Math.hypot(...x) / Math.hypot(...y) - 1), where).toBeLessThan(0.05);
    }
  });
});
