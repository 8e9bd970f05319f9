/** The evaluation part of the protocol, spoken to one daemon. */
import type {
  EvaluationEvent,
  EvaluationRequestInput,
  GraderRunRequest,
  GraderRunResponse,
} from '../../daemon/protocol.ts';
import { engineFailed } from '../errors.ts';
import { limits } from '../limits.ts';
import type { DaemonClient } from './client.ts';
import { NdjsonParser } from './ndjson.ts';

export class EvaluationClient {
  readonly #daemon: DaemonClient;

  constructor(daemon: DaemonClient) {
    this.#daemon = daemon;
  }

  /** Events as they come; closing the connection, by `signal` or by not going on, cancels the evaluation. */
  async *evaluate(request: EvaluationRequestInput, signal: AbortSignal): AsyncGenerator<EvaluationEvent> {
    const response = await this.#daemon.send('POST', '/evaluations', {
      signal,
      body: JSON.stringify(request),
      headers: { 'content-type': 'application/json' },
    });
    if (response.body === null) throw engineFailed(new Error('the daemon answered without a body'));
    const reader = response.body.getReader();
    const parser = new NdjsonParser<EvaluationEvent>(limits.daemonLineBytesMax);
    try {
      for (;;) {
        const { done, value } = await reader.read().catch((cause: unknown) => {
          signal.throwIfAborted();
          throw engineFailed(cause);
        });
        if (done) return;
        yield* parser.push(value);
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  async grade(request: GraderRunRequest, signal: AbortSignal): Promise<GraderRunResponse> {
    const response = await this.#daemon.send('POST', '/graders/run', {
      signal: AbortSignal.any([signal, AbortSignal.timeout(limits.embedTimeoutMs)]),
      body: JSON.stringify(request),
      headers: { 'content-type': 'application/json' },
    });
    try {
      return (await response.json()) as GraderRunResponse;
    } catch (cause) {
      throw engineFailed(cause);
    }
  }
}
