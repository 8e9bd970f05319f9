/**
 * The versions of Datanets, as everybody else works with them. Published ones never change; a new one is made by publishing
 * (publication.ts) or by withdrawing (withdrawal.ts), and whatever a crash leaves half made is finished or undone (recovery.ts).
 */
import type { Client } from '@libsql/client';
import { and, desc, eq, lt } from 'drizzle-orm';
import type { LogKey } from '../../../daemon/evidence.ts';
import { type DatanetRow, type DataRow, datanetVersions, type VersionRow } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import { Builds, type VersionsDeps } from './build.ts';
import { Proofs, type RowProof } from './proofs.ts';
import { Publication } from './publication.ts';
import { Recovery } from './recovery.ts';
import {
  contentPages,
  countDifference,
  type Difference,
  differingRows,
  type Named,
  namedRows,
  type OwnRows,
  rowsOf,
} from './version-rows.ts';
import { type OnWithdrawn, Withdrawal } from './withdrawal.ts';

const allowed = () => Promise.resolve();

export class Versions {
  readonly key: LogKey;
  readonly #db: Database;
  readonly #client: Client;
  readonly #builds: Builds;
  readonly #recovery: Recovery;
  readonly #publication: Publication;
  readonly #withdrawal: Withdrawal;
  readonly #proofs: Proofs;

  constructor(deps: VersionsDeps) {
    this.key = deps.key;
    this.#db = deps.db;
    this.#client = deps.db.$client;
    this.#builds = new Builds(deps);
    this.#recovery = new Recovery(deps, this.#builds);
    this.#publication = new Publication(this.#client, this.#builds, this.#recovery);
    this.#withdrawal = new Withdrawal(this.#client, this.#builds, this.#recovery, deps);
    this.#proofs = new Proofs(deps);
    this.#builds.clear = (build) => this.#recovery.clear(build);
    this.#builds.onTree = (build, tree) => this.#proofs.keep(build, tree);
    this.#recovery.finishWithdrawal = (...left) => this.#withdrawal.finish(...left);
  }

  /**
   * Called with the rows (`seq`) that a withdrawal takes out, before anybody sees the new version. Called again after a crash, so it must
   * take being called twice for the same version (whose `number` and `createdAt` are the same both times).
   */
  set onWithdrawn(listener: OnWithdrawn) {
    this.#withdrawal.onWithdrawn = listener;
  }

  /** At the start, before requests are served: finishes or undoes versions that a process before this one left half made. */
  recover(): Promise<void> {
    return this.#recovery.recover();
  }

  /**
   * Puts all approved rows that are in no version yet into a new one.
   * @param ask throws if whoever wanted it may not do it any more; asked right before anybody sees the version. @throws ApiError 409
   */
  publish(datanet: DatanetRow, by: string, notes: string, ask: () => Promise<void> = allowed): Promise<VersionRow> {
    return this.#publication.publish(datanet, by, notes, ask);
  }

  /**
   * Takes rows (`seq`) out. Those in no version are withdrawn at once; for the others there is a new version. Rows that are out already, or
   * of another Datanet, are passed over. @param options.erase their contents go, from all versions. null: no row was in a version.
   * @param options.ask throws if whoever wanted it may not do it any more; asked before anything is done that is not undone.
   * @throws ApiError 409 when another version stays under way.
   */
  withdraw(
    datanet: DatanetRow,
    rows: readonly number[],
    by: string,
    reason: string,
    options: { erase: boolean; ask?: () => Promise<void> },
  ): Promise<VersionRow | null> {
    return this.#withdrawal.withdraw(datanet, rows, by, reason, { ask: allowed, ...options });
  }

  /** A published version. */
  async get(datanetId: string, number: number): Promise<VersionRow | null> {
    const version = await this.#builds.find(datanetId, number);
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
  contributorsOf(datanetId: string, named: Named): Promise<OwnRows[]> {
    return namedRows(this.#client, datanetId, named);
  }

  /** Rows of a version in their order, behind `afterSeq`. */
  rows(datanetId: string, number: number, afterSeq: number, limit: number): Promise<DataRow[]> {
    return rowsOf(this.#db, datanetId, number, afterSeq, limit);
  }

  /** @param seq of a row; null: there is no such version, or the row is not in it. */
  async proof(datanetId: string, number: number, seq: number, options: { content: boolean }): Promise<RowProof | null> {
    const version = await this.get(datanetId, number);
    return version === null ? null : this.#proofs.of(version, seq, options);
  }
}
