/** The rows of users. Each has an account key beside it, made together with it, which pays for what the user does in a session. */
import { and, desc, eq, inArray, lt, ne, or, type SQL, sql } from 'drizzle-orm';
import type { Limits } from '../auth/limit-fields.ts';
import type { Database } from '../db/open.ts';
import { keys, type Role, type UserRow, users } from '../db/schema.ts';
import { ApiError } from '../errors.ts';
import { hexOf, randomId } from '../http/ids.ts';

export interface NewUser {
  /** In its stored form: email() of email.ts. */
  email: string;
  name: string;
  role: Role;
  /** `invited` until a password is set; `active` where somebody else vouches (an OpenID provider). */
  state?: 'invited' | 'active';
  limits?: Partial<Limits>;
}

export interface UserFilter {
  role?: Role | undefined;
  state?: UserRow['state'] | undefined;
  /** Part of e-mail or name. */
  q?: string | undefined;
}

export type UserChange = { name?: string; role?: Role; state?: UserRow['state'] } & Partial<Limits>;

/** What stands in LIKE for itself. */
const likeOf = (text: string) => `%${text.replaceAll(/[\\%_]/g, (sign) => `\\${sign}`)}%`;

export class Users {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  /** @throws ApiError 409 where the address has an account already. */
  async create(input: NewUser): Promise<UserRow> {
    const id = `user_${randomId()}`;
    const accountKey = `key_${randomId()}`;
    const createdAt = this.#now();
    const [inserted] = await this.#db.batch([
      this.#db
        .insert(users)
        .values({
          id,
          email: input.email,
          name: input.name,
          role: input.role,
          state: input.state ?? 'invited',
          accountKey,
          createdAt,
          ...input.limits,
        })
        .onConflictDoNothing()
        .returning(),
      // Its hash is drawn, not computed, so no credential leads to it; it has no scopes, since a session's come from the role.
      this.#db.insert(keys).select(
        this.#db
          .select({
            id: sql<string>`${accountKey}`.as('id'),
            userId: sql<string>`${id}`.as('user_id'),
            name: sql<string>`'account'`.as('name'),
            hash: sql<string>`${hexOf(crypto.getRandomValues(new Uint8Array(32)))}`.as('hash'),
            hint: sql<string>`''`.as('hint'),
            scopes: sql<string[]>`'[]'`.as('scopes'),
            models: sql<null>`null`.as('models'),
            requestsPerMinute: sql<null>`null`.as('requests_per_minute'),
            tokensPerMinute: sql<null>`null`.as('tokens_per_minute'),
            concurrency: sql<null>`null`.as('concurrency'),
            budgetMicros: sql<null>`null`.as('budget_micros'),
            spentMicros: sql<number>`0`.as('spent_micros'),
            reservedMicros: sql<number>`0`.as('reserved_micros'),
            createdAt: sql<number>`${createdAt}`.as('created_at'),
            expiresAt: sql<null>`null`.as('expires_at'),
            revokedAt: sql<null>`null`.as('revoked_at'),
          })
          .from(users)
          .where(eq(users.id, id)),
      ),
    ]);
    const [row] = inserted;
    if (row === undefined) {
      const message = 'There is an account with this e-mail address already.';
      throw new ApiError(409, 'invalid_request_error', 'email_taken', message, { param: 'email' });
    }
    return row;
  }

  async find(id: string): Promise<UserRow | null> {
    const [row] = await this.#db.select().from(users).where(eq(users.id, id));
    return row ?? null;
  }

  async byEmail(email: string): Promise<UserRow | null> {
    const [row] = await this.#db.select().from(users).where(eq(users.email, email));
    return row ?? null;
  }

  /** Names and addresses of many at once, for views. */
  async named(ids: readonly string[]): Promise<Map<string, UserRow>> {
    if (ids.length === 0) return new Map();
    const rows = await this.#db
      .select()
      .from(users)
      .where(inArray(users.id, [...new Set(ids)]));
    return new Map(rows.map((row) => [row.id, row]));
  }

  /** Newest first. */
  async list(
    filter: UserFilter,
    page: { limit: number; after: UserRow | null },
  ): Promise<{ rows: UserRow[]; hasMore: boolean }> {
    const conditions: (SQL | undefined)[] = [
      filter.role === undefined ? undefined : eq(users.role, filter.role),
      filter.state === undefined ? undefined : eq(users.state, filter.state),
      page.after === null ? undefined : lt(users.seq, page.after.seq),
    ];
    if (filter.q !== undefined) {
      const pattern = likeOf(filter.q);
      conditions.push(
        or(sql`${users.email} like ${pattern} escape '\\'`, sql`${users.name} like ${pattern} escape '\\'`),
      );
    }
    const rows = await this.#db
      .select()
      .from(users)
      .where(and(...conditions))
      .orderBy(desc(users.seq))
      .limit(page.limit + 1);
    return { rows: rows.slice(0, page.limit), hasMore: rows.length > page.limit };
  }

  /** null: the user's role is no longer that of the row. */
  async change(user: Pick<UserRow, 'id' | 'role'>, change: UserChange): Promise<UserRow | null> {
    const same = and(eq(users.id, user.id), eq(users.role, user.role));
    if (Object.keys(change).length === 0) {
      const [row] = await this.#db.select().from(users).where(same);
      return row ?? null;
    }
    const [row] = await this.#db.update(users).set(change).where(same).returning();
    return row ?? null;
  }

  async setPassword(id: string, password: string): Promise<void> {
    await this.#db.update(users).set({ password }).where(eq(users.id, id));
  }

  /** The same password in a newer form; null: it was changed meanwhile. */
  async rehash(id: string, before: string, password: string): Promise<UserRow | null> {
    const [row] = await this.#db
      .update(users)
      .set({ password })
      .where(and(eq(users.id, id), eq(users.password, before)))
      .returning();
    return row ?? null;
  }

  async loggedIn(id: string): Promise<void> {
    await this.#db.update(users).set({ lastLoginAt: this.#now() }).where(eq(users.id, id));
  }

  /** Whether anybody else is an administrator who can act. */
  async otherAdmins(id: string): Promise<boolean> {
    const [row] = await this.#db
      .select({ id: users.id })
      .from(users)
      .where(and(eq(users.role, 'admin'), eq(users.state, 'active'), ne(users.id, id)))
      .limit(1);
    return row !== undefined;
  }
}
