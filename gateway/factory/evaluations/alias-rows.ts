/** What each alias stands for and has stood for. The newest rows are kept in memory: every request for a model asks here first. */
import { desc, eq, sql } from 'drizzle-orm';
import type { Database } from '../../db/open.ts';
import { type AliasVersionRow, aliasVersions } from '../../db/schema.ts';
import { limits } from '../../limits.ts';

export type CurrentAlias = AliasVersionRow & { model: string };
export type NewVersion = Omit<AliasVersionRow, 'createdAt'>;

export class AliasRows {
  readonly #db: Database;
  readonly #now: () => number;
  readonly #cacheMs: number;
  #newest = new Map<string, AliasVersionRow>();
  #loadedAt = Number.NEGATIVE_INFINITY;
  #loading: Promise<void> | null = null;

  /** @param options.cacheMs how long a change that another gateway made may go unseen here. */
  constructor(db: Database, options: { now: () => number; cacheMs: number }) {
    this.#db = db;
    this.#now = options.now;
    this.#cacheMs = options.cacheMs;
  }

  async find(alias: string): Promise<CurrentAlias | null> {
    await this.#look();
    const row = this.#newest.get(alias);
    return row === undefined || row.model === null ? null : (row as CurrentAlias);
  }

  async list(): Promise<CurrentAlias[]> {
    await this.#look();
    return [...this.#newest.values()].filter((row): row is CurrentAlias => row.model !== null);
  }

  /** Aliases that stand for this model now. */
  async pointingTo(model: string): Promise<string[]> {
    return (await this.list()).filter((row) => row.model === model).map(({ alias }) => alias);
  }

  /** Newest first. */
  async history(alias: string): Promise<AliasVersionRow[]> {
    return this.#db
      .select()
      .from(aliasVersions)
      .where(eq(aliasVersions.alias, alias))
      .orderBy(desc(aliasVersions.version))
      .limit(limits.aliasHistoryMax);
  }

  async version(alias: string, version: number): Promise<AliasVersionRow | null> {
    const rows = await this.#db.select().from(aliasVersions).where(eq(aliasVersions.alias, alias));
    return rows.find((row) => row.version === version) ?? null;
  }

  /** The newest row as the database has it now, deletions included. */
  async newest(alias: string): Promise<AliasVersionRow | null> {
    const [row] = await this.#db
      .select()
      .from(aliasVersions)
      .where(eq(aliasVersions.alias, alias))
      .orderBy(desc(aliasVersions.version))
      .limit(1);
    return row ?? null;
  }

  /** Null if somebody else wrote this version of the alias first. */
  async append(version: NewVersion): Promise<AliasVersionRow | null> {
    const [row] = await this.#db
      .insert(aliasVersions)
      .values({ ...version, createdAt: this.#now() })
      .onConflictDoNothing()
      .returning();
    this.#loadedAt = Number.NEGATIVE_INFINITY;
    return row ?? null;
  }

  async #look(): Promise<void> {
    if (this.#now() - this.#loadedAt < this.#cacheMs) return;
    this.#loading ??= this.#load().finally(() => {
      this.#loading = null;
    });
    await this.#loading;
  }

  async #load(): Promise<void> {
    // Taken before the rows are read: a change that comes meanwhile makes them stale at once.
    const at = this.#now();
    this.#loadedAt = at;
    const newest = this.#db
      .select({ alias: aliasVersions.alias, version: sql<number>`max(${aliasVersions.version})`.as('newest') })
      .from(aliasVersions)
      .groupBy(aliasVersions.alias)
      .as('newest');
    try {
      const rows = await this.#db
        .select()
        .from(aliasVersions)
        .innerJoin(
          newest,
          sql`${newest.alias} = ${aliasVersions.alias} and ${newest.version} = ${aliasVersions.version}`,
        );
      this.#newest = new Map(rows.map(({ alias_versions: row }) => [row.alias, row]));
    } catch (error) {
      this.#loadedAt = Number.NEGATIVE_INFINITY;
      throw error;
    }
  }
}
