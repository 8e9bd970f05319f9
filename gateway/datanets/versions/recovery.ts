/**
 * What becomes of a version whose making was interrupted: it is undone, as if it had never begun; or finished, where it is a withdrawal that had
 * marked all its rows (`sealed`).
 */
import type { Client } from '@libsql/client';
import { eq } from 'drizzle-orm';
import { type DatanetRow, datanets, datanetVersions, type VersionRow } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import { limits } from '../../limits.ts';
import type { Log } from '../../services.ts';
import { Pieces } from '../pieces.ts';
import { argsOf, type Build, type Builds, OURS, THIS_BUILD } from './build.ts';
import { removedSeqs } from './version-rows.ts';

/** Kept in `statistics` while a withdrawal is under way: all its rows are marked, so it will be finished. */
export interface Seal {
  sealed: true;
  erase: boolean;
}

export class Recovery {
  /** Finishes a sealed withdrawal; given by whoever knows how. */
  finishWithdrawal: (datanet: DatanetRow, build: Build, erase: boolean) => Promise<unknown> = () => Promise.resolve();
  readonly #db: Database;
  readonly #client: Client;
  readonly #builds: Builds;
  readonly #log: Log;

  constructor(deps: { db: Database; log: Log }, builds: Builds) {
    this.#db = deps.db;
    this.#client = deps.db.$client;
    this.#builds = builds;
    this.#log = deps.log;
  }

  /** At the start, before requests are served: all that a process before this one left half made. */
  async recover(): Promise<void> {
    const left = await this.#db.select().from(datanetVersions).where(eq(datanetVersions.state, 'building'));
    for (const version of left) {
      if (!this.#builds.isLeftBehind(version)) continue;
      await this.clear(version).catch((error: unknown) => {
        const where = { err: error, datanet: version.datanetId, version: version.number };
        this.#log.error(where, 'a half-made version could be neither finished nor undone; it is tried again');
      });
    }
  }

  /** Finishes or undoes a version that nobody builds any more. */
  async clear(build: Build): Promise<void> {
    const version = await this.#builds.find(build.datanetId, build.number);
    if (version === null || version.state !== 'building' || version.createdAt !== build.createdAt) return;
    const seal = version.statistics as unknown as Seal | null;
    if (seal?.sealed !== true) return this.undo(version);
    const [datanet] = await this.#db.select().from(datanets).where(eq(datanets.id, version.datanetId));
    if (datanet === undefined) throw new Error(`the Datanet ${version.datanetId} of a half-made version is not there`);
    await this.finishWithdrawal(datanet, version, seal.erase);
    const where = { datanet: version.datanetId, version: version.number };
    this.#log.warn(where, 'a withdrawal that was interrupted has been finished');
  }

  /** As if it had never begun. Only the mark on rows in no version stays: they were to be withdrawn, and are. */
  async undo(build: Build): Promise<void> {
    const { datanetId, number } = build;
    const pieces = new Pieces(limits.versionRowsAtOnce);
    for (let done = false; !done; ) {
      await pieces.next(async (most) => {
        const { rowsAffected } = await this.#client.execute({
          sql: `UPDATE datanet_rows SET added_in = NULL WHERE seq IN (SELECT seq FROM datanet_rows INDEXED BY datanet_rows_version
            WHERE datanet_id = :datanet AND added_in = :version LIMIT :most) AND ${OURS}`,
          args: { ...argsOf(build), most },
        });
        done = rowsAffected < most;
      });
    }
    for (let done = false; !done; ) {
      await pieces.next(async (most) => {
        const rows = await removedSeqs(this.#client, datanetId, number, 0, most);
        done = rows.length === 0;
        if (done) return;
        const { rowsAffected } = await this.#client.execute({
          sql: `UPDATE datanet_rows SET removed_in = NULL, state = 'approved', state_reason = NULL
            WHERE seq IN (SELECT value FROM json_each(:rows)) AND +removed_in = :version AND ${OURS}`,
          args: { ...argsOf(build), rows: JSON.stringify(rows) },
        });
        // None: it was given up by somebody else, who undoes it too.
        done = rowsAffected === 0;
      });
    }
    await this.#client.execute({ sql: `DELETE FROM datanet_versions WHERE ${THIS_BUILD}`, args: argsOf(build) });
  }

  /** After a failure: the version if it was published all the same (the answer got lost), else the failure, with all undone that can be. */
  async published(build: Build, error: unknown): Promise<VersionRow> {
    try {
      const version = await this.#builds.find(build.datanetId, build.number);
      if (version?.state === 'published' && version.createdAt === build.createdAt) return version;
      const sealed = (version?.statistics as Partial<Seal> | null | undefined)?.sealed === true;
      if (version !== null && version.createdAt === build.createdAt && !sealed) await this.undo(build);
    } catch (again) {
      const where = { err: again, datanet: build.datanetId, version: build.number };
      this.#log.error(where, 'a half-made version could not be undone; it will be before the next one');
    }
    throw error;
  }
}
