/**
 * What the gateway must remember of a log-in while the browser is at the provider: kept by the browser itself, in an encrypted cookie
 * (JWE, direct A256GCM), so that gateways share nothing but a key and whoever starts log-ins by the thousand fills no memory here.
 * Bound to the browser by the cookie, to the answer by `state`, to the ID token by `nonce`, to the code by PKCE. It serves once.
 */
import { EncryptJWT, jwtDecrypt } from 'jose';
import { LRUCache } from 'lru-cache';
import { z } from 'zod';
import { randomBase64Url, randomId } from '../../http/ids.ts';
import { limits } from '../../limits.ts';

export interface Attempt {
  id: string;
  state: string;
  nonce: string;
  /** RFC 7636 code_verifier. */
  verifier: string;
  /** A path of our own. */
  returnTo: string;
  /** Whose account the identity is to be linked to; null: a log-in. */
  link: { userId: string; sessionId: string } | null;
}

const claims = z.object({
  jti: z.string(),
  state: z.string(),
  nonce: z.string(),
  verifier: z.string(),
  returnTo: z.string(),
  link: z.object({ userId: z.string(), sessionId: z.string() }).nullable(),
});

const AUDIENCE = 'modelfactory log-in attempt';
const COOKIE_CHARACTERS_MAX = 4096;
const NAME = 'mf_oidc';
const SECURE_NAME = `__Host-${NAME}`;

export class Attempts {
  readonly #key: Uint8Array;
  readonly #now: () => number;
  /** Ids of those that came back. The provider takes a code once; this is so even where a provider does not. */
  readonly #spent: LRUCache<string, true>;

  /** @param key 32 bytes, the same in all gateways of one address. */
  constructor(key: Uint8Array, now: () => number) {
    this.#key = key;
    this.#now = now;
    this.#spent = new LRUCache({
      max: limits.oidcAttemptsSpentMax,
      ttl: 2 * limits.oidcAttemptMs,
      perf: { now },
    });
  }

  make(returnTo: string, link: Attempt['link']): Attempt {
    const [state, nonce, verifier] = [randomBase64Url(32), randomBase64Url(32), randomBase64Url(32)];
    return { id: randomId(), state, nonce, verifier, returnTo, link };
  }

  async seal({ id, ...rest }: Attempt): Promise<string> {
    const now = Math.floor(this.#now() / 1000);
    return new EncryptJWT({ ...rest })
      .setProtectedHeader({ alg: 'dir', enc: 'A256GCM' })
      .setJti(id)
      .setAudience(AUDIENCE)
      .setIssuedAt(now)
      .setExpirationTime(now + limits.oidcAttemptMs / 1000)
      .encrypt(this.#key);
  }

  /** Null: none of ours, altered, too old, or back a second time. */
  async open(cookie: string | null): Promise<Attempt | null> {
    if (cookie === null || cookie.length > COOKIE_CHARACTERS_MAX) return null;
    try {
      const { payload } = await jwtDecrypt(cookie, this.#key, {
        keyManagementAlgorithms: ['dir'],
        contentEncryptionAlgorithms: ['A256GCM'],
        audience: AUDIENCE,
        requiredClaims: ['exp', 'iat', 'jti'],
        currentDate: new Date(this.#now()),
      });
      const { jti: id, ...rest } = claims.parse(payload);
      return this.#spent.has(id) ? null : { id, ...rest };
    } catch {
      return null;
    }
  }

  /** False: it came back before. */
  spend(attempt: Attempt): boolean {
    if (this.#spent.has(attempt.id)) return false;
    this.#spent.set(attempt.id, true);
    return true;
  }
}

export function attemptCookieOf(header: string | undefined, secure: boolean): string | null {
  const name = `${secure ? SECURE_NAME : NAME}=`;
  const pair = header
    ?.split(';')
    .map((part) => part.trim())
    .find((part) => part.startsWith(name));
  return pair === undefined ? null : pair.slice(name.length);
}

/** SameSite=Lax: it must come along when the provider sends the browser back. */
export function attemptCookie(value: string, secure: boolean): string {
  const life = value === '' ? 0 : limits.oidcAttemptMs / 1000;
  const shared = `Path=/; Max-Age=${life}; HttpOnly; SameSite=Lax`;
  return secure ? `${SECURE_NAME}=${value}; ${shared}; Secure` : `${NAME}=${value}; ${shared}`;
}
