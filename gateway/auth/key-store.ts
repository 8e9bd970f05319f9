/**
 * API keys: `mf-` and 256 random bits, shown once, kept as the SHA-256 of the whole credential.
 * Lookups are cached under that full hash and nothing shorter (a cache keyed by a prefix lets one key pass as another).
 * Revocation here is effective with the next request; other gateways on the same database learn of it when their cache entry ends.
 */
import { and, desc, eq, getTableColumns, isNull, lt, or, sql } from 'drizzle-orm';
import { LRUCache } from 'lru-cache';
import type { Database } from '../db/open.ts';
import { type KeyRow, keys, type UserRow, users } from '../db/schema.ts';
import { randomBase64Url, randomId, type Sha256Hex } from '../http/ids.ts';
import { limits } from '../limits.ts';
import { effectiveScopes, type Principal, ROLE_SCOPES, type Scope } from './scopes.ts';

const CREDENTIAL = /^mf-[A-Za-z0-9_-]{43}$/;

export interface KeyLimits {
  requestsPerMinute?: number | null;
  tokensPerMinute?: number | null;
  concurrency?: number | null;
  budgetMicros?: number | null;
  models?: string[] | null;
  expiresAt?: number | null;
}

export interface NewKey extends KeyLimits {
  name: string;
  scopes: Scope[];
  /** Whose it is; none: the operator's. */
  userId?: string | null;
}

/** What must hold at the moment a key is made. */
export interface KeyGuard {
  /** The key, or the account of the session, that makes it; not revoked. */
  makerId: string;
  /** Keys that a user may have then, the account's and the new one included. */
  keysMax: number;
}

export type KeyPatch = KeyLimits & { name?: string };

type CacheEntry = { principal: Principal | null };

export class KeyStore {
  readonly #db: Database;
  readonly #now: () => number;
  readonly #cache: LRUCache<string, CacheEntry>;
  readonly #cacheMs: number;
  readonly #sha256Hex: Sha256Hex;
  /** Counts changes; an answer read before a change must not be cached after it. */
  #epoch = 0;

  /** @param options.cacheMs how long a key that another gateway revoked may still pass here. */
  constructor(db: Database, options: { now: () => number; cacheMs: number; sha256Hex: Sha256Hex }) {
    this.#sha256Hex = options.sha256Hex;
    this.#db = db;
    this.#now = options.now;
    this.#cacheMs = options.cacheMs;
    this.#cache = new LRUCache({ max: limits.keyCacheEntriesMax, ttl: options.cacheMs, perf: { now: options.now } });
  }

  /** The holder of a credential, or null: unknown, revoked, expired and malformed are not told apart. */
  async authenticate(credential: string): Promise<Principal | null> {
    if (!CREDENTIAL.test(credential)) return null;
    const hash = await this.#sha256Hex(credential);
    let entry = this.#cache.get(hash);
    if (entry === undefined) {
      const epoch = this.#epoch;
      const [row] = await this.#db
        .select({ key: keys, user: users })
        .from(keys)
        .leftJoin(users, eq(users.id, keys.userId))
        .where(and(eq(keys.hash, hash), isNull(keys.revokedAt)));
      entry = { principal: row === undefined ? null : await principalOf(row.key, row.user, this.#sha256Hex) };
      const ttl = entry.principal === null ? Math.min(limits.unknownKeyCacheMs, this.#cacheMs) : this.#cacheMs;
      if (epoch === this.#epoch) this.#cache.set(hash, entry, { ttl });
    }
    const { principal } = entry;
    if (principal?.expiresAt != null && principal.expiresAt <= this.#now()) return null;
    return principal;
  }

  async create(input: NewKey): Promise<{ row: KeyRow; credential: string }>;
  async create(input: NewKey, guard: KeyGuard): Promise<{ row: KeyRow; credential: string } | null>;
  /** @returns the row and the credential, which exists only in this return value; null: the guard's conditions do not hold. */
  async create(input: NewKey, guard?: KeyGuard): Promise<{ row: KeyRow; credential: string } | null> {
    const credential = `mf-${randomBase64Url(32)}`;
    const values = {
      id: `key_${randomId()}`,
      userId: input.userId ?? null,
      name: input.name,
      hash: await this.#sha256Hex(credential),
      hint: `${credential.slice(0, 7)}…`,
      scopes: input.scopes as string[],
      models: input.models ?? null,
      requestsPerMinute: input.requestsPerMinute ?? null,
      tokensPerMinute: input.tokensPerMinute ?? null,
      concurrency: input.concurrency ?? null,
      budgetMicros: input.budgetMicros ?? null,
      createdAt: this.#now(),
      expiresAt: input.expiresAt ?? null,
    };
    // In the statement that writes, so that many at the same time are no more than one after the other.
    const few = sql`${values.userId} is null or (select count(*) from keys where user_id = ${values.userId} and revoked_at is null) < ${guard?.keysMax ?? 0}`;
    const alive = sql`exists (select 1 from keys where id = ${guard?.makerId ?? ''} and revoked_at is null)`;
    const allowed = guard === undefined ? sql`1` : sql`(${few}) and ${alive}`;
    const columns = Object.entries(getTableColumns(keys)).filter(([name]) => name in values);
    const inserted = await this.#db.run(
      sql`insert into keys (${sql.join(
        columns.map(([, column]) => sql.identifier(column.name)),
        sql`, `,
      )}) select ${sql.join(
        columns.map(([name, column]) => sql.param(values[name as keyof typeof values], column)),
        sql`, `,
      )} where ${allowed}`,
    );
    if (inserted.rowsAffected === 0) return null;
    return { row: (await this.find(values.id)) as KeyRow, credential };
  }

  /** Newest first. @param userId whose; null: the operator's; undefined: everybody's. The keys of accounts are in no list. */
  async list(page: {
    userId?: string | null | undefined;
    limit: number;
    after: KeyRow | null;
  }): Promise<{ rows: KeyRow[]; hasMore: boolean }> {
    const { userId, limit, after } = page;
    const found = await this.#db
      .select({ key: keys })
      .from(keys)
      .leftJoin(users, eq(users.accountKey, keys.id))
      .where(
        and(
          isNull(users.id),
          userId === undefined ? undefined : userId === null ? isNull(keys.userId) : eq(keys.userId, userId),
          after === null
            ? undefined
            : or(lt(keys.createdAt, after.createdAt), and(eq(keys.createdAt, after.createdAt), lt(keys.id, after.id))),
        ),
      )
      .orderBy(desc(keys.createdAt), desc(keys.id))
      .limit(limit + 1);
    return { rows: found.slice(0, limit).map(({ key }) => key), hasMore: found.length > limit };
  }

  /** As find, but for the keys of accounts, which nobody manages. */
  async findListed(id: string): Promise<KeyRow | null> {
    const [row] = await this.#db
      .select({ key: keys })
      .from(keys)
      .leftJoin(users, eq(users.accountKey, keys.id))
      .where(and(eq(keys.id, id), isNull(users.id)));
    return row?.key ?? null;
  }

  async find(id: string): Promise<KeyRow | null> {
    const [row] = await this.#db.select().from(keys).where(eq(keys.id, id));
    return row ?? null;
  }

  /** A key with its user. */
  async withUser(id: string): Promise<{ key: KeyRow; user: UserRow | null } | null> {
    const [row] = await this.#db
      .select({ key: keys, user: users })
      .from(keys)
      .leftJoin(users, eq(users.id, keys.userId))
      .where(eq(keys.id, id));
    return row ?? null;
  }

  /** What may still be spent with a key, by its own budget and its user's; null: neither has one. */
  async budgetLeft(id: string): Promise<number | null> {
    const found = await this.withUser(id);
    const left = [found?.key, found?.user].flatMap((row) => leftOf(row ?? null) ?? []);
    return left.length === 0 ? null : Math.min(...left);
  }

  async patch(id: string, patch: KeyPatch): Promise<KeyRow | null> {
    const changes = Object.fromEntries(Object.entries(patch).filter(([, value]) => value !== undefined));
    if (Object.keys(changes).length === 0) return this.find(id);
    const [row] = await this.#db.update(keys).set(changes).where(eq(keys.id, id)).returning();
    this.#epoch += 1;
    if (row !== undefined) this.#cache.delete(row.hash);
    return row ?? null;
  }

  /** A user's role or state changed: what is remembered of the user's keys no longer holds. */
  forgetUsers(): void {
    this.#epoch += 1;
    this.#cache.clear();
  }

  async revoke(id: string): Promise<KeyRow | null> {
    const current = await this.find(id);
    if (current === null) return null;
    if (current.revokedAt !== null) return current;
    const [row] = await this.#db.update(keys).set({ revokedAt: this.#now() }).where(eq(keys.id, id)).returning();
    this.#epoch += 1;
    this.#cache.delete(current.hash);
    return row ?? null;
  }
}

/** Micro-units that a budget has left, at least 0; null: there is no budget. */
export function leftOf(row: Pick<KeyRow, 'budgetMicros' | 'spentMicros' | 'reservedMicros'> | null): number | null {
  if (row === null || row.budgetMicros === null) return null;
  return Math.max(0, row.budgetMicros - row.spentMicros - row.reservedMicros);
}

/** null: the key is a user's who cannot act (any more). */
export async function principalOf(row: KeyRow, user: UserRow | null, sha256Hex: Sha256Hex): Promise<Principal | null> {
  if (row.userId !== null && user?.state !== 'active') return null;
  const ownerId = user?.id ?? row.id;
  return {
    keyId: row.id,
    name: row.name,
    userId: user?.id ?? null,
    role: user?.role ?? null,
    ownerId,
    sessionId: null,
    callerHash: await sha256Hex(ownerId),
    // Nobody holds the account key: it stands for its user, in sessions and in what goes on after them.
    scopes: row.id === user?.accountKey ? ROLE_SCOPES[user.role] : effectiveScopes(row.scopes, user?.role ?? null),
    models: row.models === null ? null : new Set(row.models),
    requestsPerMinute: row.requestsPerMinute ?? limits.requestsPerMinuteDefault,
    tokensPerMinute: row.tokensPerMinute ?? limits.tokensPerMinuteDefault,
    concurrency: row.concurrency ?? limits.concurrencyDefault,
    budgetMicros: row.budgetMicros,
    userLimits:
      user === null
        ? null
        : {
            requestsPerMinute: user.requestsPerMinute,
            tokensPerMinute: user.tokensPerMinute,
            concurrency: user.concurrency,
          },
    expiresAt: row.expiresAt,
  };
}
