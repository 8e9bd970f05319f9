/**
 * Links by which a user sets a password, once: for whoever is new, and for whoever lost theirs. A token of 256 random bits, shown once to the
 * administrator who made it, kept as its SHA-256. A new one ends those before it.
 */
import { createHash } from 'node:crypto';
import { and, eq, gt, inArray, isNull, lt, ne, sql } from 'drizzle-orm';
import type { Database } from '../db/open.ts';
import { invitations, type UserRow, users } from '../db/schema.ts';
import { ApiError } from '../errors.ts';
import { randomBase64Url } from '../http/ids.ts';
import { limits } from '../limits.ts';

const TOKEN = /^mfi-[A-Za-z0-9_-]{43}$/;
const hashOf = (token: string) => createHash('sha256').update(token).digest('hex');

export class Invitations {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  /**
   * @param user as whoever makes it was allowed to: for somebody who has another role by now there is none.
   * @param createdBy owner id of whoever made it. @returns the token, which exists only in this return value; null: the user has changed.
   */
  async create(
    user: Pick<UserRow, 'id' | 'role'>,
    createdBy: string,
  ): Promise<{ token: string; expiresAt: number } | null> {
    const token = `mfi-${randomBase64Url(32)}`;
    const now = this.#now();
    const expiresAt = now + limits.invitationMs;
    const [, made] = await this.#db.$client.batch(
      [
        {
          sql: 'UPDATE invitations SET used_at = ?2 WHERE user_id = ?1 AND used_at IS NULL',
          args: [user.id, now],
        },
        {
          sql: `INSERT INTO invitations (hash, user_id, created_by, created_at, expires_at)
                SELECT ?1, id, ?3, ?4, ?5 FROM users WHERE id = ?2 AND role = ?6 AND state <> 'disabled'`,
          args: [hashOf(token), user.id, createdBy, now, expiresAt, user.role],
        },
      ],
      'write',
    );
    return made !== undefined && made.rowsAffected > 0 ? { token, expiresAt } : null;
  }

  #close(userId: string) {
    return this.#db
      .update(invitations)
      .set({ usedAt: this.#now() })
      .where(and(eq(invitations.userId, userId), isNull(invitations.usedAt)));
  }

  /** None of the user's links can be used any more. */
  async closeAll(userId: string): Promise<void> {
    await this.#close(userId);
  }

  /** Whose password it sets. @throws ApiError 400: unknown, used, expired, replaced and malformed are not told apart. */
  async userOf(token: string): Promise<UserRow> {
    if (!TOKEN.test(token)) throw invalid();
    const [row] = await this.#db
      .select({ user: users })
      .from(invitations)
      .innerJoin(users, eq(users.id, invitations.userId))
      .where(and(this.#open(token), ne(users.state, 'disabled')));
    if (row === undefined) throw invalid();
    return row.user;
  }

  #open(token: string) {
    return and(eq(invitations.hash, hashOf(token)), isNull(invitations.usedAt), gt(invitations.expiresAt, this.#now()));
  }

  /** Sets the password and uses the link up, both or neither; of two who use it at the same time, one. @throws ApiError 400. */
  async redeem(token: string, user: UserRow, password: string): Promise<void> {
    const open = this.#db.select({ one: sql`1` }).from(invitations).where(this.#open(token));
    const [changed] = await this.#db.batch([
      this.#db
        .update(users)
        .set({ password, state: 'active' })
        .where(and(eq(users.id, user.id), ne(users.state, 'disabled'), sql`exists ${open}`)),
      this.#db
        .update(invitations)
        .set({ usedAt: this.#now() })
        .where(and(eq(invitations.hash, hashOf(token)), isNull(invitations.usedAt))),
    ]);
    if (changed.rowsAffected === 0) throw invalid();
    await this.#close(user.id);
  }

  /** Deletes those that are over since long. */
  async prune(): Promise<void> {
    const old = this.#db
      .select({ hash: invitations.hash })
      .from(invitations)
      .where(lt(invitations.expiresAt, this.#now() - limits.sessionKeptMs))
      .limit(limits.sweepRowsMax);
    await this.#db.delete(invitations).where(inArray(invitations.hash, old));
  }
}

function invalid(): ApiError {
  const message = 'This link is unknown, used, replaced or expired. Ask an administrator for a new one.';
  return new ApiError(400, 'invalid_request_error', 'invalid_invitation', message, { param: 'token' });
}
