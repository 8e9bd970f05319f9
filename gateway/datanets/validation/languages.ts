/**
 * In which language a row is, by eld (n-grams of bytes, 60 languages). Its data take about 70 MB, so they are loaded where rows are validated and
 * nowhere else; until then no language is told. docs/decisions.md has the comparison with other libraries.
 */
import type { Eld } from 'eld/extrasmall';
import type { Part } from './text.ts';

let eld: Eld | null = null;
let loading: Promise<void> | null = null;

/** Makes `languageOf` (and with it `validateRow`) tell languages. To be awaited once, before rows are validated; about 0.3 s. */
export function loadLanguages(): Promise<void> {
  loading ??= import('eld/extrasmall').then((module) => {
    eld = module.eld;
  });
  return loading;
}

/** Enough to be sure; more costs time. */
const CHARACTERS_LOOKED_AT = 300;
/** With fewer letters the answer is a guess. Characters of Han, kana and hangul say more. */
const LETTERS_MIN = 24;
const LETTERS_MIN_EAST = 8;
const EAST = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/gu;
/** Code, links, addresses and formulas are of no language. */
const FOREIGN =
  /```[\s\S]{0,20000}?(?:```|$)|`[^`\n]{1,200}`|https?:\/\/\S+|\S+@\S+|\$[^$\n]{1,200}\$|<[^<>]{1,100}>|[\w.-]*[\d_/\\{}()=;][\w.-]*/g;

/** Codes that name what eld knows under another code, or does not tell apart. */
const SAME: Readonly<Record<string, string>> = {
  nb: 'no',
  nn: 'no',
  iw: 'he',
  fil: 'tl',
  bs: 'hr',
  sr: 'hr',
  sh: 'hr',
  cmn: 'zh',
  yue: 'zh',
  in: 'id',
  ms: 'id',
  prs: 'fa',
};

/** The language itself, of a BCP 47 tag: zh of zh-Hant-TW. */
export function primaryLanguage(tag: string): string {
  const first = tag.toLowerCase().split(/[-_]/, 1)[0] ?? '';
  return Object.hasOwn(SAME, first) ? (SAME[first] as string) : first;
}

export interface LanguageGuess {
  /** ISO 639-1. */
  language: string;
  /** Whether it is one of those asked for, or comes too close to one to say that it is not. */
  fits: boolean;
}

/**
 * @param wanted primary languages; [] = any.
 * @returns null: too little text, or nothing stands out. Deterministic, for one version of eld.
 */
export function languageOf(parts: readonly Part[], wanted: readonly string[]): LanguageGuess | null {
  if (eld === null) return null;
  const text = sampleOf(parts);
  if (text === null) return null;
  const result = eld.detect(text);
  if (result.language === '') return null;
  const found = primaryLanguage(result.language);
  if (wanted.length === 0 || wanted.includes(found)) return { language: result.language, fits: true };
  if (!result.isReliable()) return null;
  const scores = result.getScores();
  const best = scores[result.language] ?? 0;
  let known = false;
  for (const [language, score] of Object.entries(scores)) {
    if (!wanted.includes(primaryLanguage(language))) continue;
    known = true;
    if (score > CLOSE * best) return { language, fits: true };
  }
  // A language that the library does not know gets no score at all: then nothing can be said.
  if (!known && !wanted.some((language) => KNOWN.has(language))) return null;
  return { language: result.language, fits: false };
}

/** Share of the best score from which on a language that was asked for is believed. */
const CLOSE = 0.85;
/** What eld knows, as primaryLanguage says it. */
const KNOWN = new Set(
  'am ar az be bg bn ca cs da de el en es et eu fa fi fr gu he hi hr hu hy is it ja ka kn ko ku lo lt lv ml mr id nl no or pa pl pt ro ru sk sl sq sv ta te th tl tr uk ur vi yo zh'.split(
    ' ',
  ),
);

/** Words to judge by: the last answer, and what was said before it while that is too short. */
function sampleOf(parts: readonly Part[]): string | null {
  let sample = '';
  for (let at = parts.length - 1; at >= 0 && sample.length < CHARACTERS_LOOKED_AT / 2; at -= 1) {
    const part = parts[at] as Part;
    if (part.role === 'tool' || part.role === 'function' || part.field.includes('tool_calls')) continue;
    const words = part.text.slice(0, 4 * CHARACTERS_LOOKED_AT).replace(FOREIGN, ' ');
    sample = `${words.slice(0, CHARACTERS_LOOKED_AT)} ${sample}`;
  }
  sample = sample.slice(0, CHARACTERS_LOOKED_AT);
  let letters = 0;
  for (let at = 0; at < sample.length; at += 1) {
    const unit = sample.charCodeAt(at) | 0x20;
    if ((unit >= 0x61 && unit <= 0x7a) || unit >= 0xc0) letters += 1;
  }
  if (letters >= LETTERS_MIN) return sample;
  return letters >= LETTERS_MIN_EAST && (sample.match(EAST)?.length ?? 0) >= LETTERS_MIN_EAST ? sample : null;
}
