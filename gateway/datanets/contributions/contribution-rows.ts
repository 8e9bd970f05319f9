/** The table of contributions. */
import { and, desc, eq, gt, lt, lte, type SQL, sql } from 'drizzle-orm';
import {
  type ContributionRow,
  contributedBytes,
  contributionQuestions,
  contributions,
} from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import type { Page } from '../../factory/files/file-rows.ts';
import { ASK_CLEANING } from '../erasures/erase.ts';

export type NewContribution = Pick<
  ContributionRow,
  'id' | 'datanetId' | 'contributor' | 'keyId' | 'filename' | 'bytes' | 'sha256' | 'options' | 'licence' | 'createdAt'
>;

export interface Quota {
  /** Contributions of the user under way. */
  underWay: number;
  /** Bytes since `since`. */
  bytes: number;
  since: number;
}

export interface WrittenQuestions {
  /** SHA-256 of the chunk's text, hex. */
  chunkHash: string;
  pairs: { question: string; answer: string }[];
}

/** `removal` in the progress of a contribution: its rows are being taken out, and then it goes itself. */
export const REMOVAL = { done: 0, total: null, unit: 'removal' };

export class ContributionRows {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  async get(id: string): Promise<ContributionRow | null> {
    const [row] = await this.#db.select().from(contributions).where(eq(contributions.id, id));
    return row ?? null;
  }

  /** What the user has of the quota's measures, before anything is sent. */
  async used(contributor: string, since: number): Promise<{ underWay: number; bytes: number }> {
    const [row] = await this.#db
      .select({
        underWay: sql<number>`coalesce(sum(${contributions.state} = 'processing'), 0)`,
        bytes: sql<number>`coalesce(${sentSince(contributor, since)}, 0)`,
      })
      .from(contributions)
      .where(eq(contributions.contributor, contributor));
    return row ?? { underWay: 0, bytes: 0 };
  }

  /** Of several at once none gets past the others: what is too much is taken out again in the same transaction. */
  async insert(row: NewContribution, quota: Quota): Promise<'inserted' | 'under_way' | 'bytes'> {
    const mine = eq(contributions.contributor, row.contributor);
    const here = eq(contributions.id, row.id);
    const underWay = sql`(select count(*) from ${contributions} where ${and(mine, eq(contributions.state, 'processing'))})`;
    const sent = { contributionId: row.id, contributor: row.contributor, bytes: row.bytes, createdAt: row.createdAt };
    const gone = sql`not exists (select 1 from ${contributions} where ${here})`;
    const [, , , tooMany, tooLarge] = await this.#db.batch([
      // What is older counts no longer.
      this.#db
        .delete(contributedBytes)
        .where(and(eq(contributedBytes.contributor, row.contributor), lte(contributedBytes.createdAt, quota.since))),
      this.#db.insert(contributedBytes).values(sent),
      this.#db.insert(contributions).values({ ...row, state: 'processing' }),
      this.#db.delete(contributions).where(and(here, sql`${underWay} > ${quota.underWay}`)),
      this.#db.delete(contributions).where(and(here, sql`${sentSince(row.contributor, quota.since)} > ${quota.bytes}`)),
      // Refused, it was not taken and does not count.
      this.#db.delete(contributedBytes).where(and(eq(contributedBytes.contributionId, row.id), gone)),
    ]);
    if (tooMany.rowsAffected > 0) return 'under_way';
    return tooLarge.rowsAffected > 0 ? 'bytes' : 'inserted';
  }

  async list(
    datanetId: string,
    filter: { contributor: string | null; state: ContributionRow['state'] | null },
    page: { limit: number; after: ContributionRow | null },
  ): Promise<Page<ContributionRow>> {
    const rows = await this.#db
      .select()
      .from(contributions)
      .where(
        and(
          eq(contributions.datanetId, datanetId),
          filter.contributor === null ? undefined : eq(contributions.contributor, filter.contributor),
          filter.state === null ? undefined : eq(contributions.state, filter.state),
          page.after === null ? undefined : lt(contributions.seq, page.after.seq),
        ),
      )
      .orderBy(desc(contributions.seq))
      .limit(page.limit + 1);
    return { rows: rows.slice(0, page.limit), hasMore: rows.length > page.limit };
  }

  /** Left under way by a process before this one. */
  async underWay(): Promise<ContributionRow[]> {
    return this.#db
      .select()
      .from(contributions)
      .where(eq(contributions.state, 'processing'))
      .orderBy(contributions.seq);
  }

  async known(fileIds: readonly string[]): Promise<Set<string>> {
    const rows = await this.underWay();
    const needed = new Set(rows.map(({ id }) => fileIdOf(id)));
    return new Set(fileIds.filter((id) => needed.has(id)));
  }

  async progress(id: string, progress: NonNullable<ContributionRow['progress']>): Promise<boolean> {
    return this.#change(id, { progress });
  }

  /** Questions that were written, and paid, by this process or one before it; by chunk. */
  async questions(id: string): Promise<Map<number, WrittenQuestions>> {
    const rows = await this.#db
      .select()
      .from(contributionQuestions)
      .where(eq(contributionQuestions.contributionId, id));
    return new Map(rows.map(({ chunk, chunkHash, pairs }) => [chunk, { chunkHash, pairs }]));
  }

  async keepQuestions(id: string, chunk: number, written: WrittenQuestions): Promise<void> {
    const row = { contributionId: id, chunk, ...written };
    await this.#db
      .insert(contributionQuestions)
      .values(row)
      .onConflictDoUpdate({
        target: [contributionQuestions.contributionId, contributionQuestions.chunk],
        set: written,
      });
  }

  async finish(
    id: string,
    outcome: Pick<ContributionRow, 'state' | 'rows' | 'refused' | 'problems' | 'error'>,
  ): Promise<boolean> {
    const [changed] = await this.#db.batch([
      this.#changing(id, { ...outcome, progress: null, finishedAt: this.#now() }),
      this.#forgetQuestions(id),
    ]);
    return changed.rowsAffected > 0;
  }

  /**
   * From here on it is being taken back, unless a row of it is in a version.
   * @returns false if one is, or if it is gone already
   */
  async beginRemoval(id: string): Promise<boolean> {
    const published = sql`exists (select 1 from datanet_rows where contribution_id = ${id} and added_in is not null)`;
    const changed = await this.#db
      .update(contributions)
      .set({ state: 'processing', progress: REMOVAL, error: null, finishedAt: null })
      .where(and(eq(contributions.id, id), sql`not ${published}`));
    return changed.rowsAffected > 0;
  }

  /** Its rows are out; should some have come into a version meanwhile, they stay, and it with them. @returns whether it is gone. */
  async endRemoval(id: string): Promise<boolean> {
    const left = sql`(select count(*) from datanet_rows where contribution_id = ${id})`;
    const [removed] = await this.#db.batch([
      this.#db.delete(contributions).where(and(eq(contributions.id, id), sql`${left} = 0`)),
      this.#forgetQuestions(id),
      // Its words are still in the full-text index.
      this.#db.run(sql.raw(ASK_CLEANING)),
      this.#db
        .update(contributions)
        .set({ state: 'ready', progress: null, rows: left as unknown as number, finishedAt: this.#now() })
        .where(eq(contributions.id, id)),
    ]);
    return removed.rowsAffected > 0;
  }

  /** Its rows hold them now, or nobody wants them any more. */
  #forgetQuestions(id: string) {
    return this.#db.delete(contributionQuestions).where(eq(contributionQuestions.contributionId, id));
  }

  async #change(id: string, set: Partial<ContributionRow>): Promise<boolean> {
    return (await this.#changing(id, set)).rowsAffected > 0;
  }

  #changing(id: string, set: Partial<ContributionRow>) {
    const notRemoved: SQL = sql`coalesce(${contributions.progress} ->> 'unit', '') <> 'removal'`;
    return this.#db
      .update(contributions)
      .set(set)
      .where(and(eq(contributions.id, id), eq(contributions.state, 'processing'), notRemoved));
  }
}

/** Bytes that a user sent, whatever became of them: to take a contribution back gives nothing back. */
function sentSince(contributor: string, since: number): SQL {
  return sql`(select sum(${contributedBytes.bytes}) from ${contributedBytes} where ${and(eq(contributedBytes.contributor, contributor), gt(contributedBytes.createdAt, since))})`;
}

export function fileIdOf(contributionId: string): string {
  return `file-${contributionId}`;
}

export function isBeingRemoved(row: Pick<ContributionRow, 'progress'>): boolean {
  return row.progress?.unit === REMOVAL.unit;
}
