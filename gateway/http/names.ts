/**
 * Names that people give to what others see: organisations, Datanets. Two forms: the one that is shown, and the one that must be unique,
 * in which names that look the same are the same.
 * Sources: Unicode UAX #15 (NFKC), UTS #39 (security mechanisms; only the part of its confusables that pass for Latin letters and digits).
 */
import { badRequest } from '../errors.ts';

/** In code points, after normalisation. */
export const NAME_CHARACTERS_MAX = 80;
/** Before it: one code point can become eighteen (U+FDFA), never the other way round by much. */
const RAW_CHARACTERS_MAX = 4 * NAME_CHARACTERS_MAX;
/** Marks upon one letter; no living language writes more, and more of them run into other lines. */
const MARKS_MAX = 4;

/** Controls, formats (bidi controls, zero width, tags), private and unassigned, line separators, whatever has no width or no glyph. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800\ufffc\ufffd]/u;
const SPACES = /\p{White_Space}+/gu;
const STARTS_WITH_MARK = /^\p{M}/u;
const MARKS = new RegExp(`\\p{M}{${MARKS_MAX + 1}}`, 'u');
const LETTER_OR_DIGIT = /[\p{L}\p{N}]/u;

/**
 * The form that is shown: NFKC, one space between words. Null: it cannot be a name, because it is empty or longer than 80 characters,
 * has characters that nobody sees or that change the direction of writing, heaps of marks, or neither a letter nor a digit.
 */
export function displayNameOf(text: string): string | null {
  if (text.length > RAW_CHARACTERS_MAX || UNSEEN.test(text)) return null;
  const name = text.normalize('NFKC').replaceAll(SPACES, ' ').trim();
  // Again: some characters become others that are not seen.
  if (UNSEEN.test(name) || STARTS_WITH_MARK.test(name) || MARKS.test(name)) return null;
  if (!LETTER_OR_DIGIT.test(name) || [...name].length > NAME_CHARACTERS_MAX) return null;
  return name;
}

/** @throws ApiError 400 that says what a name must be. */
export function displayName(text: string, param = 'name'): string {
  const name = displayNameOf(text);
  if (name !== null) return name;
  throw badRequest(
    param,
    'invalid_value',
    `Invalid '${param}': a name has 1 to ${NAME_CHARACTERS_MAX} characters, among them a letter or digit, and none that cannot be seen (control, zero-width and direction characters, variation selectors).`,
  );
}

/** Letters that are taken for these Latin ones, in either case (case is folded before). */
const LOOKALIKES: Record<string, string> = {
  a: 'аαɑ',
  b: 'вβьƅ',
  c: 'сϲᴄ',
  d: 'ԁ',
  e: 'еєεҽ',
  f: 'ƒ',
  g: 'ɡԍ',
  h: 'нһη',
  j: 'јʝ',
  k: 'кκ',
  // Capital I, small l and 1 are one stroke in many typefaces.
  l: 'i1|ıіιǀӏɩ',
  m: 'мμ',
  n: 'ո',
  o: '0оοσօᴏ',
  p: 'рρ',
  q: 'ԛ',
  s: 'ѕꜱ',
  t: 'тτ',
  u: 'υսᴜ',
  v: 'νѵᴠ',
  w: 'ԝωшᴡ',
  x: 'хχ',
  y: 'уүγʏ',
  z: 'ζᴢ',
  "'": '‘’‛ʼʹ`´',
  '"': '“”„‟',
};
const FOLD = new Map(Object.entries(LOOKALIKES).flatMap(([plain, others]) => [...others].map((one) => [one, plain])));

/** The form that must be unique: case, width, spacing, dashes and letters that look alike make no difference; accents do. */
export function nameKey(text: string): string {
  const folded = text
    .normalize('NFKC')
    // Upwards first: it takes apart what lower case keeps together (ß, ligatures, ς).
    .toUpperCase()
    .toLowerCase()
    .normalize('NFKC')
    .replaceAll('\u0307', '')
    .replaceAll('ς', 'σ')
    .replaceAll(/\p{Pd}/gu, '-')
    .replaceAll(SPACES, ' ')
    .trim();
  let key = '';
  for (const character of folded) key += FOLD.get(character) ?? character;
  return key;
}
