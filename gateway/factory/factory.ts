/** What the routes of files and fine-tuning work with; made once in createApp. */
import type { Client } from '@libsql/client';
import type { NoteVerifier } from '../../daemon/evidence.ts';
import { costMicrosOf } from '../../daemon/protocol.ts';
import type { BudgetLedger } from '../auth/budget.ts';
import type { KeyStore } from '../auth/key-store.ts';
import type { DaemonPool } from '../daemons/pool.ts';
import { Access } from '../datanets/access/access.ts';
import type { DatanetRow, VersionRow } from '../db/datanet-schema.ts';
import type { Database } from '../db/open.ts';
import type { JobRow } from '../db/schema.ts';
import { limits } from '../limits.ts';
import type { Log } from '../services.ts';
import { FileRows } from './files/file-rows.ts';
import type { FileStorage } from './files/storage.ts';
import { EventStreams } from './jobs/event-streams.ts';
import { JobRows } from './jobs/job-rows.ts';
import { JobRunner } from './jobs/runner.ts';
import { DatanetFiles } from './mixtures/datanet-file.ts';
import { TrainingRights } from './mixtures/rights.ts';
import { JobSources } from './mixtures/source-rows.ts';
import { filesOf } from './mixtures/sources.ts';
import { ModelOwners } from './owners.ts';
import { Turns } from './turns.ts';

export interface FactoryDeps {
  db: Database;
  storage: FileStorage;
  /** That the versions of Datanets are signed with. */
  datanetKey: NoteVerifier;
  pool: DaemonPool;
  keys: KeyStore;
  ledger: BudgetLedger;
  log: Log;
  now: () => number;
  /** Micro-units for a million trained tokens, in this currency. */
  trainingMicrosPerMillion: number;
  currency: string;
  /** Stands in the names of fine-tuned models. */
  organization: string;
  /** How long a gateway may be silent until another moves its jobs, and how often it says that it lives. Tests shorten it. */
  lease?: { ms: number; renewMs: number };
}

export class Factory {
  readonly storage: FileStorage;
  readonly datanetKey: NoteVerifier;
  readonly files: FileRows;
  readonly jobs: JobRows;
  readonly owners: ModelOwners;
  /** Where callers stand towards Datanets. */
  readonly access: Access;
  /** Versions of Datanets as files. */
  readonly datanetFiles: DatanetFiles;
  readonly rights: TrainingRights;
  /** What jobs were made of. */
  readonly sources: JobSources;
  /** For reading rows of Datanets. */
  readonly client: Client;
  readonly runner: JobRunner;
  /** For reading whole files: hundreds of megabytes for many at once would starve the requests of this process. */
  readonly turns = new Turns(limits.validationsAtOnce);
  readonly pool: DaemonPool;
  readonly log: Log;
  readonly now: () => number;
  readonly currency: string;
  readonly organization: string;
  readonly eventStreams = new EventStreams();
  readonly #deps: FactoryDeps;
  #sweeper: ReturnType<typeof setInterval> | undefined;
  #asker: ReturnType<typeof setInterval> | undefined;

  constructor(deps: FactoryDeps) {
    this.#deps = deps;
    this.storage = deps.storage;
    this.datanetKey = deps.datanetKey;
    this.pool = deps.pool;
    this.log = deps.log;
    this.now = deps.now;
    this.currency = deps.currency;
    this.organization = deps.organization;
    this.files = new FileRows(deps.db, deps.now);
    this.jobs = new JobRows(deps.db, deps.now);
    this.owners = new ModelOwners(this.jobs);
    this.client = deps.db.$client;
    this.access = new Access(deps.db, deps.now);
    this.datanetFiles = new DatanetFiles(deps.db, this.access);
    this.rights = new TrainingRights(deps.db, this.access, this.datanetFiles);
    this.sources = new JobSources(deps.db, deps.now);
    this.runner = new JobRunner(this, deps.lease ?? { ms: limits.jobLeaseMs, renewMs: limits.jobLeaseRenewMs });
  }

  /** Goes on with what a process before this one left. `exclusive`: no other gateway shares the database, so what it does not know is nobody's. */
  async start(options: { exclusive: boolean }): Promise<void> {
    if (options.exclusive) {
      await this.storage
        .sweep((ids) => this.files.known(ids))
        .catch((error: unknown) => {
          this.log.error({ err: error }, 'the sweep of the files folder failed');
        });
    }
    await this.runner.start(options);
    this.#sweeper = setInterval(() => void this.removeExpired(), limits.sweepEveryMs);
    this.#sweeper.unref?.();
    this.#asker = setInterval(() => void this.askAgain({}), limits.trainingRightsEveryMs);
    this.#asker.unref?.();
  }

  async stop(): Promise<void> {
    clearInterval(this.#sweeper);
    clearInterval(this.#asker);
    await this.runner.stop();
  }

  async removeExpired(): Promise<void> {
    try {
      for (const id of await this.files.expired()) {
        await this.files.remove(id);
        await this.storage.remove(id);
      }
    } catch (error) {
      this.log.error({ err: error }, 'expired files could not be removed');
    }
  }

  /**
   * Looks at jobs that wait for their turn: those that may not train any more fail now instead of when it comes. Called when access, a
   * Datanet or a user changes, and every now and then, since grants expire by themselves.
   */
  async askAgain(about: { datanetId?: string; owner?: string }): Promise<void> {
    try {
      for (const job of await this.jobs.queued(about)) {
        if ((await this.rights.ofJob(job, filesOf(job))) !== null) this.runner.drive(job.id);
      }
    } catch (error) {
      // Each is asked again before it begins.
      this.log.error({ err: error }, 'jobs that wait could not be asked whether they may still train');
    }
  }

  /** Rows leave a Datanet with this version: adapters are marked, and what waits to train on them does not begin. May be told twice. */
  async rowsWithdrawn(
    datanet: Pick<DatanetRow, 'id'>,
    version: Pick<VersionRow, 'number' | 'createdAt'>,
    rows: number[],
  ): Promise<void> {
    await this.sources.withdrawn(datanet, version, rows);
    await this.askAgain({ datanetId: datanet.id });
  }

  trainingCost(tokens: number): number {
    const rate = {
      inputMicrosPerMillion: this.#deps.trainingMicrosPerMillion,
      outputMicrosPerMillion: 0,
      currency: this.currency,
    };
    return costMicrosOf(rate, tokens, 0);
  }

  /** What a key may still spend, by its own budget and its user's; null: neither has one. */
  async budgetLeft(keyId: string): Promise<number | null> {
    return this.#deps.keys.budgetLeft(keyId);
  }

  /** What was computed is paid, once, whatever is left of the budget by now. */
  async charge(job: JobRow, trainedTokens: number): Promise<void> {
    const costMicros = this.trainingCost(trainedTokens);
    await this.#deps.ledger.charge(job.id, job.keyId, {
      costMicros,
      model: job.model,
      usage: { promptTokens: trainedTokens, cachedTokens: 0, completionTokens: 0 },
    });
  }
}
