/**
 * Long work over rows, in pieces that others wait little for: a local database answers without ever giving the thread up, so each piece is as
 * large as the last ones were fast, and between two pieces everybody else has a turn.
 */
import { performance } from 'node:perf_hooks';
import { limits } from '../limits.ts';

export class Pieces {
  /** Rows of the next piece. */
  rows: number;
  readonly #most: number;
  readonly #least: number;

  /** @param most rows of a piece, however fast they go. */
  constructor(
    most: number,
    { first, least }: { first: number; least: number } = { first: limits.pieceRowsFirst, least: limits.pieceRowsMin },
  ) {
    this.#most = most;
    this.#least = least;
    this.rows = Math.min(most, first);
  }

  /** Does one piece and lets others have the thread. @param work gets how many rows it may take. */
  async next<T>(work: (rows: number) => Promise<T>): Promise<T> {
    const startedAt = performance.now();
    const result = await work(this.rows);
    const change = limits.pieceMs / Math.max(0.1, performance.now() - startedAt);
    // One slow piece (a checkpoint, another process's turn) is no reason to crawl.
    const rows = Math.round(this.rows * Math.min(1.5, Math.max(0.5, change)));
    this.rows = Math.min(this.#most, Math.max(this.#least, rows));
    await pause();
    return result;
  }

  /** A list, piece by piece. */
  async over<T>(list: readonly T[], work: (piece: T[]) => Promise<unknown>): Promise<void> {
    for (let at = 0; at < list.length; ) {
      const piece = list.slice(at, at + this.rows);
      await this.next(() => work(piece));
      at += piece.length;
    }
  }
}

/** Others have their turn: their timers, and what came in for them. */
export function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
