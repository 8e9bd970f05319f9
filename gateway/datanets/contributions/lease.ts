/**
 * Of one Datanet one gateway at a time reads contributions, also where several share a database: rows that nearly repeat each other are found
 * only if one is stored when the other is compared. A lease that is not renewed ends by itself, so a gateway that dies holds nobody up for long.
 * Times are by the database's clock.
 */
import type { Client } from '@libsql/client';
import { NOW_MS } from '../../db/clock.ts';
import { limits } from '../../limits.ts';
import { checkStop } from './messages.ts';

export class Leases {
  readonly #client: Client;
  readonly #holder: string;

  /** @param holder this gateway, told from all others. */
  constructor(client: Client, holder: string) {
    this.#client = client;
    this.#holder = holder;
  }

  /**
   * Waits for the lease and holds it while `work` goes on; `signal` of the work is aborted too when the lease was lost: this process was not
   * heard of for so long that another took it. @throws IngestStopped after the signal
   */
  async hold<T>(datanetId: string, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    while (!(await this.#take(datanetId))) {
      checkStop(signal);
      await pause(limits.readingLeaseMs / 20);
    }
    const lost = new AbortController();
    const timer = setInterval(() => {
      this.#take(datanetId).then(
        (mine) => {
          if (!mine) lost.abort();
        },
        // The database does not answer: the next time it may.
        () => {},
      );
    }, limits.readingLeaseMs / 4);
    try {
      return await work(AbortSignal.any([signal, lost.signal]));
    } finally {
      clearInterval(timer);
      await this.#client
        .execute({
          sql: 'DELETE FROM datanet_readings WHERE datanet_id = ? AND holder = ?',
          args: [datanetId, this.#holder],
        })
        // It ends by itself.
        .catch(() => {});
    }
  }

  /** Takes or renews it. */
  async #take(datanetId: string): Promise<boolean> {
    const { rowsAffected } = await this.#client.execute({
      sql: `INSERT INTO datanet_readings (datanet_id, holder, until) VALUES (?, ?, ${NOW_MS} + ?)
        ON CONFLICT (datanet_id) DO UPDATE SET holder = excluded.holder, until = excluded.until
        WHERE holder = excluded.holder OR until < ${NOW_MS}`,
      args: [datanetId, this.#holder, limits.readingLeaseMs],
    });
    return rowsAffected > 0;
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
