/**
 * Which gateway moves a job, where several share one database: whoever has its lease. A lease ends by itself when its holder does not say
 * again that it lives, and is free then. Times are the database's, so clocks of machines need not agree. All that a loop does may be done
 * twice, so a holder that lost its lease without noticing does no harm; leases keep several from doing everything.
 */
import type { Client } from '@libsql/client';
import { NOW_MS } from '../../db/clock.ts';
import { randomId } from '../../http/ids.ts';

const MINE = `(holder = :me OR until <= ${NOW_MS})`;

export class JobLeases {
  readonly #client: Client;
  readonly #ms: number;
  readonly #me = randomId();
  /** Calls of other gateways that were heard, by job that is held. */
  readonly #heard = new Map<string, number>();

  /** @param ms how long a lease lasts that is not renewed */
  constructor(client: Client, ms: number) {
    this.#client = client;
    this.#ms = ms;
  }

  /** Takes or renews the lease of a job. False: another gateway has it, and is called to look at the job again. */
  async hold(id: string): Promise<boolean> {
    const { rows } = await this.#client.execute({
      sql: `INSERT INTO fine_tuning_leases (job_id, holder, until) VALUES (:id, :me, ${NOW_MS} + :ms)
        ON CONFLICT (job_id) DO UPDATE SET calls = calls + iif(${MINE}, 0, 1), until = iif(${MINE}, excluded.until, until),
          holder = iif(${MINE}, :me, holder)
        RETURNING holder, calls`,
      args: { id, me: this.#me, ms: this.#ms },
    });
    const { holder, calls } = rows[0] as unknown as { holder: string; calls: number };
    if (holder !== this.#me) {
      this.#heard.delete(id);
      return false;
    }
    if (!this.#heard.has(id)) this.#heard.set(id, calls);
    return true;
  }

  /** Renews all. @returns jobs that another gateway has called for, or has taken: their rows are to be looked at */
  async renew(): Promise<string[]> {
    const { rows } = await this.#client.execute({
      sql: `UPDATE fine_tuning_leases SET until = ${NOW_MS} + :ms WHERE holder = :me RETURNING job_id AS id, calls`,
      args: { me: this.#me, ms: this.#ms },
    });
    const calls = new Map(rows.map((row) => [row.id as string, row.calls as number]));
    const changed: string[] = [];
    for (const [id, heard] of [...this.#heard]) {
      const now = calls.get(id);
      if (now === heard) continue;
      changed.push(id);
      if (now === undefined) this.#heard.delete(id);
      else this.#heard.set(id, now);
    }
    return changed;
  }

  /** Jobs that are not over and that nobody moves. */
  async free(): Promise<string[]> {
    const { rows } = await this.#client.execute({
      sql: `SELECT j.id FROM fine_tuning_jobs j
        WHERE j.status IN ('validating_files', 'queued', 'running', 'paused')
          AND NOT EXISTS (SELECT 1 FROM fine_tuning_leases l WHERE l.job_id = j.id AND l.until > ${NOW_MS}) ORDER BY j.seq`,
      args: [],
    });
    return rows.map((row) => row.id as string);
  }

  async release(id: string): Promise<void> {
    this.#heard.delete(id);
    await this.#client.execute({
      sql: 'DELETE FROM fine_tuning_leases WHERE job_id = ? AND holder = ?',
      args: [id, this.#me],
    });
  }

  /** Nobody else shares the database: what is left is of processes that ended. */
  async clear(): Promise<void> {
    await this.#client.execute('DELETE FROM fine_tuning_leases');
  }
}
