/**
 * A version under way: rows are given its number, which nobody sees yet; its row in the table is the lock of its Datanet. At the end its tree is
 * signed, and one transaction lets everybody see it. Whatever is written for it is written only while it is there: another gateway may have
 * given it up.
 */
import type { Client, InStatement } from '@libsql/client';
import { and, eq } from 'drizzle-orm';
import { formatCheckpoint, type LogKey, signNote } from '../../../daemon/evidence.ts';
import { datanets, datanetVersions, type VersionRow } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import { ApiError } from '../../errors.ts';
import { limits } from '../../limits.ts';
import type { Log } from '../../services.ts';
import { nameTaken } from '../names.ts';
import { Pieces } from '../pieces.ts';
import { StatisticsSum, type VersionStatistics } from './statistics.ts';
import { TileTree } from './tiles.ts';
import { leafPage, rowGroups } from './version-rows.ts';

export interface VersionsDeps {
  db: Database;
  /** Signs checkpoints; the Datanet key of this gateway. */
  key: LogKey;
  log: Log;
  now: () => number;
  /** No other gateway shares the database: a version under way that this process does not build is nobody's. */
  exclusive: boolean;
  /** Takes the contents of withdrawn rows away; here, if nothing is said. */
  erase?: Erase;
}

/** @param net number (`seq`) of the Datanet. @param seqs of the rows. */
export type Erase = (net: number, seqs: number[]) => Promise<void>;

/** `createdAt` tells it from another one of the same number, made when this one had been given up. */
export type Build = Pick<VersionRow, 'datanetId' | 'number' | 'createdAt' | 'cause'>;

export interface BuildOptions {
  cause: VersionRow['cause'];
  notes: string;
  by: string;
}

export const THIS_BUILD = `datanet_id = :datanet AND number = :version AND created_at = :at AND state = 'building'`;
/** Nothing is written for a version that was given up. */
export const OURS = `EXISTS (SELECT 1 FROM datanet_versions WHERE ${THIS_BUILD})`;

export function argsOf({ datanetId, number, createdAt }: Build): { datanet: string; version: number; at: number } {
  return { datanet: datanetId, version: number, at: createdAt };
}

export class Builds {
  /** Finishes or undoes a version that nobody builds any more; given by whoever knows how. */
  clear: (build: Build) => Promise<void> = () => Promise.resolve();
  /** Called with the tree of a version that was just published. */
  onTree: (build: Build, tree: TileTree) => void = () => {};
  readonly #db: Database;
  readonly #client: Client;
  readonly #deps: VersionsDeps;
  /** Datanets of which this process builds a version. */
  readonly #building = new Set<string>();

  constructor(deps: VersionsDeps) {
    this.#deps = deps;
    this.#db = deps.db;
    this.#client = deps.db.$client;
  }

  /** Holds the lock while `work` goes on. @throws ApiError 409 when another version is under way. */
  async begin<T>(datanetId: string, options: BuildOptions, work: (build: Build) => Promise<T>): Promise<T> {
    const build = await this.#lock(datanetId, options);
    try {
      return await work(build);
    } finally {
      this.#building.delete(datanetId);
    }
  }

  /** As begin, for what is worth waiting for: up to `versionWaitMs`. */
  async beginPatiently<T>(datanetId: string, options: BuildOptions, work: (build: Build) => Promise<T>): Promise<T> {
    const deadline = Date.now() + limits.versionWaitMs;
    for (;;) {
      let begun = false;
      try {
        return await this.begin(datanetId, options, (build) => {
          begun = true;
          return work(build);
        });
      } catch (error) {
        const isBusy = !begun && error instanceof ApiError && error.code === 'version_building';
        if (!isBusy || Date.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  async #lock(datanetId: string, options: BuildOptions): Promise<Build> {
    if (this.#building.has(datanetId)) throw busy();
    this.#building.add(datanetId);
    try {
      let build = await this.#insert(datanetId, options);
      if (build === null) {
        const [other] = await this.#db
          .select()
          .from(datanetVersions)
          .where(and(eq(datanetVersions.datanetId, datanetId), eq(datanetVersions.state, 'building')));
        if (other !== undefined && !this.isLeftBehind(other, true)) throw busy();
        if (other !== undefined) await this.clear(other);
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

  /** @param mine this process holds the Datanet's lock, so that it builds nothing else of it. */
  isLeftBehind(version: Build, mine = false): boolean {
    if (!mine && this.#building.has(version.datanetId)) return false;
    return this.#deps.exclusive || version.createdAt < this.#deps.now() - limits.versionBuildMs;
  }

  async find(datanetId: string, number: number): Promise<VersionRow | null> {
    const [version] = await this.#db
      .select()
      .from(datanetVersions)
      .where(and(eq(datanetVersions.datanetId, datanetId), eq(datanetVersions.number, number)));
    return version ?? null;
  }

  /**
   * Tree, statistics and signature; then the version is there for everybody.
   * @param removed rows that it takes out.
   * @param ask throws if it must not be, asked when all the rest is done.
   */
  async finish(build: Build, removed: number, ask: () => Promise<void>): Promise<VersionRow> {
    const { datanetId, number } = build;
    const { tree, added, statistics } = await this.#measure(build);
    const root = tree.root();
    const origin = `${this.#deps.key.name}/${datanetId}/${number}`;
    const checkpoint = signNote(formatCheckpoint({ origin, size: tree.size, rootHash: root }), [this.#deps.key]);
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
    await ask();
    const [first, second] = await this.#commit([published, newest, ...tree.tiles().map((tile) => tileOf(build, tile))]);
    if (first?.rowsAffected !== 1 || second?.rowsAffected !== 1) throw lost();
    this.onTree(build, tree);
    return (await this.find(datanetId, number)) as VersionRow;
  }

  /** @throws ApiError 409 when a Datanet of this name was published meanwhile. */
  async #commit(statements: InStatement[]) {
    try {
      return await this.#client.batch(statements, 'write');
    } catch (error) {
      if (/UNIQUE constraint failed: datanets\.name_key/.test(String(error))) throw nameTaken();
      throw error;
    }
  }

  async #measure({ datanetId, number }: Build): Promise<Measured> {
    let added = 0;
    const tree = new TileTree();
    const sum = new StatisticsSum();
    const pieces = new Pieces(limits.versionRowsAtOnce);
    for (let after = 0, done = false; !done; ) {
      await pieces.next(async (most) => {
        const page = await leafPage(this.#client, datanetId, number, after, most);
        tree.appendAll(page);
        added += page.added;
        const [from, to] = [page.seqs[0], page.seqs.at(-1)];
        done = page.seqs.length < most;
        if (from === undefined || to === undefined) return;
        after = to;
        for (const group of await rowGroups(this.#client, datanetId, number, from, to)) sum.add(group);
      });
    }
    const { rows } = await this.#client.execute({
      sql: 'SELECT id, licence FROM contributions WHERE id IN (SELECT value FROM json_each(?))',
      args: [JSON.stringify(sum.contributions)],
    });
    const licences = new Map(rows.map(({ id, licence }) => [id as string, licence as string]));
    return { tree, added, statistics: sum.result((contribution) => licences.get(contribution) ?? 'NOASSERTION') };
  }
}

interface Measured {
  tree: TileTree;
  /** Rows that were in no version before. */
  added: number;
  statistics: VersionStatistics;
}

/** Of a version that was given up, no tile is kept. */
function tileOf(build: Build, { tile, starts, hashes }: ReturnType<TileTree['tiles']>[number]): InStatement {
  return {
    sql: `INSERT OR REPLACE INTO version_tiles (datanet_id, version, tile, starts, hashes) SELECT :datanet, :version, :tile, :starts, :hashes
      WHERE EXISTS (SELECT 1 FROM datanet_versions WHERE datanet_id = :datanet AND number = :version AND created_at = :at AND state = 'published')`,
    args: { ...argsOf(build), tile, starts: JSON.stringify(starts), hashes },
  };
}

function busy(): ApiError {
  const message = 'A version of this Datanet is being made at the moment; try again when it is there.';
  const headers = { 'retry-after': String(limits.retryAfterSeconds) };
  return new ApiError(409, 'invalid_request_error', 'version_building', message, { headers });
}

export function lost(): ApiError {
  const message = 'The version under way was given up by another gateway; try again.';
  return new ApiError(409, 'invalid_request_error', 'version_lost', message);
}
