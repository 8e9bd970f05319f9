/**
 * Published versions of Datanets as files of the OpenAI API: `file-dn_…-v3`. Nothing is stored for them: id, name and size come from the
 * version, the content is its rows. Who may read the Datanet has the file; for everybody else there is none.
 */
import { and, desc, eq, gt, lt, type SQL, sql } from 'drizzle-orm';
import type { Access, Caller } from '../../datanets/access/access.ts';
import type { Standing } from '../../datanets/standing.ts';
import { type DatanetRow, datanets, datanetVersions, type VersionRow } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';

const ID = /^file-(dn_[A-Za-z0-9]{1,64})-v([1-9]\d{0,8})$/;

export interface DatanetFile {
  id: string;
  datanet: DatanetRow;
  version: VersionRow;
}

export function datanetFileId(datanetId: string, version: number): string {
  return `file-${datanetId}-v${version}`;
}

/** null: the id is not one of a Datanet's version. */
export function parseDatanetFileId(id: string): { datanetId: string; number: number } | null {
  const match = ID.exec(id);
  return match === null ? null : { datanetId: match[1] as string, number: Number(match[2]) };
}

export function datanetFileName({ datanet, version }: Pick<DatanetFile, 'datanet' | 'version'>): string {
  return `${datanet.name.replace(/[\\/]/g, '-')} v${version.number}.jsonl`;
}

/** Characters of its rows as they are kept: what is streamed is about as long. */
export function datanetFileBytes({ version }: Pick<DatanetFile, 'version'>): number {
  return Number(version.statistics?.characters ?? 0);
}

export class DatanetFiles {
  readonly #db: Database;
  readonly #access: Access;

  constructor(db: Database, access: Access) {
    this.#db = db;
    this.#access = access;
  }

  /** Whoever asks; null: there is no such published version. */
  async get(id: string): Promise<DatanetFile | null> {
    const parsed = parseDatanetFileId(id);
    if (parsed === null) return null;
    const [row] = await this.#db
      .select({ datanet: datanets, version: datanetVersions })
      .from(datanetVersions)
      .innerJoin(datanets, eq(datanets.id, datanetVersions.datanetId))
      .where(
        and(
          eq(datanetVersions.datanetId, parsed.datanetId),
          eq(datanetVersions.number, parsed.number),
          eq(datanetVersions.state, 'published'),
        ),
      );
    return row === undefined ? null : { id, ...row };
  }

  /** With where the caller stands; null where they do not even see it. */
  async seen(caller: Caller, id: string): Promise<(DatanetFile & { standing: Standing }) | null> {
    const file = await this.get(id);
    if (file === null) return null;
    const standing = await this.#access.standing(caller, file.datanet);
    return standing.sees ? { ...file, standing } : null;
  }

  /** null: as for every file that is not one's own to read. */
  async readable(caller: Caller, id: string): Promise<DatanetFile | null> {
    const file = await this.seen(caller, id);
    return file?.standing.reads === true ? file : null;
  }

  /**
   * Versions that the caller may train on now (none with rows that were withdrawn since), of the newest Datanet first, its newest version first. Only those can be among them that
   * the caller has made the terms of or agreed to.
   */
  async trainable(
    caller: Caller,
    page: { after: DatanetFile | null; limit: number },
  ): Promise<{ files: DatanetFile[]; hasMore: boolean }> {
    const files: DatanetFile[] = [];
    const { userId } = caller;
    if (userId === null) return { files, hasMore: false };
    const { after, limit } = page;
    if (after !== null) files.push(...(await this.#versions(caller, after.datanet, after.version.number, limit + 1)));
    let before = after?.datanet.seq ?? Number.MAX_SAFE_INTEGER;
    while (files.length <= limit) {
      const candidates = await this.#db
        .select()
        .from(datanets)
        .where(and(lt(datanets.seq, before), eq(datanets.state, 'active'), gt(datanets.version, 0), agreedBy(userId)))
        .orderBy(desc(datanets.seq))
        .limit(CANDIDATES);
      for (const datanet of candidates) {
        if (files.length > limit) break;
        files.push(...(await this.#versions(caller, datanet, Number.MAX_SAFE_INTEGER, limit + 1 - files.length)));
      }
      const last = candidates.at(-1);
      if (last === undefined || candidates.length < CANDIDATES) break;
      before = last.seq;
      // A local database answers without giving the thread up, and somebody may have agreed to thousands of licences.
      await new Promise((resolve) => setImmediate(resolve));
    }
    return { files: files.slice(0, limit), hasMore: files.length > limit };
  }

  async #versions(caller: Caller, datanet: DatanetRow, before: number, limit: number): Promise<DatanetFile[]> {
    if ((await this.#access.standing(caller, datanet)).training !== null) return [];
    const rows = await this.#db
      .select()
      .from(datanetVersions)
      .where(
        and(
          eq(datanetVersions.datanetId, datanet.id),
          lt(datanetVersions.number, before),
          eq(datanetVersions.state, 'published'),
          intact(datanet.id),
        ),
      )
      .orderBy(desc(datanetVersions.number))
      .limit(limit);
    return rows.map((version) => ({ id: datanetFileId(datanet.id, version.number), datanet, version }));
  }
}

/** Versions of which no row was taken out of a later one, published yet or not: those that a job would not refuse. */
function intact(datanetId: string): SQL {
  // The rows are looked at once, and only where there was a withdrawal: most Datanets never lose one.
  return sql`(NOT EXISTS (SELECT 1 FROM datanet_versions w WHERE w.datanet_id = ${datanetId} AND w.cause = 'withdrawal')
    OR NOT EXISTS (WITH gone AS MATERIALIZED (SELECT DISTINCT added_in, removed_in FROM datanet_rows INDEXED BY datanet_rows_tree
        WHERE datanet_id = ${datanetId} AND added_in IS NOT NULL AND removed_in IS NOT NULL)
      SELECT 1 FROM gone WHERE gone.added_in <= ${datanetVersions.number} AND gone.removed_in > ${datanetVersions.number}))`;
}

/** Datanets looked at together. */
const CANDIDATES = 50;

/** Those whose owner the person is, or agreed to some terms of. */
function agreedBy(userId: string): SQL {
  return sql`(${datanets.ownerUser} = ${userId}
    OR ${datanets.ownerOrganization} IN (SELECT organization_id FROM memberships WHERE user_id = ${userId} AND role = 'owner')
    OR ${datanets.id} IN (SELECT datanet_id FROM licence_acceptances WHERE user_id = ${userId}))`;
}
