/**
 * Sees contributions through: uploaded → processing → ready or failed. What fails leaves no row behind; what a crash interrupts is cleaned and
 * read again at the next start. Of one Datanet one contribution is read at a time, so that two that bring nearly the same are compared.
 */
import { access } from 'node:fs/promises';
import type { LogKey } from '../../../daemon/evidence.ts';
import type { ContributionRow, DatanetRow } from '../../db/datanet-schema.ts';
import type { FileStorage } from '../../factory/files/storage.ts';
import { Turns } from '../../factory/turns.ts';
import { limits } from '../../limits.ts';
import type { Log, Services } from '../../services.ts';
import type { DatanetRows } from '../datanet-rows.ts';
import { type ContributionRows, fileIdOf, isBeingRemoved } from './contribution-rows.ts';
import type { Ingester } from './ingester.ts';
import type { Leases } from './lease.ts';
import { IngestFailure, type IngestResult, IngestStopped } from './messages.ts';
import { writeQuestions } from './questions.ts';
import { Receiving } from './receiving.ts';

export interface ContributionsDeps {
  rows: ContributionRows;
  records: DatanetRows;
  storage: FileStorage;
  ingester: Ingester;
  key: LogKey;
  log: Log;
  now: () => number;
  /** null: the default. */
  bytesPerDay: number | null;
  /** null: no other gateway reads into this database. */
  leases: Leases | null;
}

interface Drive {
  abort: AbortController;
  ended: Promise<void>;
}

export class Contributions {
  readonly rows: ContributionRows;
  readonly storage: FileStorage;
  readonly bytesPerDay: number;
  readonly receiving = new Receiving();
  readonly #deps: ContributionsDeps;
  readonly #services: () => Services;
  readonly #turns = new Turns(limits.ingestsAtOnce);
  /** By contribution. */
  readonly #drives = new Map<string, Drive>();
  /** By Datanet: what reads rows into it now. */
  readonly #busy = new Map<string, Promise<unknown>>();
  #stopping = false;

  constructor(deps: ContributionsDeps, services: () => Services) {
    this.#deps = deps;
    this.#services = services;
    this.rows = deps.rows;
    this.storage = deps.storage;
    this.bytesPerDay = deps.bytesPerDay ?? limits.contributionBytesPerDay;
  }

  /** Where gateways share a database, a contribution is whose folder has its file. */
  async start(options: { exclusive: boolean }): Promise<void> {
    const { rows, storage, log } = this.#deps;
    await storage
      .sweep((ids) => rows.known(ids))
      .catch((error: unknown) => log.error({ err: error }, 'the sweep of contributed files failed'));
    for (const { id } of await rows.underWay()) {
      if (options.exclusive || (await isThere(storage.path(fileIdOf(id))))) this.drive(id);
    }
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    const drives = [...this.#drives.values()];
    for (const drive of drives) drive.abort.abort();
    await Promise.all(drives.map(({ ended }) => ended));
  }

  /** In the background; never throws. */
  drive(id: string): void {
    if (this.#stopping || this.#drives.has(id)) return;
    const drive: Drive = { abort: new AbortController(), ended: Promise.resolve() };
    drive.ended = this.#see(id, drive)
      .catch((error: unknown) => {
        if (!drive.abort.signal.aborted)
          this.#deps.log.error({ contribution: id, err: error }, 'a contribution waits for the next start');
      })
      .finally(() => this.#drives.delete(id));
    this.#drives.set(id, drive);
  }

  /** Resolves when nothing is being read. */
  async idle(): Promise<void> {
    while (this.#drives.size > 0) await Promise.all([...this.#drives.values()].map(({ ended }) => ended));
  }

  /**
   * Takes a contribution back: its rows, its file and itself.
   * @returns false if a row of it is in a version, where it stays
   */
  async takeBack(row: ContributionRow): Promise<boolean> {
    if (!(await this.rows.beginRemoval(row.id))) return (await this.rows.get(row.id)) === null;
    const running = this.#drives.get(row.id);
    if (running !== undefined) {
      running.abort.abort();
      await running.ended;
    }
    this.drive(row.id);
    await this.#drives.get(row.id)?.ended;
    return (await this.rows.get(row.id)) === null;
  }

  async #see(id: string, drive: Drive): Promise<void> {
    const { rows, records, ingester } = this.#deps;
    const row = await rows.get(id);
    if (row === null || row.state !== 'processing') return;
    const datanet = await records.get(row.datanetId);
    if (datanet === null) throw new Error(`there is no Datanet ${row.datanetId}`);
    const clean = () => ingester.remove({ contributionId: id, datanetSeq: datanet.seq });
    if (isBeingRemoved(row)) {
      await this.#alone(datanet.id, drive, clean);
      await rows.endRemoval(id);
      await this.storage.remove(fileIdOf(id));
      return;
    }
    let outcome: Pick<ContributionRow, 'state' | 'rows' | 'refused' | 'problems' | 'error'>;
    try {
      const result = await this.#read(row, datanet, drive, clean);
      outcome = { state: 'ready', rows: result.rows, refused: result.refused, problems: result.problems, error: null };
    } catch (error) {
      if (drive.abort.signal.aborted) return;
      if (error instanceof IngestStopped) {
        // Taken back by another gateway; or this one's lease was lost, and it is read again from the beginning.
        const now = await rows.get(id);
        if (now !== null && now.state === 'processing' && !isBeingRemoved(now)) return await this.#see(id, drive);
        return;
      }
      const failure = error instanceof IngestFailure ? error : this.#defect(id, error);
      await this.#alone(datanet.id, drive, clean);
      const { code, message, problems } = failure;
      outcome = { state: 'failed', rows: 0, refused: problems.length, problems, error: { code, message } };
    }
    await rows.finish(id, outcome);
    await this.storage.remove(fileIdOf(id));
  }

  async #read(
    row: ContributionRow,
    datanet: DatanetRow,
    drive: Drive,
    clean: () => Promise<void>,
  ): Promise<IngestResult> {
    const { ingester, key, storage } = this.#deps;
    const path = storage.path(fileIdOf(row.id));
    const file = { type: 'file' as const, path, filename: row.filename, bytes: row.bytes };
    const { questions } = row.options;
    const source =
      questions === undefined ? file : await writeQuestions(this.#services(), this.#deps, row, drive.abort.signal);
    return this.#alone(datanet.id, drive, async (signal) => {
      // What a process before this one stored of it, or this one before its process died.
      await clean();
      const job = {
        datanet: { seq: datanet.seq, id: datanet.id, kind: datanet.kind, languages: datanet.languages },
        contribution: { id: row.id, contributor: row.contributor, licence: row.licence, createdAt: row.createdAt },
        source,
        options: row.options,
        privateKey: key.privateKey,
      };
      return ingester.ingest(job, signal);
    });
  }

  /** Waits until nothing else is read into the Datanet, here or by another gateway, then for a turn. */
  async #alone<T>(datanetId: string, drive: Drive, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { leases } = this.#deps;
    const { signal } = drive.abort;
    const before = this.#busy.get(datanetId) ?? Promise.resolve();
    const mine = before.then(() =>
      leases === null
        ? this.#turns.take(signal, () => work(signal))
        : leases.hold(datanetId, signal, (held) => this.#turns.take(held, () => work(held))),
    );
    const settled = mine.catch(() => {});
    this.#busy.set(datanetId, settled);
    try {
      return await mine;
    } finally {
      if (this.#busy.get(datanetId) === settled) this.#busy.delete(datanetId);
    }
  }

  #defect(id: string, error: unknown): IngestFailure {
    this.#deps.log.error({ contribution: id, err: error }, 'a contribution could not be read');
    const message =
      'The contribution could not be read: it needs more memory or time than one may have. Nothing of it was kept. Split it, or send it as .jsonl.';
    return new IngestFailure('processing_failed', message);
  }
}

function isThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
