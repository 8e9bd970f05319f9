/**
 * Two-phase spending, in integer micro-units: reserve the most a request can cost, then post what it did cost, or void.
 * Each step is one statement, so one transaction: the condition stands in the INSERT itself, and triggers carry every change of a reservation
 * into the sums of the key and of its user and the day's usage. Concurrent requests (and gateways) cannot overspend together, nor can the sums drift.
 * A reservation is open → posted | void | expired. Posting is idempotent by request id, and a cost that arrives after the reservation
 * expired is still posted: what was computed is always paid.
 */
import type { Client } from '@libsql/client';
import type { Usage } from '../../daemon/protocol.ts';
import { limits } from '../limits.ts';

export interface LostReservation {
  requestId: string;
  overdue: boolean;
}

export interface Cost {
  costMicros: number;
  usage: Usage;
  model: string;
}

export class BudgetLedger {
  readonly #client: Client;
  readonly #now: () => number;

  constructor(client: Client, now: () => number) {
    this.#client = client;
    this.#now = now;
  }

  /** False if the key's budget or its user's has no room for the amount, the key is revoked or its user may not act. */
  async reserve(requestId: string, keyId: string, amountMicros: number): Promise<boolean> {
    const now = this.#now();
    const inserted = await this.#client.execute({
      sql: `INSERT INTO reservations (request_id, key_id, amount_micros, state, created_at, deadline_at)
            SELECT ?1, k.id, ?3, 'open', ?4, ?5 FROM keys k LEFT JOIN users u ON u.id = k.user_id
            WHERE k.id = ?2 AND k.revoked_at IS NULL
              AND (k.budget_micros IS NULL OR k.spent_micros + k.reserved_micros + ?3 <= k.budget_micros)
              AND (k.user_id IS NULL OR u.state = 'active'
                AND (u.budget_micros IS NULL OR u.spent_micros + u.reserved_micros + ?3 <= u.budget_micros))`,
      args: [requestId, keyId, amountMicros, now, now + limits.reservationDeadlineMs],
    });
    return inserted.rowsAffected > 0;
  }

  /** Turns the reservation into spending. Repeating it changes nothing. */
  async post(requestId: string, cost: Cost): Promise<void> {
    await this.#client.execute({
      sql: `UPDATE reservations SET state = 'posted', posted_micros = ?2, model = ?3, prompt_tokens = ?4, completion_tokens = ?5, settled_at = ?6
            WHERE request_id = ?1 AND state IN ('open', 'expired')`,
      args: [requestId, cost.costMicros, cost.model, cost.usage.promptTokens, cost.usage.completionTokens, this.#now()],
    });
  }

  /** Spends without having reserved, for what was computed already. Repeating it changes nothing. */
  async charge(requestId: string, keyId: string, cost: Cost): Promise<void> {
    const now = this.#now();
    await this.#client.execute({
      sql: `INSERT INTO reservations (request_id, key_id, amount_micros, state, created_at, deadline_at) VALUES (?1, ?2, ?3, 'open', ?4, ?5)
            ON CONFLICT (request_id) DO NOTHING`,
      args: [requestId, keyId, cost.costMicros, now, now + limits.reservationDeadlineMs],
    });
    await this.post(requestId, cost);
  }

  /** Gives the reservation back: nothing was computed. */
  async void(requestId: string): Promise<void> {
    await this.#close(requestId, 'void');
  }

  /** Gives it back because its request is lost; a cost that turns up later is still posted. */
  async expire(requestId: string): Promise<void> {
    await this.#close(requestId, 'expired');
  }

  async #close(requestId: string, state: 'void' | 'expired'): Promise<void> {
    await this.#client.execute({
      sql: `UPDATE reservations SET state = ?2, settled_at = ?3 WHERE request_id = ?1 AND state = 'open'`,
      args: [requestId, state, this.#now()],
    });
  }

  /** Open reservations past their deadline, or made before `createdBefore` (by a process that is no more). */
  async lost(createdBefore: number): Promise<LostReservation[]> {
    const now = this.#now();
    const result = await this.#client.execute({
      sql: `SELECT request_id, deadline_at FROM reservations WHERE state = 'open' AND (deadline_at <= ?1 OR created_at < ?2)
            ORDER BY deadline_at LIMIT ?3`,
      args: [now, createdBefore, limits.sweepRowsMax],
    });
    return result.rows.map((row) => ({ requestId: String(row.request_id), overdue: Number(row.deadline_at) <= now }));
  }

  /** Deletes reservations settled long ago. */
  async prune(): Promise<void> {
    await this.#client.execute({
      sql: `DELETE FROM reservations WHERE request_id IN (SELECT request_id FROM reservations WHERE settled_at < ?1 LIMIT ?2)`,
      args: [this.#now() - limits.reservationKeptMs, limits.sweepRowsMax],
    });
  }
}
