/**
 * E-mail addresses in the one form that is stored and compared, so that two ways to write an address are one account.
 * Sources: RFC 5321 (lengths), RFC 6531 (letters beyond ASCII), Unicode UAX #15 (NFKC), WHATWG URL (domains to ASCII).
 */
import { domainToASCII } from 'node:url';
import { badRequest } from '../errors.ts';

/** Of the whole address, in UTF-16 units, before and after it is brought into its form. */
export const EMAIL_CHARACTERS_MAX = 254;
const LOCAL_CHARACTERS_MAX = 64;
/** What nobody sees or what stands for something else in an address: controls, formats (bidi, zero width), spaces, quotes, brackets. */
const LOCAL = /^[^\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\s@"(),:;<>[\]\\]+$/u;
/** What a URL would end its host at, or decode: domainToASCII would, too. */
const NOT_IN_DOMAIN = /[/\\?#:@%[\]\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]/u;
const LABEL = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

/** Lower case can undo NFKC and the other way round; a few rounds settle every text there is. */
function folded(text: string): string {
  let form = text;
  for (let round = 0; round < 4; round++) {
    const next = form.normalize('NFKC').toLowerCase().normalize('NFKC');
    if (next === form) return form;
    form = next;
  }
  return form;
}

/** The stored form: NFKC, lower case, the domain in ASCII. Null: it is no address that we take. */
export function emailOf(text: string): string | null {
  if (text.length > EMAIL_CHARACTERS_MAX) return null;
  const form = folded(text.trim());
  const at = form.lastIndexOf('@');
  const local = form.slice(0, at);
  if (at < 1 || local.length > LOCAL_CHARACTERS_MAX || !LOCAL.test(local)) return null;
  if (local.startsWith('.') || local.endsWith('.') || local.includes('..')) return null;
  const given = form.slice(at + 1);
  const domain = NOT_IN_DOMAIN.test(given) ? '' : domainToASCII(given);
  if (domain === '' || !domain.split('.').every((label) => LABEL.test(label))) return null;
  const email = `${local}@${domain}`;
  return email.length > EMAIL_CHARACTERS_MAX ? null : email;
}

/** @throws ApiError 400. */
export function email(text: string, param = 'email'): string {
  const form = emailOf(text);
  if (form !== null) return form;
  throw badRequest(param, 'invalid_value', `Invalid '${param}': expected an e-mail address such as name@example.org.`);
}
