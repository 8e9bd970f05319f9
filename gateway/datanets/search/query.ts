/** What people type, as an FTS5 query that means nothing but its words (sqlite.org/fts5.html, section 3). */
import { badRequest } from '../../errors.ts';
import { limits } from '../../limits.ts';

const WORD = /[\p{L}\p{N}]/u;

/** Every word must be there; text in double quotes is a phrase. Whatever else FTS5 knows (AND, NEAR, columns, *) is plain text here. null: no words. */
export function matchOf(text: string): string | null {
  const words: string[] = [];
  for (const [, phrase, word] of text.replaceAll('\u0000', ' ').matchAll(/"([^"]*)"?|([^\s"]+)/g)) {
    const one = phrase ?? word ?? '';
    if (WORD.test(one)) words.push(`"${one}"`);
  }
  return words.length === 0 ? null : words.slice(0, limits.datanetQueryWordsMax).join(' ');
}

/** @throws ApiError 400 when there is nothing to search for. */
export function matchOrRefuse(text: string, param = 'q'): string {
  const match = matchOf(text);
  if (match !== null) return match;
  throw badRequest(param, 'invalid_value', `Invalid '${param}': it has no letter or digit to search for.`);
}
