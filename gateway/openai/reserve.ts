/** The first phase of spending, with its refusals. */
import { leftOf } from '../auth/key-store.ts';
import type { Principal } from '../auth/scopes.ts';
import { ApiError } from '../errors.ts';
import { limits } from '../limits.ts';
import type { Services } from '../services.ts';

export interface ReserveOptions {
  requestId: string;
  principal: Principal;
  amountMicros: number;
  /** A closer amount, asked for only when the first does not fit. */
  exactMicros?: () => Promise<number>;
}

/** @throws ApiError 429 insufficient_quota, 401 if the key was revoked elsewhere, 503 if the ledger cannot be written. */
export async function reserve(services: Services, options: ReserveOptions): Promise<void> {
  const { requestId, principal } = options;
  const attempt = async (amount: number) => {
    try {
      return await services.ledger.reserve(requestId, principal.keyId, amount);
    } catch (cause) {
      const message = 'The gateway cannot write its ledger at the moment, so it takes no requests.';
      throw new ApiError(503, 'server_error', 'ledger_unavailable', message, {
        cause,
        headers: { 'retry-after': String(limits.retryAfterSeconds) },
      });
    }
  };
  if (await attempt(options.amountMicros)) return;
  const found = await services.keys.withUser(principal.keyId);
  if (found === null || found.key.revokedAt !== null || (found.key.userId !== null && found.user?.state !== 'active'))
    throw new ApiError(401, 'invalid_request_error', 'invalid_api_key', 'The API key is unknown, expired or revoked.');
  if (options.exactMicros !== undefined) {
    const exact = await options.exactMicros();
    if (exact < options.amountMicros && (await attempt(exact))) return;
  }
  throw insufficientQuota(leftOf(found.key), leftOf(found.user));
}

/** Of the two the one with less is told. */
function insufficientQuota(ofKey: number | null, ofUser: number | null): ApiError {
  const user = ofUser !== null && (ofKey === null || ofUser < ofKey);
  const left = (user ? ofUser : ofKey) ?? 0;
  const message = user
    ? `The budget of this user, all keys and sessions together, does not cover the request: ${left} micro-units are left. Ask for fewer tokens, or an administrator to raise it.`
    : `This key's budget does not cover the request: ${left} micro-units are left. Ask for fewer tokens, or raise the budget.`;
  return new ApiError(429, 'insufficient_quota', 'insufficient_quota', message, {
    headers: { 'x-limit-of': user ? 'user' : 'key' },
  });
}
