/**
 * Sessions of browsers: a cookie of 256 random bits, of which only the SHA-256 is kept. Each log-in makes a new one and ends the one that
 * the browser brought along; a value that the client chose is never adopted. What a session may do comes from its user's role.
 * Ended here, a session is over with the next request; other gateways on the same database learn of it when their cache entry ends.
 * Against forged requests (CSRF) every unsafe request names a token that is made of the cookie, which no other site can read.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { and, desc, eq, gt, inArray, isNull, lt, ne, notInArray, type SQL, sql } from 'drizzle-orm';
import { LRUCache } from 'lru-cache';
import { principalOf } from '../auth/key-store.ts';
import type { Principal } from '../auth/scopes.ts';
import type { Database } from '../db/open.ts';
import { keys, type SessionRow, sessions, type UserRow, users } from '../db/schema.ts';
import { randomBase64Url, randomId, type Sha256Hex } from '../http/ids.ts';
import { limits } from '../limits.ts';
import { type Client, setCookie } from './client.ts';

const CREDENTIAL = /^[A-Za-z0-9_-]{43}$/;

export interface Started {
  session: SessionRow;
  /** Value of the answer's set-cookie header: the only place where the cookie is shown. */
  setCookie: string;
  /** What unsafe requests of this session send as x-csrf-token. */
  csrfToken: string;
}

interface Live {
  principal: Principal;
  expiresAt: number;
  lastSeenAt: number;
}
type Entry = { live: Live | null };

const hashOf = (cookie: string) => createHash('sha256').update(cookie).digest('hex');

export function csrfTokenOf(cookie: string): string {
  return createHmac('sha256', cookie).update('modelfactory csrf').digest('base64url');
}

export function isCsrfToken(cookie: string, given: string): boolean {
  const expected = Buffer.from(csrfTokenOf(cookie));
  const bytes = Buffer.from(given.slice(0, 128));
  return bytes.length === expected.length && timingSafeEqual(bytes, expected);
}

export class Sessions {
  readonly #db: Database;
  readonly #now: () => number;
  readonly #sha256Hex: Sha256Hex;
  readonly #cache: LRUCache<string, Entry>;
  /** Counts changes; an answer read before a change must not be cached after it. */
  #epoch = 0;

  constructor(db: Database, options: { now: () => number; sha256Hex: Sha256Hex }) {
    this.#db = db;
    this.#now = options.now;
    this.#sha256Hex = options.sha256Hex;
    this.#cache = new LRUCache({
      max: limits.sessionCacheEntriesMax,
      ttl: limits.sessionCacheMs,
      perf: { now: options.now },
    });
  }

  /** A new session of somebody who has just proved who they are; the one that the browser brought along ends. */
  async start(user: UserRow, method: SessionRow['method'], client: Client): Promise<Started> {
    if (client.cookie !== null) await this.#end(eq(sessions.hash, hashOf(client.cookie)));
    const cookie = randomBase64Url(32);
    const now = this.#now();
    const [session] = await this.#db
      .insert(sessions)
      .values({
        id: `sess_${randomId()}`,
        hash: hashOf(cookie),
        userId: user.id,
        method,
        address: client.address,
        userAgent: client.userAgent,
        createdAt: now,
        lastSeenAt: now,
        expiresAt: now + limits.sessionLifeMs,
      })
      .returning();
    await this.#endSurplus(user.id);
    return {
      session: session as SessionRow,
      setCookie: setCookie(cookie, client.secure, limits.sessionLifeMs),
      csrfToken: csrfTokenOf(cookie),
    };
  }

  /** Whom the cookie stands for, or null: unknown, ended, expired and malformed are not told apart. */
  async authenticate(cookie: string): Promise<Principal | null> {
    if (!CREDENTIAL.test(cookie)) return null;
    const hash = hashOf(cookie);
    let entry = this.#cache.get(hash);
    if (entry === undefined) {
      const epoch = this.#epoch;
      entry = { live: await this.#read(eq(sessions.hash, hash)) };
      const ttl = entry.live === null ? limits.unknownKeyCacheMs : limits.sessionCacheMs;
      if (epoch === this.#epoch) this.#cache.set(hash, entry, { ttl });
    }
    const { live } = entry;
    if (live === null) return null;
    const now = this.#now();
    if (live.expiresAt <= now || live.lastSeenAt + limits.sessionIdleMs <= now) return null;
    if (now - live.lastSeenAt >= limits.sessionSeenEveryMs) {
      live.lastSeenAt = now;
      await this.#db
        .update(sessions)
        .set({ lastSeenAt: now })
        .where(eq(sessions.id, live.principal.sessionId as string));
    }
    return live.principal;
  }

  /** How it was begun. */
  async methodOf(id: string): Promise<SessionRow['method'] | null> {
    const [row] = await this.#db.select({ method: sessions.method }).from(sessions).where(eq(sessions.id, id));
    return row?.method ?? null;
  }

  /** As authenticate, but by the session's id and straight from the database. */
  async fresh(id: string): Promise<Principal | null> {
    return (await this.#read(eq(sessions.id, id)))?.principal ?? null;
  }

  async #read(which: SQL): Promise<Live | null> {
    const now = this.#now();
    const [row] = await this.#db
      .select({ session: sessions, user: users, key: keys })
      .from(sessions)
      .innerJoin(users, eq(users.id, sessions.userId))
      .innerJoin(keys, eq(keys.id, users.accountKey))
      .where(and(which, this.#alive(now)));
    if (row === undefined) return null;
    const principal = await principalOf(row.key, row.user, this.#sha256Hex);
    if (principal === null) return null;
    return {
      principal: {
        ...principal,
        name: row.user.name,
        sessionId: row.session.id,
      },
      expiresAt: row.session.expiresAt,
      lastSeenAt: row.session.lastSeenAt,
    };
  }

  #alive(now: number): SQL | undefined {
    return and(
      isNull(sessions.endedAt),
      gt(sessions.expiresAt, now),
      gt(sessions.lastSeenAt, now - limits.sessionIdleMs),
    );
  }

  /** Those that are alive, newest first. */
  async list(userId: string): Promise<SessionRow[]> {
    return this.#db
      .select()
      .from(sessions)
      .where(and(eq(sessions.userId, userId), this.#alive(this.#now())))
      .orderBy(desc(sessions.createdAt), desc(sessions.id))
      .limit(limits.sessionsPerUserMax);
  }

  /** False: the user has no such session. */
  async end(userId: string, id: string): Promise<boolean> {
    return (await this.#end(and(eq(sessions.userId, userId), eq(sessions.id, id), this.#alive(this.#now())))) > 0;
  }

  /** @param except the session that goes on. @returns how many were ended. */
  async endAll(userId: string, except: string | null = null): Promise<number> {
    const others = except === null ? undefined : ne(sessions.id, except);
    return this.#end(and(eq(sessions.userId, userId), others));
  }

  async #end(which: SQL | undefined): Promise<number> {
    const ended = await this.#db
      .update(sessions)
      .set({ endedAt: this.#now() })
      .where(and(which, isNull(sessions.endedAt)))
      .returning({ hash: sessions.hash });
    this.#epoch += 1;
    for (const { hash } of ended) this.#cache.delete(hash);
    return ended.length;
  }

  /** Of too many the oldest end: nobody needs them, and the list stays one that can be read. */
  async #endSurplus(userId: string): Promise<void> {
    const own = and(eq(sessions.userId, userId), isNull(sessions.endedAt));
    const newest = this.#db
      .select({ id: sessions.id })
      .from(sessions)
      .where(own)
      .orderBy(desc(sessions.createdAt), desc(sql`rowid`))
      .limit(limits.sessionsPerUserMax);
    await this.#end(and(own, notInArray(sessions.id, newest)));
  }

  /** A user's role or state changed: what is remembered of sessions no longer holds. */
  forgetUsers(): void {
    this.#epoch += 1;
    this.#cache.clear();
  }

  /** Deletes those that ended, or could have been used last, long ago. */
  async prune(): Promise<void> {
    const old = this.#db
      .select({ id: sessions.id })
      .from(sessions)
      .where(lt(sessions.expiresAt, this.#now() - limits.sessionKeptMs))
      .limit(limits.sweepRowsMax);
    await this.#db.delete(sessions).where(inArray(sessions.id, old));
  }
}
