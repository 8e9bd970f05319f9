/**
 * Server-sent events: reads the engine eagerly (so money is settled at the engine's pace, not the reader's), writes what each network chunk
 * gave as one piece, sends comments while there is silence, and turns every failure into an OpenAI error event.
 */
import { toApiError } from '../errors.ts';
import { limits } from '../limits.ts';

export interface SseOptions {
  /** Aborted when the client hangs up (where the runtime tells). */
  signal: AbortSignal;
  headers: Record<string, string>;
  /** A shorter way to the client than a Response, where the runtime has one. */
  direct?: DirectStream | null;
  /** Produces the events; `write` takes finished text. */
  run: (write: (text: string) => void) => Promise<void>;
  /** The client is gone; called at most once, and never after `run` has ended. */
  onGone: () => void;
  /** After the last byte; `error` if the stream ended with one. */
  onEnd: (error: unknown) => void;
}

/** Where the text of a stream goes. */
export interface StreamOut {
  write(text: string): void;
  /** Bytes that the client has not taken yet. */
  backlogBytes(): number;
  close(): void;
  /** Breaks the connection. */
  fail(error: Error): void;
}

/** The runtime's own stream to the client of one request. */
export interface DirectStream {
  begin(headers: Record<string, string>, onClose: () => void): StreamOut;
  /** What the app hands back; tells the runtime that the answer is on its way already. */
  readonly response: Response;
}

const PING = ': ping\n\n';

export function sseResponse(options: SseOptions): Response {
  const headers = {
    ...options.headers,
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache, no-transform',
    // Reverse proxies of the nginx family hold streams back without it.
    'x-accel-buffering': 'no',
  };
  const pump = new Pump(options);
  if (options.direct != null) {
    pump.start(options.direct.begin(headers, pump.leave));
    return options.direct.response;
  }
  const body = new ReadableStream<Uint8Array>(
    { start: (controller) => pump.start(webOut(controller)), cancel: pump.leave },
    new ByteLengthQueuingStrategy({ highWaterMark: 64 * 1024 }),
  );
  return new Response(body, { headers });
}

const encoder = new TextEncoder();

function webOut(controller: ReadableStreamDefaultController<Uint8Array>): StreamOut {
  return {
    write: (text) => controller.enqueue(encoder.encode(text)),
    backlogBytes: () => -(controller.desiredSize ?? 0),
    close: () => controller.close(),
    fail: (error) => controller.error(error),
  };
}

/** Moves the events of one stream from `run` to the client, until one of them ends. */
class Pump {
  readonly #options: SseOptions;
  #over = false;
  #gone = false;
  #wroteAt = 0;

  constructor(options: SseOptions) {
    this.#options = options;
  }

  /** The client is gone. */
  readonly leave = (): void => {
    if (this.#over || this.#gone) return;
    this.#gone = true;
    this.#options.onGone();
  };

  start(out: StreamOut): void {
    const { signal } = this.#options;
    this.#wroteAt = Date.now();
    const heartbeat = setInterval(() => {
      if (Date.now() - this.#wroteAt >= limits.heartbeatMs) this.#send(out, PING);
    }, limits.heartbeatMs / 3);
    signal.addEventListener('abort', this.leave, { once: true });
    // Gone while the engine was asked: that event is over.
    if (signal.aborted) this.leave();
    // Not awaited: the headers must leave.
    void this.#run(out).then((failure) => {
      clearInterval(heartbeat);
      signal.removeEventListener('abort', this.leave);
      this.#over = true;
      this.#options.onEnd(failure);
      if (!this.#gone) out.close();
    });
  }

  /** @returns what the stream failed with, told to the client. */
  async #run(out: StreamOut): Promise<unknown> {
    try {
      await this.#options.run((text) => {
        if (text !== '') this.#send(out, text);
      });
      return undefined;
    } catch (error) {
      this.#send(out, `data: ${JSON.stringify(toApiError(error).body())}\n\n`);
      return error;
    }
  }

  #send(out: StreamOut, text: string): void {
    if (this.#gone || this.#over) return;
    this.#wroteAt = Date.now();
    out.write(text);
    if (out.backlogBytes() <= limits.streamBacklogBytesMax) return;
    this.leave();
    out.fail(new Error('the client does not read'));
  }
}
