/** Every figure in expected-scores.json was made by the Python package that its key names, in the version it states. */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type BleuCounts,
  bleu,
  bleuCounts,
  exactMatch,
  fuzzyMatch,
  gleu,
  meteor,
  rouge,
  rougeN,
  sentenceBleu,
  textSimilarity,
  tokens13a,
} from '../../../daemon/evaluation/scores.ts';
import { commonSubsequence } from '../../../daemon/evaluation/subsequence.ts';
import { GROWTH_MAX, growth } from '../../support/cost.ts';

interface Case {
  reference: string;
  answer: string;
  rouge1: number;
  rouge2: number;
  rouge3: number;
  rougeL: number;
  bleu: number;
  gleu: number;
  meteor: number;
  fuzzy: number;
  tokens: string[];
}
const expected = JSON.parse(readFileSync(new URL('./expected-scores.json', import.meta.url), 'utf8')) as {
  corpusBleu: number;
  corpusBleuShort: number;
  cases: Case[];
};

function added(all: BleuCounts[]): BleuCounts {
  const sum: BleuCounts = { matches: [0, 0, 0, 0], totals: [0, 0, 0, 0], answerTokens: 0, referenceTokens: 0 };
  for (const one of all) {
    for (let n = 0; n < 4; n += 1) {
      sum.matches[n] = (sum.matches[n] as number) + (one.matches[n] as number);
      sum.totals[n] = (sum.totals[n] as number) + (one.totals[n] as number);
    }
    sum.answerTokens += one.answerTokens;
    sum.referenceTokens += one.referenceTokens;
  }
  return sum;
}

describe('scores are those of the packages that the literature uses', () => {
  for (const [index, one] of expected.cases.entries()) {
    it(`pair ${index}: ${one.answer.slice(0, 40)}`, () => {
      const { reference, answer } = one;
      const r = rouge(reference, answer);
      expect(r.rouge1).toBeCloseTo(one.rouge1, 8);
      expect(r.rouge2).toBeCloseTo(one.rouge2, 8);
      expect(r.rougeL).toBeCloseTo(one.rougeL, 8);
      expect(rougeN(reference, answer, 3)).toBeCloseTo(one.rouge3, 8);
      expect(tokens13a(answer)).toEqual(one.tokens);
      expect(sentenceBleu(reference, answer)).toBeCloseTo(one.bleu, 7);
      expect(gleu(reference, answer)).toBeCloseTo(one.gleu, 8);
      expect(meteor(reference, answer)).toBeCloseTo(one.meteor, 8);
      expect(fuzzyMatch(reference, answer)).toBeCloseTo(one.fuzzy, 8);
    });
  }

  it('corpus BLEU is of the added counts, not a mean of sentences', () => {
    const counts = expected.cases.map(({ reference, answer }) => bleuCounts(reference, answer));
    expect(bleu(added(counts))).toBeCloseTo(expected.corpusBleu, 8);
    const short = [bleuCounts('the cat sits', 'the cat sat'), bleuCounts('the dog', 'a dog')];
    expect(bleu(added(short))).toBe(expected.corpusBleuShort);
  });
});

describe('scores hold at the edges', () => {
  it('empty texts score 0, and two empty texts are alike', () => {
    for (const [r, a] of [
      ['', ''],
      ['', 'x'],
      ['x', ''],
      ['…', '!'],
    ] as const) {
      expect(rouge(r, a)).toEqual({ rouge1: 0, rouge2: 0, rougeL: 0 });
      expect(sentenceBleu(r, a)).toBe(0);
      expect(gleu(r, a)).toBe(0);
      expect(meteor(r, a)).toBe(0);
    }
    expect(fuzzyMatch('', '')).toBe(1);
    expect(exactMatch(' a\n', 'a')).toBe(true);
    expect(exactMatch('é', 'e\u0301')).toBe(true);
    expect(exactMatch('a', 'A')).toBe(false);
  });

  it('scripts without blanks are compared by character, accents stay letters', () => {
    expect(rouge('我爱北京', '我爱上海').rouge1).toBeCloseTo(0.5, 9);
    expect(rouge('café', 'caf').rouge1).toBe(0);
    expect(rouge('v2版本', 'v2版').rouge1).toBeGreaterThan(0.5);
  });

  it('the bit-parallel subsequence is the one of the textbook', () => {
    const textbook = (a: number[], b: number[]): number => {
      let row = new Array<number>(b.length + 1).fill(0);
      for (const x of a) {
        const next = [0];
        for (let j = 0; j < b.length; j += 1)
          next.push(x === b[j] ? (row[j] as number) + 1 : Math.max(row[j + 1] as number, next[j] as number));
        row = next;
      }
      return row[b.length] as number;
    };
    const list = fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 100 });
    fc.assert(fc.property(list, list, (a, b) => commonSubsequence(a, b) === textbook(a, b)));
  });

  it('every similarity lies in 0 … 1, and is 1 for the text itself where it has enough words', () => {
    const metrics = ['fuzzy_match', 'bleu', 'gleu', 'meteor', 'rouge_1', 'rouge_2', 'rouge_5', 'rouge_l'] as const;
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.constantFrom(...metrics), (r, a, metric) => {
        const score = textSimilarity(metric, r, a);
        return score >= 0 && score <= 1 + 1e-12;
      }),
    );
    const text = 'one two three four five six seven';
    for (const metric of metrics)
      expect(textSimilarity(metric, text, text)).toBeCloseTo(1, metric === 'meteor' ? 2 : 9);
  });

  it('long texts take no quadratic time', () => {
    const cost = growth((share) => {
      const long = 'lorem ipsum dolor sit amet '.repeat(2400 * share);
      expect(fuzzyMatch(long, `${long}x`)).toBeGreaterThan(0.99);
    });
    expect(cost).toBeLessThan(GROWTH_MAX);
  });
});
