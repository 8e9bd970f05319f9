/**
 * Settles what a request cost when its answer cannot tell any more: the client hung up, the daemon died, or this process did.
 * The daemon's receipt log knows: a receipt is posted, its lasting absence voids the reservation.
 */
import type { BudgetLedger } from '../auth/budget.ts';
import type { DaemonClient } from '../daemons/client.ts';
import type { DaemonPool } from '../daemons/pool.ts';
import { limits } from '../limits.ts';
import type { Log } from '../services.ts';

export class Settler {
  readonly #ledger: BudgetLedger;
  readonly #pool: DaemonPool;
  readonly #log: Log;
  readonly #absencesMax: number;
  readonly #running = new Set<Promise<void>>();

  constructor(ledger: BudgetLedger, pool: DaemonPool, log: Log, absencesMax: number) {
    this.#ledger = ledger;
    this.#pool = pool;
    this.#log = log;
    this.#absencesMax = absencesMax;
  }

  /** In the background; never throws. */
  settle(requestId: string, model: string, client: DaemonClient): void {
    const task = this.#settle(requestId, model, client)
      .catch((error) =>
        this.#log.error({ requestId, err: error }, 'a reservation could not be settled; the sweep will try again'),
      )
      .finally(() => this.#running.delete(task));
    this.#running.add(task);
  }

  /** Resolves when nothing is being settled. */
  async idle(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  async #settle(requestId: string, model: string, client: DaemonClient): Promise<void> {
    let pollMs: number = limits.settlementPollMs;
    let absences = 0;
    for (let poll = 0; poll < limits.settlementPollsMax; poll++) {
      try {
        const settlement = await client.settlement(requestId);
        if (settlement !== null && settlement !== 'under_way') {
          await this.#ledger.post(requestId, { ...settlement, model });
          this.#log.info(
            { requestId, model, costMicros: settlement.costMicros, ...settlement.usage },
            'settled from the receipt log',
          );
          return;
        }
        // Still being computed, or waiting for its receipt: however long that takes, it will be charged.
        absences = settlement === null ? absences + 1 : 0;
        if (absences >= this.#absencesMax) {
          await this.#ledger.void(requestId);
          return;
        }
      } catch (error) {
        // Unreachable: restarting, most likely. What it says before that does not count.
        absences = 0;
        if (poll === 0) this.#log.warn({ requestId, err: error }, 'the daemon cannot say yet what a request cost');
      }
      await new Promise((resolve) => setTimeout(resolve, pollMs));
      pollMs = Math.min(pollMs * 1.3, limits.settlementPollMsMax);
    }
    this.#log.warn({ requestId }, 'no daemon could say what a request cost; its reservation waits for the sweep');
  }

  /**
   * Settles reservations whose requests are lost. Those made before `createdBefore` belong to a dead process (0 = unknown, other gateways
   * may live); they wait for their daemon, at most until their deadline. What no daemon knows is expired, not voided: a cost that turns up
   * later is still posted.
   * @returns how many are still waiting for a daemon.
   */
  async sweep(createdBefore: number): Promise<number> {
    let waiting = 0;
    for (const { requestId, overdue } of await this.#ledger.lost(createdBefore)) {
      const outcome = await this.#recover(requestId);
      if (outcome === 'unreachable' && !overdue) waiting += 1;
      else if (outcome !== 'posted') await this.#ledger.expire(requestId);
    }
    await this.#ledger.prune();
    return waiting;
  }

  async #recover(requestId: string): Promise<'posted' | 'absent' | 'unreachable'> {
    let outcome: 'absent' | 'unreachable' = 'absent';
    for (const client of this.#pool.clients) {
      try {
        const settlement = await client.settlement(requestId);
        if (settlement === null) continue;
        if (settlement === 'under_way') return 'unreachable';
        await this.#ledger.post(requestId, { ...settlement, model: '(recovered)' });
        return 'posted';
      } catch {
        outcome = 'unreachable';
      }
    }
    return outcome;
  }
}
