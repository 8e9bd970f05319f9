/** SSE streams of events that are open, in this process: each holds a connection and looks at the database again and again. */
import { ApiError } from '../../errors.ts';
import { limits } from '../../limits.ts';

export class EventStreams {
  readonly #openOf = new Map<string, number>();
  #open = 0;

  /** @returns ends it; only the first call counts. @throws ApiError 429 for an owner with too many, 503 where all have too many */
  open(owner: string): () => void {
    const own = this.#openOf.get(owner) ?? 0;
    if (own >= limits.eventStreamsPerOwnerMax) {
      const message = `You have ${own} event streams open, the most there may be. Close some, or poll the events instead.`;
      throw new ApiError(429, 'rate_limit_error', 'event_stream_limit_exceeded', message, { headers: later() });
    }
    if (this.#open >= limits.eventStreamsMax) {
      const message = 'Too many event streams are open; poll the events instead.';
      throw new ApiError(503, 'server_error', 'overloaded', message, { headers: later() });
    }
    this.#openOf.set(owner, own + 1);
    this.#open += 1;
    let ended = false;
    return () => {
      if (ended) return;
      ended = true;
      this.#open -= 1;
      const left = (this.#openOf.get(owner) ?? 1) - 1;
      if (left === 0) this.#openOf.delete(owner);
      else this.#openOf.set(owner, left);
    };
  }
}

function later(): Record<string, string> {
  return { 'retry-after': String(limits.retryAfterSeconds) };
}
