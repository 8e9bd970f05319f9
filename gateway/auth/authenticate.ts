/** Who is calling: `Authorization: Bearer mf-…`, nothing else. Every failure is the same 401, in OpenAI's shape. */
import { ApiError } from '../errors.ts';
import { limits } from '../limits.ts';
import type { KeyStore } from './key-store.ts';
import { type Access, canAccess, type Principal } from './scopes.ts';

const HEADERS = { 'www-authenticate': 'Bearer' };

function missing(): ApiError {
  const message = 'You did not provide an API key. Send it as `Authorization: Bearer mf-…`.';
  return new ApiError(401, 'invalid_request_error', 'invalid_api_key', message, { headers: HEADERS });
}

function invalid(): ApiError {
  return new ApiError(401, 'invalid_request_error', 'invalid_api_key', 'The API key is unknown, expired or revoked.', {
    headers: HEADERS,
  });
}

/** @throws ApiError 401 without a valid key, 403 without the scope. */
export async function authenticate(
  keys: KeyStore,
  authorization: string | undefined,
  access: Access,
): Promise<Principal> {
  if (authorization === undefined || authorization === '') throw missing();
  if (authorization.length > limits.authorizationBytesMax) throw invalid();
  const [scheme = '', credential = '', ...rest] = authorization.split(' ');
  if (scheme.toLowerCase() !== 'bearer' || rest.length > 0) throw invalid();
  const principal = await keys.authenticate(credential);
  if (principal === null) throw invalid();
  if (!canAccess(principal, access)) {
    throw new ApiError(403, 'permission_error', 'insufficient_scope', `This key lacks the scope \`${access}\`.`);
  }
  return principal;
}
