/**
 * BLEU (Papineni et al., 2002) with the tokenisation "13a" and the exponential smoothing that `sacrebleu` uses by default,
 * and GLEU (Wu et al., 2016) over the same tokens. Case matters. One reference per answer.
 */
import { countNgrams, overlap } from './ngrams.ts';

const ORDERS = 4;

/** What a corpus score is made of; those of several examples are added up. */
export interface BleuCounts {
  /** Matching n-grams, n = 1 … 4, clipped to their number in the reference. */
  matches: [number, number, number, number];
  /** n-grams of the answer. */
  totals: [number, number, number, number];
  answerTokens: number;
  referenceTokens: number;
}

/** Tokens as mteval-v13a makes them, of which sacrebleu's name "13a" speaks. */
export function tokens13a(text: string): string[] {
  let line = text.trimEnd().replaceAll('<skipped>', '').replaceAll('-\n', '').replaceAll('\n', ' ');
  line = line.replaceAll('&quot;', '"').replaceAll('&amp;', '&').replaceAll('&lt;', '<').replaceAll('&gt;', '>');
  // ASCII punctuation and symbols stand alone, but for apostrophes, and for . , - next to digits.
  const spaced = ` ${line} `
    .replace(/([{-~[-` -&(-+:-@/])/g, ' $1 ')
    .replace(/([^0-9])([.,])/gu, '$1 $2 ')
    .replace(/([.,])([^0-9])/gu, ' $1 $2')
    .replace(/([0-9])(-)/g, '$1 $2 ');
  return spaced.split(/\s+/u).filter((token) => token !== '');
}

export function bleuCounts(reference: string, answer: string): BleuCounts {
  const r = tokens13a(reference);
  const a = tokens13a(answer);
  const counts: BleuCounts = {
    matches: [0, 0, 0, 0],
    totals: [0, 0, 0, 0],
    answerTokens: a.length,
    referenceTokens: r.length,
  };
  for (let n = 1; n <= ORDERS; n += 1) {
    counts.totals[n - 1] = Math.max(0, a.length - n + 1);
    if (a.length >= n && r.length >= n) counts.matches[n - 1] = overlap(countNgrams(a, n), countNgrams(r, n));
  }
  return counts;
}

/**
 * 0 … 100. `effectiveOrder`: leave out the orders that the answer is too short for, as for single sentences.
 */
export function bleu(counts: BleuCounts, effectiveOrder = false): number {
  const { matches, totals, answerTokens, referenceTokens } = counts;
  if (matches.every((count) => count === 0)) return 0;
  const brevity = answerTokens < referenceTokens ? Math.exp(1 - referenceTokens / answerTokens) : 1;
  let halving = 1;
  let logs = 0;
  let orders = 0;
  for (let n = 0; n < ORDERS && (totals[n] as number) > 0; n += 1) {
    const match = matches[n] as number;
    if (match === 0) halving *= 2;
    logs += Math.log((match === 0 ? 1 / halving : match) / (totals[n] as number));
    orders = n + 1;
  }
  // Without effective order, an order that the answer is too short for has precision 0.
  if (orders < ORDERS && !effectiveOrder) return 0;
  return 100 * brevity * Math.exp(logs / orders);
}

/** 0 … 100, of one answer. */
export function sentenceBleu(reference: string, answer: string): number {
  return bleu(bleuCounts(reference, answer), true);
}

/** 0 … 1: the smaller of precision and recall over all n-grams, n = 1 … 4. */
export function gleu(reference: string, answer: string): number {
  const r = tokens13a(reference);
  const a = tokens13a(answer);
  let common = 0;
  let found = 0;
  let wanted = 0;
  for (let n = 1; n <= ORDERS; n += 1) {
    common += overlap(countNgrams(a, n), countNgrams(r, n));
    found += Math.max(0, a.length - n + 1);
    wanted += Math.max(0, r.length - n + 1);
  }
  const most = Math.max(found, wanted);
  return most === 0 ? 0 : common / most;
}
