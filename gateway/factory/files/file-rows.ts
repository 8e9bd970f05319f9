/** The rows of uploaded files: who owns them, when they expire. A file that is not one's own does not exist. */
import { and, asc, desc, eq, gt, inArray, isNull, lt, lte, or, type SQL, sql } from 'drizzle-orm';
import type { Principal } from '../../auth/scopes.ts';
import type { Database } from '../../db/open.ts';
import { type FileRow, files } from '../../db/schema.ts';
import { limits } from '../../limits.ts';

export type NewFile = Omit<FileRow, 'seq'>;

export interface Page<T> {
  rows: T[];
  hasMore: boolean;
}

export class FileRows {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  #visible(principal: Principal): SQL | undefined {
    const live = or(isNull(files.expiresAt), gt(files.expiresAt, this.#now()));
    return principal.scopes.has('admin') ? live : and(live, eq(files.owner, principal.ownerId));
  }

  async find(principal: Principal, id: string): Promise<FileRow | null> {
    const [row] = await this.#db
      .select()
      .from(files)
      .where(and(eq(files.id, id), this.#visible(principal)));
    return row ?? null;
  }

  /** For the machinery: whoever owns it. */
  async get(id: string): Promise<FileRow | null> {
    const [row] = await this.#db.select().from(files).where(eq(files.id, id));
    return row ?? null;
  }

  async list(
    principal: Principal,
    query: { purpose?: string | undefined; limit: number; order: 'asc' | 'desc'; after: FileRow | null },
  ): Promise<Page<FileRow>> {
    const { purpose, limit, order, after } = query;
    const beyond = after === null ? undefined : order === 'asc' ? gt(files.seq, after.seq) : lt(files.seq, after.seq);
    const rows = await this.#db
      .select()
      .from(files)
      .where(and(this.#visible(principal), purpose === undefined ? undefined : eq(files.purpose, purpose), beyond))
      .orderBy(order === 'asc' ? asc(files.seq) : desc(files.seq))
      .limit(limit + 1);
    return { rows: rows.slice(0, limit), hasMore: rows.length > limit };
  }

  /**
   * False if the key's files would be more, or larger in all, than they may be. One batch is one transaction, so of several uploads
   * at once none gets past the others: what is one too many is taken out again before anybody sees it.
   */
  async insertWithin(file: NewFile, quota: { count: number; bytes: number }): Promise<boolean> {
    const own = eq(files.owner, file.owner);
    const count = sql`(select count(*) from ${files} where ${own})`;
    const bytes = sql`(select sum(${files.bytes}) from ${files} where ${own})`;
    const [, removed] = await this.#db.batch([
      this.#db.insert(files).values(file),
      this.#db
        .delete(files)
        .where(and(eq(files.id, file.id), sql`(${count} > ${quota.count} or ${bytes} > ${quota.bytes})`)),
    ]);
    return removed.rowsAffected === 0;
  }

  /** The same id twice is the same file. */
  async insert(file: NewFile): Promise<void> {
    await this.#db.insert(files).values(file).onConflictDoNothing();
  }

  async remove(id: string): Promise<boolean> {
    const removed = await this.#db.delete(files).where(eq(files.id, id));
    return removed.rowsAffected > 0;
  }

  async expired(): Promise<string[]> {
    const rows = await this.#db
      .select({ id: files.id })
      .from(files)
      .where(lte(files.expiresAt, this.#now()))
      .limit(limits.sweepRowsMax);
    return rows.map(({ id }) => id);
  }

  async known(ids: string[]): Promise<Set<string>> {
    const rows = await this.#db.select({ id: files.id }).from(files).where(inArray(files.id, ids));
    return new Set(rows.map(({ id }) => id));
  }
}
