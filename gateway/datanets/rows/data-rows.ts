/**
 * The table of rows, newest first. Lists go over the index of states (which covers their filters), one state at a time, and merge what they
 * find: no list reads contents before its page is known.
 */
import type { Client, InValue } from '@libsql/client';
import { and, desc, eq, inArray } from 'drizzle-orm';
import { type DataRow, datanetRows } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import type { Page } from '../../factory/files/file-rows.ts';

export const ROW_STATES = ['pending', 'approved', 'rejected', 'withdrawn'] as const satisfies DataRow['state'][];

/** Which rows somebody may see: governors all of them, readers those that are published, everybody their own. */
export interface Reader {
  governs: boolean;
  reads: boolean;
  userId: string | null;
  /** Newest version: one that is being made is nobody's to see. */
  version: number;
}

export interface RowFilter {
  state: DataRow['state'] | null;
  contribution: string | null;
  contributor: string | null;
  minScore: number | null;
  nearDuplicates: boolean | null;
  /** Rows of that version; null: as things are now. */
  version: number | null;
}

export class DataRows {
  readonly #db: Database;
  readonly #client: Client;

  constructor(db: Database) {
    this.#db = db;
    this.#client = db.$client;
  }

  async get(datanetId: string, seq: number): Promise<DataRow | null> {
    const [row] = await this.#db
      .select()
      .from(datanetRows)
      .where(and(eq(datanetRows.seq, seq), eq(datanetRows.datanetId, datanetId)));
    return row ?? null;
  }

  async bySeq(seqs: readonly number[]): Promise<DataRow[]> {
    if (seqs.length === 0) return [];
    return this.#db
      .select()
      .from(datanetRows)
      .where(inArray(datanetRows.seq, [...seqs]))
      .orderBy(desc(datanetRows.seq));
  }

  async list(
    datanetId: string,
    reader: Reader,
    filter: RowFilter,
    page: { limit: number; after: number | null },
  ): Promise<Page<DataRow>> {
    const seqs = await this.#seqs(datanetId, reader, filter, page);
    return { rows: await this.bySeq(seqs.slice(0, page.limit)), hasMore: seqs.length > page.limit };
  }

  async #seqs(
    datanetId: string,
    reader: Reader,
    filter: RowFilter,
    page: { limit: number; after: number | null },
  ): Promise<number[]> {
    const args: Record<string, InValue> = {
      datanet: datanetId,
      after: page.after ?? Number.MAX_SAFE_INTEGER,
      limit: page.limit + 1,
      user: reader.userId ?? '',
    };
    const where = ['datanet_id = :datanet', 'seq < :after'];
    if (filter.version !== null) {
      where.push('added_in <= :version AND (removed_in IS NULL OR removed_in > :version)');
      args.version = filter.version;
    }
    if (filter.minScore !== null) {
      where.push('score >= :score');
      args.score = filter.minScore;
    }
    if (filter.nearDuplicates !== null)
      where.push(`near_duplicate_of IS ${filter.nearDuplicates ? 'NOT NULL' : 'NULL'}`);
    if (filter.contributor !== null) {
      where.push('contributor = :contributor');
      args.contributor = filter.contributor;
    }
    const own = filter.contributor !== null && filter.contributor === reader.userId;
    if (!reader.governs && !own) {
      if (reader.reads) {
        where.push('added_in <= :newest');
        if (filter.version === null) where.push(`state = 'approved' AND (removed_in IS NULL OR removed_in > :newest)`);
        args.newest = reader.version;
      } else where.push('contributor = :user');
    }
    const states = filter.state === null ? statesOf(filter.version) : [filter.state];
    const select = (index: string, extra: string) =>
      `SELECT seq FROM datanet_rows INDEXED BY ${index} WHERE ${[...where, extra].join(' AND ')} ORDER BY seq DESC LIMIT :limit`;
    const listed = states.map((state) => `'${state}'`).join(', ');
    let sql: string;
    if (filter.contribution !== null) {
      args.contribution = filter.contribution;
      sql = select('datanet_rows_contribution', `contribution_id = :contribution AND state IN (${listed})`);
    } else if (filter.contributor !== null) {
      sql = select('datanet_rows_contributor', `contributor = :contributor AND state IN (${listed})`);
    } else if (!reader.governs && !reader.reads) {
      sql = select('datanet_rows_contributor', `contributor = :user AND state IN (${listed})`);
    } else {
      const parts = states.map((state) => `SELECT * FROM (${select('datanet_rows_state', `state = '${state}'`)})`);
      sql = `${parts.join(' UNION ALL ')} ORDER BY seq DESC LIMIT :limit`;
    }
    const { rows } = await this.#client.execute({ sql, args });
    return rows.map((row) => Number(row.seq));
  }
}

function statesOf(version: number | null): readonly DataRow['state'][] {
  return version === null ? ROW_STATES : ['approved', 'withdrawn'];
}

/** The same rule for one row. */
export function mayRead(reader: Reader, row: Pick<DataRow, 'contributor' | 'state' | 'addedIn'>): boolean {
  if (reader.governs || (reader.userId !== null && row.contributor === reader.userId)) return true;
  // What was published stays readable in the versions it is in.
  return reader.reads && row.addedIn !== null && row.addedIn <= reader.version;
}
