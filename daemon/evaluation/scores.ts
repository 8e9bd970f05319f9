/** Every way in which an answer is compared with a reference; the grader and the report take them from here. */
import { bleuCounts, gleu, sentenceBleu } from './bleu.ts';
import { meteor } from './meteor.ts';
import { rouge, rougeL, rougeN } from './rouge.ts';
import { commonSubsequence } from './subsequence.ts';

export { type BleuCounts, bleu, bleuCounts, gleu, sentenceBleu, tokens13a } from './bleu.ts';
export { meteor } from './meteor.ts';
export { type Rouge, rouge, rougeL, rougeN } from './rouge.ts';

/** OpenAI's `evaluation_metric`s that texts alone decide. */
export type TextMetric =
  | 'fuzzy_match'
  | 'bleu'
  | 'gleu'
  | 'meteor'
  | 'rouge_1'
  | 'rouge_2'
  | 'rouge_3'
  | 'rouge_4'
  | 'rouge_5'
  | 'rouge_l';

/** 0 … 1, whatever the metric. */
export function textSimilarity(metric: TextMetric, reference: string, answer: string): number {
  switch (metric) {
    case 'fuzzy_match':
      return fuzzyMatch(reference, answer);
    case 'bleu':
      return sentenceBleu(reference, answer) / 100;
    case 'gleu':
      return gleu(reference, answer);
    case 'meteor':
      return meteor(reference, answer);
    case 'rouge_l':
      return rougeL(reference, answer);
    default:
      return rougeN(reference, answer, Number(metric.slice('rouge_'.length)));
  }
}

/**
 * Normalised similarity by insertions and deletions over code points, 0 … 1: `rapidfuzz.fuzz.ratio` / 100. Two empty texts
 * are alike.
 */
export function fuzzyMatch(reference: string, answer: string): number {
  const r = [...reference];
  const a = [...answer];
  if (r.length + a.length === 0) return 1;
  return (2 * commonSubsequence(r, a)) / (r.length + a.length);
}

/** The same text but for white space around it and Unicode's ways to write one character. */
export function exactMatch(reference: string, answer: string): boolean {
  return reference.normalize('NFC').trim() === answer.normalize('NFC').trim();
}

/** All that a report keeps of one answer. */
export interface AnswerScores extends ReturnType<typeof rouge> {
  bleu: ReturnType<typeof bleuCounts>;
  exact: boolean;
}

export function scoreAnswer(reference: string, answer: string): AnswerScores {
  return { ...rouge(reference, answer), bleu: bleuCounts(reference, answer), exact: exactMatch(reference, answer) };
}
