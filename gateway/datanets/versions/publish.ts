/**
 * Makes the versions of Datanets: rows are given the number of a version that nobody sees yet, their tree is signed, and one transaction lets
 * everybody see it. The row of the version under way is the lock of its Datanet. Whatever a crash leaves behind is undone, or finished where a
 * withdrawal had marked all its rows (`sealed`): see recover().
 */
import type { Client, InStatement } from '@libsql/client';
import { and, desc, eq, lt } from 'drizzle-orm';
import { LRUCache } from 'lru-cache';
import { DATANET_ROW_PROOF, formatCheckpoint, type LogKey, signNote } from '../../../daemon/evidence.ts';
import {
  type DatanetRow,
  type DataRow,
  datanetRows,
  datanets,
  datanetVersions,
  type VersionRow,
} from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import { ApiError } from '../../errors.ts';
import { limits } from '../../limits.ts';
import type { Log } from '../../services.ts';
import { eraseContents, pause } from './erase.ts';
import { StatisticsSum, type VersionStatistics } from './statistics.ts';
import { VersionTree } from './tree.ts';
import {
  contentPages,
  countDifference,
  type Difference,
  differingRows,
  leafPages,
  removedSeqs,
  rowGroups,
  rowsOf,
} from './version-rows.ts';

const HASH_BYTES = 32;

export interface VersionsDeps {
  db: Database;
  /** Signs checkpoints; the Datanet key of this gateway. */
  key: LogKey;
  log: Log;
  now: () => number;
  /** No other gateway shares the database: a version under way that this process does not build is nobody's. */
  exclusive: boolean;
}

/** What GET …/proof answers and `modelfactory verify` checks. */
export interface RowProof {
  type: typeof DATANET_ROW_PROOF;
  /** The leaf's bytes: canonical JSON of `{record, signature}`. */
  entry: string;
  leafIndex: number;
  /** Base64, leaf to root. */
  inclusionProof: string[];
  checkpoint: string;
  vkey: string;
  /** Canonical JSON of the row; only for those who may read it. */
  content?: string;
}

/** A version under way; `createdAt` tells it from another one of the same number, made when this one had been given up. */
type Build = Pick<VersionRow, 'datanetId' | 'number' | 'createdAt' | 'cause'>;

interface BuildOptions {
  cause: VersionRow['cause'];
  notes: string;
  by: string;
}

/** Kept in `statistics` while a withdrawal is under way: all its rows are marked, so it will be finished. */
interface Seal {
  sealed: true;
  erase: boolean;
}

export class Versions {
  /**
   * Called with the rows (`seq`) that a withdrawal takes out, before anybody sees the new version. Called again after a crash, so it must
   * take being called twice for the same version (whose `number` and `createdAt` are the same both times).
   */
  onWithdrawn: (
    datanet: DatanetRow,
    version: Pick<VersionRow, 'datanetId' | 'number' | 'createdAt'>,
    rows: number[],
  ) => Promise<void> = () => Promise.resolve();
  readonly key: LogKey;
  readonly #db: Database;
  readonly #client: Client;
  readonly #deps: VersionsDeps;
  /** Datanets of which this process builds a version. */
  readonly #building = new Set<string>();
  readonly #trees = new LRUCache<string, VersionTree>({
    maxSize: limits.treeCacheBytesMax,
    sizeCalculation: ({ bytes }) => Math.max(1, bytes),
  });

  #treeUnderWay: Promise<unknown> = Promise.resolve();

  constructor(deps: VersionsDeps) {
    this.#deps = deps;
    this.#db = deps.db;
    this.#client = deps.db.$client;
    this.key = deps.key;
  }

  /** At the start, before requests are served: finishes or undoes versions that a process before this one left half made. */
  async recover(): Promise<void> {
    const left = await this.#db.select().from(datanetVersions).where(eq(datanetVersions.state, 'building'));
    for (const version of left) {
      if (!this.#isLeftBehind(version)) continue;
      await this.#clear(version).catch((error: unknown) => {
        const where = { err: error, datanet: version.datanetId, version: version.number };
        this.#deps.log.error(where, 'a half-made version could be neither finished nor undone; it is tried again');
      });
    }
  }

  /** Puts all approved rows that are in no version yet into a new one. @throws ApiError 409 */
  async publish(datanet: DatanetRow, by: string, notes: string): Promise<VersionRow> {
    const build = await this.#begin(datanet.id, { cause: 'publish', notes, by });
    try {
      const added = await this.#addApproved(build);
      if (added === 0) await this.#needsNewTerms(build);
      return await this.#finish(build);
    } catch (error) {
      return await this.#published(build, error);
    } finally {
      this.#building.delete(datanet.id);
    }
  }

  /**
   * Takes rows (`seq`) out. Those in no version are withdrawn at once; for the others there is a new version. Rows that are out already, or
   * of another Datanet, are passed over. @param options.erase their contents go, from all versions. null: no row was in a version.
   * @throws ApiError 409 when another version stays under way.
   */
  async withdraw(
    datanet: DatanetRow,
    rows: number[],
    by: string,
    reason: string,
    options: { erase: boolean },
  ): Promise<VersionRow | null> {
    const seqs = [...new Set(rows)].sort((a, b) => a - b);
    const build = await this.#beginPatiently(datanet.id, { cause: 'withdrawal', notes: reason, by });
    let sealed = false;
    try {
      const removed = await this.#mark(build, seqs, reason);
      if (options.erase) await this.#eraseOutside(datanet, build, seqs);
      if (removed === 0) {
        await this.#undo(build);
        return null;
      }
      sealed = true;
      await this.#seal(build, options.erase);
      return await this.#finishWithdrawal(datanet, build, options.erase);
    } catch (error) {
      if (!sealed) return await this.#published(build, error);
      // It will be finished at the next start, or by whoever makes a version of this Datanet next; now, if the failure was a passing one.
      this.#deps.log.error({ err: error, datanet: datanet.id, version: build.number }, 'a withdrawal was interrupted');
      await this.#clear(build).catch(() => {});
      return await this.#published(build, error);
    } finally {
      this.#building.delete(datanet.id);
    }
  }

  /** A published version. */
  async get(datanetId: string, number: number): Promise<VersionRow | null> {
    const version = await this.#find(datanetId, number);
    return version?.state === 'published' ? version : null;
  }

  /** Published versions, newest first; `before`: only those with a smaller number. */
  list(datanetId: string, before: number | null, limit: number): Promise<VersionRow[]> {
    return this.#db
      .select()
      .from(datanetVersions)
      .where(
        and(
          eq(datanetVersions.datanetId, datanetId),
          eq(datanetVersions.state, 'published'),
          before === null ? undefined : lt(datanetVersions.number, before),
        ),
      )
      .orderBy(desc(datanetVersions.number))
      .limit(limit);
  }

  countDifference(datanetId: string, from: number, to: number): Promise<Difference> {
    return countDifference(this.#client, datanetId, from, to);
  }

  /** Rows that are in version `inside` and not in `outside`. */
  differingRows(
    datanetId: string,
    inside: number,
    outside: number,
    afterSeq: number,
    limit: number,
  ): Promise<DataRow[]> {
    return differingRows(this.#db, datanetId, inside, outside, afterSeq, limit);
  }

  /** A version's rows with contents, a bounded portion at a time. */
  contents(datanetId: string, number: number, options: { signal?: AbortSignal | undefined } = {}) {
    return contentPages(this.#client, datanetId, number, options);
  }

  /** Whose the rows are that a list of numbers, or a contribution, names; rows of other Datanets are not there. */
  async contributorsOf(
    datanetId: string,
    named: number[] | { contribution: string },
  ): Promise<{ contributor: string; rows: number[]; unpublished: boolean }[]> {
    const { rows } = await this.#client.execute({
      sql: `SELECT contributor, group_concat(seq) AS seqs, max(added_in IS NULL) AS unpublished FROM datanet_rows WHERE datanet_id = ? AND ${
        Array.isArray(named) ? 'seq IN (SELECT value FROM json_each(?))' : 'contribution_id = ?'
      } GROUP BY contributor`,
      args: [datanetId, Array.isArray(named) ? JSON.stringify(named) : named.contribution],
    });
    return rows.map(({ contributor, seqs, unpublished }) => ({
      contributor: contributor as string,
      rows: (seqs as string).split(',').map(Number),
      unpublished: unpublished === 1,
    }));
  }

  /** Rows of a version in their order, behind `afterSeq`. */
  rows(datanetId: string, number: number, afterSeq: number, limit: number): Promise<DataRow[]> {
    return rowsOf(this.#db, datanetId, number, afterSeq, limit);
  }

  /** @param seq of a row; null: there is no such version, or the row is not in it. */
  async proof(datanetId: string, number: number, seq: number, options: { content: boolean }): Promise<RowProof | null> {
    const version = await this.get(datanetId, number);
    if (version === null) return null;
    const tree = await this.#tree(version);
    const leafIndex = tree.indexOf(seq);
    if (leafIndex === null) return null;
    const [row] = await this.#db
      .select({ entry: datanetRows.entry, content: datanetRows.content })
      .from(datanetRows)
      .where(eq(datanetRows.seq, seq));
    if (row === undefined) return null;
    const proof = await tree.proof(leafIndex);
    return {
      type: DATANET_ROW_PROOF,
      entry: row.entry,
      leafIndex,
      inclusionProof: proof.map((hash) => hash.toString('base64')),
      checkpoint: version.checkpoint,
      vkey: this.key.vkey,
      ...(options.content && row.content !== null ? { content: row.content } : {}),
    };
  }

  /** The lock. @throws ApiError 409 */
  async #begin(datanetId: string, options: BuildOptions): Promise<Build> {
    if (this.#building.has(datanetId)) throw busy();
    this.#building.add(datanetId);
    try {
      let build = await this.#insert(datanetId, options);
      if (build === null) {
        const [other] = await this.#db
          .select()
          .from(datanetVersions)
          .where(and(eq(datanetVersions.datanetId, datanetId), eq(datanetVersions.state, 'building')));
        if (other !== undefined && !this.#isLeftBehind(other, true)) throw busy();
        if (other !== undefined) await this.#clear(other);
        build = await this.#insert(datanetId, options);
      }
      if (build === null) throw await this.#cannotBegin(datanetId);
      return build;
    } catch (error) {
      this.#building.delete(datanetId);
      throw error;
    }
  }

  async #insert(datanetId: string, { cause, notes, by }: BuildOptions): Promise<Build | null> {
    const createdAt = this.#deps.now();
    // Withdrawals are possible whatever the state of a Datanet.
    const { rows } = await this.#client.execute({
      sql: `INSERT INTO datanet_versions (datanet_id, number, state, cause, notes, licence, terms, created_by, created_at)
        SELECT id, version + 1, 'building', :cause, :notes, licence, terms, :by, :at FROM datanets d
        WHERE id = :id AND (state = 'active' OR :cause = 'withdrawal')
          AND NOT EXISTS (SELECT 1 FROM datanet_versions v WHERE v.datanet_id = d.id AND v.state = 'building')
        RETURNING number`,
      args: { id: datanetId, cause, notes, by, at: createdAt },
    });
    const row = rows[0] as unknown as { number: number } | undefined;
    return row === undefined ? null : { datanetId, number: Number(row.number), cause, createdAt };
  }

  async #cannotBegin(datanetId: string): Promise<ApiError> {
    const [datanet] = await this.#db.select().from(datanets).where(eq(datanets.id, datanetId));
    if (datanet === undefined)
      return new ApiError(404, 'invalid_request_error', 'datanet_not_found', 'There is no such Datanet.');
    if (datanet.state === 'revoked') {
      const message = 'The Datanet is revoked, so nothing new is published of it.';
      return new ApiError(409, 'invalid_request_error', 'datanet_revoked', message);
    }
    return busy();
  }

  /** A withdrawal is worth waiting for. */
  async #beginPatiently(datanetId: string, options: BuildOptions): Promise<Build> {
    const deadline = Date.now() + limits.versionWaitMs;
    for (;;) {
      try {
        return await this.#begin(datanetId, options);
      } catch (error) {
        if (!(error instanceof ApiError) || error.code !== 'version_building' || Date.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  #isLeftBehind(version: Build, mine = false): boolean {
    if (!mine && this.#building.has(version.datanetId)) return false;
    return this.#deps.exclusive || version.createdAt < this.#deps.now() - limits.versionBuildMs;
  }

  async #addApproved(build: Build): Promise<number> {
    let added = 0;
    let after = 0;
    for (;;) {
      const { rows } = await this.#client.execute({
        sql: `UPDATE datanet_rows SET added_in = :version WHERE seq IN (
            SELECT seq FROM datanet_rows INDEXED BY datanet_rows_version WHERE datanet_id = :datanet AND added_in IS NULL AND seq > :after
              AND state = 'approved' ORDER BY seq LIMIT :most)
          AND ${OURS} RETURNING seq`,
        args: { ...argsOf(build), after, most: limits.versionRowsAtOnce },
      });
      added += rows.length;
      if (rows.length < limits.versionRowsAtOnce) return added;
      after = rows.reduce((last, row) => Math.max(last, Number(row.seq)), after);
      await pause();
    }
  }

  /** Without new rows there is a new version only where licence or terms are others. @throws ApiError 409 */
  async #needsNewTerms(build: Build): Promise<void> {
    const [before, now] = [
      await this.get(build.datanetId, build.number - 1),
      await this.#find(build.datanetId, build.number),
    ];
    if (before !== null && now !== null && (before.licence !== now.licence || before.terms !== now.terms)) return;
    const message = 'There is nothing to publish: no approved rows that are not in a version yet. Approve some first.';
    throw new ApiError(409, 'invalid_request_error', 'nothing_to_publish', message);
  }

  /** @returns how many of the rows were in the newest version. */
  async #mark(build: Build, seqs: number[], reason: string): Promise<number> {
    let removed = 0;
    for (let at = 0; at < seqs.length; at += limits.versionRowsAtOnce) {
      const args = { ...argsOf(build), reason, rows: JSON.stringify(seqs.slice(at, at + limits.versionRowsAtOnce)) };
      const which = `seq IN (SELECT value FROM json_each(:rows)) AND datanet_id = :datanet AND ${OURS}`;
      const [, published] = await this.#client.batch(
        [
          {
            sql: `UPDATE datanet_rows SET state = 'withdrawn', state_reason = :reason
              WHERE ${which} AND added_in IS NULL AND state <> 'withdrawn'`,
            args,
          },
          {
            sql: `UPDATE datanet_rows SET state = 'withdrawn', state_reason = :reason, removed_in = :version
              WHERE ${which} AND added_in IS NOT NULL AND removed_in IS NULL`,
            args,
          },
        ],
        'write',
      );
      removed += published?.rowsAffected ?? 0;
      await pause();
    }
    return removed;
  }

  /** Rows that this withdrawal does not take out of a version, for they are in none or were taken out before. */
  async #eraseOutside(datanet: DatanetRow, build: Build, seqs: number[]): Promise<void> {
    for (let at = 0; at < seqs.length; at += limits.versionRowsAtOnce) {
      const { rows } = await this.#client.execute({
        sql: `SELECT seq FROM datanet_rows WHERE seq IN (SELECT value FROM json_each(?)) AND datanet_id = ?
          AND state = 'withdrawn' AND removed_in IS NOT ?`,
        args: [JSON.stringify(seqs.slice(at, at + limits.versionRowsAtOnce)), datanet.id, build.number],
      });
      const outside = rows.map((row) => Number(row.seq));
      await eraseContents(this.#client, datanet.seq, outside);
    }
    await this.#touch(datanet.id);
  }

  async #seal(build: Build, erase: boolean): Promise<void> {
    const seal: Seal = { sealed: true, erase };
    const { rowsAffected } = await this.#client.execute({
      sql: `UPDATE datanet_versions SET statistics = :seal WHERE ${THIS_BUILD}`,
      args: { ...argsOf(build), seal: JSON.stringify(seal) },
    });
    if (rowsAffected !== 1) throw lost();
  }

  /** From the seal on: may be done again from the start, as often as it takes. */
  async #finishWithdrawal(datanet: DatanetRow, build: Build, erase: boolean): Promise<VersionRow> {
    const removed: number[] = [];
    for (;;) {
      const after = removed.at(-1) ?? 0;
      const page = await removedSeqs(this.#client, datanet.id, build.number, after, limits.versionRowsAtOnce);
      removed.push(...page);
      if (erase) await eraseContents(this.#client, datanet.seq, page);
      if (page.length < limits.versionRowsAtOnce) break;
      await pause();
    }
    await this.onWithdrawn(datanet, build, removed);
    return this.#finish(build);
  }

  /** Tree, statistics and signature; then the version is there for everybody. */
  async #finish(build: Build): Promise<VersionRow> {
    const { datanetId, number } = build;
    const { tree, statistics } = await this.#measure(build);
    const counts = await this.#client.execute({
      sql: `SELECT coalesce(sum(added_in = :version), 0) AS added, coalesce(sum(removed_in = :version), 0) AS removed
        FROM datanet_rows INDEXED BY datanet_rows_tree WHERE datanet_id = :datanet AND added_in IS NOT NULL`,
      args: { datanet: datanetId, version: number },
    });
    const { added, removed } = counts.rows[0] as unknown as { added: number; removed: number };
    const root = tree.root();
    const origin = `${this.key.name}/${datanetId}/${number}`;
    const checkpoint = signNote(formatCheckpoint({ origin, size: tree.size, rootHash: root }), [this.key]);
    const published: InStatement = {
      sql: `UPDATE datanet_versions SET state = 'published', rows = :rows, added = :added, removed = :removed, root = :root,
        checkpoint = :checkpoint, statistics = :statistics WHERE ${THIS_BUILD}`,
      args: {
        ...argsOf(build),
        rows: tree.size,
        added,
        removed,
        root: root.toString('hex'),
        checkpoint,
        statistics: JSON.stringify(statistics),
      },
    };
    const newest: InStatement = {
      sql: `UPDATE datanets SET version = :version, rows = :rows, updated_at = :now WHERE id = :datanet AND version = :version - 1
        AND EXISTS (SELECT 1 FROM datanet_versions WHERE datanet_id = :datanet AND number = :version AND created_at = :at AND state = 'published')`,
      args: { ...argsOf(build), rows: tree.size, now: this.#deps.now() },
    };
    const [first, second] = await this.#client.batch([published, newest], 'write');
    if (first?.rowsAffected !== 1 || second?.rowsAffected !== 1) throw lost();
    this.#trees.set(treeKey(build), tree);
    return (await this.get(datanetId, number)) as VersionRow;
  }

  async #measure({ datanetId, number }: Build): Promise<{ tree: VersionTree; statistics: VersionStatistics }> {
    const tree = new VersionTree();
    const sum = new StatisticsSum();
    for await (const { seqs, hashes } of leafPages(this.#client, datanetId, number)) {
      for (const [at, seq] of seqs.entries()) tree.append(seq, hashes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES));
      for (let at = 0; at < seqs.length; at += limits.versionRowsAtOnce) {
        await pause();
        const last = Math.min(at + limits.versionRowsAtOnce, seqs.length) - 1;
        const [from, to] = [seqs[at] as number, seqs[last] as number];
        for (const group of await rowGroups(this.#client, datanetId, number, from, to)) sum.add(group);
      }
      await pause();
    }
    const { rows } = await this.#client.execute({
      sql: 'SELECT id, licence FROM contributions WHERE id IN (SELECT value FROM json_each(?))',
      args: [JSON.stringify(sum.contributions)],
    });
    const licences = new Map(rows.map(({ id, licence }) => [id as string, licence as string]));
    return { tree, statistics: sum.result((contribution) => licences.get(contribution) ?? 'NOASSERTION') };
  }

  async #tree(version: VersionRow): Promise<VersionTree> {
    const known = this.#trees.get(treeKey(version));
    if (known !== undefined) return known;
    // One at a time, whoever asks: each takes 72 bytes a row, and a hundred who ask for the same need it once.
    const built = this.#treeUnderWay.then(() => this.#trees.get(treeKey(version)) ?? this.#built(version));
    this.#treeUnderWay = built.catch(() => {});
    return built;
  }

  async #built(version: VersionRow): Promise<VersionTree> {
    const tree = new VersionTree();
    for await (const { seqs, hashes } of leafPages(this.#client, version.datanetId, version.number)) {
      for (const [at, seq] of seqs.entries()) tree.append(seq, hashes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES));
      await pause();
    }
    if (tree.root().toString('hex') !== version.root) {
      const which = `version ${version.number} of ${version.datanetId}`;
      throw new Error(`the rows of ${which} do not lead to its signed root: the database was changed`);
    }
    this.#trees.set(treeKey(version), tree);
    return tree;
  }

  /** Finishes or undoes a version that nobody builds any more. */
  async #clear(build: Build): Promise<void> {
    const version = await this.#find(build.datanetId, build.number);
    if (version === null || version.state !== 'building' || version.createdAt !== build.createdAt) return;
    const seal = version.statistics as unknown as Seal | null;
    if (seal?.sealed !== true) return this.#undo(version);
    const [datanet] = await this.#db.select().from(datanets).where(eq(datanets.id, version.datanetId));
    if (datanet === undefined) throw new Error(`the Datanet ${version.datanetId} of a half-made version is not there`);
    await this.#finishWithdrawal(datanet, version, seal.erase);
    const where = { datanet: version.datanetId, version: version.number };
    this.#deps.log.warn(where, 'a withdrawal that was interrupted has been finished');
  }

  /** As if it had never begun. Only the mark on rows in no version stays: they were to be withdrawn, and are. */
  async #undo(build: Build): Promise<void> {
    const { datanetId, number } = build;
    for (;;) {
      const { rowsAffected } = await this.#client.execute({
        sql: `UPDATE datanet_rows SET added_in = NULL WHERE seq IN (SELECT seq FROM datanet_rows INDEXED BY datanet_rows_version
          WHERE datanet_id = :datanet AND added_in = :version LIMIT :most) AND ${OURS}`,
        args: { ...argsOf(build), most: limits.versionRowsAtOnce },
      });
      if (rowsAffected < limits.versionRowsAtOnce) break;
      await pause();
    }
    for (;;) {
      const rows = await removedSeqs(this.#client, datanetId, number, 0, limits.versionRowsAtOnce);
      if (rows.length === 0) break;
      const { rowsAffected } = await this.#client.execute({
        sql: `UPDATE datanet_rows SET removed_in = NULL, state = 'approved', state_reason = NULL
          WHERE seq IN (SELECT value FROM json_each(:rows)) AND removed_in = :version AND ${OURS}`,
        args: { ...argsOf(build), rows: JSON.stringify(rows) },
      });
      // None: it was given up by somebody else, who undoes it too.
      if (rowsAffected === 0) break;
      await pause();
    }
    await this.#client.execute({ sql: `DELETE FROM datanet_versions WHERE ${THIS_BUILD}`, args: argsOf(build) });
  }

  /** After a failure: the version if it was published all the same (the answer got lost), else the failure, with all undone that can be. */
  async #published(build: Build, error: unknown): Promise<VersionRow> {
    try {
      const version = await this.#find(build.datanetId, build.number);
      if (version?.state === 'published' && version.createdAt === build.createdAt) return version;
      const sealed = (version?.statistics as Partial<Seal> | null | undefined)?.sealed === true;
      if (version !== null && version.createdAt === build.createdAt && !sealed) await this.#undo(build);
    } catch (again) {
      const where = { err: again, datanet: build.datanetId, version: build.number };
      this.#deps.log.error(where, 'a half-made version could not be undone; it will be before the next one');
    }
    throw error;
  }

  async #find(datanetId: string, number: number): Promise<VersionRow | null> {
    const [version] = await this.#db
      .select()
      .from(datanetVersions)
      .where(and(eq(datanetVersions.datanetId, datanetId), eq(datanetVersions.number, number)));
    return version ?? null;
  }

  async #touch(datanetId: string): Promise<void> {
    await this.#client.execute({
      sql: 'UPDATE datanets SET updated_at = ? WHERE id = ?',
      args: [this.#deps.now(), datanetId],
    });
  }
}

const THIS_BUILD = `datanet_id = :datanet AND number = :version AND created_at = :at AND state = 'building'`;
/** Nothing is written for a version that was given up. */
const OURS = `EXISTS (SELECT 1 FROM datanet_versions WHERE ${THIS_BUILD})`;

function argsOf({ datanetId, number, createdAt }: Build): { datanet: string; version: number; at: number } {
  return { datanet: datanetId, version: number, at: createdAt };
}

function treeKey({ datanetId, number }: Build): string {
  return `${datanetId}/${number}`;
}

function busy(): ApiError {
  const message = 'A version of this Datanet is being made at the moment; try again when it is there.';
  const headers = { 'retry-after': String(limits.retryAfterSeconds) };
  return new ApiError(409, 'invalid_request_error', 'version_building', message, { headers });
}

function lost(): ApiError {
  const message = 'The version under way was given up by another gateway; try again.';
  return new ApiError(409, 'invalid_request_error', 'version_lost', message);
}
