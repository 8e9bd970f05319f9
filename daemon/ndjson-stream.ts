import type { ServerResponse } from 'node:http';
import { SERVER_LIMITS } from './limits.ts';
import type { GenerateEvent } from './protocol.ts';

/**
 * An answer of NDJSON lines, one write per call. The head is sent with the first lines, so that a request which fails
 * before it began can still get a status of its own. A reader who does not read is cut off.
 */
export class NdjsonStream<Event extends object = GenerateEvent> {
  private readonly response: ServerResponse;
  private readonly bufferBytesMax: number;
  private readonly onSlow: () => void;
  private closed = false;

  constructor(
    response: ServerResponse,
    onSlow: () => void,
    bufferBytesMax: number = SERVER_LIMITS.streamBufferBytesMax,
  ) {
    this.response = response;
    this.onSlow = onSlow;
    this.bufferBytesMax = bufferBytesMax;
  }

  get begun(): boolean {
    return this.response.headersSent;
  }

  readonly write = (events: Event[]): void => {
    if (this.closed || this.response.destroyed) return;
    if (!this.response.headersSent) {
      this.response.writeHead(200, {
        'content-type': 'application/x-ndjson; charset=utf-8',
        'cache-control': 'no-store',
      });
      this.response.socket?.setNoDelay(true);
    }
    let lines = '';
    for (const event of events) lines += `${JSON.stringify(event)}\n`;
    this.response.write(lines);
    if (this.response.writableLength <= this.bufferBytesMax) return;
    this.closed = true;
    this.onSlow();
    this.response.destroy();
  };

  end(): void {
    if (this.closed || this.response.destroyed) return;
    this.closed = true;
    this.response.end();
  }
}
