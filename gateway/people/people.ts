/** People: users, how they prove who they are, their sessions, and the log of administrative acts. Made once in createApp. */
import { eq } from 'drizzle-orm';
import type { Context } from 'hono';
import { type KeyStore, principalOf } from '../auth/key-store.ts';
import { type Access, canAccess, type Principal } from '../auth/scopes.ts';
import type { Database } from '../db/open.ts';
import { keys, type SessionRow, type UserRow, users } from '../db/schema.ts';
import { ApiError } from '../errors.ts';
import type { Sha256Hex } from '../http/ids.ts';
import { limits } from '../limits.ts';
import type { AppEnv, Log } from '../services.ts';
import { AuditLog } from './audit.ts';
import { type Client, isSecure, sessionCookieOf, userAgentOf } from './client.ts';
import { emailOf } from './email.ts';
import { Invitations } from './invitations.ts';
import { type Attempt, LoginFailures } from './login-failures.ts';
import { checkPassword } from './password-rules.ts';
import { Passwords, type ScryptCost } from './passwords.ts';
import { Sessions, type Started } from './sessions.ts';
import { type UserChange, Users } from './users.ts';

/** How the client of a request is known; `env` is what the runtime hands to `fetch`. Null: it is not. */
export type AddressOf = (env: unknown, headers: Headers) => string | null;

export interface PeopleOptions {
  addressOf?: AddressOf;
  /** Where browsers reach the gateway, such as https://models.example.org; null: where requests say. */
  publicUrl?: string | null;
  /** A proxy of ours stands before the gateway and says whether browsers speak HTTPS with it. */
  trustProxy?: boolean;
  /** How long the audit log keeps acts that bear on nothing lasting; null: for ever. */
  auditKeptMs?: number | null;
  /** Tests make it cheap. */
  passwordCost?: ScryptCost;
}

export class People {
  readonly users: Users;
  readonly sessions: Sessions;
  readonly audit: AuditLog;
  readonly invitations: Invitations;
  readonly publicUrl: string | null;
  readonly trustProxy: boolean;
  readonly #db: Database;
  readonly #keys: KeyStore;
  readonly #now: () => number;
  readonly #sha256Hex: Sha256Hex;
  readonly #addressOf: AddressOf;
  readonly #passwords: Passwords;
  readonly #failures: LoginFailures;
  readonly #log: Log;

  constructor(
    deps: { db: Database; keys: KeyStore; log: Log; now: () => number; sha256Hex: Sha256Hex },
    options: PeopleOptions,
  ) {
    this.#db = deps.db;
    this.#keys = deps.keys;
    this.#now = deps.now;
    this.#sha256Hex = deps.sha256Hex;
    this.#addressOf = options.addressOf ?? (() => null);
    this.publicUrl = options.publicUrl ?? null;
    this.trustProxy = options.trustProxy ?? false;
    this.users = new Users(deps.db, deps.now);
    this.sessions = new Sessions(deps.db, deps);
    const keptMs = options.auditKeptMs === undefined ? limits.auditKeptMs : options.auditKeptMs;
    this.audit = new AuditLog(deps.db, deps.now, deps.log, keptMs);
    this.invitations = new Invitations(deps.db, deps.now);
    this.#passwords = new Passwords(options.passwordCost);
    this.#failures = new LoginFailures(deps.db.$client, deps.now);
    this.#log = deps.log;
  }

  addressOf(c: Context<AppEnv>): string | null {
    return this.#addressOf(c.env, c.req.raw.headers);
  }

  clientOf(c: Context<AppEnv>): Client {
    const secure = isSecure(c, this);
    return {
      address: this.addressOf(c),
      userAgent: userAgentOf(c.req.header('user-agent')),
      cookie: sessionCookieOf(c.req.header('cookie'), secure),
      secure,
    };
  }

  /**
   * The user of an e-mail address and password. Who there is, who has no password and who is disabled is not told, neither in words nor in time.
   * @throws ApiError 401, 429 with retry-after, 503.
   */
  async checkLogIn(c: Context<AppEnv>, givenEmail: string, password: string): Promise<UserRow> {
    const email = emailOf(givenEmail);
    const attempt = await this.#failures.begin(email ?? givenEmail, this.addressOf(c));
    const user = email === null ? null : await this.users.byEmail(email);
    if (user !== null) c.set('audit', { object: user.id });
    const stored = user?.state === 'active' ? user.password : null;
    const right = await this.#judge(attempt, async () => {
      await c.get('openAudit')?.();
      return this.#passwords.verify(password, stored);
    });
    if (user === null || stored === null || !right) {
      throw wrongCredentials();
    }
    await attempt.succeeded();
    return this.#passwords.isOutdated(stored) ? this.#rehashed(user, stored, password) : user;
  }

  /** What could not be judged, for a reason of ours, does not count against anybody. */
  async #judge(attempt: Attempt, judge: () => Promise<boolean>): Promise<boolean> {
    try {
      return await judge();
    } catch (error) {
      await attempt.undone();
      throw error;
    }
  }

  /** The password is known only now, so now it gets today's cost; if that cannot be, another time will do. */
  async #rehashed(user: UserRow, stored: string, password: string): Promise<UserRow> {
    try {
      const hash = await this.#passwords.hash(password);
      return (await this.users.rehash(user.id, stored, hash)) ?? user;
    } catch (error) {
      this.#log.warn({ err: error }, 'a password could not be given today’s cost');
      return user;
    }
  }

  /** Ends all other sessions. @returns how many. @throws ApiError 400, 401, 409, 429, 503. */
  async changePassword(c: Context<AppEnv>, user: UserRow, current: string, next: string): Promise<number> {
    if (user.password === null) {
      const message =
        'This account has no password; it logs in through an OpenID provider. An administrator can make a link that sets one.';
      throw new ApiError(409, 'invalid_request_error', 'no_password', message);
    }
    checkPassword(next, user.email, 'new_password');
    const attempt = await this.#failures.begin(user.email, this.addressOf(c));
    const stored = user.password;
    const right = await this.#judge(attempt, () => this.#passwords.verify(current, stored));
    if (!right) {
      const message = 'The current password is wrong.';
      throw new ApiError(403, 'permission_error', 'wrong_credentials', message, { param: 'current_password' });
    }
    await attempt.succeeded();
    const hash = await this.#passwords.hash(next);
    await this.recheck(c.get('principal'), 'account');
    await this.users.setPassword(user.id, hash);
    await this.invitations.closeAll(user.id);
    return this.sessions.endAll(user.id, c.get('principal').sessionId);
  }

  /** Sets the password that a link is for. @throws ApiError 400, 503. */
  async redeem(c: Context<AppEnv>, token: string, password: string): Promise<UserRow> {
    const user = await this.invitations.userOf(token);
    checkPassword(password, user.email);
    c.set('audit', { object: user.id });
    await c.get('openAudit')?.();
    await this.invitations.redeem(token, user, await this.#passwords.hash(password));
    // Whoever had the old password may still be logged in with it.
    await this.sessions.endAll(user.id);
    this.forget();
    return (await this.users.find(user.id)) ?? user;
  }

  /**
   * Effective with the next request: what a lower role or another state takes away is gone.
   * @param user as the caller was judged by: somebody who has another role by now is not changed. @throws ApiError 409
   */
  async changeUser(user: UserRow, change: UserChange): Promise<UserRow> {
    const changed = await this.users.change(user, change);
    if (changed === null) throw userChanged();
    if (Object.keys(change).some((name) => name !== 'name')) this.forget();
    if (change.state === 'disabled') await this.sessions.endAll(user.id);
    // A link sets the password of whoever has the role by then; whoever made it may have been allowed to for the old one only.
    if (change.state === 'disabled' || changed.role !== user.role) await this.invitations.closeAll(user.id);
    return changed;
  }

  /** Deletes what is over since long. */
  async prune(): Promise<void> {
    await this.sessions.prune();
    await this.invitations.prune();
    await this.#failures.prune();
    await this.audit.prune();
  }

  /**
   * Logs a user in, who has proved who they are: a new session, whose cookie goes with the answer to this request.
   * @param user the row by which that was proved. @throws ApiError 401 when the user was disabled or got another password meanwhile.
   */
  async logIn(c: Context<AppEnv>, user: UserRow, method: SessionRow['method']): Promise<Started> {
    const started = await this.sessions.start(user, method, this.clientOf(c));
    // Asked once the session is there: what ends a user's sessions from now on ends this one too.
    const now = await this.users.find(user.id);
    if (now?.state !== 'active' || (method === 'password' && now.password !== user.password)) {
      await this.sessions.end(user.id, started.session.id);
      throw wrongCredentials();
    }
    await this.users.loggedIn(user.id);
    c.header('set-cookie', started.setCookie, { append: true });
    return started;
  }

  /** A user's role or state changed: nothing that is remembered of keys and sessions holds any more. */
  forget(): void {
    this.#keys.forgetUsers();
    this.sessions.forgetUsers();
  }

  /**
   * Asked right before what a long request did is kept: may the caller still do it, by what the database says now?
   * @param access what the route asks for; without it, the caller must still have every scope it had when the request began.
   * @returns the caller as of now, for whatever else it is judged by.
   * @throws ApiError 401 when the key, the session or the user can act no longer, 403 when the role allows less.
   */
  async refreshed(principal: Principal, access?: Access): Promise<Principal> {
    const now = await this.#fresh(principal);
    if (now === null) {
      const message =
        'While this request ran, its key was revoked, its session ended or its user disabled. Nothing was kept.';
      throw new ApiError(401, 'invalid_request_error', 'no_longer_valid', message);
    }
    const still =
      access === undefined ? [...principal.scopes].every((scope) => now.scopes.has(scope)) : canAccess(now, access);
    if (!still) {
      const message = 'While this request ran, what its caller may do was changed. Nothing was kept.';
      throw new ApiError(403, 'permission_error', 'insufficient_scope', message);
    }
    return now;
  }

  /** As refreshed, for whoever knows the caller already. */
  async recheck(principal: Principal, access?: Access): Promise<void> {
    await this.refreshed(principal, access);
  }

  async #fresh(principal: Principal): Promise<Principal | null> {
    if (principal.sessionId !== null) return this.sessions.fresh(principal.sessionId);
    const [row] = await this.#db
      .select({ key: keys, user: users })
      .from(keys)
      .leftJoin(users, eq(users.id, keys.userId))
      .where(eq(keys.id, principal.keyId));
    if (row === undefined || row.key.revokedAt !== null) return null;
    if (row.key.expiresAt !== null && row.key.expiresAt <= this.#now()) return null;
    return principalOf(row.key, row.user, this.#sha256Hex);
  }
}

export function userChanged(): ApiError {
  const message = 'Somebody else has just changed this user. Look again, and send the request anew.';
  return new ApiError(409, 'invalid_request_error', 'user_changed', message);
}

function wrongCredentials(): ApiError {
  return new ApiError(401, 'invalid_request_error', 'wrong_credentials', 'E-mail address or password is wrong.');
}
