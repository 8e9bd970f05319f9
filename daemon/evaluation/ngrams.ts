/** Words of a text, and how many runs of n of them two texts have in common: what all overlap metrics are made of. */

const HAN_OR_KANA = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]/u;
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}\p{M}]+/gu;

/**
 * Lower-case words: runs of letters and digits, everything else separates. On ASCII the words of Google's `rouge-score`;
 * beyond it letters stay letters (there "café" is "caf"), and in scripts without blanks each character is a word.
 */
export function words(text: string): string[] {
  const found = text.toLowerCase().match(WORD) ?? [];
  if (!HAN_OR_KANA.test(text)) return found;
  // A run that began with another script may hold characters that are words of their own.
  return found.flatMap((word) => (HAN_OR_KANA.test(word) && word.length > 1 ? [...word] : [word]));
}

/** Text between tokens must not look like a token: blanks separate them. */
export function countNgrams(tokens: readonly string[], n: number): Map<string, number> {
  const counts = new Map<string, number>();
  for (let i = 0; i + n <= tokens.length; i += 1) {
    const key = tokens.slice(i, i + n).join('\u0000');
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
}

/** Σ over n-grams of the smaller of their two counts. */
export function overlap(a: ReadonlyMap<string, number>, b: ReadonlyMap<string, number>): number {
  let sum = 0;
  for (const [key, count] of a) sum += Math.min(count, b.get(key) ?? 0);
  return sum;
}
