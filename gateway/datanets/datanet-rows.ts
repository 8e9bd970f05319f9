/** The table of Datanets and its full text. What a caller may see is part of every query, so a page is never thinned out afterwards. */
import { and, eq, inArray, or, sql } from 'drizzle-orm';
import { isAdmin, type Principal } from '../auth/scopes.ts';
import { type DatanetRow, datanets } from '../db/datanet-schema.ts';
import type { Database } from '../db/open.ts';
import { organizations, users } from '../db/people-schema.ts';
import type { Page } from '../factory/files/file-rows.ts';
import { hash53 } from '../hash53.ts';

export type NewDatanet = Omit<DatanetRow, 'seq' | 'version' | 'rows'>;
export type DatanetPatch = Partial<
  Pick<
    DatanetRow,
    'name' | 'nameKey' | 'summary' | 'description' | 'tags' | 'licence' | 'terms' | 'visibility' | 'languages'
  >
>;

export interface DatanetFilter {
  /** FTS5 query over name, summary, description and tags. */
  match: string | null;
  tag: string | null;
  licence: string | null;
  visibility: DatanetRow['visibility'] | null;
  kind: DatanetRow['kind'] | null;
  state: DatanetRow['state'] | null;
  /** Id of a user or organisation. */
  owner: string | null;
  /** Only those that the caller, or an organisation of theirs, owns. */
  mine: boolean;
}

/** A tag as one word of the index, so that `data` does not find `data science`. */
function tagWord(tag: string): string {
  return `tag${hash53(tag).toString(36)}`;
}

const MINE = `(owner_user = :user OR owner_organization IN (SELECT organization_id FROM memberships WHERE user_id = :user))`;

export class DatanetRows {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  async get(id: string): Promise<DatanetRow | null> {
    const [row] = await this.#db.select().from(datanets).where(eq(datanets.id, id));
    return row ?? null;
  }

  /** `name_taken`, or `too_many` when the owner has more than `ownedMax` already; what is refused is taken out before anybody sees it. */
  async insert(row: NewDatanet, ownedMax: number): Promise<'inserted' | 'name_taken' | 'too_many'> {
    const owned =
      row.ownerUser !== null
        ? eq(datanets.ownerUser, row.ownerUser)
        : eq(datanets.ownerOrganization, row.ownerOrganization as string);
    const here = eq(datanets.id, row.id);
    // One of the owner's own of that name is an index's business; one that somebody else published is looked for.
    const published = sql`exists (select 1 from ${datanets} other where other.name_key = ${row.nameKey} and other.version > 0)`;
    const [inserted, taken, removed] = await this.#db.batch([
      this.#db.insert(datanets).values(row).onConflictDoNothing(),
      this.#db.delete(datanets).where(and(here, published)),
      this.#db.delete(datanets).where(and(here, sql`(select count(*) from ${datanets} where ${owned}) > ${ownedMax}`)),
      this.#index(row.id, row.tags),
    ]);
    if (inserted.rowsAffected === 0 || taken.rowsAffected > 0) return 'name_taken';
    return removed.rowsAffected > 0 ? 'too_many' : 'inserted';
  }

  /** null: the name is taken (names.ts), or fixed since the Datanet was published. */
  async patch(id: string, patch: DatanetPatch): Promise<DatanetRow | null> {
    const unnamed = patch.nameKey === undefined;
    const free = unnamed
      ? undefined
      : sql`not exists (select 1 from ${datanets} other where other.name_key = ${patch.nameKey} and other.id <> ${id} and (other.version > 0
          or other.owner_user = ${datanets.ownerUser} or other.owner_organization = ${datanets.ownerOrganization}))`;
    const renamable = unnamed ? undefined : or(eq(datanets.version, 0), eq(datanets.name, patch.name as string));
    const [row] = await this.#db
      .update(datanets)
      .set({ ...patch, updatedAt: this.#now() })
      .where(and(eq(datanets.id, id), free, renamable))
      .returning();
    if (row === undefined) return null;
    await this.#index(id, row.tags);
    return row;
  }

  /** As it stands in the table at that moment; nothing when it is not there. */
  #index(id: string, tags: readonly string[]) {
    const words = [...tags, ...tags.map(tagWord)].join(' ');
    return this.#db.run(sql`insert or replace into datanets_text (rowid, name, summary, description, tags)
      select seq, name, summary, description, ${words} from ${datanets} where id = ${id}`);
  }

  async list(
    principal: Principal,
    filter: DatanetFilter,
    page: { limit: number; after: DatanetRow | null },
  ): Promise<Page<DatanetRow>> {
    const where = ['seq < :after'];
    // What was never published is its owner's affair alone (standing.ts).
    if (!isAdmin(principal)) where.push(`(version > 0 OR ${MINE})`);
    if (filter.mine) where.push(MINE);
    const args: Record<string, string | number> = {
      after: page.after?.seq ?? Number.MAX_SAFE_INTEGER,
      limit: page.limit + 1,
      user: principal.userId ?? '',
    };
    for (const name of ['licence', 'visibility', 'kind', 'state'] as const) {
      const value = filter[name];
      if (value === null) continue;
      where.push(`${name} = :${name}`);
      args[name] = value;
    }
    if (filter.owner !== null) {
      where.push(`${filter.owner.startsWith('org_') ? 'owner_organization' : 'owner_user'} = :owner`);
      args.owner = filter.owner;
    }
    const words = [filter.match, filter.tag === null ? null : `tags : "${tagWord(filter.tag)}"`].filter(
      (one) => one !== null,
    );
    // Words are followed from the newest Datanet that has them on, each looked up in the index that covers the filters.
    let from = 'datanets INDEXED BY datanets_browse';
    let order = 'seq';
    if (words.length > 0) {
      from = 'datanets_text CROSS JOIN datanets INDEXED BY datanets_browse ON seq = datanets_text.rowid';
      order = 'datanets_text.rowid';
      where.push('datanets_text MATCH :match AND datanets_text.rowid < :after');
      args.match = words.map((one) => `(${one})`).join(' AND ');
    }
    const { rows } = await this.#db.$client.execute({
      sql: `SELECT seq FROM ${from} WHERE ${where.join(' AND ')} ORDER BY ${order} DESC LIMIT :limit`,
      args,
    });
    const seqs = rows.map((row) => Number(row.seq));
    if (seqs.length === 0) return { rows: [], hasMore: false };
    const found = await this.#db
      .select()
      .from(datanets)
      .where(inArray(datanets.seq, seqs.slice(0, page.limit)));
    found.sort((a, b) => b.seq - a.seq);
    return { rows: found, hasMore: seqs.length > page.limit };
  }

  /** Names of users and organisations, by id. */
  async ownerNames(rows: readonly DatanetRow[]): Promise<Map<string, string>> {
    const names = new Map<string, string>();
    const ids = (pick: (row: DatanetRow) => string | null) => [
      ...new Set(rows.map(pick).filter((id): id is string => id !== null)),
    ];
    const people = ids((row) => row.ownerUser);
    const groups = ids((row) => row.ownerOrganization);
    if (people.length > 0) {
      const found = await this.#db
        .select({ id: users.id, name: users.name })
        .from(users)
        .where(inArray(users.id, people));
      for (const { id, name } of found) names.set(id, name);
    }
    if (groups.length > 0) {
      const found = await this.#db
        .select({ id: organizations.id, name: organizations.name })
        .from(organizations)
        .where(inArray(organizations.id, groups));
      for (const { id, name } of found) names.set(id, name);
    }
    return names;
  }
}
