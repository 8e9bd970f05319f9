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
  /** Produces the events; `write` takes finished text. */
  run: (write: (text: string) => void) => Promise<void>;
  /** The client is gone; called at most once, and never after `run` has ended. */
  onGone: () => void;
  /** After the last byte; `error` if the stream ended with one. */
  onEnd: (error: unknown) => void;
}

const encoder = new TextEncoder();
const PING = encoder.encode(': ping\n\n');

export function sseResponse(options: SseOptions): Response {
  let over = false;
  let gone = false;
  const leave = () => {
    if (over || gone) return;
    gone = true;
    options.onGone();
  };
  const body = new ReadableStream<Uint8Array>(
    {
      start(controller) {
        let wroteAt = Date.now();
        const send = (bytes: Uint8Array) => {
          if (gone || over) return;
          wroteAt = Date.now();
          controller.enqueue(bytes);
          if ((controller.desiredSize ?? 0) < -limits.streamBacklogBytesMax) {
            leave();
            controller.error(new Error('the client does not read'));
          }
        };
        const heartbeat = setInterval(() => {
          if (Date.now() - wroteAt >= limits.heartbeatMs) send(PING);
        }, limits.heartbeatMs / 3);
        options.signal.addEventListener('abort', leave, { once: true });
        // Gone while the engine was asked: that event is over.
        if (options.signal.aborted) leave();
        // Not awaited: `start` must return for the headers to leave.
        void (async () => {
          let failure: unknown;
          try {
            await options.run((text) => {
              if (text !== '') send(encoder.encode(text));
            });
          } catch (error) {
            failure = error;
            send(encoder.encode(`data: ${JSON.stringify(toApiError(error).body())}\n\n`));
          }
          clearInterval(heartbeat);
          options.signal.removeEventListener('abort', leave);
          over = true;
          options.onEnd(failure);
          if (!gone) controller.close();
        })();
      },
      cancel: leave,
    },
    new ByteLengthQueuingStrategy({ highWaterMark: 64 * 1024 }),
  );
  return new Response(body, {
    headers: {
      ...options.headers,
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      // Reverse proxies of the nginx family hold streams back without it.
      'x-accel-buffering': 'no',
    },
  });
}
