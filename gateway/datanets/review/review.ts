/**
 * Approves or rejects rows that are pending, each once: the state is part of the UPDATE's condition, so of two reviews at the same time one
 * changes a row and the other finds it decided. Some thousand rows are one transaction, and others write in between.
 */
import type { Client, InValue } from '@libsql/client';
import { limits } from '../../limits.ts';

export interface ReviewFilter {
  contribution: string | null;
  contributor: string | null;
  minScore: number | null;
  maxScore: number | null;
  nearDuplicates: boolean | null;
}

export interface ReviewRequest {
  datanetId: string;
  action: 'approve' | 'reject';
  /** Numbers of rows, or which of the pending ones. */
  chosen: number[] | ReviewFilter;
  reviewer: string;
  reason: string | null;
  /** Whose rows are left out (nobody approves their own); null: nobody's. */
  except: string | null;
}

export interface ReviewOutcome {
  /** Decided by this review. */
  changed: number;
  /** Named, but decided before or meanwhile. */
  already_decided: number;
  /** The reviewer's own. */
  own: number;
  /** Named, but not in this Datanet, or of a contribution that is still being read. */
  not_found: number;
}

/** Rows of a contribution that is being read may be gone again in a moment. */
const SETTLED = `contribution_id NOT IN (SELECT id FROM contributions WHERE datanet_id = :datanet AND state = 'processing')`;

export class Reviews {
  readonly #client: Client;
  readonly #now: () => number;

  constructor(client: Client, now: () => number) {
    this.#client = client;
    this.#now = now;
  }

  async review(request: ReviewRequest): Promise<ReviewOutcome> {
    return Array.isArray(request.chosen)
      ? this.#named(request, request.chosen)
      : this.#filtered(request, request.chosen);
  }

  /** Those of the named rows that the user contributed. */
  async ownAmong(datanetId: string, seqs: readonly number[], userId: string): Promise<number> {
    const { rows } = await this.#client.execute({
      sql: `SELECT count(*) AS own FROM datanet_rows WHERE seq IN (SELECT value FROM json_each(?)) AND datanet_id = ? AND contributor = ?`,
      args: [JSON.stringify(seqs), datanetId, userId],
    });
    return Number(rows[0]?.own ?? 0);
  }

  async #named(request: ReviewRequest, seqs: number[]): Promise<ReviewOutcome> {
    const listed = JSON.stringify(seqs);
    const { rows } = await this.#client.execute({
      sql: `SELECT count(*) AS found, coalesce(sum(contributor = ?3 AND state = 'pending'), 0) AS own FROM datanet_rows
        WHERE seq IN (SELECT value FROM json_each(?1)) AND datanet_id = ?2
        AND contribution_id NOT IN (SELECT id FROM contributions WHERE datanet_id = ?2 AND state = 'processing')`,
      args: [listed, request.datanetId, request.except],
    });
    const found = Number(rows[0]?.found ?? 0);
    const own = Number(rows[0]?.own ?? 0);
    const changed = await this.#decide(request, 'seq IN (SELECT value FROM json_each(:seqs))', { seqs: listed });
    return { changed, own, already_decided: Math.max(0, found - own - changed), not_found: seqs.length - found };
  }

  async #filtered(request: ReviewRequest, filter: ReviewFilter): Promise<ReviewOutcome> {
    const { where, args } = conditions(filter);
    let own = 0;
    if (request.except !== null) {
      const { rows } = await this.#client.execute({
        sql: `SELECT count(*) AS own FROM datanet_rows INDEXED BY datanet_rows_state
          WHERE datanet_id = :datanet AND state = 'pending' AND contributor = :except AND ${SETTLED} ${where}`,
        args: { ...args, datanet: request.datanetId, except: request.except },
      });
      own = Number(rows[0]?.own ?? 0);
    }
    let changed = 0;
    // What comes in after the review began is not what the reviewer saw.
    const { rows } = await this.#client.execute('SELECT coalesce(max(seq), 0) AS last FROM datanet_rows');
    const last = Number(rows[0]?.last ?? 0);
    for (let after = 0; ; ) {
      const chunk = await this.#client.execute({
        sql: `SELECT max(seq) AS last, count(*) AS rows FROM (SELECT seq FROM datanet_rows INDEXED BY datanet_rows_state
          WHERE datanet_id = :datanet AND state = 'pending' AND seq > :after AND seq <= :last ORDER BY seq LIMIT :most)`,
        args: { datanet: request.datanetId, after, last, most: limits.reviewBatchRows },
      });
      const upTo = Number(chunk.rows[0]?.last ?? 0);
      if (upTo === 0) break;
      changed += await this.#decide(request, `seq > :after AND seq <= :upTo ${where}`, { ...args, after, upTo });
      after = upTo;
      await new Promise((resolve) => setImmediate(resolve));
    }
    return { changed, own, already_decided: 0, not_found: 0 };
  }

  async #decide(request: ReviewRequest, where: string, args: Record<string, InValue>): Promise<number> {
    const { rowsAffected } = await this.#client.execute({
      sql: `UPDATE datanet_rows SET state = :to, reviewer = :reviewer, reviewed_at = :now, state_reason = :reason
        WHERE datanet_id = :datanet AND state = 'pending' AND ${SETTLED}
        ${request.except === null ? '' : 'AND contributor <> :except'} AND ${where}`,
      args: {
        ...args,
        ...(request.except === null ? {} : { except: request.except }),
        to: request.action === 'approve' ? 'approved' : 'rejected',
        reviewer: request.reviewer,
        now: this.#now(),
        reason: request.reason,
        datanet: request.datanetId,
      },
    });
    return rowsAffected;
  }
}

function conditions(filter: ReviewFilter): { where: string; args: Record<string, InValue> } {
  const parts: string[] = [];
  const args: Record<string, InValue> = {};
  const add = (value: InValue | null, name: string, sql: string) => {
    if (value === null) return;
    parts.push(`AND ${sql}`);
    args[name] = value;
  };
  add(filter.contribution, 'contribution', 'contribution_id = :contribution');
  add(filter.contributor, 'contributor', 'contributor = :contributor');
  add(filter.minScore, 'minScore', 'score >= :minScore');
  add(filter.maxScore, 'maxScore', 'score <= :maxScore');
  if (filter.nearDuplicates !== null)
    parts.push(`AND near_duplicate_of IS ${filter.nearDuplicates ? 'NOT NULL' : 'NULL'}`);
  return { where: parts.join(' '), args };
}
