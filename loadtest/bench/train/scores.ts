/** Corpus scores with several references per answer, as the E2E challenge counts them. */
import { type BleuCounts, bleu, tokens13a } from '../../../daemon/evaluation/bleu.ts';
import { countNgrams } from '../../../daemon/evaluation/ngrams.ts';
import { rouge } from '../../../daemon/evaluation/rouge.ts';
import { mean } from '../stats.ts';

export interface TextScores {
  /** 0 … 100. */
  bleu: number;
  /** F1, 0 … 100; of several references the best counts. */
  rouge2: number;
  rougeL: number;
}

/**
 * Counts of one answer: an n-gram matches as often as the reference that has it most often; the length is that of the
 * reference closest in length, the shorter of two (Papineni et al., 2002; as sacrebleu).
 */
export function bleuCountsOfMany(references: readonly string[], answer: string): BleuCounts {
  const a = tokens13a(answer);
  const all = references.map(tokens13a);
  const lengths = all.map((r) => r.length).sort((x, y) => Math.abs(x - a.length) - Math.abs(y - a.length) || x - y);
  const counts: BleuCounts = {
    matches: [0, 0, 0, 0],
    totals: [0, 0, 0, 0],
    answerTokens: a.length,
    referenceTokens: lengths[0] ?? 0,
  };
  for (let n = 1; n <= 4; n++) {
    const most = new Map<string, number>();
    for (const r of all) {
      for (const [gram, count] of countNgrams(r, n)) most.set(gram, Math.max(most.get(gram) ?? 0, count));
    }
    counts.totals[n - 1] = Math.max(0, a.length - n + 1);
    for (const [gram, count] of countNgrams(a, n))
      (counts.matches as number[])[n - 1]! += Math.min(count, most.get(gram) ?? 0);
  }
  return counts;
}

export function addCounts(all: readonly BleuCounts[]): BleuCounts {
  const total: BleuCounts = { matches: [0, 0, 0, 0], totals: [0, 0, 0, 0], answerTokens: 0, referenceTokens: 0 };
  for (const one of all) {
    for (let n = 0; n < 4; n++) {
      (total.matches as number[])[n]! += one.matches[n] as number;
      (total.totals as number[])[n]! += one.totals[n] as number;
    }
    total.answerTokens += one.answerTokens;
    total.referenceTokens += one.referenceTokens;
  }
  return total;
}

export function scoreCorpus(references: readonly (readonly string[])[], answers: readonly string[]): TextScores {
  const best = (pick: 'rouge2' | 'rougeL'): number =>
    100 * mean(answers.map((answer, i) => Math.max(...(references[i] ?? []).map((r) => rouge(r, answer)[pick]))));
  return {
    bleu: bleu(addCounts(answers.map((answer, i) => bleuCountsOfMany(references[i] ?? [], answer)))),
    rouge2: best('rouge2'),
    rougeL: best('rougeL'),
  };
}
