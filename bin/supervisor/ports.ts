/** Ports and addresses. */
import { createServer } from 'node:net';

/** A loopback port that nobody listens on now. */
export async function freePort(): Promise<number> {
  return await listenOnce(0, '127.0.0.1');
}

/** Throws with `code` EADDRINUSE, EACCES … if nobody could listen there. */
export async function checkListenable(port: number, host: string): Promise<void> {
  await listenOnce(port, host);
}

function listenOnce(port: number, host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen({ port, host, exclusive: true }, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address ? address.port : port));
    });
  });
}

/** What a client on this machine uses: 0.0.0.0 and :: are for listening, not for connecting. */
export function urlFor(host: string, port: number): string {
  const isAny = host === '0.0.0.0' || host === '::' || host === '';
  const name = isAny ? '127.0.0.1' : host.includes(':') ? `[${host}]` : host;
  return `http://${name}:${port}`;
}
