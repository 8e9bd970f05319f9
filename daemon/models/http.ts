/** GET with redirects, time-outs and proxies, for the sources of models. */
import { type Dispatcher, EnvHttpProxyAgent, request } from 'undici';
import { FetchError } from './fetch-errors.ts';
import {
  CONNECT_TIMEOUT_MS,
  HEADERS_TIMEOUT_MS,
  INDEX_BYTES_MAX,
  REDIRECTS_MAX,
  STALL_TIMEOUT_MS,
} from './fetch-limits.ts';

export interface Timeouts {
  connectTimeoutMs?: number | undefined;
  headersTimeoutMs?: number | undefined;
  stallTimeoutMs?: number | undefined;
}

export interface Answer {
  response: Dispatcher.ResponseData;
  /** 200, 206 or 416; other statuses are errors. */
  status: number;
  host: string;
  /** The hub says in `x-linked-etag` what the SHA-256 of a large file is; hex, or null. */
  sha256: string | null;
}

/** Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY. */
export function createDispatcher(timeouts: Timeouts): Dispatcher {
  return new EnvHttpProxyAgent({
    connect: { timeout: timeouts.connectTimeoutMs ?? CONNECT_TIMEOUT_MS },
    headersTimeout: timeouts.headersTimeoutMs ?? HEADERS_TIMEOUT_MS,
    bodyTimeout: timeouts.stallTimeoutMs ?? STALL_TIMEOUT_MS,
  });
}

/** Credentials go to the first origin only: the store that a hub redirects to must not get our token. */
export async function get(url: string, headers: Record<string, string>, dispatcher: Dispatcher): Promise<Answer> {
  let current = new URL(url);
  const firstOrigin = current.origin;
  let sha256: string | null = null;
  for (let hop = 0; hop <= REDIRECTS_MAX; hop++) {
    const sent = { 'accept-encoding': 'identity', ...headers };
    if (current.username !== '') {
      // Index addresses may carry a user and a password (pip allows it).
      const credentials = `${decodeURIComponent(current.username)}:${decodeURIComponent(current.password)}`;
      Object.assign(sent, { authorization: `Basic ${Buffer.from(credentials).toString('base64')}` });
      current.username = '';
      current.password = '';
    } else if (current.origin !== firstOrigin) {
      Reflect.deleteProperty(sent, 'authorization');
    }
    const response = await ask(current, sent, dispatcher);
    const status = response.statusCode;
    const linked = /^"?([0-9a-f]{64})"?$/.exec(header(response.headers, 'x-linked-etag') ?? '');
    if (linked?.[1]) sha256 = linked[1];
    if (status === 200 || status === 206 || status === 416) return { response, status, host: current.host, sha256 };
    await response.body.dump();
    const location = header(response.headers, 'location');
    if (status >= 300 && status < 400 && location) {
      const next = new URL(location, current);
      const isDowngrade = current.protocol === 'https:' && next.protocol !== 'https:';
      if (isDowngrade) throw new FetchError('refused', `${current.host} redirects to an address without TLS.`);
      current = next;
      continue;
    }
    if (status === 429 || status >= 500)
      throw new FetchError('unreachable', `${current.host} answered with status ${status}.`);
    const why = status === 401 || status === 403 ? ' (it may want a token: set HF_TOKEN)' : '';
    throw new FetchError('refused', `${current.host} answered with status ${status}${why}.`);
  }
  throw new FetchError('unreachable', `${current.host} redirects too often.`);
}

/** A small text, e.g. an index page. */
export async function getText(
  url: string,
  headers: Record<string, string>,
  timeouts: Timeouts,
): Promise<{ text: string; type: string }> {
  const dispatcher = createDispatcher(timeouts);
  try {
    const answer = await get(url, headers, dispatcher);
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of bodyOf(answer)) {
      bytes += chunk.length;
      if (bytes > INDEX_BYTES_MAX)
        throw new FetchError('refused', `${answer.host} sent more than ${INDEX_BYTES_MAX} bytes for an index.`);
      chunks.push(chunk);
    }
    return {
      text: Buffer.concat(chunks).toString('utf8'),
      type: header(answer.response.headers, 'content-type') ?? '',
    };
  } finally {
    await dispatcher.destroy();
  }
}

/** The body; an end before its time is a FetchError `interrupted`. Leaving the loop early closes the connection. */
export async function* bodyOf(answer: Answer): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of answer.response.body) yield chunk as Buffer;
  } catch (error) {
    throw new FetchError('interrupted', `The connection to ${answer.host} was cut (${reasonOf(error)}).`, {
      cause: error,
    });
  }
}

export function header(headers: Dispatcher.ResponseData['headers'], name: string): string | null {
  const value = headers[name];
  return (Array.isArray(value) ? value[0] : value) ?? null;
}

async function ask(
  url: URL,
  headers: Record<string, string>,
  dispatcher: Dispatcher,
): Promise<Dispatcher.ResponseData> {
  try {
    return await request(url, { method: 'GET', headers, dispatcher });
  } catch (error) {
    throw new FetchError('unreachable', `${url.host} cannot be reached (${reasonOf(error)}).`, { cause: error });
  }
}

/** The code of a network error (ENOTFOUND, UND_ERR_CONNECT_TIMEOUT …), which names no address with credentials in it. */
function reasonOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0]);
  const code = (error as { code?: unknown } | null)?.code;
  if (code === 'UND_ERR_CONNECT_TIMEOUT') return 'no connection in time';
  if (code === 'UND_ERR_HEADERS_TIMEOUT') return 'no answer in time';
  if (code === 'UND_ERR_BODY_TIMEOUT') return 'it stopped sending';
  if (typeof code === 'string') return code;
  return error instanceof Error ? error.name : 'unknown error';
}
