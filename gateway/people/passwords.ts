/**
 * Passwords as scrypt keeps them (RFC 7914): `scrypt$N$r$p$salt$hash`, so that the cost can grow and old ones still verify.
 * A verification takes 128 MB and about a third of a second; few run at once, and more than can wait are refused.
 * Source of the cost: OWASP Password Storage Cheat Sheet (N = 2^17, r = 8, p = 1).
 */
import { randomBytes, scrypt, timingSafeEqual } from 'node:crypto';
import { ApiError } from '../errors.ts';
import { Turns } from '../factory/turns.ts';
import { limits } from '../limits.ts';

export interface ScryptCost {
  /** A power of two; memory is 128 · N · r bytes. */
  N: number;
  r: number;
  p: number;
}

const COST: ScryptCost = { N: 2 ** 17, r: 8, p: 1 };
const SALT_BYTES = 16;
const HASH_BYTES = 32;
/** What a stored cost may be at most: a row that somebody tampered with must not take the process down. */
const MEMORY_BYTES_MAX = 1024 ** 3;

interface Stored {
  cost: ScryptCost;
  salt: Buffer;
  hash: Buffer;
}

function parse(text: string): Stored | null {
  const [scheme, n, r, p, salt = '', hash = '', ...rest] = text.split('$');
  const cost = { N: Number(n), r: Number(r), p: Number(p) };
  if (
    scheme !== 'scrypt' ||
    rest.length > 0 ||
    !Object.values(cost).every((part) => Number.isInteger(part) && part > 0)
  )
    return null;
  if (128 * cost.N * cost.r * cost.p > MEMORY_BYTES_MAX) return null;
  return { cost, salt: Buffer.from(salt, 'base64url'), hash: Buffer.from(hash, 'base64url') };
}

function derive(password: string, salt: Buffer, { N, r, p }: ScryptCost): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    scrypt(password.normalize('NFKC'), salt, HASH_BYTES, { N, r, p, maxmem: 256 * N * r }, (error, hash) => {
      if (error === null) resolve(hash);
      else reject(error);
    });
  });
}

export class Passwords {
  readonly #cost: ScryptCost;
  readonly #turns = new Turns(limits.passwordsAtOnce);
  #waiting = 0;
  /** Of no password: what is compared for accounts that do not exist. */
  readonly #nobody: Stored;

  constructor(cost: ScryptCost = COST) {
    this.#cost = cost;
    this.#nobody = { cost, salt: randomBytes(SALT_BYTES), hash: randomBytes(HASH_BYTES) };
  }

  /** @throws ApiError 503 when too many wait. */
  async hash(password: string): Promise<string> {
    const salt = randomBytes(SALT_BYTES);
    const hash = await this.#derive(password, salt, this.#cost);
    const { N, r, p } = this.#cost;
    return ['scrypt', N, r, p, salt.toString('base64url'), hash.toString('base64url')].join('$');
  }

  /** @param stored null: there is no such account or it has no password; the work is done all the same. @throws ApiError 503. */
  async verify(password: string, stored: string | null): Promise<boolean> {
    const parsed = stored === null ? null : parse(stored);
    const { cost, salt, hash } = parsed ?? this.#nobody;
    const derived = await this.#derive(password, salt, cost);
    return derived.length === hash.length && timingSafeEqual(derived, hash) && parsed !== null;
  }

  /** Made at another cost than passwords are today. */
  isOutdated(stored: string): boolean {
    const { N, r, p } = this.#cost;
    return !stored.startsWith(`scrypt$${N}$${r}$${p}$`);
  }

  async #derive(password: string, salt: Buffer, cost: ScryptCost): Promise<Buffer> {
    if (this.#waiting >= limits.passwordsWaitingMax) throw busy();
    this.#waiting += 1;
    try {
      return await this.#turns.take(AbortSignal.timeout(limits.passwordWaitMs), () => derive(password, salt, cost));
    } catch (error) {
      throw error instanceof DOMException ? busy() : error;
    } finally {
      this.#waiting -= 1;
    }
  }
}

function busy(): ApiError {
  const message = 'Too many log-ins are under way; try again shortly.';
  const headers = { 'retry-after': String(limits.retryAfterSeconds) };
  return new ApiError(503, 'server_error', 'overloaded', message, { headers });
}
