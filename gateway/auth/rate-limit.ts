/**
 * Requests per minute, tokens per minute and requests at once, per key, in this process's memory (many gateways each grant their own).
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
  requests: TokenBucket;
  tokens: TokenBucket;
  active: number;
}

export interface Admission {
  readonly headers: Record<string, string>;
  /** Ends the request: frees its place and corrects the estimate to what was really used. Only the first call counts. */
  release(tokensUsed: number): void;
}

export class RateLimiter {
  readonly #now: () => number;
  readonly #accounts: LRUCache<string, Account>;

  constructor(now: () => number) {
    this.#now = now;
    this.#accounts = new LRUCache({ max: limits.rateBucketsMax });
  }

  /** All three limits are checked before any is charged. @throws ApiError 429 with retry-after. */
  admit(principal: Principal, tokensEstimate: number): Admission {
    const now = this.#now();
    const account = this.#account(principal, now);
    if (account.active >= principal.concurrency) {
      throw this.#refuse(
        account,
        now,
        'concurrency_limit_exceeded',
        `This key already has ${account.active} requests in flight, its limit.`,
        1_000,
      );
    }
    if (!account.requests.canTake(1, now)) {
      const wait = account.requests.waitMs(1, now);
      throw this.#refuse(
        account,
        now,
        'rate_limit_exceeded',
        `Rate limit reached: ${principal.requestsPerMinute} requests per minute. Try again in ${durationOf(wait)}.`,
        wait,
      );
    }
    if (!account.tokens.canTake(tokensEstimate, now)) {
      const wait = account.tokens.waitMs(tokensEstimate, now);
      const advice = Number.isFinite(wait)
        ? `Try again in ${durationOf(wait)}.`
        : 'The request alone is larger than that; ask for fewer tokens.';
      throw this.#refuse(
        account,
        now,
        'rate_limit_exceeded',
        `Rate limit reached: ${principal.tokensPerMinute} tokens per minute, requested ${tokensEstimate}. ${advice}`,
        wait,
      );
    }
    account.requests.take(1);
    account.tokens.take(tokensEstimate);
    account.active += 1;
    let released = false;
    return {
      headers: this.#headers(account, now),
      release: (tokensUsed) => {
        if (released) return;
        released = true;
        account.active -= 1;
        account.tokens.canTake(0, this.#now());
        account.tokens.take(tokensUsed - tokensEstimate);
      },
    };
  }

  #account(principal: Principal, now: number): Account {
    let account = this.#accounts.get(principal.keyId);
    if (account === undefined) {
      account = {
        requests: new TokenBucket(principal.requestsPerMinute, now),
        tokens: new TokenBucket(principal.tokensPerMinute, now),
        active: 0,
      };
      this.#accounts.set(principal.keyId, account);
    }
    account.requests.resize(principal.requestsPerMinute, now);
    account.tokens.resize(principal.tokensPerMinute, now);
    return account;
  }

  #refuse(account: Account, now: number, code: string, message: string, waitMs: number): ApiError {
    const headers = this.#headers(account, now);
    if (Number.isFinite(waitMs)) {
      headers['retry-after-ms'] = String(waitMs);
      headers['retry-after'] = String(Math.max(1, Math.ceil(waitMs / 1000)));
    } else {
      headers['x-should-retry'] = 'false';
    }
    return new ApiError(429, 'rate_limit_error', code, message, { headers });
  }

  #headers(account: Account, now: number): Record<string, string> {
    return {
      'x-ratelimit-limit-requests': String(account.requests.perMinute),
      'x-ratelimit-remaining-requests': String(account.requests.remaining(now)),
      'x-ratelimit-reset-requests': durationOf(account.requests.resetMs(now)),
      'x-ratelimit-limit-tokens': String(account.tokens.perMinute),
      'x-ratelimit-remaining-tokens': String(account.tokens.remaining(now)),
      'x-ratelimit-reset-tokens': durationOf(account.tokens.resetMs(now)),
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
