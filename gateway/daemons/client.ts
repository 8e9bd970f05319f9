/**
 * One daemon, as the gateway sees it. Its address comes from the configuration alone, never from a request.
 * Answers are bounded in size and time; a refusal arrives as the ApiError it becomes for the client.
 */
import type {
  Adapter,
  BaseModel,
  DaemonErrorBody,
  DaemonHealth,
  DetokenizeResponse,
  EmbedRequest,
  EmbedResponse,
  GenerateEvent,
  GenerateRequestInput,
  ReceiptBundle,
  ReceiptSettlement,
  TokenizeResponse,
} from '../../daemon/protocol.ts';
import type { AdapterCard } from '../../daemon/training/protocol.ts';
import { ApiError, clientGone, engineFailed, engineUnavailable, fromDaemon } from '../errors.ts';
import { limits } from '../limits.ts';
import { NdjsonParser } from './ndjson.ts';
import { type ByteAnswer, fetchPost, type Post } from './post.ts';

export type Fetch = (url: string, init?: RequestInit) => Promise<Response>;

/** The NDJSON answer of /generate, a network chunk's worth of events at a time. */
export interface EventSource {
  /** null after the last event. @throws ApiError engine_failed if the connection breaks or the daemon talks nonsense. */
  next(): Promise<GenerateEvent[] | null>;
}

export class DaemonClient {
  readonly url: string;
  readonly #fetch: Fetch;
  readonly #post: Post;
  readonly #authorization: string;

  constructor(options: { url: string; token: string; fetch: Fetch; post?: Post }) {
    this.url = options.url.replace(/\/+$/, '');
    this.#fetch = options.fetch;
    this.#post = options.post ?? fetchPost(options.fetch);
    this.#authorization = `Bearer ${options.token}`;
  }

  /** Sends and awaits the headers. @throws ApiError engine_unavailable if the daemon cannot be reached, engine_failed if it was and broke off, or what it refused with. */
  async send(method: string, path: string, init: RequestInit = {}): Promise<Response> {
    let response: Response;
    try {
      const headers = { ...(init.headers as Record<string, string> | undefined), authorization: this.#authorization };
      response = await this.#fetch(this.url + path, { ...init, method, headers });
    } catch (cause) {
      throw connectionError(cause, init.signal);
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  async #json<T>(
    method: string,
    path: string,
    body?: unknown,
    timeoutMs: number = limits.daemonTimeoutMs,
    signal?: AbortSignal,
  ): Promise<T> {
    const timeout = AbortSignal.timeout(timeoutMs);
    const response = await this.send(method, path, {
      signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]),
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
    });
    try {
      return (await response.json()) as T;
    } catch (cause) {
      throw engineFailed(cause);
    }
  }

  model(): Promise<BaseModel> {
    return this.#json('GET', '/model', undefined, limits.probeTimeoutMs);
  }
  async adapters(): Promise<Adapter[]> {
    return (await this.#json<{ data: Adapter[] }>('GET', '/adapters', undefined, limits.probeTimeoutMs)).data;
  }
  health(): Promise<DaemonHealth> {
    return this.#json('GET', '/health', undefined, limits.probeTimeoutMs);
  }
  addAdapter(body: { name: string; source: string; replace: boolean; operator: boolean }): Promise<Adapter> {
    // A source may be a download.
    return this.#json('POST', '/adapters', body, 30 * 60_000);
  }
  /** Pipes a multipart body through; nothing is buffered here beyond what the sockets hold. */
  async uploadAdapter(
    body: ReadableStream<Uint8Array>,
    contentType: string,
    signal: AbortSignal,
    name: string,
  ): Promise<Adapter> {
    const init = { body, signal, headers: { 'content-type': contentType }, duplex: 'half' } as RequestInit;
    const response = await this.send(
      'POST',
      name === '' ? '/adapters' : `/adapters?name=${encodeURIComponent(name)}`,
      init,
    );
    return (await response.json()) as Adapter;
  }
  adapterAction(name: string, action: 'load' | 'unload' | 'pin' | 'unpin'): Promise<Adapter> {
    return this.#json('POST', `/adapters/${encodeURIComponent(name)}/${action}`);
  }
  /** The file as it is made; aborting the signal ends the making. Errors come before its first byte. */
  exportAdapter(name: string, query: Record<string, string>, signal: AbortSignal): Promise<Response> {
    return this.send('GET', `/adapters/${encodeURIComponent(name)}/export?${new URLSearchParams(query)}`, { signal });
  }
  adapterCard(name: string): Promise<AdapterCard> {
    return this.#json('GET', `/adapters/${encodeURIComponent(name)}/card`);
  }
  deleteAdapter(name: string): Promise<{ name: string; deleted: true }> {
    return this.#json('DELETE', `/adapters/${encodeURIComponent(name)}`);
  }
  tokenize(prompt: GenerateRequestInput['prompt']): Promise<TokenizeResponse> {
    return this.#json('POST', '/tokenize', { prompt });
  }
  detokenize(tokens: number[]): Promise<DetokenizeResponse> {
    return this.#json('POST', '/detokenize', { tokens });
  }
  embed(request: EmbedRequest, signal: AbortSignal): Promise<EmbedResponse> {
    return this.#json('POST', '/embed', request, limits.embedTimeoutMs, signal);
  }
  receipt(id: string): Promise<ReceiptBundle> {
    return this.#json('GET', `/receipts/${encodeURIComponent(id)}`);
  }
  /** `under_way`: there will be a receipt; null: there is none. @throws ApiError if the daemon cannot say. */
  async settlement(requestId: string): Promise<ReceiptSettlement | 'under_way' | null> {
    try {
      return await this.#json(
        'GET',
        `/receipts/by-request/${encodeURIComponent(requestId)}`,
        undefined,
        limits.probeTimeoutMs,
      );
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return null;
      if (error instanceof ApiError && error.status === 409) return 'under_way';
      throw error;
    }
  }

  /** Aborting the signal closes the connection, which cancels the generation within one step. */
  async generate(request: GenerateRequestInput, signal: AbortSignal): Promise<EventSource> {
    let answer: ByteAnswer;
    try {
      const headers = { authorization: this.#authorization, 'content-type': 'application/json' };
      answer = await this.#post(`${this.url}/generate`, headers, JSON.stringify(request), signal);
    } catch (cause) {
      throw connectionError(cause, signal);
    }
    if (answer.status !== 200) throw await refusal(answer);
    const parser = new NdjsonParser<GenerateEvent>(limits.daemonLineBytesMax);
    return {
      async next() {
        try {
          for (;;) {
            const chunk = await answer.next();
            if (chunk === null) return null;
            const events = parser.push(chunk);
            if (events.length > 0) return events;
          }
        } catch (cause) {
          answer.cancel();
          throw engineFailed(cause);
        }
      },
    };
  }
}

function connectionError(cause: unknown, signal: AbortSignal | null | undefined): ApiError {
  // Our own abort says nothing about the daemon; a timeout does.
  if (signal?.aborted === true && signal.reason?.name !== 'TimeoutError') return clientGone();
  return NEVER_SENT.has(socketCode(cause)) ? engineUnavailable(limits.retryAfterSeconds, cause) : engineFailed(cause);
}

/** Failures before a byte of the request was on its way. */
const NEVER_SENT = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'UND_ERR_CONNECT_TIMEOUT',
]);

function socketCode(error: unknown): string {
  const { code, cause } = (error ?? {}) as { code?: unknown; cause?: { code?: unknown } };
  return String(code ?? cause?.code ?? '');
}

async function refusal(response: Pick<ByteAnswer, 'status' | 'json'>): Promise<ApiError> {
  let body: Partial<DaemonErrorBody> = {};
  try {
    body = (await response.json()) as Partial<DaemonErrorBody>;
  } catch {
    // Not from the daemon's own code (a proxy, a crash): told by the status alone.
  }
  const error = body.error;
  if (error === undefined || typeof error.message !== 'string') {
    const cause = new Error(`the daemon answered ${response.status} without an error body`);
    if (response.status === 404)
      return new ApiError(404, 'invalid_request_error', 'not_found', 'The engine does not know this.', { cause });
    return engineUnavailable(limits.retryAfterSeconds, cause);
  }
  return fromDaemon(
    {
      status: response.status,
      code: error.code ?? null,
      type: error.type ?? 'server_error',
      message: error.message,
      param: error.param ?? null,
    } as DaemonErrorBody['error'],
    limits.retryAfterSeconds,
  );
}
