/** Datasets and runs for tests, without a model. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Recipe, type RecipeInput, recipe } from '../../../daemon/training/protocol.ts';
import { RunData } from '../../../daemon/training/run-data.ts';
import { TokenFileWriter } from '../../../daemon/training/token-file.ts';

export function temporaryFolder(): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), 'training-'));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

export function testRecipe(given: Partial<RecipeInput> = {}): Recipe {
  return recipe.parse({
    method: { type: 'supervised' },
    adapter: { type: 'lora', rank: 2 },
    epochs: 2,
    batchSize: 3,
    learningRate: 0.01,
    contextTokens: 64,
    seed: 7,
    ...given,
  });
}

let files = 0;

/** `lengths[i]` tokens in example i, the last half of them trained; with dpo each is two sequences of that length. */
export function testData(folder: string, lengths: readonly number[], r: Recipe = testRecipe()): RunData {
  const dpo = r.method.type === 'dpo';
  const tokensPath = join(folder, `tokens-${files++}.bin`);
  const writer = new TokenFileWriter(tokensPath);
  for (const [example, length] of lengths.entries()) {
    for (let k = 0; k < (dpo ? 2 : 1); k++) {
      const tokens = Int32Array.from({ length }, (_, i) => 1 + ((example * 31 + i * 7 + k) % 200));
      writer.add(example, { tokens, spans: [[Math.max(1, Math.floor(length / 2)), length]] }, 1 << 20);
    }
  }
  const size = writer.end();
  return new RunData({ tokensPath, size, kind: dpo ? 'preference' : 'chat' }, r, 'training_file');
}
