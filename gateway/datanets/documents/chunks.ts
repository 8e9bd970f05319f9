/**
 * Blocks as chunks of about so many characters. A chunk is of one section; paragraphs stay whole where they fit, then lines, sentences and
 * words do. Only a word that is several chunks long is cut, and never within a character.
 */
import { type Block, Headings } from './blocks.ts';
import type { Chunk } from './document.ts';
import { documentLimits } from './document-limits.ts';

const BETWEEN = '\n\n';
/** A last chunk shorter than this part of a chunk joins the one before it. */
const REST_PART = 1 / 4;

export class Chunker {
  readonly #characters: number;
  readonly #headings = new Headings();
  /** Complete, but the rest of its section may still join it. */
  #held: Chunk | null = null;
  #parts: string[] = [];
  #length = 0;
  #page: number | null = null;

  /** @param characters in UTF-16 units; chunks are at most a quarter longer, except for a very long word. */
  constructor(characters: number) {
    this.#characters = characters;
  }

  *add(block: Block): Generator<Chunk> {
    const text = block.text.trim();
    if (text === '') return;
    if (block.level !== null) {
      yield* this.#section();
      this.#headings.enter(block.level, text);
      return;
    }
    for (const piece of piecesOf(text, this.#characters)) {
      const added = this.#length === 0 ? piece.length : this.#length + BETWEEN.length + piece.length;
      if (this.#length > 0 && added > this.#characters) yield* this.#full();
      if (this.#length === 0) this.#page = block.page;
      this.#parts.push(piece);
      this.#length += (this.#length === 0 ? 0 : BETWEEN.length) + piece.length;
    }
  }

  *end(): Generator<Chunk> {
    yield* this.#section();
  }

  *#full(): Generator<Chunk> {
    if (this.#held !== null) yield this.#held;
    this.#held = { text: this.#parts.join(BETWEEN), heading: this.#headings.path(), page: this.#page };
    this.#parts = [];
    this.#length = 0;
  }

  *#section(): Generator<Chunk> {
    if (this.#length > 0) {
      if (this.#held !== null && this.#length < REST_PART * this.#characters) {
        this.#held.text += BETWEEN + this.#parts.join(BETWEEN);
        this.#parts = [];
        this.#length = 0;
      } else yield* this.#full();
    }
    if (this.#held !== null) yield this.#held;
    this.#held = null;
  }
}

/** A text in pieces of at most `characters`, cut where it hurts least. No piece begins or ends with white space. */
export function* piecesOf(text: string, characters: number): Generator<string> {
  let start = 0;
  const longest = characters * documentLimits.wordChunksMax;
  while (text.length - start > characters) {
    const cut = cutAt(text, start, start + characters, Math.min(text.length, start + longest));
    const piece = text.slice(start, cut).trim();
    if (piece !== '') yield piece;
    start = cut;
    while (start < text.length && isSpace(text.charCodeAt(start))) start += 1;
  }
  const rest = text.slice(start).trim();
  if (rest !== '') yield rest;
}

/** Sentences end here, also in scripts that write no space after them. */
const SENTENCE_END = /[.!?…][)"'’”»\]]*\s|[。！？｡]/g;

/** Where to cut: after a line, else a sentence (both in the second half of the piece), else a word; else within the word at the longest. */
function cutAt(text: string, start: number, end: number, longest: number): number {
  const half = start + Math.floor((end - start) / 2);
  // Slices, so that no search looks at more than this piece.
  const line = text.slice(half, end + 1).lastIndexOf('\n');
  if (line > 0) return half + line;
  let sentence = -1;
  for (const match of text.slice(half, end).matchAll(SENTENCE_END)) sentence = half + match.index + match[0].length;
  if (sentence > half) return sentence;
  // The place itself may be between words; then what is left of it is whole.
  for (let at = end; at > start; at -= 1) if (isBetweenWords(text, at)) return at;
  for (let at = end + 1; at < longest; at += 1) if (isBetweenWords(text, at)) return at;
  return longest >= text.length ? text.length : onCharacter(text, longest);
}

function isSpace(unit: number): boolean {
  return (
    unit === 0x20 ||
    (unit >= 0x09 && unit <= 0x0d) ||
    unit === 0xa0 ||
    unit === 0x3000 ||
    (unit >= 0x2000 && unit <= 0x200a) ||
    unit === 0x2028 ||
    unit === 0x2029
  );
}

/** Han, kana and their punctuation: lines may break before and after them (roughly UAX 14). */
function isIdeographic(unit: number): boolean {
  return (unit >= 0x2e80 && unit <= 0x9fff) || (unit >= 0xf900 && unit <= 0xfaff) || (unit >= 0xff00 && unit <= 0xffef);
}

function isBetweenWords(text: string, at: number): boolean {
  const left = text.charCodeAt(at - 1);
  const right = text.charCodeAt(at);
  return isSpace(left) || isSpace(right) || (isIdeographic(left) && isIdeographic(right));
}

/** Not between the halves of a surrogate pair, nor before a mark that belongs to the character before it. */
function onCharacter(text: string, at: number): number {
  let cut = at;
  while (cut > at - 32 && cut > 1 && (isLow(text.charCodeAt(cut)) || /^[\p{M}\u200d]/u.test(text.slice(cut, cut + 2))))
    cut -= 1;
  return isLow(text.charCodeAt(cut)) ? cut - 1 : cut;
}

function isLow(unit: number): boolean {
  return unit >= 0xdc00 && unit <= 0xdfff;
}
