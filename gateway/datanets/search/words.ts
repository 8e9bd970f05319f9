/**
 * Words as the full-text index knows them. In the index each word of a row carries the number of its Datanet (`d7xriver`), so that a word's list
 * holds the rows of one Datanet and nothing has to be intersected; scripts that write no spaces are indexed character by character, so that
 * what is searched in them is a phrase. FTS5's unicode61 folds case and diacritics of both, the index and the query, alike.
 */

/** Letters, digits and what belongs to them: unicode61's own classes. */
const RUN = /[\p{L}\p{N}\p{M}\p{Co}]+/gu;
const SPACELESS = /[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Thai}\p{scx=Laoo}\p{scx=Khmr}\p{scx=Mymr}]/u;
const SPACELESS_RUN =
  /[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Thai}\p{scx=Laoo}\p{scx=Khmr}\p{scx=Mymr}](?:(?![\p{scx=Han}\p{scx=Hira}\p{scx=Kana}])\p{M})*|(?:(?![\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Thai}\p{scx=Laoo}\p{scx=Khmr}\p{scx=Mymr}])[\p{L}\p{N}\p{M}\p{Co}])+/gu;
const MARKS = /\p{M}+/gu;

function runsOf(text: string): RegExp {
  return SPACELESS.test(text) ? SPACELESS_RUN : RUN;
}

/** The text as it goes into the index, and a phrase of a query as it is looked up there. */
export function indexed(text: string, datanetSeq: number): string {
  const prefix = ` d${datanetSeq}x`;
  let words = '';
  for (const [word] of text.matchAll(runsOf(text))) words += prefix + word;
  return words;
}

function folded(word: string): string {
  return word.normalize('NFD').replace(MARKS, '').toLowerCase();
}

/** The words of phrases that are looked for. */
export function wordsOf(phrases: readonly string[]): Set<string> {
  return new Set(phrases.flatMap((phrase) => [...phrase.matchAll(runsOf(phrase))].map(([word]) => folded(word))));
}

export interface Counted {
  /** How often each word asked for is there. */
  counts: Map<string, number>;
  /** All words. */
  length: number;
}

export function count(text: string, words: ReadonlySet<string>): Counted {
  const counts = new Map<string, number>();
  let length = 0;
  for (const [found] of text.matchAll(runsOf(text))) {
    length += 1;
    const word = folded(found);
    if (words.has(word)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return { counts, length };
}

const K1 = 1.2;
const B = 0.75;

/** BM25 (Robertson, Zaragoza 2009) of each text among these texts. */
export function bm25(texts: readonly Counted[]): number[] {
  const documents = texts.length;
  const average = Math.max(1, texts.reduce((sum, { length }) => sum + length, 0) / Math.max(1, documents));
  const having = new Map<string, number>();
  for (const { counts } of texts) for (const word of counts.keys()) having.set(word, (having.get(word) ?? 0) + 1);
  return texts.map(({ counts, length }) => {
    let score = 0;
    for (const [word, times] of counts) {
      const found = having.get(word) as number;
      const rarity = Math.log(1 + (documents - found + 0.5) / (found + 0.5));
      score += (rarity * times * (K1 + 1)) / (times + K1 * (1 - B + (B * length) / average));
    }
    return score;
  });
}

export interface Snippet {
  text: string;
  /** Where the words are in it: [start, end) in UTF-16 units. */
  highlights: [number, number][];
}

const BEFORE = 60;
const AFTER = 160;
const HIGHLIGHTS_MAX = 20;

/** The surroundings of the first word that is found; the beginning where none is. */
export function snippetOf(text: string, words: ReadonlySet<string>): Snippet {
  let first = 0;
  for (const found of text.matchAll(runsOf(text))) {
    if (!words.has(folded(found[0]))) continue;
    first = found.index;
    break;
  }
  const start = boundary(text, Math.max(0, first - BEFORE));
  const end = boundary(text, Math.min(text.length, first + AFTER));
  const head = start > 0 ? '…' : '';
  const shown = `${head}${text.slice(start, end)}${end < text.length ? '…' : ''}`;
  const highlights: [number, number][] = [];
  for (const found of shown.matchAll(runsOf(shown))) {
    if (highlights.length >= HIGHLIGHTS_MAX) break;
    if (words.has(folded(found[0]))) highlights.push([found.index, found.index + found[0].length]);
  }
  return { text: shown, highlights };
}

/** Never between the halves of a character. */
function boundary(text: string, at: number): number {
  const unit = text.charCodeAt(at);
  return unit >= 0xdc00 && unit <= 0xdfff ? at + 1 : at;
}
