/**
 * The OpenID provider as seen from here: its description, where browsers are sent, codes for tokens, and whether an ID token is true.
 * Sources: OpenID Connect Core 1.0 (3.1.2, 3.1.3.7, 5.3), Discovery 1.0, RFC 6749, RFC 7636 (PKCE), RFC 9207 (`iss` in the answer),
 * RFC 8725 (algorithms pinned).
 */
import { createHash } from 'node:crypto';
import { createRemoteJWKSet, customFetch, type JWTPayload, errors as jose, jwtVerify, type RemoteJWKSet } from 'jose';
import { z } from 'zod';
import type { Fetch } from '../../daemons/client.ts';
import { ApiError } from '../../errors.ts';
import { limits } from '../../limits.ts';
import type { Attempt } from './attempt.ts';
import { DocumentError, fetchDocument, jsonOf } from './fetch-document.ts';
import { isTrustedUrl, type OidcSettings } from './settings.ts';

const address = z.string().refine(isTrustedUrl, 'is not an https address');
const description = z.object({
  issuer: z.string(),
  authorization_endpoint: address,
  token_endpoint: address,
  jwks_uri: address,
  userinfo_endpoint: address.optional(),
  /** OpenID Connect RP-Initiated Logout 1.0. */
  end_session_endpoint: address.optional().catch(undefined),
  token_endpoint_auth_methods_supported: z.array(z.string()).optional(),
  authorization_response_iss_parameter_supported: z.boolean().optional(),
});
type Description = z.output<typeof description>;

interface Known {
  value: Description;
  keys: RemoteJWKSet;
  readAt: number;
}

/** What is believed of who logged in. */
export interface Identity {
  issuer: string;
  subject: string;
  /** As the provider wrote it, and only if it says that it has checked it. */
  verifiedEmail: string | null;
  name: string | null;
}

const tokenAnswer = z.object({
  id_token: z.string().max(limits.oidcDocumentBytesMax),
  access_token: z.string().optional(),
});

export class Provider {
  readonly settings: OidcSettings;
  readonly #fetch: Fetch;
  readonly #now: () => number;
  #description: Known | null = null;
  #reading: Promise<void> | null = null;
  /** The last failure and when: the provider is not asked again at once, however many people try to log in. */
  #failure: { error: ApiError; at: number } | null = null;
  #exchanges = 0;

  constructor(settings: OidcSettings, options: { fetch: Fetch; now: () => number }) {
    this.settings = settings;
    this.#fetch = options.fetch;
    this.#now = options.now;
  }

  get redirectUri(): string {
    return `${this.settings.publicUrl}/api/session/oidc/callback`;
  }

  /** Where the browser is sent. @throws ApiError 502, 503. */
  async authorizationUrl(attempt: Attempt): Promise<string> {
    const { value } = await this.#described();
    const url = new URL(value.authorization_endpoint);
    const parameters = {
      response_type: 'code',
      client_id: this.settings.clientId,
      redirect_uri: this.redirectUri,
      scope: 'openid email profile',
      state: attempt.state,
      nonce: attempt.nonce,
      code_challenge: createHash('sha256').update(attempt.verifier).digest('base64url'),
      code_challenge_method: 'S256',
    };
    for (const [name, text] of Object.entries(parameters)) url.searchParams.set(name, text);
    return url.href;
  }

  /**
   * Where a browser goes to end the provider's session too, and from there back to the start page; null: the provider has no such address.
   * Without `id_token_hint`, since no ID token is kept, so the provider may ask whether it is meant (RP-Initiated Logout 1.0, section 2).
   * @throws ApiError 502, 503.
   */
  async logOutUrl(): Promise<string | null> {
    const { value } = await this.#described();
    if (value.end_session_endpoint === undefined) return null;
    const url = new URL(value.end_session_endpoint);
    url.searchParams.set('client_id', this.settings.clientId);
    url.searchParams.set('post_logout_redirect_uri', `${this.settings.publicUrl}/`);
    return url.href;
  }

  /** Whether the answer may be of this provider and not of another that the browser was sent to (RFC 9207). @throws ApiError 502, 503. */
  async isOwnAnswer(iss: string | undefined): Promise<boolean> {
    if (iss !== undefined) return iss === this.settings.issuer;
    const { value } = await this.#described();
    return value.authorization_response_iss_parameter_supported !== true;
  }

  /** Who logged in. @throws ApiError 400 (code refused), 401 (token not true), 502, 503. */
  async identify(code: string, attempt: Attempt): Promise<Identity> {
    if (this.#exchanges >= limits.oidcExchangesMax)
      throw unavailable('Too many people are logging in at this moment.', null);
    this.#exchanges += 1;
    try {
      const tokens = await this.#redeem(code, attempt);
      const claims = await this.#verify(tokens.id_token, attempt.nonce);
      const told =
        claims.email === undefined ? await this.#userinfo(tokens.access_token, claims.sub as string) : claims;
      return {
        issuer: this.settings.issuer,
        subject: claims.sub as string,
        // The word "true" is not true: what is not as the standard says is not relied on.
        verifiedEmail: told.email_verified === true && typeof told.email === 'string' ? told.email : null,
        name: [told.name, claims.name, told.preferred_username].find((name) => typeof name === 'string') ?? null,
      } as Identity;
    } finally {
      this.#exchanges -= 1;
    }
  }

  async #redeem(code: string, attempt: Attempt): Promise<z.output<typeof tokenAnswer>> {
    const { value } = await this.#described();
    const { clientId, clientSecret } = this.settings;
    const form = new URLSearchParams({
      grant_type: 'authorization_code',
      code,
      redirect_uri: this.redirectUri,
      code_verifier: attempt.verifier,
    });
    const headers: Record<string, string> = {
      accept: 'application/json',
      'content-type': 'application/x-www-form-urlencoded',
    };
    const methods = value.token_endpoint_auth_methods_supported ?? ['client_secret_basic'];
    if (clientSecret === null) form.set('client_id', clientId);
    else if (methods.includes('client_secret_basic') || !methods.includes('client_secret_post'))
      headers.authorization = `Basic ${btoa(`${formEncoded(clientId)}:${formEncoded(clientSecret)}`)}`;
    else {
      form.set('client_id', clientId);
      form.set('client_secret', clientSecret);
    }
    const url = value.token_endpoint;
    const answer = await this.#ask(url, { method: 'POST', headers, body: form.toString() });
    if (answer.status >= 500) throw unavailable('It could not answer.', new Error(`${url}: status ${answer.status}`));
    const body = this.#json(answer, url);
    if (answer.status !== 200) {
      const error = typeof body.error === 'string' ? body.error.slice(0, 64) : `status ${answer.status}`;
      const cause = new Error(`${url}: ${error}`);
      // Ours to fix, not the browser's.
      if (/^(invalid_client|unauthorized_client|invalid_request|unsupported_grant_type)$/.test(error))
        throw misconfigured(
          'It does not accept this gateway as a client; the client id and secret may be wrong.',
          cause,
        );
      throw new ApiError(
        400,
        'invalid_request_error',
        'oidc_code_refused',
        'The log-in was used or has expired. Start again.',
        {
          cause,
        },
      );
    }
    const parsed = tokenAnswer.safeParse(body);
    if (!parsed.success)
      throw misconfigured('Its answer has no ID token.', new Error(`${url}: ${parsed.error.message}`));
    return parsed.data;
  }

  async #verify(token: string, nonce: string): Promise<JWTPayload & Record<string, unknown>> {
    const { keys } = await this.#described();
    const { issuer, clientId, algorithms } = this.settings;
    try {
      const { payload, protectedHeader } = await jwtVerify(token, keys, {
        issuer,
        audience: clientId,
        algorithms: [...algorithms],
        requiredClaims: ['iss', 'sub', 'aud', 'exp', 'iat', 'nonce'],
        clockTolerance: limits.oidcSkewSeconds,
        maxTokenAge: limits.oidcTokenAgeSeconds,
        currentDate: new Date(this.#now()),
      });
      // Other kinds of tokens of the same provider are no ID tokens, whoever they are for.
      const typ = protectedHeader.typ?.toLowerCase();
      if (typ !== undefined && typ !== 'jwt') throw new Error(`typ ${typ.slice(0, 32)}`);
      if (payload.nonce !== nonce) throw new Error('another nonce');
      const others = Array.isArray(payload.aud) && payload.aud.length > 1;
      if ((others || payload.azp !== undefined) && payload.azp !== clientId) throw new Error('another azp');
      const { sub } = payload as { sub: unknown };
      if (typeof sub !== 'string' || sub === '' || sub.length > 255) throw new Error('bad sub');
      return payload;
    } catch (cause) {
      // Its keys could not be had: that is no word about the token.
      const generic = cause instanceof jose.JOSEError && cause.code === jose.JOSEError.code;
      if (
        cause instanceof DocumentError ||
        cause instanceof jose.JWKSTimeout ||
        cause instanceof jose.JWKSInvalid ||
        generic
      )
        throw unavailable('Its keys could not be read.', cause);
      // Only the words: the errors of the library hold the whole token's contents, which no log needs.
      throw invalidToken(new Error(cause instanceof Error ? `${cause.name}: ${cause.message}` : 'unknown'));
    }
  }

  /** E-mail and name, where the provider tells them only there (Core 5.4). */
  async #userinfo(accessToken: string | undefined, subject: string): Promise<Record<string, unknown>> {
    const { value } = await this.#described();
    const url = value.userinfo_endpoint;
    if (url === undefined || accessToken === undefined || !/^[\x21-\x7e]+$/.test(accessToken)) return {};
    const answer = await this.#ask(url, {
      headers: { accept: 'application/json', authorization: `Bearer ${accessToken}` },
    });
    if (answer.status !== 200)
      throw unavailable('It does not say who logged in.', new Error(`${url}: status ${answer.status}`));
    const body = this.#json(answer, url);
    if (body.sub !== subject) throw invalidToken(new Error('userinfo of another subject'));
    return body;
  }

  async #ask(url: string, init: RequestInit) {
    try {
      return await fetchDocument(this.#fetch, url, init);
    } catch (cause) {
      throw unavailable('It does not answer.', cause);
    }
  }

  #json(answer: Awaited<ReturnType<typeof fetchDocument>>, url: string): Record<string, unknown> {
    try {
      return jsonOf(answer, url);
    } catch (cause) {
      throw misconfigured('Its answer cannot be read.', cause);
    }
  }

  async #described(): Promise<Known> {
    const known = this.#description;
    if (known === null || this.#now() - known.readAt >= limits.oidcDescriptionMs) {
      if (this.#failure === null || this.#now() - this.#failure.at >= limits.oidcRetryMs) {
        this.#reading ??= this.#describe().finally(() => {
          this.#reading = null;
        });
        await this.#reading;
      }
      // An older description is better than none: addresses seldom change, and keys are read by themselves.
      if (this.#description === null) throw this.#failure?.error ?? unavailable('It does not answer.', null);
    }
    return this.#description as Known;
  }

  async #describe(): Promise<void> {
    const url = `${this.settings.issuer.replace(/\/$/, '')}/.well-known/openid-configuration`;
    try {
      const value = await this.#readDescription(url);
      const old = this.#description;
      const keys = old?.value.jwks_uri === value.jwks_uri ? old.keys : this.#keysAt(value.jwks_uri);
      this.#description = { value, keys, readAt: this.#now() };
      this.#failure = null;
    } catch (error) {
      this.#failure = { error: error as ApiError, at: this.#now() };
    }
  }

  async #readDescription(url: string): Promise<Description> {
    let answer: Awaited<ReturnType<typeof fetchDocument>>;
    try {
      answer = await fetchDocument(this.#fetch, url, { headers: { accept: 'application/json' } });
    } catch (cause) {
      throw unavailable('Its description could not be read.', cause);
    }
    if (answer.status !== 200)
      throw unavailable('Its description could not be read.', new Error(`${url}: status ${answer.status}`));
    const parsed = description.safeParse(this.#json(answer, url));
    if (!parsed.success)
      throw misconfigured('Its description is not valid.', new Error(`${url}: ${parsed.error.message}`));
    if (parsed.data.issuer !== this.settings.issuer)
      throw misconfigured(
        'Its description is of another issuer.',
        new Error(`${url}: issuer ${JSON.stringify(parsed.data.issuer.slice(0, 256))}`),
      );
    return parsed.data;
  }

  #keysAt(url: string): RemoteJWKSet {
    return createRemoteJWKSet(new URL(url), {
      timeoutDuration: limits.oidcTimeoutMs,
      cooldownDuration: limits.oidcRetryMs,
      [customFetch]: async (address, { headers, signal }) => {
        const { status, bytes } = await fetchDocument(this.#fetch, address, { headers, signal });
        return new Response(bytes, { status, headers: { 'content-type': 'application/json' } });
      },
    });
  }
}

/** RFC 6749, 2.3.1: both halves are form-encoded before they are joined. */
function formEncoded(text: string): string {
  return new URLSearchParams([['', text]]).toString().slice(1);
}

function unavailable(why: string, cause: unknown): ApiError {
  const headers = { 'retry-after': String(limits.retryAfterSeconds) };
  const message = `The OpenID provider cannot be used now. ${why} Try again shortly, or log in with a password.`;
  return new ApiError(503, 'server_error', 'oidc_unavailable', message, { headers, cause: cause ?? undefined });
}

function misconfigured(why: string, cause: unknown): ApiError {
  const message = `Logging in through the OpenID provider is not set up rightly. ${why} Whoever runs the gateway finds more in its log.`;
  return new ApiError(502, 'server_error', 'oidc_misconfigured', message, { cause });
}

/** What exactly was wrong is told to the log: it helps nobody else but a forger. */
function invalidToken(cause: unknown): ApiError {
  const message = 'The OpenID provider’s answer is not valid, so nobody was logged in.';
  return new ApiError(401, 'invalid_request_error', 'oidc_token_invalid', message, { cause });
}
