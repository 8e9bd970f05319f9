/** ROUGE (C.-Y. Lin, 2004) as F1, without stemming: the figures of Google's `rouge-score` on ASCII text. */
import { countNgrams, overlap, words } from './ngrams.ts';
import { commonSubsequence } from './subsequence.ts';

export interface Rouge {
  rouge1: number;
  rouge2: number;
  rougeL: number;
}

export function rouge(reference: string, answer: string): Rouge {
  const r = words(reference);
  const a = words(answer);
  return { rouge1: ofNgrams(r, a, 1), rouge2: ofNgrams(r, a, 2), rougeL: ofSubsequence(r, a) };
}

/** 0 … 1. */
export function rougeN(reference: string, answer: string, n: number): number {
  return ofNgrams(words(reference), words(answer), n);
}

/** 0 … 1; the longest common subsequence of the whole texts, line breaks being blanks. */
export function rougeL(reference: string, answer: string): number {
  return ofSubsequence(words(reference), words(answer));
}

function ofNgrams(reference: string[], answer: string[], n: number): number {
  const common = overlap(countNgrams(reference, n), countNgrams(answer, n));
  return f1(common, Math.max(0, answer.length - n + 1), Math.max(0, reference.length - n + 1));
}

function ofSubsequence(reference: string[], answer: string[]): number {
  return f1(commonSubsequence(reference, answer), answer.length, reference.length);
}

function f1(common: number, found: number, wanted: number): number {
  return common === 0 ? 0 : (2 * common) / (found + wanted);
}
