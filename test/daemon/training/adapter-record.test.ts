/** What a run says of its adapter is whole or left out, and never stands in the way of the weights. */
import { expect, test } from 'vitest';
import { encodeRecord } from '../../../daemon/adapters/record.ts';
import { recordOf } from '../../../daemon/training/adapter-record.ts';
import { type Dataset, type RecipeInput, recipe, runRequest } from '../../../daemon/training/protocol.ts';

const digest = (letter: string): string => letter.repeat(64);
const asked: RecipeInput = {
  method: { type: 'supervised' },
  adapter: { type: 'lora' },
  epochs: 1,
  batchSize: 4,
  learningRate: 2e-4,
  contextTokens: 256,
  seed: 1,
};
const request = runRequest.parse({
  dataset: digest('a'),
  validation: digest('b'),
  recipe: asked,
  adapter: 'support',
  owner: digest('c'),
  notes: { team: 'help desk' },
});
const dataset = { digest: digest('a'), examples: 10, tokens: 200, trainedTokens: 90 } as Dataset;
const metrics = { step: 3, trainLoss: 1.5, trainMeanTokenAccuracy: 0.5 };
const source = { id: 'run-1', request, base: { id: 'tiny', digest: digest('d') }, metrics };

test('recipe, data, metrics, run and notes are told, what cannot be found is left out', async () => {
  const datasets = {
    get: async (wanted: string) => {
      if (wanted === digest('a')) return dataset;
      throw new Error('removed meanwhile');
    },
  };
  const record = await recordOf({ ...source, datasets });
  expect(record).toMatchObject({
    recipe: recipe.parse(asked),
    dataset: { examples: 10, tokens: 200, trainedTokens: 90 },
    validation: null,
    metrics,
    run: 'run-1',
    notes: { team: 'help desk' },
  });
  expect(() => encodeRecord(record as NonNullable<typeof record>)).not.toThrow();
});

test('a loss that is no number costs the record, not the adapter', async () => {
  const datasets = { get: async () => dataset };
  expect(await recordOf({ ...source, datasets, metrics: { ...metrics, trainLoss: Number.NaN } })).toBeUndefined();
});
