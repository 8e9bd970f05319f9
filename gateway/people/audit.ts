/**
 * The audit log: a row is written before an act begins, and its outcome once it has ended. Triggers keep rows from being removed or
 * rewritten. An act whose row cannot be written does not happen.
 */
import { and, desc, eq, gte, isNull, lt, lte } from 'drizzle-orm';
import type { Database } from '../db/open.ts';
import { type AuditRow, auditLog } from '../db/schema.ts';
import { ApiError } from '../errors.ts';
import { strikeCredentials } from '../http/credentials.ts';
import { limits } from '../limits.ts';
import type { Log } from '../services.ts';

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
  object?: string | undefined;
  /** Milliseconds since 1970, both included. */
  since?: number | undefined;
  until?: number | undefined;
}

const OBJECT_CHARACTERS_MAX = 256;

export class AuditLog {
  readonly #db: Database;
  readonly #now: () => number;
  readonly #log: Log;

  constructor(db: Database, now: () => number, log: Log) {
    this.#db = db;
    this.#now = now;
    this.#log = log;
  }

  /** @returns the row's number. @throws ApiError 503 if it cannot be written. */
  async begin(act: Act): Promise<number> {
    try {
      const [row] = await this.#db
        .insert(auditLog)
        .values({
          ...act,
          object: objectOf(act.object),
          requestId: strikeCredentials(act.requestId),
          at: this.#now(),
        })
        .returning({ seq: auditLog.seq });
      return (row as { seq: number }).seq;
    } catch (cause) {
      const message = 'The act was not begun, because it could not be written into the audit log. Try again shortly.';
      const headers = { 'retry-after': String(limits.retryAfterSeconds) };
      throw new ApiError(503, 'server_error', 'audit_unavailable', message, { headers, cause });
    }
  }

  /** How the act ended. It has happened, so a failure to write this is told to the log alone; the row then says that the end is unknown. */
  async end(seq: number, status: number, note: AuditNote): Promise<void> {
    try {
      await this.#db
        .update(auditLog)
        .set({
          status,
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
    const rows = await this.#db
      .select()
      .from(auditLog)
      .where(
        and(
          filter.action === undefined ? undefined : eq(auditLog.action, filter.action),
          filter.user === undefined ? undefined : eq(auditLog.userId, filter.user),
          filter.object === undefined ? undefined : eq(auditLog.object, filter.object),
          filter.since === undefined ? undefined : gte(auditLog.at, filter.since),
          filter.until === undefined ? undefined : lte(auditLog.at, filter.until),
          page.after === null ? undefined : lt(auditLog.seq, page.after),
        ),
      )
      .orderBy(desc(auditLog.seq))
      .limit(page.limit + 1);
    return { rows: rows.slice(0, page.limit), hasMore: rows.length > page.limit };
  }
}

function objectOf(object: string | null): string | null {
  // A key that somebody took for its id would stay here for ever.
  return object === null ? null : strikeCredentials(object).slice(0, OBJECT_CHARACTERS_MAX);
}
