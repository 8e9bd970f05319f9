/**
 * Tables of gateway.db. Money in integer micro-units, times in milliseconds since 1970. SQL is generated into migrations/gateway.
 * Triggers (0001_money_triggers.sql) keep keys.reserved_micros, keys.spent_micros and usage_daily in step with reservations.
 */
import { sql } from 'drizzle-orm';
import { check, index, integer, primaryKey, sqliteTable, text } from 'drizzle-orm/sqlite-core';

export const keys = sqliteTable(
  'keys',
  {
    id: text('id').primaryKey(),
    name: text('name').notNull(),
    /** SHA-256 of the whole credential; the credential itself is nowhere. */
    hash: text('hash').notNull().unique(),
    /** First characters of the credential, to recognise it in a list. */
    hint: text('hint').notNull(),
    scopes: text('scopes', { mode: 'json' }).$type<string[]>().notNull(),
    /** Model ids this key may use; null = all. */
    models: text('models', { mode: 'json' }).$type<string[]>(),
    requestsPerMinute: integer('requests_per_minute'),
    tokensPerMinute: integer('tokens_per_minute'),
    concurrency: integer('concurrency'),
    budgetMicros: integer('budget_micros'),
    spentMicros: integer('spent_micros').notNull().default(0),
    reservedMicros: integer('reserved_micros').notNull().default(0),
    createdAt: integer('created_at').notNull(),
    expiresAt: integer('expires_at'),
    revokedAt: integer('revoked_at'),
  },
  (table) => [check('keys_money', sql`${table.spentMicros} >= 0 and ${table.reservedMicros} >= 0`)],
);

export const reservations = sqliteTable(
  'reservations',
  {
    /** The request id the daemon knows; makes posting idempotent. */
    requestId: text('request_id').primaryKey(),
    keyId: text('key_id').notNull(),
    amountMicros: integer('amount_micros').notNull(),
    postedMicros: integer('posted_micros'),
    /** What was used, set together with postedMicros. */
    model: text('model'),
    promptTokens: integer('prompt_tokens'),
    completionTokens: integer('completion_tokens'),
    state: text('state', { enum: ['open', 'posted', 'void', 'expired'] }).notNull(),
    createdAt: integer('created_at').notNull(),
    deadlineAt: integer('deadline_at').notNull(),
    settledAt: integer('settled_at'),
  },
  (table) => [
    index('reservations_open').on(table.state, table.deadlineAt),
    index('reservations_settled').on(table.settledAt),
    check('reservations_amount', sql`${table.amountMicros} >= 0`),
  ],
);

export const usageDaily = sqliteTable(
  'usage_daily',
  {
    keyId: text('key_id').notNull(),
    /** UTC day, YYYY-MM-DD. */
    day: text('day').notNull(),
    model: text('model').notNull(),
    requests: integer('requests').notNull().default(0),
    promptTokens: integer('prompt_tokens').notNull().default(0),
    completionTokens: integer('completion_tokens').notNull().default(0),
    costMicros: integer('cost_micros').notNull().default(0),
  },
  (table) => [primaryKey({ columns: [table.keyId, table.day, table.model] })],
);

export type KeyRow = typeof keys.$inferSelect;
