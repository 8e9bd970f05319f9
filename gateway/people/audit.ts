/**
 * The audit log: a row is written before an act begins, and its outcome once it has ended. Triggers keep rows from being rewritten, and from
 * being removed but by `prune`. An act whose row cannot be written does not happen, nor does one whose actor has written too many of late:
 * nobody can fill the log until the acts of others have no place.
 */
import { and, desc, eq, gte, isNull, lt, lte, or } from 'drizzle-orm';
import { LRUCache } from 'lru-cache';
import { durationOf, TokenBucket } from '../auth/rate-limit.ts';
import type { Database } from '../db/open.ts';
import { type AuditRow, auditLog } from '../db/schema.ts';
import { ApiError } from '../errors.ts';
import { strikeCredentials } from '../http/credentials.ts';
import { randomId } from '../http/ids.ts';
import { limits } from '../limits.ts';
import type { Log } from '../services.ts';
import { networkOf } from './login-failures.ts';

export interface Act {
  action: string;
  userId: string | null;
  keyId: string | null;
  object: string | null;
  requestId: string;
  address: string | null;
  detail: Record<string, unknown> | null;
}

/** What a handler adds with `c.set('audit', …)`. */
export interface AuditNote {
  object?: string | null | undefined;
  /** Never secrets, never the contents of rows. */
  detail?: Record<string, unknown> | undefined;
}

export interface AuditFilter {
  action?: string | undefined;
  user?: string | undefined;
  key?: string | undefined;
  object?: string | undefined;
  /** Milliseconds since 1970, both included. */
  since?: number | undefined;
  until?: number | undefined;
}

const OBJECT_CHARACTERS_MAX = 256;

/**
 * Acts that leave a trace of their own or none that matters for long: their rows go when they are old. All others, which bear on money,
 * keys, roles and rights, stay, and so does every kind of act that is added one day and not named here.
 */
export const PASSING_ACTS: ReadonlySet<string> = new Set([
  'session.start',
  'session.oidc',
  'session.end',
  'account.update',
  'account.end_sessions',
  'adapter.place',
  'contribution.create',
  'contribution.delete',
  'datanet.review',
]);

export class AuditLog {
  readonly #db: Database;
  readonly #now: () => number;
  readonly #log: Log;
  readonly #keptMs: number | null;
  readonly #actors = new LRUCache<string, TokenBucket>({ max: limits.rateBucketsMax });

  /** @param keptMs how old rows of passing acts become; null: they stay too. */
  constructor(db: Database, now: () => number, log: Log, keptMs: number | null) {
    this.#db = db;
    this.#now = now;
    this.#log = log;
    this.#keptMs = keptMs;
  }

  /** @returns the row's number. @throws ApiError 429 if the actor has written too many of late, 503 if it cannot be written. */
  async begin(act: Act): Promise<number> {
    this.#admit(act);
    try {
      const [row] = await this.#db
        .insert(auditLog)
        .values({
          ...act,
          object: objectOf(act.object),
          requestId: strikeCredentials(act.requestId),
          at: this.#now(),
          kept: !PASSING_ACTS.has(act.action),
        })
        .returning({ seq: auditLog.seq });
      return (row as { seq: number }).seq;
    } catch (cause) {
      const message = 'The act was not begun, because it could not be written into the audit log. Try again shortly.';
      const headers = { 'retry-after': String(limits.retryAfterSeconds) };
      throw new ApiError(503, 'server_error', 'audit_unavailable', message, { headers, cause });
    }
  }

  /** A user with all keys and sessions, a key of the operator's, or the network that a log-in comes from. */
  #admit({ userId, keyId, address }: Act): void {
    const actor = userId ?? keyId ?? (address === null ? null : networkOf(address));
    if (actor === null) return;
    const now = this.#now();
    const bucket = this.#actors.get(actor) ?? new TokenBucket(limits.auditActsPerMinute, now);
    this.#actors.set(actor, bucket);
    if (bucket.canTake(1, now)) {
      bucket.take(1);
      return;
    }
    const wait = bucket.waitMs(1, now);
    const message = `The act was not begun: ${limits.auditActsPerMinute} a minute are written into the audit log for one user, and no act goes unwritten. Try again in ${durationOf(wait)}.`;
    const headers = { 'retry-after': String(Math.max(1, Math.ceil(wait / 1000))) };
    throw new ApiError(429, 'rate_limit_error', 'too_many_acts', message, { headers });
  }

  /** How the act ended. It has happened, so a failure to write this is told to the log alone; the row then says that the end is unknown. */
  async end(seq: number, status: number, note: AuditNote): Promise<void> {
    try {
      await this.#db
        .update(auditLog)
        .set({
          status,
          // What was refused has changed nothing.
          ...(status >= 400 && status < 500 ? { kept: false } : {}),
          ...(note.object === undefined ? {} : { object: objectOf(note.object) }),
          ...(note.detail === undefined ? {} : { detail: note.detail }),
        })
        .where(and(eq(auditLog.seq, seq), isNull(auditLog.status)));
    } catch (error) {
      this.#log.error({ err: error, audit: seq }, 'the end of an act could not be written into the audit log');
    }
  }

  /** Newest first; `after`: the number of the last row of the page before. */
  async list(
    filter: AuditFilter,
    page: { limit: number; after: number | null },
  ): Promise<{ rows: AuditRow[]; hasMore: boolean }> {
    const after = page.after === null ? null : await this.#at(page.after);
    const rows = await this.#db
      .select()
      .from(auditLog)
      .where(
        and(
          filter.action === undefined ? undefined : eq(auditLog.action, filter.action),
          filter.user === undefined ? undefined : eq(auditLog.userId, filter.user),
          filter.key === undefined ? undefined : eq(auditLog.keyId, filter.key),
          filter.object === undefined ? undefined : eq(auditLog.object, filter.object),
          filter.since === undefined ? undefined : gte(auditLog.at, filter.since),
          filter.until === undefined ? undefined : lte(auditLog.at, filter.until),
          // `at <=` besides, since SQLite finds the place in an index by that and not by what stands under an OR.
          after === null
            ? undefined
            : and(lte(auditLog.at, after.at), or(lt(auditLog.at, after.at), lt(auditLog.seq, after.seq))),
        ),
      )
      .orderBy(desc(auditLog.at), desc(auditLog.seq))
      .limit(page.limit + 1);
    return { rows: rows.slice(0, page.limit), hasMore: rows.length > page.limit };
  }

  /** Where a page ended; of a row that has been pruned meanwhile, the one before it in the table. */
  async #at(seq: number): Promise<{ at: number; seq: number }> {
    const [row] = await this.#db
      .select({ at: auditLog.at })
      .from(auditLog)
      .where(lte(auditLog.seq, seq))
      .orderBy(desc(auditLog.seq))
      .limit(1);
    return { at: row?.at ?? 0, seq: seq + (row === undefined ? 1 : 0) };
  }

  /**
   * Removes rows of passing acts that are older than they are kept: once a day, or in portions while there are more. That is an act itself,
   * whose row is written, and opens the trigger's door, in the same transaction. @returns how many.
   */
  async prune(): Promise<number> {
    if (this.#keptMs === null) return 0;
    const now = this.#now();
    const before = now - this.#keptMs;
    const { $client } = this.#db;
    const most = limits.auditPruneRowsMax;
    const last = await $client.execute(
      `SELECT at, json_extract(detail, '$.removed') AS removed FROM audit_log WHERE action = 'audit.prune' ORDER BY at DESC, seq DESC LIMIT 1`,
    );
    const [row] = last.rows;
    if (row !== undefined && now - Number(row.at) < limits.auditPruneEveryMs && Number(row.removed) < most) return 0;
    const [, removed] = await $client.batch(
      [
        {
          sql: `INSERT INTO audit_log (at, action, request_id, detail, kept) SELECT ?1, 'audit.prune', ?2, json_object('before', ?3), 1
                WHERE EXISTS (SELECT 1 FROM audit_log WHERE kept = 0 AND at < ?3)`,
          args: [now, `prune_${randomId()}`, before],
        },
        {
          sql: `DELETE FROM audit_log WHERE seq IN (SELECT seq FROM audit_log WHERE kept = 0 AND at < ?1 ORDER BY at LIMIT ?2)`,
          args: [before, most],
        },
        `UPDATE audit_log SET status = 200, detail = json_set(detail, '$.removed', changes()) WHERE action = 'audit.prune' AND status IS NULL`,
      ],
      'write',
    );
    return removed?.rowsAffected ?? 0;
  }
}

function objectOf(object: string | null): string | null {
  // A key that somebody took for its id would stay here for ever.
  return object === null ? null : strikeCredentials(object).slice(0, OBJECT_CHARACTERS_MAX);
}
