/** Publishing: all approved rows that are in no version yet go into a new one. */
import type { Client } from '@libsql/client';
import type { DatanetRow, VersionRow } from '../../db/datanet-schema.ts';
import { ApiError } from '../../errors.ts';
import { limits } from '../../limits.ts';
import { Pieces } from '../pieces.ts';
import { argsOf, type Build, type Builds, OURS } from './build.ts';
import type { Recovery } from './recovery.ts';

export class Publication {
  readonly #client: Client;
  readonly #builds: Builds;
  readonly #recovery: Recovery;

  constructor(client: Client, builds: Builds, recovery: Recovery) {
    this.#client = client;
    this.#builds = builds;
    this.#recovery = recovery;
  }

  /** @param ask see Versions.publish. @throws ApiError 409 */
  async publish(datanet: DatanetRow, by: string, notes: string, ask: () => Promise<void>): Promise<VersionRow> {
    return this.#builds.begin(datanet.id, { cause: 'publish', notes, by }, async (build) => {
      try {
        const added = await this.#addApproved(build);
        if (added === 0) await this.#needsNewTerms(build);
        return await this.#builds.finish(build, 0, ask);
      } catch (error) {
        return await this.#recovery.published(build, error);
      }
    });
  }

  async #addApproved(build: Build): Promise<number> {
    const pieces = new Pieces(limits.versionRowsAtOnce);
    let added = 0;
    for (let after = 0, done = false; !done; ) {
      await pieces.next(async (most) => {
        const { rows } = await this.#client.execute({
          sql: `UPDATE datanet_rows SET added_in = :version WHERE seq IN (
              SELECT seq FROM datanet_rows INDEXED BY datanet_rows_version WHERE datanet_id = :datanet AND added_in IS NULL AND seq > :after
                AND state = 'approved' ORDER BY seq LIMIT :most)
            AND ${OURS} RETURNING seq`,
          args: { ...argsOf(build), after, most },
        });
        added += rows.length;
        done = rows.length < most;
        after = rows.reduce((last, row) => Math.max(last, Number(row.seq)), after);
      });
    }
    return added;
  }

  /** Without new rows there is a new version only where licence or terms are others. @throws ApiError 409 */
  async #needsNewTerms(build: Build): Promise<void> {
    const before = await this.#builds.find(build.datanetId, build.number - 1);
    const now = await this.#builds.find(build.datanetId, build.number);
    if (before !== null && now !== null && (before.licence !== now.licence || before.terms !== now.terms)) return;
    const message = 'There is nothing to publish: no approved rows that are not in a version yet. Approve some first.';
    throw new ApiError(409, 'invalid_request_error', 'nothing_to_publish', message);
  }
}
