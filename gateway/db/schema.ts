/**
 * Tables of gateway.db. Money in integer micro-units, times in milliseconds since 1970. SQL is generated into migrations/gateway.
 * Triggers (0001_money_triggers.sql) keep keys.reserved_micros, keys.spent_micros and usage_daily in step with reservations.
 */
import { sql } from 'drizzle-orm';
import { check, index, integer, primaryKey, sqliteTable, text, uniqueIndex } from 'drizzle-orm/sqlite-core';
import type { EvaluationReport, Recipe } from '../../daemon/protocol.ts';

export * from './datanet-schema.ts';
export * from './people-schema.ts';

export const keys = sqliteTable(
  'keys',
  {
    id: text('id').primaryKey(),
    /** Whose key it is; null: the operator's, such as the one made at the first start. */
    userId: text('user_id'),
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
  (table) => [
    index('keys_user').on(table.userId),
    check('keys_money', sql`${table.spentMicros} >= 0 and ${table.reservedMicros} >= 0`),
  ],
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

/** What /v1/files knows; the bytes are in the folder `files/` under the same id. `seq` orders lists where times are equal. */
export const files = sqliteTable(
  'files',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    keyId: text('key_id').notNull(),
    /** User, or key of the operator's, that it belongs to (Principal.ownerId). */
    owner: text('owner').notNull().default(''),
    filename: text('filename').notNull(),
    purpose: text('purpose').notNull(),
    bytes: integer('bytes').notNull(),
    sha256: text('sha256').notNull(),
    /** How the rows of a data set become examples, where the uploader said so. */
    format: text('format'),
    columns: text('columns', { mode: 'json' }).$type<Record<string, string>>(),
    createdAt: integer('created_at').notNull(),
    expiresAt: integer('expires_at'),
  },
  (table) => [index('files_owner').on(table.owner, table.seq), index('files_expiry').on(table.expiresAt)],
);

/** A fine-tuning job as its owner sees it. The daemon has the run; what of it is known here was read from its events, in order. */
export const jobs = sqliteTable(
  'fine_tuning_jobs',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    keyId: text('key_id').notNull(),
    /** User, or key of the operator's, that it belongs to (Principal.ownerId). */
    owner: text('owner').notNull().default(''),
    callerHash: text('caller_hash').notNull(),
    status: text('status', {
      enum: ['validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled'],
    }).notNull(),
    /** What the owner asked for last; the daemon is told until it has done so. */
    wanted: text('wanted', { enum: ['run', 'pause', 'cancel'] })
      .notNull()
      .default('run'),
    /** Id of the base model. */
    model: text('model').notNull(),
    /** Name of the adapter that comes out. */
    adapter: text('adapter').notNull().unique(),
    trainingFile: text('training_file').notNull(),
    validationFile: text('validation_file'),
    suffix: text('suffix'),
    seed: integer('seed').notNull(),
    /** As asked, "auto" included. */
    method: text('method', { mode: 'json' }).notNull().$type<JobMethod>(),
    extension: text('extension', { mode: 'json' }).notNull().$type<Record<string, unknown>>(),
    metadata: text('metadata', { mode: 'json' }).$type<Record<string, string>>(),
    /** What "auto" became, once the files are validated. */
    recipe: text('recipe', { mode: 'json' }).$type<Recipe>(),
    estimate: text('estimate', { mode: 'json' }).$type<JobEstimate>(),
    /** Digests of the data sets on the daemon. */
    dataset: text('dataset'),
    validation: text('validation'),
    /** Address of the daemon that trains, and which of its runs of this id the events below belong to. */
    daemonUrl: text('daemon_url'),
    runCreatedAt: text('run_created_at'),
    /** Sequence number of the newest event of the run that is stored here. */
    lastEvent: integer('last_event').notNull().default(0),
    progress: text('progress', { mode: 'json' }).$type<Record<string, number>>(),
    estimatedFinish: integer('estimated_finish'),
    trainedTokens: integer('trained_tokens'),
    fineTunedModel: text('fine_tuned_model'),
    resultFile: text('result_file'),
    error: text('error', { mode: 'json' }).$type<{ code: string; message: string; param: string | null }>(),
    createdAt: integer('created_at').notNull(),
    finishedAt: integer('finished_at'),
  },
  (table) => [index('jobs_owner').on(table.owner, table.seq), index('jobs_status').on(table.status)],
);

/** Which gateway moves a job, where several share the database; gone when the job is over. */
export const jobLeases = sqliteTable('fine_tuning_leases', {
  jobId: text('job_id').primaryKey(),
  /** Drawn by each process. */
  holder: text('holder').notNull(),
  /** Milliseconds since 1970 by the database's clock; then anybody may take it. */
  until: integer('until').notNull(),
  /** Counts the times that another gateway wanted the holder to look at the job's row again. */
  calls: integer('calls').notNull().default(0),
});

export const jobEvents = sqliteTable(
  'fine_tuning_events',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    jobId: text('job_id').notNull(),
    /** What makes the event the same event when it is told again. */
    dedupe: text('dedupe').notNull(),
    level: text('level', { enum: ['info', 'warn', 'error'] }).notNull(),
    type: text('type', { enum: ['message', 'metrics'] }).notNull(),
    message: text('message').notNull(),
    data: text('data', { mode: 'json' }).$type<Record<string, unknown>>(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [index('events_job').on(table.jobId, table.seq), uniqueIndex('events_once').on(table.jobId, table.dedupe)],
);

export const jobCheckpoints = sqliteTable(
  'fine_tuning_checkpoints',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    jobId: text('job_id').notNull(),
    step: integer('step').notNull(),
    /** Name under which it is served. */
    adapter: text('adapter').notNull(),
    digest: text('digest').notNull(),
    metrics: text('metrics', { mode: 'json' }).notNull().$type<Record<string, number>>(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [
    uniqueIndex('checkpoints_once').on(table.jobId, table.step),
    index('checkpoints_adapter').on(table.adapter),
  ],
);

/** Who besides its owner may use a checkpoint; a project is an API key here. */
export const checkpointPermissions = sqliteTable(
  'checkpoint_permissions',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    checkpoint: text('checkpoint').notNull(),
    projectId: text('project_id').notNull(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [uniqueIndex('permissions_once').on(table.checkpoint, table.projectId)],
);

export type FileRow = typeof files.$inferSelect;
export type JobRow = typeof jobs.$inferSelect;
export type JobEventRow = typeof jobEvents.$inferSelect;
export type JobCheckpointRow = typeof jobCheckpoints.$inferSelect;

export type Auto<T> = T | 'auto';
/** The part of a job's request that OpenAI calls its method, and what "auto" became of it once known. */
export interface JobMethod {
  type: 'supervised' | 'dpo';
  hyperparameters: {
    n_epochs: Auto<number>;
    batch_size: Auto<number>;
    learning_rate_multiplier: Auto<number>;
    beta?: Auto<number>;
  };
}
export interface JobEstimate {
  steps: number;
  tokens: number;
  trained_tokens: number;
  seconds: number;
  memory_bytes: number;
  memory_available_bytes: number;
  fits: boolean;
  cost_micros: number;
  currency: string;
}

/** Evaluations that ended: the daemon's report, kept here too since promotions are decided by it. */
export const evaluations = sqliteTable(
  'evaluations',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    keyId: text('key_id').notNull(),
    /** User, or key of the operator's, that it belongs to (Principal.ownerId). */
    owner: text('owner').notNull().default(''),
    /** Id of the file that it ran on. */
    file: text('file').notNull(),
    report: text('report', { mode: 'json' }).notNull().$type<EvaluationReport>(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [index('evaluations_owner').on(table.owner, table.seq)],
);

/**
 * What each alias has stood for, in order: rows are only ever added, and the newest of an alias is the one that holds. Two who change an
 * alias at the same time both write its next version, and the key lets one of them through.
 */
export const aliasVersions = sqliteTable(
  'alias_versions',
  {
    alias: text('alias').notNull(),
    version: integer('version').notNull(),
    action: text('action', { enum: ['promote', 'rollback', 'delete'] }).notNull(),
    /** null: the alias was deleted. */
    model: text('model'),
    /** Digest of the adapter's weights; null for a base model. */
    digest: text('digest'),
    /** The promotion that put this model here: a rollback goes back to an earlier one. */
    origin: integer('origin').notNull(),
    /** Where a rollback from here leads: the promotion before `origin`; null: nowhere. */
    parent: integer('parent'),
    evaluation: text('evaluation'),
    /** The criteria that were stated, each with the numbers that were compared. */
    checks: text('checks', { mode: 'json' }).notNull().$type<CriterionCheck[]>(),
    keyId: text('key_id').notNull(),
    /** User, or key of the operator's, that it belongs to (Principal.ownerId). */
    owner: text('owner').notNull().default(''),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [primaryKey({ columns: [table.alias, table.version] }), index('alias_models').on(table.model)],
);

/** One criterion of a promotion, and what it was decided by. */
export interface CriterionCheck {
  criterion: {
    metric: string;
    op: '>' | '>=' | '<' | '<=';
    against: 'base' | 'current' | number;
    margin: number;
    confident: boolean;
  };
  /** Of the model to be promoted, and what it had to be; null: the report does not have it. */
  value: number | null;
  bound: number | null;
  met: boolean;
}
export type EvaluationRow = typeof evaluations.$inferSelect;
export type AliasVersionRow = typeof aliasVersions.$inferSelect;
