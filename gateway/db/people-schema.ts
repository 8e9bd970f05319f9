/** Tables of people: users and how they prove who they are, organisations, sessions, and the log of administrative acts. */
import { sql } from 'drizzle-orm';
import { index, integer, primaryKey, sqliteTable, text } from 'drizzle-orm/sqlite-core';

export const ROLES = ['admin', 'builder', 'contributor', 'consumer'] as const;
export type Role = (typeof ROLES)[number];

export const users = sqliteTable('users', {
  seq: integer('seq').primaryKey({ autoIncrement: true }),
  id: text('id').notNull().unique(),
  /** In the form that is compared: NFKC, lower case. */
  email: text('email').notNull().unique(),
  name: text('name').notNull(),
  role: text('role', { enum: ROLES }).notNull(),
  state: text('state', { enum: ['invited', 'active', 'disabled'] }).notNull(),
  /** scrypt$N$r$p$salt$hash; null: no log-in by password. */
  password: text('password'),
  /** The key that pays for what the user does in a session; nobody holds its credential. */
  accountKey: text('account_key').notNull().unique(),
  /** What holds for all keys and sessions of the user together, besides what each key has of its own; null: no such limit. */
  requestsPerMinute: integer('requests_per_minute'),
  tokensPerMinute: integer('tokens_per_minute'),
  concurrency: integer('concurrency'),
  budgetMicros: integer('budget_micros'),
  /** Sums over the user's keys, the account's included; triggers keep them in step with reservations. */
  spentMicros: integer('spent_micros').notNull().default(0),
  reservedMicros: integer('reserved_micros').notNull().default(0),
  createdAt: integer('created_at').notNull(),
  lastLoginAt: integer('last_login_at'),
});

/** Who the user is at an OpenID provider. */
export const identities = sqliteTable(
  'identities',
  {
    issuer: text('issuer').notNull(),
    subject: text('subject').notNull(),
    userId: text('user_id').notNull(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [primaryKey({ columns: [table.issuer, table.subject] }), index('identities_user').on(table.userId)],
);

/** Links by which a user sets a password, once. */
export const invitations = sqliteTable(
  'invitations',
  {
    /** SHA-256 of the token; the token itself is nowhere. */
    hash: text('hash').primaryKey(),
    userId: text('user_id').notNull(),
    createdBy: text('created_by').notNull(),
    createdAt: integer('created_at').notNull(),
    expiresAt: integer('expires_at').notNull(),
    usedAt: integer('used_at'),
  },
  (table) => [index('invitations_user').on(table.userId)],
);

export const sessions = sqliteTable(
  'sessions',
  {
    id: text('id').primaryKey(),
    /** SHA-256 of the whole cookie. */
    hash: text('hash').notNull().unique(),
    userId: text('user_id').notNull(),
    method: text('method', { enum: ['password', 'oidc'] }).notNull(),
    /** Of the client at log-in, to recognise the session in a list. */
    address: text('address'),
    userAgent: text('user_agent'),
    createdAt: integer('created_at').notNull(),
    lastSeenAt: integer('last_seen_at').notNull(),
    expiresAt: integer('expires_at').notNull(),
    endedAt: integer('ended_at'),
  },
  (table) => [index('sessions_user').on(table.userId, table.createdAt)],
);

/** Failed log-ins, by account and by address (hashed): what makes the next one wait. */
export const loginFailures = sqliteTable('login_failures', {
  subject: text('subject').primaryKey(),
  failures: integer('failures').notNull(),
  lastAt: integer('last_at').notNull(),
  blockedUntil: integer('blocked_until').notNull(),
});

export const organizations = sqliteTable('organizations', {
  seq: integer('seq').primaryKey({ autoIncrement: true }),
  id: text('id').notNull().unique(),
  name: text('name').notNull(),
  /** The name in the form that must be unique. */
  nameKey: text('name_key').notNull().unique(),
  createdBy: text('created_by').notNull(),
  createdAt: integer('created_at').notNull(),
});

export const memberships = sqliteTable(
  'memberships',
  {
    organizationId: text('organization_id').notNull(),
    userId: text('user_id').notNull(),
    /** An owner decides who belongs, and manages what the organisation owns. */
    role: text('role', { enum: ['owner', 'member'] }).notNull(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.organizationId, table.userId] }),
    index('memberships_user').on(table.userId),
  ],
);

/**
 * Written before an act begins; `status` when it has ended, once. Rows leave only when they are older than the operator keeps them, are not
 * `kept`, and an open act `audit.prune` says so: triggers see to all of it. `seq` is the rowid, so each index ends with it.
 */
export const auditLog = sqliteTable(
  'audit_log',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    at: integer('at').notNull(),
    /** Such as `user.create`, `datanet.publish`. */
    action: text('action').notNull(),
    userId: text('user_id'),
    keyId: text('key_id'),
    /** What was acted upon. */
    object: text('object'),
    requestId: text('request_id').notNull(),
    address: text('address'),
    /** Never secrets, never the contents of rows. */
    detail: text('detail', { mode: 'json' }).$type<Record<string, unknown>>(),
    /** HTTP status of the answer; null: under way, or the process ended before it did. */
    status: integer('status'),
    /** Stays for ever: what bears on money, keys, roles and rights, if it happened. */
    kept: integer('kept', { mode: 'boolean' }).notNull().default(true),
  },
  (table) => [
    index('audit_at').on(table.at),
    index('audit_action').on(table.action, table.at),
    index('audit_user').on(table.userId, table.at),
    index('audit_key').on(table.keyId, table.at),
    index('audit_object').on(table.object, table.at),
    index('audit_prunable').on(table.at).where(sql`kept = 0`),
  ],
);

export type UserRow = typeof users.$inferSelect;
export type SessionRow = typeof sessions.$inferSelect;
export type OrganizationRow = typeof organizations.$inferSelect;
export type MembershipRow = typeof memberships.$inferSelect;
export type AuditRow = typeof auditLog.$inferSelect;
