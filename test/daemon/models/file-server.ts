/** A small HTTP server on loopback that serves one file, with the faults that real servers have. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface FileServer {
  url: string;
  /** Every request so far. */
  requests: { path: string; range: string | undefined; authorization: string | undefined }[];
  close(): Promise<void>;
}

export async function serve(
  handler: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<FileServer> {
  const requests: FileServer['requests'] = [];
  const server = createServer((request, response) => {
    const { range, authorization } = request.headers;
    requests.push({ path: request.url ?? '', range, authorization });
    handler(request, response);
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    requests,
    close: () =>
      new Promise((done) => {
        server.close(() => done());
        server.closeAllConnections();
      }),
  };
}

/** Answers like a real file server: 200, 206 with Range, 416 beyond the end, If-Range against the tag. */
export function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  bytes: Buffer,
  etag = '"v1"',
  cutAfter = Number.POSITIVE_INFINITY,
  /** When the client has written that many bytes: what it has not yet read is lost with the connection. */
  hasArrived: (bytes: number) => Promise<void> = async () => {},
): void {
  const match = /^bytes=(\d+)-$/.exec(request.headers.range ?? '');
  const ifRange = request.headers['if-range'];
  const start = match && (ifRange === undefined || ifRange === etag) ? Number(match[1]) : 0;
  if (start >= bytes.length && start > 0) {
    response.writeHead(416, { 'content-range': `bytes */${bytes.length}` }).end();
    return;
  }
  const body = bytes.subarray(start);
  const headers = { etag, 'content-length': body.length };
  if (start > 0)
    response.writeHead(206, { ...headers, 'content-range': `bytes ${start}-${bytes.length - 1}/${bytes.length}` });
  else response.writeHead(200, headers);
  if (cutAfter >= body.length) {
    response.end(body);
    return;
  }
  response.write(body.subarray(0, cutAfter));
  void hasArrived(start + cutAfter).then(() => response.destroy());
}
