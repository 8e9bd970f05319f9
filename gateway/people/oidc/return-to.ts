/** Where a browser goes after logging in: a path of our own, never another site. */
import { badRequest } from '../../errors.ts';
import { limits } from '../../limits.ts';

/** Printable ASCII without a backslash, which browsers read as a slash. Anything else can be percent-encoded. */
const PATH = /^\/[\x21-\x5b\x5d-\x7e]*$/;
const BASE = 'http://gateway.invalid';

export function isLocalPath(text: string): boolean {
  if (text.length > limits.oidcReturnToCharactersMax || !PATH.test(text)) return false;
  if (!URL.canParse(text, BASE)) return false;
  const url = new URL(text, BASE);
  // Two slashes begin a host, also where dots before them are taken away.
  return url.origin === BASE && !text.startsWith('//') && !url.pathname.startsWith('//');
}

/** @throws ApiError 400. */
export function returnTo(text: string | undefined): string {
  if (text === undefined) return '/';
  if (isLocalPath(text)) return text;
  throw badRequest(
    'return_to',
    'invalid_value',
    `Invalid 'return_to': it must be a path on this site such as /datanets, at most ${limits.oidcReturnToCharactersMax} characters.`,
  );
}
