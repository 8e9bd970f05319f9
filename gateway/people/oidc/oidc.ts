/** Logging in through an OpenID provider; made once in createApp. Null settings: there is none, and its routes say so. */
import type { Fetch } from '../../daemons/client.ts';
import type { Database } from '../../db/open.ts';
import { ApiError } from '../../errors.ts';
import type { Users } from '../users.ts';
import { type Attempt, Attempts } from './attempt.ts';
import { Identities } from './identities.ts';
import { type Identity, Provider } from './provider.ts';
import type { OidcSettings } from './settings.ts';

export interface OidcOptions {
  settings: OidcSettings;
  /** 32 bytes for the cookies of log-ins under way. Left out, they are drawn, and end with the process. */
  cookieKey?: Uint8Array;
  /** How the provider is reached. */
  fetch?: Fetch;
}

/** What came back from the provider in the browser's address. */
export interface Returned {
  state?: string | undefined;
  code?: string | undefined;
  error?: string | undefined;
  iss?: string | undefined;
}

export class Oidc {
  readonly identities: Identities;
  readonly #provider: Provider | null;
  readonly #attempts: Attempts;

  constructor(deps: { db: Database; users: Users; now: () => number }, options: OidcOptions | null) {
    const { now } = deps;
    this.identities = new Identities(deps.db, deps.users, now);
    this.#attempts = new Attempts(options?.cookieKey ?? crypto.getRandomValues(new Uint8Array(32)), now);
    const fetch = options?.fetch ?? ((url, init) => globalThis.fetch(url, init));
    this.#provider = options === null ? null : new Provider(options.settings, { fetch, now });
  }

  /** @throws ApiError 404. */
  get provider(): Provider {
    if (this.#provider !== null) return this.#provider;
    const message = 'No OpenID provider is set up here. Log in with a password.';
    throw new ApiError(404, 'invalid_request_error', 'oidc_off', message);
  }

  get issuer(): string | null {
    return this.#provider?.settings.issuer ?? null;
  }

  /** Where a browser ends the provider's session too; null: there is no such place, or it cannot be learnt now. Logging out never fails for it. */
  async logOutUrl(): Promise<string | null> {
    try {
      return (await this.#provider?.logOutUrl()) ?? null;
    } catch {
      return null;
    }
  }

  /** Where the browser goes, and what it keeps. @throws ApiError 404, 502, 503. */
  async start(returnTo: string, link: Attempt['link']): Promise<{ url: string; cookie: string }> {
    const attempt = this.#attempts.make(returnTo, link);
    return { url: await this.provider.authorizationUrl(attempt), cookie: await this.#attempts.seal(attempt) };
  }

  /**
   * Who logged in at the provider, in the attempt that this browser began.
   * @throws ApiError 400 (not begun here, not now, or not so), 401, 404, 502, 503.
   */
  async finish(returned: Returned, cookie: string | null): Promise<{ attempt: Attempt; identity: Identity }> {
    const { provider } = this;
    const attempt = await this.#attempts.open(cookie);
    if (attempt === null || returned.state !== attempt.state || !(await provider.isOwnAnswer(returned.iss)))
      throw new ApiError(
        400,
        'invalid_request_error',
        'oidc_state',
        'This log-in was not begun in this browser, took too long, or was finished before. Start again.',
      );
    if (!this.#attempts.spend(attempt))
      throw new ApiError(400, 'invalid_request_error', 'oidc_state', 'This log-in was finished before. Start again.');
    if (returned.error !== undefined || returned.code === undefined) {
      // Words in an address are anybody's; only codes of the standard are repeated.
      const code = /^[a-z_]{1,40}$/.test(returned.error ?? '') ? ` (${returned.error})` : '';
      const message = `The OpenID provider did not log you in${code}.`;
      throw new ApiError(400, 'invalid_request_error', 'oidc_refused', message);
    }
    return { attempt, identity: await provider.identify(returned.code, attempt) };
  }
}
