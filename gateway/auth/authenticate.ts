/**
 * Who is calling: `Authorization: Bearer mf-…`, or a browser's session cookie where there is no such header. A key is always sent on
 * purpose; a cookie goes along by itself, so with it every unsafe request must show that one of our own pages meant it.
 * Failures are 401 in OpenAI's shape; the scope that is lacking is a 403.
 */
import type { Context } from 'hono';
import { ApiError } from '../errors.ts';
import { limits } from '../limits.ts';
import { checkOrigin, forged, isSecure, sessionCookieOf } from '../people/client.ts';
import { isCsrfToken } from '../people/sessions.ts';
import type { AppEnv, Services } from '../services.ts';
import type { KeyStore } from './key-store.ts';
import { type Access, canAccess, type Principal } from './scopes.ts';

const HEADERS = { 'www-authenticate': 'Bearer' };
const SAFE = new Set(['GET', 'HEAD', 'OPTIONS']);

function missing(): ApiError {
  const message = 'You did not provide an API key. Send it as `Authorization: Bearer mf-…`.';
  return new ApiError(401, 'invalid_request_error', 'invalid_api_key', message, { headers: HEADERS });
}

function invalid(): ApiError {
  return new ApiError(401, 'invalid_request_error', 'invalid_api_key', 'The API key is unknown, expired or revoked.', {
    headers: HEADERS,
  });
}

function ended(): ApiError {
  const message = 'The session has ended. Log in again.';
  return new ApiError(401, 'invalid_request_error', 'session_ended', message, { headers: HEADERS });
}

/** @throws ApiError 401 without a valid key or session, 403 without the scope or for a forged request. */
export async function authenticate(
  services: Pick<Services, 'keys' | 'people'>,
  c: Context<AppEnv>,
  access: Access,
): Promise<Principal> {
  const authorization = c.req.header('authorization');
  const principal =
    authorization === undefined || authorization === ''
      ? await bySession(services, c)
      : await byKey(services.keys, authorization);
  if (!canAccess(principal, access)) {
    const who = principal.sessionId === null ? 'This key lacks' : `The role ${principal.role} lacks`;
    throw new ApiError(403, 'permission_error', 'insufficient_scope', `${who} the scope \`${access}\`.`);
  }
  return principal;
}

async function byKey(keys: KeyStore, authorization: string): Promise<Principal> {
  if (authorization.length > limits.authorizationBytesMax) throw invalid();
  const [scheme = '', credential = '', ...rest] = authorization.split(' ');
  if (scheme.toLowerCase() !== 'bearer' || rest.length > 0) throw invalid();
  const principal = await keys.authenticate(credential);
  if (principal === null) throw invalid();
  return principal;
}

async function bySession({ people }: Pick<Services, 'people'>, c: Context<AppEnv>): Promise<Principal> {
  const cookie = sessionCookieOf(c.req.header('cookie'), isSecure(c, people));
  if (cookie === null) throw missing();
  const principal = await people.sessions.authenticate(cookie);
  if (principal === null) throw ended();
  if (!SAFE.has(c.req.method)) {
    checkOrigin(c, people.publicUrl);
    const token = c.req.header('x-csrf-token');
    if (token === undefined || !isCsrfToken(cookie, token))
      throw forged(
        'Requests of a session that change something need its token: send it as x-csrf-token (GET /api/session tells it).',
      );
  }
  return principal;
}
