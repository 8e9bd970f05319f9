/** What is drawn follows the distribution that was asked for. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type Engine,
  loadModel,
  type Model,
  openVocabulary,
  type SamplerOptions,
  type TokenChoice,
  type Vocabulary,
} from '../../addon/index.ts';
import { argmax, logSumExp } from '../../loadtest/bench/stats.ts';
import { type TinyModel, writeTinyModel } from '../support/tiny-models.ts';
import { batchOf, ENGINE, GREEDY, randomTokens, rowsOf, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
let tiny: TinyModel;
let model: Model;
let engine: Engine;
let vocabulary: Vocabulary;
const prompt = randomTokens(9, 256, 3);

beforeAll(() => {
  tiny = writeTinyModel('qwen3', join(folder.path, 'tiny.gguf'), { type: 'f32' });
  model = loadModel({ path: tiny.path, device: 'cpu' });
  engine = model.createEngine({ ...ENGINE, kvCells: 16_384, sequencesMax: 64 });
  vocabulary = openVocabulary(tiny.path);
});
afterAll(() => {
  vocabulary.close();
  engine.close();
  model.close();
  folder.remove();
});

/** One choice per sampler from the very same logits; returns those logits, too. */
function draw(samplers: readonly number[]): { choices: TokenChoice[]; logits: Float32Array } {
  engine.trimSequence(0, 0);
  engine.step(batchOf([{ sequence: 0, tokens: prompt.subarray(0, 8), position: 0, outputs: 'none' }]));
  const choices: TokenChoice[] = [];
  let logits = new Float32Array();
  // Same sequence, same position, once per sampler: sequences that share the prefix.
  for (let from = 0; from < samplers.length; from += 60) {
    const some = samplers.slice(from, from + 60);
    const parts = some.map((sampler, i) => {
      engine.shareSequence(0, i + 1, 8);
      return { sequence: i + 1, tokens: prompt.subarray(8), position: 8, sampler };
    });
    const result = engine.step(batchOf(parts));
    logits = rowsOf(result)[0] as Float32Array<ArrayBuffer>;
    choices.push(...result.choices);
    for (const [i] of some.entries()) engine.trimSequence(i + 1, 0);
  }
  engine.trimSequence(0, 0);
  return { choices, logits };
}

/** Many draws of one sampler each with its own seed. */
function drawMany(
  count: number,
  options: Partial<SamplerOptions>,
  seed = 0,
): { tokens: number[]; logits: Float32Array } {
  const samplers = Array.from({ length: count }, (_, i) =>
    engine.createSampler({ ...GREEDY, temperature: 1, ...options, seed: seed + i }),
  );
  const { choices, logits } = draw(samplers);
  for (const sampler of samplers) engine.freeSampler(sampler);
  return { tokens: choices.map((c) => c.token), logits };
}

function softmax(logits: Float32Array, temperature = 1): Float64Array {
  const scaled = logits.map((x) => x / temperature);
  const norm = logSumExp(scaled);
  return Float64Array.from(scaled, (x) => Math.exp(x - norm));
}

/** Keeps the most probable tokens for which `keep` says yes, and renormalises. */
function cut(p: Float64Array, keep: (rank: number, probability: number, before: number) => boolean): Float64Array {
  const order = [...p.keys()].sort((a, b) => (p[b] as number) - (p[a] as number) || a - b);
  const out = new Float64Array(p.length);
  let before = 0;
  let total = 0;
  for (const [rank, token] of order.entries()) {
    if (keep(rank, p[token] as number, before)) total += out[token] = p[token] as number;
    before += p[token] as number;
  }
  return out.map((x) => x / total);
}

/** Pearson's χ² with rare tokens put together; returns the z-score of the statistic (Wilson–Hilferty). */
function chiSquare(tokens: readonly number[], expected: Float64Array): number {
  const counts = new Map<number, number>();
  for (const token of tokens) {
    expect(expected[token], `token ${token} should never be drawn`).toBeGreaterThan(0);
    counts.set(token, (counts.get(token) ?? 0) + 1);
  }
  let statistic = 0;
  let degrees = -1;
  let rareExpected = 0;
  let rareCount = 0;
  expected.forEach((p, token) => {
    const want = p * tokens.length;
    const got = counts.get(token) ?? 0;
    if (want < 5) {
      rareExpected += want;
      rareCount += got;
    } else {
      statistic += (got - want) ** 2 / want;
      degrees++;
    }
  });
  if (rareExpected > 0) {
    statistic += (rareCount - rareExpected) ** 2 / Math.max(rareExpected, 1);
    degrees++;
  }
  if (degrees < 1) return 0;
  return (Math.cbrt(statistic / degrees) - (1 - 2 / (9 * degrees))) / Math.sqrt(2 / (9 * degrees));
}

const DRAWS = 3000;
const distributions: [string, Partial<SamplerOptions>, (logits: Float32Array) => Float64Array][] = [
  ['temperature 1', {}, (l) => softmax(l)],
  ['temperature 0.6', { temperature: 0.6 }, (l) => softmax(l, 0.6)],
  ['temperature 1.5', { temperature: 1.5 }, (l) => softmax(l, 1.5)],
  ['top-k 5', { topK: 5 }, (l) => cut(softmax(l), (rank) => rank < 5)],
  ['top-p 0.7', { topP: 0.7 }, (l) => cut(softmax(l), (_, __, before) => before < 0.7)],
  [
    'min-p 0.2',
    { minP: 0.2 },
    (l) => {
      const p = softmax(l);
      const best = Math.max(...p);
      return cut(p, (_, x) => x >= 0.2 * best);
    },
  ],
  [
    'all of them',
    { temperature: 1.2, topK: 12, topP: 0.8, minP: 0.05 },
    (l) => {
      const p = softmax(l, 1.2);
      const best = Math.max(...p);
      return cut(
        cut(p, (rank, x) => rank < 12 && x >= 0.05 * best),
        (_, x, before) => x > 0 && before < 0.8,
      );
    },
  ],
];

test.each(distributions)('%s draws from the distribution it names', (_, options, expected) => {
  const { tokens, logits } = drawMany(DRAWS, options);
  // Seeds are fixed, so this either always passes or never does; 4 sigma was chosen before looking.
  expect(Math.abs(chiSquare(tokens, expected(logits)))).toBeLessThan(4);
});

test('the test of distributions sees a wrong one', () => {
  const { tokens, logits } = drawMany(DRAWS, { temperature: 1.1 });
  expect(chiSquare(tokens, softmax(logits))).toBeGreaterThan(4);
});

test('draws of one sampler, one after the other, follow the distribution, too', () => {
  const sampler = engine.createSampler({ ...GREEDY, temperature: 1, seed: 5 });
  const { choices, logits } = draw(new Array(DRAWS).fill(sampler));
  engine.freeSampler(sampler);
  expect(
    Math.abs(
      chiSquare(
        choices.map((c) => c.token),
        softmax(logits),
      ),
    ),
  ).toBeLessThan(4);
});

test('temperature 0, and one too small to divide by, is the most probable token', () => {
  for (const options of [
    { temperature: 0 },
    { temperature: 1e-40 },
    { temperature: 1e-38, topK: 50 },
    { temperature: 1e-20, minP: 0.1 },
    { temperature: 1e-5, topP: 0.9 },
  ]) {
    const { tokens, logits } = drawMany(5, options);
    expect(new Set(tokens), JSON.stringify(options)).toEqual(new Set([argmax(logits)]));
  }
});

test('top-k 1, top-p 0 and min-p 1 leave the most probable token only', () => {
  for (const options of [{ topK: 1 }, { topP: 0 }, { minP: 1 }]) {
    const { tokens, logits } = drawMany(20, { temperature: 2, ...options });
    expect(new Set(tokens)).toEqual(new Set([argmax(logits)]));
  }
});

test('the same seed draws the same, another one something else', () => {
  const first = drawMany(40, { temperature: 2 }, 1000).tokens;
  expect(drawMany(40, { temperature: 2 }, 1000).tokens).toEqual(first);
  expect(drawMany(40, { temperature: 2 }, 5000).tokens).not.toEqual(first);
  expect(new Set(first).size).toBeGreaterThan(10);
});

test('a bias of −100 forbids, +100 forces, and ignoreEos never ends', () => {
  const plain = drawMany(1, { temperature: 0 });
  const best = plain.tokens[0] as number;
  expect(drawMany(50, { logitBias: [{ token: best, bias: -100 }] }).tokens).not.toContain(best);
  expect(new Set(drawMany(50, { logitBias: [{ token: 77, bias: 100 }] }).tokens)).toEqual(new Set([77]));
  const ends = [...vocabulary.endTokens];
  expect(ends.length).toBeGreaterThan(0);
  const biased = ends.map((token) => ({ token, bias: 90 }));
  expect(ends).toContain(drawMany(1, { logitBias: biased }).tokens[0]);
  for (const token of drawMany(50, { logitBias: biased, ignoreEos: true }).tokens) expect(ends).not.toContain(token);
});

test('penalties lower what was said before, and only that', () => {
  const { logits } = drawMany(1, {});
  const order = [...logits.keys()].sort((a, b) => (logits[b] as number) - (logits[a] as number));
  const [best, second] = order as [number, number];
  const after = (options: Partial<SamplerOptions>, seen: number[]): number => {
    const sampler = engine.createSampler({ ...GREEDY, ...options });
    engine.acceptTokens(sampler, Int32Array.from(seen));
    const { choices } = draw([sampler]);
    engine.freeSampler(sampler);
    return choices[0]?.token as number;
  };
  expect(after({}, [best])).toBe(best);
  expect(after({ repeatPenalty: 50 }, [best])).toBe(second);
  expect(after({ repeatPenalty: 50 }, [second])).toBe(best);
  // Only the last so many tokens count.
  expect(after({ repeatPenalty: 50, penaltyLast: 2 }, [best, 1, 2])).toBe(best);
  expect(after({ repeatPenalty: 50, penaltyLast: 3 }, [best, 1, 2])).toBe(second);
  // Frequency and presence count what was generated, not the prompt.
  expect(after({ frequencyPenalty: 100, presencePenalty: 100 }, [best])).toBe(best);
  for (const options of [{ frequencyPenalty: 100 }, { presencePenalty: 100 }]) {
    const sampler = engine.createSampler({ ...GREEDY, ...options });
    const { choices } = draw([sampler, sampler, sampler]);
    engine.freeSampler(sampler);
    expect(choices.map((c) => c.token)).toEqual(order.slice(0, 3));
  }
});

test('log-probabilities are of the model itself, sum to 1, and the best come first', () => {
  const asked = {
    temperature: 0.3,
    topLogprobs: tiny.vocabulary,
    logitBias: [{ token: 9, bias: 50 }],
    repeatPenalty: 2,
  };
  const sampler = engine.createSampler({ ...GREEDY, ...asked });
  const { choices, logits } = draw([sampler]);
  engine.freeSampler(sampler);
  const [choice] = choices as [TokenChoice];
  const norm = logSumExp(logits);
  expect(choice.token).toBe(9);
  expect(choice.logprob).toBeCloseTo((logits[9] as number) - norm, 4);
  expect(choice.top).toHaveLength(tiny.vocabulary);
  expect(choice.top.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0)).toBeCloseTo(1, 4);
  for (const [i, { token, logprob }] of choice.top.entries()) {
    expect(logprob).toBeCloseTo((logits[token] as number) - norm, 4);
    if (i > 0) expect(logprob).toBeLessThanOrEqual(choice.top[i - 1]?.logprob as number);
  }
  const [none] = draw([engine.createSampler({ ...GREEDY, topLogprobs: -1 })]).choices as [TokenChoice];
  expect(none).toMatchObject({ top: [], logprob: 0 });
  const [three] = draw([engine.createSampler({ ...GREEDY, topLogprobs: 3 })]).choices as [TokenChoice];
  expect(three.top.map(({ token }) => token)).toEqual(choice.top.slice(0, 3).map(({ token }) => token));
});

describe('a grammar', () => {
  /** Generates up to `most` tokens for each sampler in one batch; ends a row at an end token or an error. */
  function generate(samplers: readonly number[], most: number): { text: string; ended: boolean; error?: string }[] {
    const rows = samplers.map((sampler, i) => ({
      sampler,
      sequence: i,
      bytes: [] as Uint8Array[],
      ended: false,
      error: undefined as string | undefined,
      next: prompt as Int32Array,
      position: 0,
    }));
    const ends = new Set(vocabulary.endTokens);
    for (let turn = 0; turn < most; turn++) {
      const open = rows.filter((row) => !row.ended && row.error === undefined);
      if (open.length === 0) break;
      const { choices } = engine.step(
        batchOf(
          open.map((row) => ({
            sequence: row.sequence,
            tokens: row.next,
            position: row.position,
            outputs: 'last' as const,
            sampler: row.sampler,
          })),
          { wantLogits: false },
        ),
      );
      for (const [i, row] of open.entries()) {
        const choice = choices[i] as TokenChoice;
        row.position += row.next.length;
        row.next = Int32Array.of(choice.token);
        if (choice.error !== undefined) row.error = choice.error;
        else if (ends.has(choice.token)) row.ended = true;
        else row.bytes.push(vocabulary.tokenBytes(choice.token, false));
      }
    }
    return rows.map((row) => {
      engine.trimSequence(row.sequence, 0);
      engine.freeSampler(row.sampler);
      const text = Buffer.concat(row.bytes).toString('utf8');
      return { text, ended: row.ended, ...(row.error === undefined ? {} : { error: row.error }) };
    });
  }

  test('of a JSON schema gives valid JSON at temperature 1.5, whatever the seed', () => {
    const grammar = vocabulary.schemaToGrammar(
      JSON.stringify({
        type: 'object',
        properties: {
          kind: { enum: ['cat', 'dog'] },
          age: { type: 'integer', minimum: 0, maximum: 99 },
          tags: { type: 'array', items: { type: 'boolean' }, maxItems: 3 },
        },
        required: ['kind', 'age', 'tags'],
        additionalProperties: false,
      }),
    );
    const samplers = Array.from({ length: 40 }, (_, seed) =>
      engine.createSampler({ ...GREEDY, temperature: 1.5, seed, grammar }),
    );
    const answers = generate(samplers, 20 * 60).map((a) => {
      expect(a).toMatchObject({ ended: true });
      return JSON.parse(a.text);
    });
    for (const answer of answers) {
      expect(Object.keys(answer)).toEqual(['kind', 'age', 'tags']);
      expect(['cat', 'dog']).toContain(answer.kind);
      expect(Number.isInteger(answer.age) && answer.age >= 0 && answer.age <= 99).toBe(true);
      expect(answer.tags.every((t: unknown) => typeof t === 'boolean') && answer.tags.length <= 3).toBe(true);
    }
    expect(new Set(answers.map((a) => JSON.stringify(a))).size).toBeGreaterThan(20);
  });

  test('that nothing can continue is an error of its own row only', () => {
    const stuck = engine.createSampler({ ...GREEDY, grammar: 'root ::= "ab"', ignoreEos: true });
    const free = engine.createSampler({ ...GREEDY, temperature: 1, ignoreEos: true });
    const fine = engine.createSampler({ ...GREEDY, grammar: 'root ::= "xyz"' });
    const [a, b, c] = generate([stuck, free, fine], 8);
    expect(a).toMatchObject({ text: 'ab', ended: false, error: expect.stringMatching(/grammar/) });
    expect(b).toMatchObject({ ended: false });
    expect(b?.error).toBeUndefined();
    expect(c).toMatchObject({ text: 'xyz', ended: true });
  });

  test('that waits for its trigger leaves the text before it free, and holds after it', () => {
    const lazy = (value: string, type: number) =>
      engine.createSampler({
        ...GREEDY,
        temperature: 1.5,
        seed: 3,
        grammar: 'root ::= "!" [0-9]{3} ";"',
        grammarLazy: true,
        grammarTriggers: [{ type, value, token: 0 }],
        logitBias: [{ token: vocabulary.tokenize('!', { special: false, addBos: false })[0] as number, bias: 4 }],
      });
    const WORD = 1;
    const [answer] = generate([lazy('!', WORD)], 400);
    expect(answer?.error).toBeUndefined();
    expect(answer?.text).toMatch(/![0-9]{3};$/);
    expect(answer?.ended).toBe(true);
    // It never comes: nothing is held back.
    const [without] = generate([lazy('never said', WORD)], 30);
    expect(without?.error).toBeUndefined();
    expect(without?.text).not.toMatch(/^![0-9]{3};$/);
  });

  test('with a prefill goes on where the prompt ended', () => {
    const [answer] = generate(
      [engine.createSampler({ ...GREEDY, grammar: 'root ::= "one" "two"', grammarPrefill: 'one' })],
      10,
    );
    expect(answer).toMatchObject({ text: 'two', ended: true });
  });
});
