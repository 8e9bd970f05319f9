/** What people type, as an FTS5 query that means nothing but its words (sqlite.org/fts5.html, section 3). */
import { badRequest } from '../../errors.ts';
import { limits } from '../../limits.ts';

const WORD = /[\p{L}\p{N}]/u;

/**
 * Words, and phrases in double quotes, all of which must be there. Whatever else FTS5 knows (AND, NEAR, columns, *) is plain text here.
 * @throws ApiError 400 when there is nothing to search for.
 */
export function phrasesOf(text: string, param = 'q'): string[] {
  const phrases: string[] = [];
  for (const [, phrase, word] of text.replaceAll('\u0000', ' ').matchAll(/"([^"]*)"?|([^\s"]+)/g)) {
    const one = phrase ?? word ?? '';
    if (WORD.test(one)) phrases.push(one);
  }
  if (phrases.length > 0) return phrases.slice(0, limits.datanetQueryWordsMax);
  throw badRequest(param, 'invalid_value', `Invalid '${param}': it has no letter or digit to search for.`);
}

/** @param phrases without double quotes */
export function matchOf(phrases: readonly string[]): string {
  return phrases.map((phrase) => `"${phrase}"`).join(' ');
}
