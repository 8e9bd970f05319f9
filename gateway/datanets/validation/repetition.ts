/**
 * How much of a text says again what it has said. Cheap measures in the spirit of those of Gopher's data (Rae et al. 2021, table A1): runs of one
 * character, the share of one word, and the share of triples (of words, or of characters where words are not told apart) that came before.
 */
import type { Findings } from './findings.ts';
import type { Part } from './text.ts';

const CHARACTERS_LOOKED_AT = 20_000;
/** Ruled lines and fill patterns have a use. */
const RUN = /([^\s\-=_*#.~+|/\\<>·•─━═])\1{24}/u;
const WORDS_MIN = 24;
const CHARACTERS_MIN = 80;
const ONE_WORD_SHARE = 0.4;
const TRIPLES_SHARE = 0.6;

export function checkRepetition(part: Part, findings: Findings): void {
  const { text } = part;
  const run = RUN.exec(text);
  if (run !== null) findings.at('repetition', part, run.index, 'One character again and again');
  else if (text.length >= CHARACTERS_MIN) {
    const said = repeated(text.length > CHARACTERS_LOOKED_AT ? text.slice(0, CHARACTERS_LOOKED_AT) : text);
    if (said !== null) findings.at('repetition', part, 0, said);
  }
}

function isOfWord(unit: number): boolean {
  return (
    (unit >= 0x30 && unit <= 0x39) || (unit >= 0x61 && unit <= 0x7a) || (unit >= 0x41 && unit <= 0x5a) || unit >= 0xc0
  );
}

function repeated(text: string): string | null {
  const counts = new Map<number, number>();
  const triples = new Set<number>();
  let words = 0;
  let again = 0;
  let most = 0;
  let first = 0;
  let second = 0;
  const finish = (word: number) => {
    const count = (counts.get(word) ?? 0) + 1;
    counts.set(word, count);
    if (count > most) most = count;
    words += 1;
    if (words >= 3) {
      const triple = Math.imul(Math.imul(first, 31) + second, 31) + word;
      if (triples.has(triple)) again += 1;
      else triples.add(triple);
    }
    first = second;
    second = word;
  };
  let word = 0;
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    if (unit <= 0x20) {
      if (word !== 0) finish(word);
      word = 0;
      // The rules of tables and the marks of lists are no words.
    } else if (isOfWord(unit)) word = Math.imul(word ^ (unit < 0x5b ? unit + 32 : unit), 0x01000193) | 1;
  }
  if (word !== 0) finish(word);
  if (words >= WORDS_MIN) {
    if (most > ONE_WORD_SHARE * words) return `One word again and again (${Math.round((100 * most) / words)} % of all)`;
    if (again > TRIPLES_SHARE * (words - 2))
      return `Phrases that came before (${Math.round((100 * again) / (words - 2))} % of all)`;
    return null;
  }
  if (words * 20 > text.length) return null;
  // Few spaces: Chinese, Japanese, Thai, or one long word.
  const grams = new Set<number>();
  let grown = 0;
  const last = text.length - 4;
  for (let at = 0; at <= last; at += 1) {
    const gram =
      Math.imul(
        Math.imul(Math.imul(text.charCodeAt(at), 31) + text.charCodeAt(at + 1), 31) + text.charCodeAt(at + 2),
        31,
      ) + text.charCodeAt(at + 3);
    if (grams.has(gram)) grown += 1;
    else grams.add(gram);
  }
  const share = grown / (last + 1);
  return share > 0.7 ? `Phrases that came before (${Math.round(100 * share)} % of all)` : null;
}
