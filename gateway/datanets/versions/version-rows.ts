/**
 * The rows of a version, read in order of `seq` and in portions, so that nobody else waits long for the database. Version n is every row with
 * added_in ≤ n that was not taken out by then. Leaves come from an index (datanet_rows_tree) and never touch a content.
 */
import type { Client, InStatement, InValue } from '@libsql/client';
import { asc, inArray, sql } from 'drizzle-orm';
import { type DataRow, datanetRows } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import { limits } from '../../limits.ts';
import { Pieces } from '../pieces.ts';
import type { RowGroup } from './statistics.ts';

/** Rows of version :version; the first term is what lets the partial index be used. */
const IN_VERSION = 'added_in IS NOT NULL AND added_in <= :version AND (removed_in IS NULL OR removed_in > :version)';
const TREE = 'datanet_rows INDEXED BY datanet_rows_tree';

export interface LeafPage {
  seqs: number[];
  /** How many of them this version added. */
  added: number;
  /** Side by side, 32 bytes each. */
  hashes: Buffer;
}

/** The next leaves of a version behind row `after`; `version` may be one that is being built. */
export async function leafPage(
  client: Client,
  datanetId: string,
  version: number,
  after: number,
  most: number,
): Promise<LeafPage> {
  // As text, since a value for every leaf costs more than all the rest.
  const { rows } = await client.execute({
    sql: `SELECT group_concat(seq, ',' ORDER BY seq) AS seqs, group_concat(hex(leaf_hash), '' ORDER BY seq) AS hashes,
        sum(added_in = :version) AS added FROM
      (SELECT seq, leaf_hash, added_in FROM ${TREE} WHERE datanet_id = :datanet AND seq > :after AND ${IN_VERSION} ORDER BY seq LIMIT :most)`,
    args: { datanet: datanetId, version, after, most },
  });
  const { seqs, hashes, added } = rows[0] as unknown as { seqs: string | null; hashes: string | null; added: number };
  if (seqs === null || hashes === null) return { seqs: [], added: 0, hashes: Buffer.alloc(0) };
  return { seqs: seqs.split(',').map(Number), added: Number(added), hashes: Buffer.from(hashes, 'hex') };
}

/** Sums over the rows of a version with `from` ≤ seq ≤ `to`. */
export async function rowGroups(
  client: Client,
  datanetId: string,
  version: number,
  from: number,
  to: number,
): Promise<RowGroup[]> {
  const { rows } = await client.execute({
    // By number alone: the range was read a moment ago, and most numbers in it are this Datanet's.
    sql: `SELECT contributor, contribution_id AS contribution, language, generated_by AS generatedBy, count(*) AS rows,
        sum(size) AS characters, sum(score) AS scores, sum(reviewer IS contributor) AS selfReviewed
      FROM datanet_rows WHERE seq IN (SELECT seq FROM ${TREE} WHERE datanet_id = :datanet AND seq BETWEEN :from AND :to AND ${IN_VERSION})
      GROUP BY contributor, contribution_id, language, generated_by`,
    args: { datanet: datanetId, version, from, to },
  });
  return rows as unknown as RowGroup[];
}

/** Up to `limit` rows of a version behind `after`, whole. */
export function rowsOf(
  db: Database,
  datanetId: string,
  version: number,
  after: number,
  limit: number,
): Promise<DataRow[]> {
  const page = sql`(SELECT seq FROM ${sql.raw(TREE)} WHERE datanet_id = ${datanetId} AND seq > ${after} AND added_in IS NOT NULL
    AND added_in <= ${version} AND (removed_in IS NULL OR removed_in > ${version}) ORDER BY seq LIMIT ${limit})`;
  return db.select().from(datanetRows).where(inArray(datanetRows.seq, page)).orderBy(asc(datanetRows.seq));
}

export interface ContentRow {
  seq: number;
  contributor: string;
  contributionId: string;
  /** SPDX expression it was contributed under. */
  licence: string;
  /** null: erased. */
  content: string | null;
  contentHash: string;
  leafHash: Uint8Array;
  /** The leaf's bytes, where they were asked for. */
  entry?: string;
}

/**
 * All rows of a version with their contents, a bounded number of characters at a time (but for a single row that has more), so that a
 * reader who is slow holds little.
 */
export async function* contentPages(
  client: Client,
  datanetId: string,
  version: number,
  options: { signal?: AbortSignal | undefined; entries?: boolean } = {},
): AsyncGenerator<ContentRow[]> {
  const entryColumn = options.entries === true ? ', r.entry' : '';
  let after = 0;
  for (;;) {
    options.signal?.throwIfAborted();
    const { rows } = await client.execute({
      sql: `SELECT r.seq, r.contributor, r.contribution_id AS contributionId, c.licence, r.content, r.content_hash AS contentHash, r.leaf_hash AS leafHash${entryColumn}
        FROM (SELECT seq, sum(size) OVER (ORDER BY seq) - size AS before FROM (
          SELECT t.seq, r.size FROM (SELECT seq FROM ${TREE} WHERE datanet_id = :datanet AND seq > :after AND ${IN_VERSION}
            ORDER BY seq LIMIT :most) t CROSS JOIN datanet_rows r ON r.seq = t.seq)) page
        CROSS JOIN datanet_rows r ON r.seq = page.seq
          LEFT JOIN contributions c ON c.id = r.contribution_id WHERE page.before < :characters ORDER BY r.seq`,
      args: {
        datanet: datanetId,
        version,
        after,
        most: limits.exportRowsAtOnce,
        characters: limits.exportCharactersAtOnce,
      },
    });
    if (rows.length === 0) return;
    const page = rows.map((row) => {
      const found = row as unknown as ContentRow;
      const { seq, contributor, contributionId, content, contentHash } = found;
      const licence = found.licence ?? 'NOASSERTION';
      return {
        seq,
        contributor,
        contributionId,
        licence,
        content,
        contentHash,
        leafHash: new Uint8Array(found.leafHash),
        ...(options.entries === true ? { entry: found.entry as string } : {}),
      };
    });
    yield page;
    after = (page.at(-1) as ContentRow).seq;
  }
}

export interface Difference {
  added: number;
  removed: number;
}

/** Rows that are in one version and not in another, by the two tests of a row. */
const ONLY_IN = `added_in IS NOT NULL AND added_in <= :in AND (removed_in IS NULL OR removed_in > :in)
  AND NOT (added_in <= :out AND (removed_in IS NULL OR removed_in > :out))`;

export async function countDifference(
  client: Client,
  datanetId: string,
  from: number,
  to: number,
): Promise<Difference> {
  const count = async (inside: number, outside: number) => {
    const { rows } = await client.execute({
      sql: `SELECT count(*) AS count FROM ${TREE} WHERE datanet_id = :datanet AND ${ONLY_IN}`,
      args: { datanet: datanetId, in: inside, out: outside },
    });
    return Number((rows[0] as unknown as { count: number }).count);
  };
  return { added: await count(to, from), removed: await count(from, to) };
}

/** Rows that are in version `inside` and not in `outside`, behind `after`. */
export function differingRows(
  db: Database,
  datanetId: string,
  inside: number,
  outside: number,
  after: number,
  limit: number,
): Promise<DataRow[]> {
  const page = sql`(SELECT seq FROM ${sql.raw(TREE)} WHERE datanet_id = ${datanetId} AND seq > ${after} AND added_in IS NOT NULL
    AND added_in <= ${inside} AND (removed_in IS NULL OR removed_in > ${inside})
    AND NOT (added_in <= ${outside} AND (removed_in IS NULL OR removed_in > ${outside})) ORDER BY seq LIMIT ${limit})`;
  return db.select().from(datanetRows).where(inArray(datanetRows.seq, page)).orderBy(asc(datanetRows.seq));
}

/** Rows that version `number` takes out, behind `after`. */
export async function removedSeqs(
  client: Client,
  datanetId: string,
  number: number,
  after: number,
  limit: number,
): Promise<number[]> {
  const statement: InStatement = {
    sql: `SELECT seq FROM ${TREE} WHERE datanet_id = ? AND added_in IS NOT NULL AND removed_in = ? AND seq > ? ORDER BY seq LIMIT ?`,
    args: [datanetId, number, after, limit],
  };
  const { rows } = await client.execute(statement);
  return rows.map((row) => Number(row.seq));
}

/** Rows by their numbers, or all of a contribution. */
export type Named = number[] | { contribution: string };

export interface OwnRows {
  contributor: string;
  rows: number[];
  /** One of them at least is in no version yet. */
  unpublished: boolean;
}

/** Rows of a Datanet that somebody names, by whoever contributed them. */
export async function namedRows(client: Client, datanetId: string, named: Named): Promise<OwnRows[]> {
  const owners = new Map<string, OwnRows>();
  const add = async (page: string, args: InValue[]): Promise<{ count: number; last: number }> => {
    const { rows } = await client.execute({
      // By number alone: an index on anything else would be gone through for every page.
      sql: `SELECT contributor, group_concat(r.seq) AS seqs, max(r.seq) AS last, max(added_in IS NULL) AS unpublished
        FROM (${page}) page CROSS JOIN datanet_rows r ON r.seq = page.seq WHERE +datanet_id = ? GROUP BY +contributor`,
      args: [...args, datanetId],
    });
    let count = 0;
    let last = 0;
    for (const row of rows) {
      const contributor = row.contributor as string;
      const own = owners.get(contributor) ?? { contributor, rows: [], unpublished: false };
      const seqs = (row.seqs as string).split(',').map(Number);
      for (const seq of seqs) own.rows.push(seq);
      own.unpublished ||= row.unpublished === 1;
      owners.set(contributor, own);
      count += seqs.length;
      last = Math.max(last, Number(row.last));
    }
    return { count, last };
  };
  const pieces = new Pieces(limits.versionRowsAtOnce);
  if (Array.isArray(named)) {
    await pieces.over([...new Set(named)], (piece) =>
      add('SELECT value AS seq FROM json_each(?)', [JSON.stringify(piece)]),
    );
    return [...owners.values()];
  }
  const page = `SELECT seq FROM datanet_rows INDEXED BY datanet_rows_contribution
    WHERE contribution_id = ? AND seq > ? ORDER BY seq LIMIT ?`;
  for (let after = 0, done = false; !done; ) {
    await pieces.next(async (most) => {
      const { count, last } = await add(page, [named.contribution, after, most]);
      done = count < most;
      after = last;
    });
  }
  return [...owners.values()];
}
