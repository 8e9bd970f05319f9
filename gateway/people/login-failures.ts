/**
 * What makes guessing slow: log-ins that failed are counted by account and by address, and from the fifth on (of an address, the twentieth)
 * the next must wait, twice as long each time. An attempt is counted before the password is looked at, in one statement, so a hundred at the
 * same time are a hundred; the one that was right is taken back. Accounts that do not exist are counted alike, so that nobody learns which do.
 */
import { createHash } from 'node:crypto';
import { isIPv6 } from 'node:net';
import type { Client } from '@libsql/client';
import { ApiError } from '../errors.ts';
import { limits } from '../limits.ts';

export interface Attempt {
  /** It was right: the account starts anew, and the address is none the worse. */
  succeeded(): Promise<void>;
  /** Nothing was learnt of the password, for a reason of ours. */
  undone(): Promise<void>;
}

const subjectOf = (kind: 'account' | 'address', name: string) =>
  createHash('sha256').update(`${kind}:${name}`).digest('hex');

/** Whoever has one IPv6 address has 2^64 of them, so they count as one. */
export function networkOf(address: string): string {
  if (!isIPv6(address)) return address;
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined) return mapped;
  const [head = '', tail] = address.split('%')[0]?.split('::') ?? [];
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const middle = tail === undefined ? [] : Array<string>(Math.max(0, 8 - left.length - right.length)).fill('0');
  return `${[...left, ...middle, ...right]
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(':')}::/64`;
}

export class LoginFailures {
  readonly #client: Client;
  readonly #now: () => number;

  constructor(client: Client, now: () => number) {
    this.#client = client;
    this.#now = now;
  }

  /** Counts an attempt. @throws ApiError 429 with retry-after while the account or the address has to wait. */
  async begin(account: string, address: string | null): Promise<Attempt> {
    const ofAccount = subjectOf('account', account);
    const ofAddress = address === null ? null : subjectOf('address', networkOf(address));
    if (ofAddress !== null) await this.#count(ofAddress, limits.loginFailuresFreeOfAddress);
    await this.#count(ofAccount, limits.loginFailuresFree);
    const undo = async (subject: string | null) => {
      if (subject === null) return;
      await this.#client.execute({
        sql: 'UPDATE login_failures SET failures = max(0, failures - 1), blocked_until = 0 WHERE subject = ?1',
        args: [subject],
      });
    };
    return {
      succeeded: async () => {
        await this.#client.execute({ sql: 'DELETE FROM login_failures WHERE subject = ?1', args: [ofAccount] });
        await undo(ofAddress);
      },
      undone: async () => {
        await undo(ofAccount);
        await undo(ofAddress);
      },
    };
  }

  async #count(subject: string, free: number): Promise<void> {
    const now = this.#now();
    const counted = await this.#client.execute({
      sql: `INSERT INTO login_failures (subject, failures, last_at, blocked_until) VALUES (?1, 1, ?2, 0)
            ON CONFLICT (subject) DO UPDATE SET
              failures = CASE WHEN last_at <= ?3 THEN 1 ELSE failures + 1 END,
              last_at = ?2,
              blocked_until = CASE WHEN last_at <= ?3 OR failures < ?4 THEN 0
                ELSE ?2 + min(?6, ?5 * (1 << min(failures - ?4, 20))) END
            WHERE blocked_until <= ?2`,
      args: [subject, now, now - limits.loginFailureKeptMs, free, limits.loginWaitMs, limits.loginWaitMsMax],
    });
    if (counted.rowsAffected > 0) return;
    const found = await this.#client.execute({
      sql: 'SELECT blocked_until FROM login_failures WHERE subject = ?1',
      args: [subject],
    });
    throw tooMany(Math.max(1, Math.ceil((Number(found.rows[0]?.blocked_until ?? now) - now) / 1000)));
  }

  /** Deletes what is forgotten anyway. */
  async prune(): Promise<void> {
    await this.#client.execute({
      sql: `DELETE FROM login_failures WHERE subject IN (SELECT subject FROM login_failures WHERE last_at < ?1 LIMIT ?2)`,
      args: [this.#now() - limits.loginFailureKeptMs, limits.sweepRowsMax],
    });
  }
}

function tooMany(seconds: number): ApiError {
  const message = `Too many log-ins failed. Try again in ${seconds} s.`;
  return new ApiError(429, 'rate_limit_error', 'too_many_attempts', message, {
    headers: { 'retry-after': String(seconds) },
  });
}
