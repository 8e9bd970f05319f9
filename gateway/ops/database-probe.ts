/** Whether the gateway's database can be written, for GET /health: a database on a full disk, or one that another program keeps locked, can still be read. */
import type { Client } from '@libsql/client';
import { limits } from '../limits.ts';

export class DatabaseProbe {
  readonly #client: Client;
  readonly #write: boolean;
  #running: Promise<void> | null = null;
  #last: { at: number; failure: unknown } | null = null;
  #count = 0;

  /** `write`: of a database that is a file here; of another only whether it answers. */
  constructor(client: Client, write: boolean) {
    this.#client = client;
    this.#write = write;
  }

  /** Anybody may ask, so the database is asked once in a while, and nobody waits for it long. @throws why it cannot be written */
  async check(): Promise<void> {
    if (this.#last !== null && performance.now() - this.#last.at < limits.healthProbeEveryMs) {
      if (this.#last.failure !== null) throw this.#last.failure;
      return;
    }
    this.#running ??= this.#probe().finally(() => {
      this.#running = null;
    });
    let timer: NodeJS.Timeout | undefined;
    const tooLong = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error('the database does not answer')), limits.healthProbeMs);
    });
    await Promise.race([this.#running, tooLong]).finally(() => clearTimeout(timer));
  }

  async #probe(): Promise<void> {
    let failure: unknown = null;
    try {
      this.#count = (this.#count + 1) % 1_000_000;
      // A number in the header of the file that nobody reads: the smallest write there is.
      await this.#client.execute(this.#write ? `PRAGMA user_version = ${this.#count}` : 'SELECT 1');
    } catch (error) {
      failure = error;
    }
    this.#last = { at: performance.now(), failure };
    if (failure !== null) throw failure;
  }
}
