/** The training part of the protocol, spoken to one daemon. */
import type {
  Dataset,
  Estimate,
  EstimateRequest,
  RunRequestInput,
  TrainingEvent,
  TrainingRun,
} from '../../daemon/protocol.ts';
import { ApiError, engineFailed } from '../errors.ts';
import { limits } from '../limits.ts';
import type { DaemonClient } from './client.ts';
import { NdjsonParser } from './ndjson.ts';

export class TrainingClient {
  readonly daemon: DaemonClient;

  constructor(daemon: DaemonClient) {
    this.daemon = daemon;
  }

  async #json<T>(method: string, path: string, body: object | undefined, signal: AbortSignal): Promise<T> {
    const response = await this.daemon.send(method, path, {
      signal: AbortSignal.any([signal, AbortSignal.timeout(limits.daemonTimeoutMs)]),
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
    });
    try {
      return (await response.json()) as T;
    } catch (cause) {
      throw engineFailed(cause);
    }
  }

  /** Streams NDJSON of examples; the daemon tokenises them all before it answers. */
  async dataset(examples: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<Dataset> {
    const chunks = examples[Symbol.asyncIterator]();
    const body = new ReadableStream<Uint8Array>({
      async pull(controller) {
        const { done, value } = await chunks.next();
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: async () => void (await chunks.return?.(undefined)),
    });
    const response = await this.daemon.send('POST', '/datasets', {
      body,
      duplex: 'half',
      headers: { 'content-type': 'application/x-ndjson' },
      signal: AbortSignal.any([signal, AbortSignal.timeout(limits.datasetUploadMs)]),
    } as RequestInit);
    try {
      return (await response.json()) as Dataset;
    } catch (cause) {
      throw engineFailed(cause);
    }
  }

  estimate(request: EstimateRequest, signal: AbortSignal): Promise<Estimate> {
    return this.#json('POST', '/training/estimate', request, signal);
  }

  /** The same id with the same request is the same run. */
  putRun(id: string, request: RunRequestInput, signal: AbortSignal): Promise<TrainingRun> {
    return this.#json('PUT', `/training/runs/${id}`, request, signal);
  }

  run(id: string, signal: AbortSignal): Promise<TrainingRun> {
    return this.#json('GET', `/training/runs/${id}`, undefined, signal);
  }

  async knows(id: string, signal: AbortSignal): Promise<boolean> {
    try {
      await this.run(id, signal);
      return true;
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return false;
      throw error;
    }
  }

  act(id: string, action: 'cancel' | 'pause' | 'resume', signal: AbortSignal): Promise<TrainingRun> {
    return this.#json('POST', `/training/runs/${id}/${action}`, {}, signal);
  }

  /** CSV, a row per optimiser step; null: the run is not known. */
  async results(id: string, signal: AbortSignal): Promise<ReadableStream<Uint8Array> | null> {
    try {
      const response = await this.daemon.send('GET', `/training/runs/${id}/results`, { signal });
      return response.body;
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return null;
      throw error;
    }
  }

  /** Events after `after`, as they come, until the run is over or the connection breaks. A daemon that falls silent is asked whether it lives. */
  async *events(id: string, after: number, signal: AbortSignal): AsyncGenerator<TrainingEvent[]> {
    const broken = new AbortController();
    let heardAt = Date.now();
    const probe = setInterval(() => {
      if (Date.now() - heardAt < limits.stallProbeMs) return;
      heardAt = Date.now();
      this.daemon.health().catch(() => broken.abort(new Error('the daemon does not answer')));
    }, limits.stallProbeMs / 2);
    let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
    try {
      const response = await this.daemon.send('GET', `/training/runs/${id}/events?after=${after}&follow=true`, {
        signal: AbortSignal.any([signal, broken.signal]),
      });
      reader = response.body?.getReader();
      const parser = new NdjsonParser<TrainingEvent>(limits.daemonLineBytesMax);
      while (reader !== undefined) {
        const { done, value } = await reader.read();
        if (done) return;
        heardAt = Date.now();
        const events = parser.push(value);
        if (events.length > 0) yield events;
      }
    } catch (cause) {
      signal.throwIfAborted();
      throw cause instanceof ApiError ? cause : engineFailed(cause);
    } finally {
      clearInterval(probe);
      reader?.cancel().catch(() => {});
    }
  }
}
