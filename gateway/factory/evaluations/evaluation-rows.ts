/** Reports of evaluations, by the key that asked for them. One that is not one's own does not exist. */
import { and, desc, eq, lt, type SQL } from 'drizzle-orm';
import type { EvaluationReport } from '../../../daemon/protocol.ts';
import type { Principal } from '../../auth/scopes.ts';
import type { Database } from '../../db/open.ts';
import { type EvaluationRow, evaluations } from '../../db/schema.ts';

export class EvaluationRows {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  #visible(principal: Principal): SQL | undefined {
    return principal.scopes.has('admin') ? undefined : eq(evaluations.owner, principal.ownerId);
  }

  async add(principal: Principal, file: string, report: EvaluationReport): Promise<EvaluationRow> {
    const [row] = await this.#db
      .insert(evaluations)
      .values({ id: report.id, keyId: principal.keyId, owner: principal.ownerId, file, report, createdAt: this.#now() })
      .returning();
    return row as EvaluationRow;
  }

  async find(principal: Principal, id: string): Promise<EvaluationRow | null> {
    const [row] = await this.#db
      .select()
      .from(evaluations)
      .where(and(eq(evaluations.id, id), this.#visible(principal)));
    return row ?? null;
  }

  /** Newest first. */
  async list(
    principal: Principal,
    query: { limit: number; after: EvaluationRow | null },
  ): Promise<{ rows: EvaluationRow[]; hasMore: boolean }> {
    const { limit, after } = query;
    const rows = await this.#db
      .select()
      .from(evaluations)
      .where(and(this.#visible(principal), after === null ? undefined : lt(evaluations.seq, after.seq)))
      .orderBy(desc(evaluations.seq))
      .limit(limit + 1);
    return { rows: rows.slice(0, limit), hasMore: rows.length > limit };
  }
}
