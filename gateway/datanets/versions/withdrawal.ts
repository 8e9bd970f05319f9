/**
 * Withdrawing: rows are marked, then the version under way is sealed; from there on it will be finished, whatever happens, for the contents of
 * its rows may be gone already.
 */
import type { Client } from '@libsql/client';
import type { DatanetRow, VersionRow } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import type { Log } from '../../services.ts';
import { ASK_CLEANING, eraseContents } from '../erasures/erase.ts';
import { Pieces } from '../pieces.ts';
import { argsOf, type Build, type Builds, type Erase, lost, OURS, THIS_BUILD, type VersionsDeps } from './build.ts';
import type { Recovery, Seal } from './recovery.ts';
import { removedSeqs } from './version-rows.ts';

/** See Versions.onWithdrawn. */
export type OnWithdrawn = (
  datanet: DatanetRow,
  version: Pick<VersionRow, 'datanetId' | 'number' | 'createdAt'>,
  rows: number[],
) => Promise<void>;

export class Withdrawal {
  onWithdrawn: OnWithdrawn = () => Promise.resolve();
  readonly #client: Client;
  readonly #builds: Builds;
  readonly #recovery: Recovery;
  readonly #log: Log;
  readonly #now: () => number;
  readonly #erase: Erase;

  constructor(client: Client, builds: Builds, recovery: Recovery, deps: Pick<VersionsDeps, 'log' | 'now' | 'erase'>) {
    this.#client = client;
    this.#builds = builds;
    this.#recovery = recovery;
    this.#log = deps.log;
    this.#now = deps.now;
    this.#erase = deps.erase ?? ((net, seqs) => eraseContents(client, net, seqs));
  }

  /** See Versions.withdraw. */
  async withdraw(
    datanet: DatanetRow,
    rows: readonly number[],
    by: string,
    reason: string,
    options: { erase: boolean; ask: () => Promise<void> },
  ): Promise<VersionRow | null> {
    const { erase, ask } = options;
    const seqs = [...new Set(rows)].sort((a, b) => a - b);
    return this.#builds.beginPatiently(datanet.id, { cause: 'withdrawal', notes: reason, by }, async (build) => {
      let sealed = false;
      try {
        // It may have waited for another version.
        await ask();
        const removed = await this.#mark(build, seqs, reason);
        await ask();
        if (erase) await this.#eraseOutside(datanet, build, seqs);
        if (removed === 0) {
          await this.#recovery.undo(build);
          return null;
        }
        sealed = true;
        await this.#seal(build, erase);
        return await this.finish(datanet, build, erase);
      } catch (error) {
        if (!sealed) return await this.#recovery.published(build, error);
        // It will be finished at the next start, or by whoever makes a version of this Datanet next; now, if the failure was a passing one.
        this.#log.error({ err: error, datanet: datanet.id, version: build.number }, 'a withdrawal was interrupted');
        await this.#recovery.clear(build).catch(() => {});
        return await this.#recovery.published(build, error);
      }
    });
  }

  /** @returns how many of the rows were in the newest version. */
  async #mark(build: Build, seqs: readonly number[], reason: string): Promise<number> {
    let removed = 0;
    await new Pieces(limits.versionRowsAtOnce).over(seqs, async (piece) => {
      const args = { ...argsOf(build), reason, rows: JSON.stringify(piece) };
      // By number alone: an index on anything else would be gone through for every piece.
      const which = `seq IN (SELECT value FROM json_each(:rows)) AND +datanet_id = :datanet AND ${OURS}`;
      const [, published] = await this.#client.batch(
        [
          {
            sql: `UPDATE datanet_rows SET state = 'withdrawn', state_reason = :reason
              WHERE ${which} AND +added_in IS NULL AND +state <> 'withdrawn'`,
            args,
          },
          {
            sql: `UPDATE datanet_rows SET state = 'withdrawn', state_reason = :reason, removed_in = :version
              WHERE ${which} AND +added_in IS NOT NULL AND +removed_in IS NULL`,
            args,
          },
        ],
        'write',
      );
      removed += published?.rowsAffected ?? 0;
    });
    return removed;
  }

  /** Rows that this withdrawal does not take out of a version, for they are in none or were taken out before. */
  async #eraseOutside(datanet: DatanetRow, build: Build, seqs: readonly number[]): Promise<void> {
    const outside: number[] = [];
    await new Pieces(limits.versionRowsAtOnce).over(seqs, async (piece) => {
      const { rows } = await this.#client.execute({
        sql: `SELECT seq FROM datanet_rows WHERE seq IN (SELECT value FROM json_each(?)) AND +datanet_id = ?
          AND +state = 'withdrawn' AND +removed_in IS NOT ?`,
        args: [JSON.stringify(piece), datanet.id, build.number],
      });
      for (const row of rows) outside.push(Number(row.seq));
    });
    if (outside.length > 0) await this.#erase(datanet.seq, outside);
    await this.#client.batch(
      [{ sql: 'UPDATE datanets SET updated_at = ? WHERE id = ?', args: [this.#now(), datanet.id] }, ASK_CLEANING],
      'write',
    );
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
  async finish(datanet: DatanetRow, build: Build, erase: boolean): Promise<VersionRow> {
    const removed: number[] = [];
    const pieces = new Pieces(limits.versionRowsAtOnce);
    for (let done = false; !done; ) {
      await pieces.next(async (most) => {
        const page = await removedSeqs(this.#client, datanet.id, build.number, removed.at(-1) ?? 0, most);
        removed.push(...page);
        done = page.length < most;
      });
    }
    if (erase) {
      await this.#erase(datanet.seq, removed);
      await this.#client.execute(ASK_CLEANING);
    }
    await this.onWithdrawn(datanet, build, removed);
    return this.#builds.finish(build, removed.length, () => Promise.resolve());
  }
}
