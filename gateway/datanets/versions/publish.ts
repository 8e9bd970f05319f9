/** Versions of Datanets. (Skeleton; the real thing follows.) */
import type { Client } from '@libsql/client';
import type { LogKey } from '../../../daemon/evidence.ts';
import type { DataRow, DatanetRow, VersionRow } from '../../db/datanet-schema.ts';
import type { Log } from '../../services.ts';

export interface VersionsDeps {
  client: Client;
  /** Signs checkpoints; the Datanet key of this gateway. */
  key: LogKey;
  log: Log;
  now: () => number;
  /** No other gateway shares the database: a version under way that this process does not build is nobody's. */
  exclusive: boolean;
}

/** What GET …/proof answers and `modelfactory verify` checks. */
export interface RowProof {
  type: 'modelfactory.datanet-row-proof/1';
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
  readonly #deps: VersionsDeps;

  constructor(deps: VersionsDeps) {
    this.#deps = deps;
  }

  /** At the start, before requests are served: finishes or undoes versions that a process before this one left half made. */
  async recover(): Promise<void> {
    void this.#deps;
  }

  /** Puts all approved rows that are in no version yet into a new one. @throws ApiError 409 */
  async publish(datanet: DatanetRow, by: string, notes: string): Promise<VersionRow> {
    throw new Error(`not built: ${datanet.id} ${by} ${notes}`);
  }

  /** Takes rows (`seq`) out. null: none of them was in a version, so that there is no new one. @throws ApiError 409 */
  async withdraw(
    datanet: DatanetRow,
    rows: number[],
    by: string,
    reason: string,
    options: { erase: boolean },
  ): Promise<VersionRow | null> {
    throw new Error(`not built: ${datanet.id} ${rows.length} ${by} ${reason} ${options.erase}`);
  }

  async get(datanetId: string, number: number): Promise<VersionRow | null> {
    throw new Error(`not built: ${datanetId} ${number}`);
  }

  async rows(datanetId: string, number: number, afterSeq: number, limit: number): Promise<DataRow[]> {
    throw new Error(`not built: ${datanetId} ${number} ${afterSeq} ${limit}`);
  }

  /** @param seq of a row; null: it is not in that version. */
  async proof(datanetId: string, number: number, seq: number, options: { content: boolean }): Promise<RowProof | null> {
    throw new Error(`not built: ${datanetId} ${number} ${seq} ${options.content}`);
  }
}
