/** What the routes of Datanets work with; made once in createApp. */
import type { LogKey } from '../../daemon/evidence.ts';
import type { Database } from '../db/open.ts';
import type { FileStorage } from '../factory/files/storage.ts';
import { randomId } from '../http/ids.ts';
import type { Log, Services } from '../services.ts';
import { Access } from './access/access.ts';
import { ContributionRows } from './contributions/contribution-rows.ts';
import { type Ingester, inProcess } from './contributions/ingester.ts';
import { Leases } from './contributions/lease.ts';
import { Contributions } from './contributions/runner.ts';
import { DatanetRows } from './datanet-rows.ts';
import { Cleaner } from './erasures/cleaner.ts';
import { Reviews } from './review/review.ts';
import { DataRows } from './rows/data-rows.ts';
import { StatisticsCounter } from './rows/statistics.ts';
import { Search } from './search/search.ts';
import { Versions } from './versions/versions.ts';

/** What the runtime has to give. */
export interface DatanetDeps {
  /** Signs rows and checkpoints of versions. */
  key: LogKey;
  /** Uploads until they are read; a folder of their own. */
  storage: FileStorage;
  /** Where contributions are read; without one, in this process. */
  ingester?: Ingester;
  /** Bytes that one user may contribute in any 24 hours. */
  bytesPerDay?: number;
}

export class Datanets {
  readonly db: Database;
  readonly key: LogKey;
  readonly storage: FileStorage;
  readonly log: Log;
  readonly now: () => number;
  readonly records: DatanetRows;
  readonly rows: DataRows;
  readonly access: Access;
  readonly versions: Versions;
  readonly reviews: Reviews;
  readonly search: Search;
  readonly statistics: StatisticsCounter;
  readonly contributions: Contributions;
  readonly ingester: Ingester;
  readonly cleaner: Cleaner;

  /** @param services for generating questions; not used before requests are served. */
  constructor(
    deps: DatanetDeps & { db: Database; exclusive: boolean; log: Log; now: () => number },
    services: () => Services,
  ) {
    const { db, key, log, now, exclusive } = deps;
    this.db = db;
    this.key = key;
    this.storage = deps.storage;
    this.log = log;
    this.now = now;
    this.records = new DatanetRows(db, now);
    this.rows = new DataRows(db);
    this.access = new Access(db, now);
    this.ingester = deps.ingester ?? inProcess(db.$client);
    const erase = (datanetSeq: number, rows: number[]) => this.ingester.erase({ datanetSeq, rows });
    this.versions = new Versions({ db, key, log, now, exclusive, erase });
    this.cleaner = new Cleaner(db.$client, this.ingester, log);
    this.reviews = new Reviews(db.$client, now);
    this.search = new Search(db.$client);
    this.statistics = new StatisticsCounter(db.$client);
    this.contributions = new Contributions(
      {
        rows: new ContributionRows(db, now),
        records: this.records,
        storage: deps.storage,
        ingester: this.ingester,
        key,
        log,
        now,
        bytesPerDay: deps.bytesPerDay ?? null,
        leases: exclusive ? null : new Leases(db.$client, randomId()),
      },
      services,
    );
  }

  /** Goes on with what a process before this one left half done. `exclusive`: no other gateway shares the database. */
  async start(options: { exclusive: boolean }): Promise<void> {
    await this.versions.recover();
    await this.contributions.start(options);
    this.cleaner.start();
  }

  /** Contributions that are being read stop where they are; the next process begins them again. */
  async stop(): Promise<void> {
    this.cleaner.stop();
    await this.contributions.stop();
    await this.ingester.close();
  }
}
