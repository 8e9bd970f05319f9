/**
 * Two-phase spending, in integer micro-units: reserve the most a request can cost, then post what it did cost, or void.
 * One batch is one transaction; the condition stands in the UPDATE itself, so concurrent requests (and gateways) cannot overspend together.
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

  /** False if the key's budget has no room for the amount. */
  async reserve(requestId: string, keyId: string, amountMicros: number): Promise<boolean> {
    const now = this.#now();
    const [, inserted] = await this.#client.batch(
      [
        {
          sql: `UPDATE keys SET reserved_micros = reserved_micros + ?2
                WHERE id = ?1 AND revoked_at IS NULL AND (budget_micros IS NULL OR spent_micros + reserved_micros + ?2 <= budget_micros)`,
          args: [keyId, amountMicros],
        },
        {
          sql: `INSERT INTO reservations (request_id, key_id, amount_micros, state, created_at, deadline_at)
                SELECT ?1, ?2, ?3, 'open', ?4, ?5 WHERE changes() = 1`,
          args: [requestId, keyId, amountMicros, now, now + limits.reservationDeadlineMs],
        },
      ],
      'write',
    );
    return inserted?.rowsAffected === 1;
  }

  /** Turns the reservation into spending. Repeating it changes nothing. */
  async post(requestId: string, cost: Cost): Promise<void> {
    const now = this.#now();
    await this.#client.batch(
      [
        {
          sql: `INSERT INTO usage_daily (key_id, day, model, requests, prompt_tokens, completion_tokens, cost_micros)
                SELECT key_id, ?2, ?3, 1, ?4, ?5, ?6 FROM reservations WHERE request_id = ?1 AND state IN ('open', 'expired')
                ON CONFLICT (key_id, day, model) DO UPDATE SET requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                  completion_tokens = completion_tokens + excluded.completion_tokens, cost_micros = cost_micros + excluded.cost_micros`,
          args: [
            requestId,
            new Date(now).toISOString().slice(0, 10),
            cost.model,
            cost.usage.promptTokens,
            cost.usage.completionTokens,
            cost.costMicros,
          ],
        },
        {
          sql: `UPDATE keys SET spent_micros = spent_micros + ?2,
                  reserved_micros = reserved_micros - r.amount_micros * (r.state = 'open')
                FROM (SELECT key_id, amount_micros, state FROM reservations WHERE request_id = ?1 AND state IN ('open', 'expired')) AS r
                WHERE keys.id = r.key_id`,
          args: [requestId, cost.costMicros],
        },
        {
          sql: `UPDATE reservations SET state = 'posted', posted_micros = ?2, settled_at = ?3
                WHERE request_id = ?1 AND state IN ('open', 'expired')`,
          args: [requestId, cost.costMicros, now],
        },
      ],
      'write',
    );
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
    await this.#client.batch(
      [
        {
          sql: `UPDATE keys SET reserved_micros = reserved_micros - r.amount_micros
                FROM (SELECT key_id, amount_micros FROM reservations WHERE request_id = ?1 AND state = 'open') AS r WHERE keys.id = r.key_id`,
          args: [requestId],
        },
        {
          sql: `UPDATE reservations SET state = ?2, settled_at = ?3 WHERE request_id = ?1 AND state = 'open'`,
          args: [requestId, state, this.#now()],
        },
      ],
      'write',
    );
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
