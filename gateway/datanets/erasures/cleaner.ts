/** Has the database cleaned (clean.ts) some minutes after contents were taken away, also when the process ended in between. */
import type { Client } from '@libsql/client';
import { limits } from '../../limits.ts';
import type { Log } from '../../services.ts';
import type { Ingester } from '../contributions/ingester.ts';
import { truncateLog } from './clean.ts';

export class Cleaner {
  readonly #client: Client;
  readonly #ingester: Pick<Ingester, 'clean'>;
  readonly #log: Log;
  #timer: NodeJS.Timeout | null = null;
  #underWay: Promise<void> = Promise.resolve();
  #stopping = false;

  constructor(client: Client, ingester: Pick<Ingester, 'clean'>, log: Log) {
    this.#client = client;
    this.#ingester = ingester;
    this.#log = log;
  }

  start(): void {
    this.#timer = setInterval(() => {
      this.clean().catch((error: unknown) => {
        if (!this.#stopping)
          this.#log.error({ err: error }, 'what was erased could not be cleaned up; it is tried again');
      });
    }, limits.cleanEveryMs);
    this.#timer.unref();
  }

  stop(): void {
    this.#stopping = true;
    if (this.#timer !== null) clearInterval(this.#timer);
  }

  /** One after the other. Resolves when nothing that was erased by now is left, or the rest waits for the next time: a log that is being read. */
  clean(): Promise<void> {
    const mine = this.#underWay.then(() => this.#clean());
    this.#underWay = mine.catch(() => {});
    return mine;
  }

  async #clean(): Promise<void> {
    const { rows } = await this.#client.execute('SELECT asked FROM erasures WHERE asked > done');
    const asked = rows[0]?.asked;
    if (asked === undefined) return;
    await this.#ingester.clean();
    if (!(await truncateLog(this.#client))) return;
    await this.#client.execute({ sql: 'UPDATE erasures SET done = max(done, ?)', args: [Number(asked)] });
  }
}
