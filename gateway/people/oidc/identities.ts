/**
 * Which account an identity at the provider is. The rule against taking over accounts:
 * 1. An identity that is linked is its account, whatever e-mail the provider tells now.
 * 2. Otherwise the provider must say that it has checked the e-mail, and the address must be the account's to the letter (ASCII case
 *    aside: a folded form could be another mailbox). Then somebody who was invited, and has no password yet, becomes that account.
 * 3. An account that is in use is never taken by e-mail: its user logs in as before and links the identity in a session (`link`).
 * 4. Whoever has no account gets one with the role of the settings; without that setting they are refused.
 */
import { and, asc, count, eq } from 'drizzle-orm';
import type { Database } from '../../db/open.ts';
import { identities, type Role, type UserRow, users } from '../../db/people-schema.ts';
import { ApiError } from '../../errors.ts';
import { displayNameOf } from '../../http/names.ts';
import { limits } from '../../limits.ts';
import { emailOf } from '../email.ts';
import type { Users } from '../users.ts';
import type { Identity } from './provider.ts';

export type IdentityRow = typeof identities.$inferSelect;
/** `how`: linked before, by its invitation, or new. */
export interface Admitted {
  user: UserRow;
  how: 'linked' | 'invited' | 'created';
}

export class Identities {
  readonly #db: Database;
  readonly #users: Users;
  readonly #now: () => number;

  constructor(db: Database, users: Users, now: () => number) {
    this.#db = db;
    this.#users = users;
    this.#now = now;
  }

  /** Of a user, oldest first. */
  async of(userId: string): Promise<IdentityRow[]> {
    return this.#db
      .select()
      .from(identities)
      .where(eq(identities.userId, userId))
      .orderBy(asc(identities.createdAt), asc(identities.subject));
  }

  /** Whom the identity is linked to. */
  async userOf(identity: Pick<Identity, 'issuer' | 'subject'>): Promise<UserRow | null> {
    const [row] = await this.#db
      .select({ user: users })
      .from(identities)
      .innerJoin(users, eq(users.id, identities.userId))
      .where(and(eq(identities.issuer, identity.issuer), eq(identities.subject, identity.subject)));
    return row?.user ?? null;
  }

  /** @param role of people who were not invited; null: there are none. @throws ApiError 403. */
  async admit(identity: Identity, role: Role | null): Promise<Admitted> {
    const linked = await this.userOf(identity);
    if (linked !== null) return { user: active(linked), how: 'linked' };
    const email = exactEmail(identity.verifiedEmail);
    if (email === null)
      throw refused(
        'email_not_verified',
        'The OpenID provider does not say that it has checked your e-mail address, so it cannot be matched with an account here.',
      );
    let user = await this.#users.byEmail(email);
    let how: Admitted['how'] = 'invited';
    if (user === null) {
      if (role === null)
        throw refused('not_invited', 'There is no account for you here. Ask an administrator to invite you.');
      user = await this.#create(email, identity, role);
      how = 'created';
    }
    if (user.state === 'disabled') active(user);
    if (user.state !== 'invited' || user.password !== null || !(await this.#redeem(identity, user))) {
      // Somebody who logs in twice at the same moment: the other one was quicker.
      const meanwhile = await this.userOf(identity);
      if (meanwhile !== null) return { user: active(meanwhile), how: 'linked' };
      throw refused(
        'not_linked',
        'There is an account with your e-mail address, but this log-in is not linked to it. Log in as before and link it in your account; without another way to log in, ask an administrator for a link that sets a password.',
      );
    }
    return { user: (await this.#users.find(user.id)) ?? user, how };
  }

  /** Invited, until the identity is linked: a process that ends between the two leaves somebody who can simply come again. */
  async #create(email: string, identity: Identity, role: Role): Promise<UserRow> {
    const name =
      displayNameOf(identity.name ?? '') ?? displayNameOf(email.slice(0, email.lastIndexOf('@'))) ?? 'New user';
    try {
      return await this.#users.create({ email, name, role, state: 'invited' });
    } catch (error) {
      const other = error instanceof ApiError && error.code === 'email_taken' ? await this.#users.byEmail(email) : null;
      if (other === null) throw error;
      return other;
    }
  }

  /** Links, activates, ends the links that set a password; all or nothing, and only while the account is still unused. */
  async #redeem(identity: Identity, user: UserRow): Promise<boolean> {
    const now = this.#now();
    const args = [identity.issuer, identity.subject, user.id, now];
    const own = 'EXISTS (SELECT 1 FROM identities WHERE issuer = ?1 AND subject = ?2 AND user_id = ?3)';
    const [, activated] = await this.#db.$client.batch(
      [
        {
          sql: `INSERT INTO identities (issuer, subject, user_id, created_at)
                SELECT ?1, ?2, id, ?4 FROM users WHERE id = ?3 AND state = 'invited' AND password IS NULL
                ON CONFLICT (issuer, subject) DO NOTHING`,
          args,
        },
        {
          sql: `UPDATE users SET state = 'active' WHERE id = ?3 AND state = 'invited' AND password IS NULL AND ${own}`,
          args: args.slice(0, 3),
        },
        { sql: `UPDATE invitations SET used_at = ?4 WHERE user_id = ?3 AND used_at IS NULL AND ${own}`, args },
      ],
      'write',
    );
    return activated !== undefined && activated.rowsAffected > 0;
  }

  /** For somebody who has proved both: the account by a session, the identity at the provider. @throws ApiError 409. */
  async link(identity: Identity, userId: string): Promise<void> {
    const { issuer, subject } = identity;
    const made = await this.#db.$client.execute({
      sql: `INSERT INTO identities (issuer, subject, user_id, created_at)
            SELECT ?1, ?2, id, ?4 FROM users WHERE id = ?3 AND state = 'active'
              AND (SELECT count(*) FROM identities WHERE user_id = ?3) < ?5
            ON CONFLICT (issuer, subject) DO NOTHING`,
      args: [issuer, subject, userId, this.#now(), limits.identitiesPerUserMax],
    });
    if (made.rowsAffected > 0) return;
    const owner = await this.userOf(identity);
    if (owner?.id === userId) return;
    if (owner === null)
      throw conflict('too_many_identities', `An account has at most ${limits.identitiesPerUserMax} linked log-ins.`);
    throw conflict('identity_taken', 'This log-in at the OpenID provider is linked to another account.');
  }

  /** @throws ApiError 404, 409 if nothing else would let its user in. */
  async unlink(userId: string, issuer: string, subject: string): Promise<void> {
    const removed = await this.#db.$client.execute({
      sql: `DELETE FROM identities WHERE issuer = ?1 AND subject = ?2 AND user_id = ?3
            AND (EXISTS (SELECT 1 FROM users WHERE id = ?3 AND password IS NOT NULL)
              OR (SELECT count(*) FROM identities WHERE user_id = ?3) > 1)`,
      args: [issuer, subject, userId],
    });
    if (removed.rowsAffected > 0) return;
    const [row] = await this.#db
      .select({ n: count() })
      .from(identities)
      .where(and(eq(identities.issuer, issuer), eq(identities.subject, subject), eq(identities.userId, userId)));
    if ((row?.n ?? 0) > 0)
      throw conflict('last_log_in', 'Without a password this is the only way into the account, so it stays.');
    const message = 'This log-in is not linked to your account.';
    throw new ApiError(404, 'invalid_request_error', 'identity_not_found', message, { param: 'subject' });
  }
}

/** The stored form, if the provider wrote it so; null if only folding would make it so: that could be somebody else's mailbox. */
export function exactEmail(given: string | null): string | null {
  if (given === null) return null;
  const plain = given.replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase());
  return emailOf(plain) === plain ? plain : null;
}

function active(user: UserRow): UserRow {
  if (user.state === 'active') return user;
  throw refused('account_disabled', 'This account is disabled. Ask an administrator.');
}

function refused(code: string, message: string): ApiError {
  return new ApiError(403, 'permission_error', code, message);
}

function conflict(code: string, message: string): ApiError {
  return new ApiError(409, 'invalid_request_error', code, message);
}
