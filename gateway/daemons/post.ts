/**
 * How a streamed answer of a daemon is read: a chunk of bytes at a time. The app brings the form on top of `fetch`, which runs anywhere;
 * on Node, undici-post.ts does the same without Web streams, at about a third of the cost per token.
 */
import type { Fetch } from './client.ts';

export interface ByteAnswer {
  status: number;
  json(): Promise<unknown>;
  /** null at the end. @throws whatever broke the connection. */
  next(): Promise<Uint8Array | null>;
  cancel(): void;
}

/** Sends a JSON body and resolves with the head of the answer. */
export type Post = (
  url: string,
  headers: Record<string, string>,
  body: string,
  signal: AbortSignal,
) => Promise<ByteAnswer>;

export function fetchPost(fetch: Fetch): Post {
  return async (url, headers, body, signal) => {
    const response = await fetch(url, { method: 'POST', headers, body, signal });
    let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
    return {
      status: response.status,
      json: () => response.json(),
      async next() {
        reader ??= response.body?.getReader();
        const result = await reader?.read();
        return result === undefined || result.done ? null : result.value;
      },
      cancel: () => void reader?.cancel().catch(() => {}),
    };
  };
}
