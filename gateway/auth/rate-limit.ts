/**
 * Requests per minute, tokens per minute and requests at once, per key and per user, in this process's memory (many gateways each grant their own).
 * Token buckets in integers: a level is counted in 1/60,000 of a token, so a millisecond refills exactly `perMinute` of those units and no
 * rounding can grant or lose anything. A full bucket holds one minute's worth.
 */
import { LRUCache } from 'lru-cache';
import { ApiError } from '../errors.ts';
import { limits } from '../limits.ts';
import type { Principal } from './scopes.ts';

const UNITS = 60_000;

export class TokenBucket {
  perMinute: number;
  #level: number;
  #at: number;

  constructor(perMinute: number, now: number) {
    this.perMinute = perMinute;
    this.#level = perMinute * UNITS;
    this.#at = now;
  }

  #refill(now: number): void {
    if (now > this.#at) this.#level = Math.min(this.perMinute * UNITS, this.#level + (now - this.#at) * this.perMinute);
    this.#at = Math.max(now, this.#at);
  }

  /** A changed limit keeps what was used so far. */
  resize(perMinute: number, now: number): void {
    if (perMinute === this.perMinute) return;
    this.#refill(now);
    this.#level = Math.min(perMinute * UNITS, this.#level + (perMinute - this.perMinute) * UNITS);
    this.perMinute = perMinute;
  }

  canTake(tokens: number, now: number): boolean {
    this.#refill(now);
    return this.#level >= tokens * UNITS;
  }

  /** May go below zero (a debt is paid by waiting); callers that must not ask `canTake` first. */
  take(tokens: number): void {
    this.#level = Math.min(this.perMinute * UNITS, this.#level - tokens * UNITS);
  }

  remaining(now: number): number {
    this.#refill(now);
    return Math.max(0, Math.floor(this.#level / UNITS));
  }

  /** Milliseconds until `tokens` can be taken; Infinity if never. */
  waitMs(tokens: number, now: number): number {
    this.#refill(now);
    if (tokens > this.perMinute) return Number.POSITIVE_INFINITY;
    return Math.max(0, Math.ceil((tokens * UNITS - this.#level) / this.perMinute));
  }

  /** Milliseconds until the bucket is full. */
  resetMs(now: number): number {
    return this.waitMs(this.perMinute, now);
  }
}

interface Account {
  /** Whose limits these are: the key's own, or those of its user, which all keys and sessions of the user share. */
  of: 'key' | 'user';
  requests: TokenBucket;
  tokens: TokenBucket;
  active: number;
  concurrency: number;
}

export interface Admission {
  readonly headers: Record<string, string>;
  /** Ends the request: frees its place and corrects the estimate to what was really used. Only the first call counts. */
  release(tokensUsed: number): void;
}

/** How the two are named to clients. */
const WHOSE = { key: 'key', user: 'user, all keys and sessions together' } as const;

export class RateLimiter {
  readonly #now: () => number;
  readonly #accounts: LRUCache<string, Account>;

  constructor(now: () => number) {
    this.#now = now;
    this.#accounts = new LRUCache({ max: limits.rateBucketsMax });
  }

  /** All limits, the key's and its user's, are checked before any is charged. @throws ApiError 429 with retry-after. */
  admit(principal: Principal, tokensEstimate: number): Admission {
    const now = this.#now();
    const accounts = this.#accountsOf(principal, now);
    for (const account of accounts) {
      if (account.active >= account.concurrency) {
        const message = `Requests of this ${WHOSE[account.of]} in flight: ${account.active}, the limit. Try again when one has ended.`;
        throw this.#refuse(account, now, 'concurrency_limit_exceeded', message, 1_000);
      }
    }
    for (const account of accounts) this.#checkRequests(account, now);
    for (const account of accounts) this.#checkTokens(account, tokensEstimate, now);
    for (const account of accounts) {
      account.requests.take(1);
      account.tokens.take(tokensEstimate);
      account.active += 1;
    }
    let released = false;
    return {
      headers: this.#headers(accounts, now),
      release: (tokensUsed) => {
        if (released) return;
        released = true;
        for (const account of accounts) {
          account.active -= 1;
          account.tokens.canTake(0, this.#now());
          account.tokens.take(tokensUsed - tokensEstimate);
        }
      },
    };
  }

  /** A request that generates nothing: it counts among those of a minute, and holds no place. @throws ApiError 429 with retry-after. */
  count(principal: Principal): Record<string, string> {
    const now = this.#now();
    const accounts = this.#accountsOf(principal, now);
    for (const account of accounts) this.#checkRequests(account, now);
    for (const account of accounts) account.requests.take(1);
    return this.#headers(accounts, now);
  }

  #checkRequests(account: Account, now: number): void {
    if (account.requests.canTake(1, now)) return;
    const wait = account.requests.waitMs(1, now);
    const message = `Rate limit of this ${WHOSE[account.of]} reached: ${account.requests.perMinute} requests per minute. Try again in ${durationOf(wait)}.`;
    throw this.#refuse(account, now, 'rate_limit_exceeded', message, wait);
  }

  #checkTokens(account: Account, estimate: number, now: number): void {
    if (account.tokens.canTake(estimate, now)) return;
    const wait = account.tokens.waitMs(estimate, now);
    const advice = Number.isFinite(wait)
      ? `Try again in ${durationOf(wait)}.`
      : 'The request alone is larger than that; ask for fewer tokens.';
    const message = `Rate limit of this ${WHOSE[account.of]} reached: ${account.tokens.perMinute} tokens per minute, requested ${estimate}. ${advice}`;
    throw this.#refuse(account, now, 'rate_limit_exceeded', message, wait);
  }

  #accountsOf(principal: Principal, now: number): Account[] {
    const own = this.#account('key', principal.keyId, principal, now);
    if (principal.userId === null || principal.userLimits === null) return [own];
    const { requestsPerMinute, tokensPerMinute, concurrency } = principal.userLimits;
    const most = {
      // Also without limits there is an account: one that is set later counts what was used before.
      requestsPerMinute: requestsPerMinute ?? limits.requestsPerMinuteMax,
      tokensPerMinute: tokensPerMinute ?? limits.tokensPerMinuteMax,
      concurrency: concurrency ?? Number.POSITIVE_INFINITY,
    };
    return [own, this.#account('user', principal.userId, most, now)];
  }

  #account(
    of: Account['of'],
    id: string,
    most: Pick<Principal, 'requestsPerMinute' | 'tokensPerMinute' | 'concurrency'>,
    now: number,
  ): Account {
    const name = `${of} ${id}`;
    let account = this.#accounts.get(name);
    if (account === undefined) {
      account = {
        of,
        requests: new TokenBucket(most.requestsPerMinute, now),
        tokens: new TokenBucket(most.tokensPerMinute, now),
        active: 0,
        concurrency: most.concurrency,
      };
      this.#accounts.set(name, account);
    }
    account.requests.resize(most.requestsPerMinute, now);
    account.tokens.resize(most.tokensPerMinute, now);
    account.concurrency = most.concurrency;
    return account;
  }

  #refuse(account: Account, now: number, code: string, message: string, waitMs: number): ApiError {
    const headers: Record<string, string> = { ...this.#headers([account], now), 'x-limit-of': account.of };
    if (Number.isFinite(waitMs)) {
      headers['retry-after-ms'] = String(waitMs);
      headers['retry-after'] = String(Math.max(1, Math.ceil(waitMs / 1000)));
    } else {
      headers['x-should-retry'] = 'false';
    }
    return new ApiError(429, 'rate_limit_error', code, message, { headers });
  }

  /** Of several accounts, what is left is told of the one that has least. */
  #headers(accounts: Account[], now: number): Record<string, string> {
    const least = (kind: 'requests' | 'tokens') =>
      accounts.map((account) => account[kind]).reduce((a, b) => (b.remaining(now) < a.remaining(now) ? b : a));
    const [requests, tokens] = [least('requests'), least('tokens')];
    return {
      'x-ratelimit-limit-requests': String(requests.perMinute),
      'x-ratelimit-remaining-requests': String(requests.remaining(now)),
      'x-ratelimit-reset-requests': durationOf(requests.resetMs(now)),
      'x-ratelimit-limit-tokens': String(tokens.perMinute),
      'x-ratelimit-remaining-tokens': String(tokens.remaining(now)),
      'x-ratelimit-reset-tokens': durationOf(tokens.resetMs(now)),
    };
  }
}

/** OpenAI's durations: 12ms, 1s, 6m0s, 1h2m3s. */
export function durationOf(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.ceil(milliseconds)}ms`;
  const seconds = Math.ceil(milliseconds / 1000);
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m${seconds % 60}s`;
  return `${Math.floor(minutes / 60)}h${minutes % 60}m${seconds % 60}s`;
}
