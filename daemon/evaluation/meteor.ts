/**
 * METEOR (Lavie and Agarwal, 2007), simplified: words match exactly or by their Porter stem. The third stage, synonyms
 * from WordNet, is left out, since it needs a dictionary of one language; so scores are at most those of the whole metric.
 */
import { stemmer } from 'stemmer';
import { words } from './ngrams.ts';

const ALPHA = 0.9;
const BETA = 3;
const GAMMA = 0.5;

interface Place {
  index: number;
  word: string;
}

/** 0 … 1. */
export function meteor(reference: string, answer: string): number {
  let left: Place[] = words(answer).map((word, index) => ({ index, word }));
  let right: Place[] = words(reference).map((word, index) => ({ index, word }));
  const answerWords = left.length;
  const referenceWords = right.length;
  const pairs: [number, number][] = [];
  for (const form of [(word: string) => word, stemmer]) {
    const stage = match(left, right, form);
    pairs.push(...stage.pairs);
    left = stage.left;
    right = stage.right;
  }
  if (pairs.length === 0) return 0;
  const precision = pairs.length / answerWords;
  const recall = pairs.length / referenceWords;
  const mean = (precision * recall) / (ALPHA * precision + (1 - ALPHA) * recall);
  return mean * (1 - GAMMA * (chunks(pairs) / pairs.length) ** BETA);
}

/** From the end, each word of the answer takes the last free word of the reference that has the same form. */
function match(left: Place[], right: Place[], form: (word: string) => string) {
  const free = new Map<string, number[]>();
  for (const [at, { word }] of right.entries()) {
    const key = form(word);
    const list = free.get(key);
    if (list === undefined) free.set(key, [at]);
    else list.push(at);
  }
  const pairs: [number, number][] = [];
  const takenLeft = new Set<number>();
  const takenRight = new Set<number>();
  for (let i = left.length - 1; i >= 0; i -= 1) {
    const { index, word } = left[i] as Place;
    const at = free.get(form(word))?.pop();
    if (at === undefined) continue;
    takenLeft.add(i);
    takenRight.add(at);
    pairs.push([index, (right[at] as Place).index]);
  }
  return {
    pairs,
    left: left.filter((_, i) => !takenLeft.has(i)),
    right: right.filter((_, i) => !takenRight.has(i)),
  };
}

/** Runs of matches that are neighbours in both texts. */
function chunks(pairs: [number, number][]): number {
  pairs.sort((a, b) => a[0] - b[0]);
  let count = 1;
  for (let i = 1; i < pairs.length; i += 1) {
    const [a, r] = pairs[i - 1] as [number, number];
    const [nextA, nextR] = pairs[i] as [number, number];
    if (nextA !== a + 1 || nextR !== r + 1) count += 1;
  }
  return count;
}
