/** `MODELFACTORY_EXACT=on`: an adapter's chat through the whole product is what libllama computes from the same files. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, openVocabulary } from '../../addon/index.ts';
import type { AdapterTensorPair } from '../../addon/types.ts';
import { type ReferenceSequence, reference } from '../../loadtest/bench/libllama.ts';
import { logSumExp } from '../../loadtest/bench/stats.ts';
import { ENGINE, forward, loraFor, temporaryFolder } from '../addon/rig.ts';
import { type TinyModel, writeTinyModel } from '../support/tiny-models.ts';
import { Product } from './product.ts';

const TOKENS = 12;
/** Two threads of ggml take ten times as long as one where other programs want the cores. */
const THREADS = 1;
const QUESTIONS = [
  'What is a lighthouse?',
  `Tell me more about ${'the sea and the ships and '.repeat(12)}the keeper.`,
] as const;

const folder = temporaryFolder();
let tiny: TinyModel;
let product: Product;
let lora: { file: Buffer; pairs: AdapterTensorPair[] };
const loraPath = join(folder.path, 'adapter.gguf');

beforeAll(async () => {
  // 4-bit weights: what is rounded otherwise shows.
  tiny = writeTinyModel('llama', join(folder.path, 'tiny.gguf'), { type: 'q4_1', context: 2048 });
  lora = loraFor(tiny, { rank: 6, seed: 21 });
  writeFileSync(loraPath, lora.file);
  product = await Product.start({
    MODELFACTORY_BASE: tiny.path,
    MODELFACTORY_EXACT: 'on',
    MODELFACTORY_THREADS: String(THREADS),
  });
  await product.addAdapter('adapter', loraPath);
});
afterAll(async () => {
  await product?.stop();
  folder.remove();
});

/** What libllama computes after the prompt that the product makes of the question. */
function expected(question: string): ReferenceSequence {
  const vocabulary = openVocabulary(tiny.path);
  try {
    const { prompt } = vocabulary.chatPrompt({
      messagesJson: JSON.stringify([{ role: 'user', content: question }]),
      toolsJson: '',
      toolChoice: 'none',
      parallelToolCalls: false,
      jsonSchema: '',
    });
    const tokens = [...vocabulary.tokenize(prompt, { special: true, addBos: vocabulary.addBos })];
    const asked = { modelPath: tiny.path, sequences: [tokens], loraPath, greedy: TOKENS, last: 1, threads: THREADS };
    return [...reference(asked)][0] as ReferenceSequence;
  } finally {
    vocabulary.close();
  }
}

/** The five best natural-log probabilities. */
function best(logits: Float32Array): number[] {
  const norm = logSumExp(logits);
  return [...logits]
    .map((x) => x - norm)
    .sort((a, b) => b - a)
    .slice(0, 5);
}

/** Largest difference between two lists. */
const apart = (a: number[], b: number[]): number => Math.max(...a.map((x, i) => Math.abs(x - (b[i] as number))));
/** Probabilities leave the product as float32 numbers. */
const ROUNDING = 2e-6;

describe('the exact mode', () => {
  it.each(QUESTIONS)('answers %j with libllama’s own tokens and probabilities, again and again', async (question) => {
    const { logits, greedy, tokens } = expected(question);
    const wanted = best(logits[0] as Float32Array);
    // A second time: nothing is taken from the first, or the rest of the prompt would be rounded otherwise.
    for (const _ of [1, 2]) {
      const answer = await product.client().chat.completions.create({
        model: 'adapter',
        messages: [{ role: 'user', content: question }],
        max_tokens: TOKENS,
        temperature: 0,
        logprobs: true,
        top_logprobs: 5,
        ...({ ignore_eos: true } as object),
      });
      expect(answer.usage).toMatchObject({ prompt_tokens: tokens.length, completion_tokens: TOKENS });
      expect(answer.usage?.prompt_tokens_details?.cached_tokens ?? 0).toBe(0);
      const said = answer.choices[0]?.logprobs?.content ?? [];
      expect(apart(wanted, said[0]?.top_logprobs.map((one) => one.logprob) ?? [])).toBeLessThan(ROUNDING);
      const vocabulary = openVocabulary(tiny.path);
      const bytes = [...greedy].map((token) => [...vocabulary.tokenBytes(token, true)]);
      vocabulary.close();
      expect(said.map((one) => one.bytes)).toEqual(bytes);
    }
  });

  it('is needed for that: the default mode is near, not the same', async () => {
    const { logits, tokens } = expected(QUESTIONS[0]);
    const model = loadModel({ path: tiny.path, device: 'cpu', threads: THREADS });
    const engine = model.createEngine(ENGINE);
    engine.setSlot(0, await model.buildAdapter(lora.file, lora.pairs));
    const ours = forward(engine, tokens, { slot: 0 }).at(-1) as Float32Array;
    engine.close();
    model.close();
    expect(apart(best(logits[0] as Float32Array), best(ours))).toBeGreaterThan(20 * ROUNDING);
  });
});
