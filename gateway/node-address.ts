/** Where a request on Node comes from: what guessing of passwords is counted by, and what the audit log tells. */
import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import type { AddressOf } from './people/people.ts';

/**
 * @param options.trustProxy take the last address of X-Forwarded-For, which the proxy before us has added; those before it are whatever the
 *   client claims. Without a proxy the header is the client's own word, and is not looked at.
 */
export function nodeAddress(options: { trustProxy: boolean }): AddressOf {
  return (env, headers) => {
    if (options.trustProxy) {
      const last = headers.get('x-forwarded-for')?.split(',').at(-1)?.trim() ?? '';
      if (isIP(last) !== 0) return last;
    }
    const incoming = (env as { incoming?: IncomingMessage } | undefined)?.incoming;
    return incoming?.socket.remoteAddress ?? null;
  };
}
