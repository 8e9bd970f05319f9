/** `Post` on undici's dispatcher, for Node: chunks go from the socket's parser to the reader with one promise each, or none if queued. */
import type { Dispatcher } from 'undici';
import type { ByteAnswer, Post } from './post.ts';

type Waiter = { resolve: (chunk: Uint8Array | null) => void; reject: (error: unknown) => void };

export function undiciPost(dispatcher: Dispatcher): Post {
  return (url, headers, body, signal) => {
    const { origin, pathname } = new URL(url);
    return new Promise<ByteAnswer>((resolveHead, rejectHead) => {
      const queue: Uint8Array[] = [];
      let waiter: Waiter | null = null;
      let failure: unknown = null;
      let ended = false;
      let controller: Dispatcher.DispatchController | undefined;
      const abort = () => controller?.abort(signal.reason instanceof Error ? signal.reason : new Error('aborted'));

      const finish = (error: unknown) => {
        ended = true;
        failure = error;
        signal.removeEventListener('abort', abort);
        if (error !== null) rejectHead(error);
        if (waiter === null) return;
        if (error === null) waiter.resolve(null);
        else waiter.reject(error);
        waiter = null;
      };
      const next = () => {
        const chunk = queue.shift();
        if (chunk !== undefined) return Promise.resolve(chunk);
        if (failure !== null) return Promise.reject(failure);
        if (ended) return Promise.resolve(null);
        return new Promise<Uint8Array | null>((resolve, reject) => {
          waiter = { resolve, reject };
        });
      };
      const json = async () => {
        let text = '';
        const decoder = new TextDecoder();
        for (let chunk = await next(); chunk !== null; chunk = await next())
          text += decoder.decode(chunk, { stream: true });
        return JSON.parse(text) as unknown;
      };

      if (signal.aborted) return rejectHead(signal.reason);
      signal.addEventListener('abort', abort, { once: true });
      dispatcher.dispatch(
        { origin, path: pathname, method: 'POST', headers, body },
        {
          onRequestStart(started) {
            controller = started;
            if (signal.aborted) abort();
          },
          onResponseStart(_, status) {
            if (status >= 200)
              resolveHead({ status, json, next, cancel: () => controller?.abort(new Error('cancelled')) });
          },
          onResponseData(_, chunk) {
            if (waiter === null) queue.push(chunk);
            else {
              waiter.resolve(chunk);
              waiter = null;
            }
          },
          onResponseEnd: () => finish(null),
          onResponseError: (_, error) => finish(error),
        },
      );
    });
  };
}
