/** Talks to a running gateway: MODELFACTORY_URL and MODELFACTORY_KEY, by default this machine's and `admin.key`. */
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { createParser } from 'eventsource-parser';
import { urlFor } from '../supervisor/ports.ts';

const root = resolve(import.meta.dirname, '..', '..');

/** What a person can do something about; printed as one line, exit code 1. */
export class CliError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'CliError';
  }
}

interface Page<T> {
  data: T[];
  last_id: string | null;
  has_more: boolean;
}
/** Most that any list gives at once. */
const PAGE = 100;

export interface Upload {
  contentType: string;
  contentLength: number;
  body: AsyncIterable<Uint8Array>;
}

export class GatewayClient {
  readonly url: string;
  readonly #env: NodeJS.ProcessEnv;
  readonly #identity: Record<string, string> | null;

  /** @param identity headers that say who speaks; null: the key of the environment, {}: nobody. */
  constructor(env: NodeJS.ProcessEnv = process.env, identity: Record<string, string> | null = null) {
    this.#env = env;
    this.#identity = identity;
    this.url = (env.MODELFACTORY_URL || urlFor(env.HOST || '127.0.0.1', Number(env.PORT || 8787))).replace(/\/+$/, '');
    if (!URL.canParse(this.url)) throw new CliError(`MODELFACTORY_URL is "${this.url}", which is no address.`);
  }

  /** Answers the parsed JSON body of a 2xx; everything else is a CliError. */
  async call(method: string, path: string, body?: object): Promise<unknown> {
    const headers: Record<string, string> = body ? { 'content-type': 'application/json' } : {};
    return await this.#send(path, { method, headers, ...(body && { body: JSON.stringify(body) }) });
  }

  /** All pages of a list, up to `most` items. @param path with its filters. */
  async list<T extends { id?: string }>(path: string, most = Number.POSITIVE_INFINITY): Promise<T[]> {
    const found: T[] = [];
    for (let after = ''; ; ) {
      const limit = Math.min(PAGE, most - found.length);
      const query = `limit=${limit}${after && `&after=${encodeURIComponent(after)}`}`;
      const page = (await this.call('GET', `${path}${path.includes('?') ? '&' : '?'}${query}`)) as Page<T>;
      found.push(...page.data);
      if (!page.has_more || page.last_id === null || found.length >= most) return found;
      after = page.last_id;
    }
  }

  /** A client that speaks for a user, until the session ends. */
  async logIn(email: string, password: string): Promise<GatewayClient> {
    const response = await this.#request('/api/session', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ email, password }),
    });
    const answer = parse(await response.text()) as { csrf_token?: string } | undefined;
    if (!response.ok) throw said(response, answer);
    const cookie = response.headers.getSetCookie().map((line) => line.split(';', 1)[0]);
    return new GatewayClient(this.#env, { cookie: cookie.join('; '), 'x-csrf-token': answer?.csrf_token ?? '' });
  }

  async upload(path: string, upload: Upload): Promise<unknown> {
    return await this.#send(path, {
      method: 'POST',
      headers: { 'content-type': upload.contentType, 'content-length': String(upload.contentLength) },
      body: Readable.toWeb(Readable.from(upload.body)) as unknown as ReadableStream,
      duplex: 'half',
    } as RequestInit);
  }

  /** Answers a 2xx as it comes; everything else is a CliError. `bytes`: null where the server does not say. */
  async download(path: string): Promise<{ bytes: number | null; body: AsyncIterable<Uint8Array> }> {
    const response = await this.#request(path, { method: 'GET' });
    if (!response.ok || response.body === null) throw this.#refusal(response, parse(await response.text()));
    const length = response.headers.get('content-length');
    // Not as a stream of Node's: one that breaks off before it is read would end the process.
    return { bytes: length === null ? null : Number(length), body: response.body as AsyncIterable<Uint8Array> };
  }

  /** The data of server-sent events as they come, parsed, up to `[DONE]`; one that holds an error is a CliError. */
  async *events(method: string, path: string, body?: object): AsyncGenerator<Record<string, unknown>> {
    const response = await this.#request(path, {
      method,
      headers: { accept: 'text/event-stream', ...(body && { 'content-type': 'application/json' }) },
      ...(body && { body: JSON.stringify(body) }),
    });
    if (!response.ok || response.body === null) throw this.#refusal(response, parse(await response.text()));
    const waiting: string[] = [];
    const parser = createParser({ onEvent: ({ data }) => waiting.push(data) });
    const decoder = new TextDecoder();
    const chunks = (response.body as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]();
    for (;;) {
      const { done, value } = await chunks.next().catch((error: Error) => {
        throw new CliError(`The connection to ${this.url} broke: ${error.message}.`);
      });
      if (done) return;
      parser.feed(decoder.decode(value, { stream: true }));
      for (const data of waiting.splice(0)) {
        if (data === '[DONE]') return;
        const event = parse(data) as Record<string, unknown>;
        if (event.error !== undefined) throw this.#refusal(response, event);
        yield event;
      }
    }
  }

  async #request(path: string, init: RequestInit): Promise<Response> {
    const identity = this.#identity ?? { authorization: `Bearer ${this.#key()}` };
    const headers = { ...(init.headers as Record<string, string>), ...identity };
    try {
      return await fetch(`${this.url}${path}`, { ...init, headers });
    } catch (error) {
      const cause = (error as { cause?: { code?: string } }).cause;
      throw new CliError(
        `No modelfactory answers at ${this.url} (${cause?.code ?? 'connection failed'}). Start it with \`npm start\`, or set MODELFACTORY_URL.`,
      );
    }
  }

  async #send(path: string, init: RequestInit): Promise<unknown> {
    const response = await this.#request(path, init);
    const text = await response.text();
    const answer = parse(text);
    if (response.ok) {
      if (answer === undefined)
        throw new CliError(`${this.url} answered with something that is not JSON; is it modelfactory?`);
      return answer;
    }
    throw this.#refusal(response, answer);
  }

  #refusal(response: Response, answer: unknown): CliError {
    const error = said(response, answer);
    if (response.status !== 401 || this.#identity !== null) return error;
    return new CliError(
      `The key was not accepted: ${error.message} Set MODELFACTORY_KEY, or MODELFACTORY_DATA to the folder that holds admin.key.`,
    );
  }

  #key(): string {
    const given = this.#env.MODELFACTORY_KEY?.trim();
    if (given) return given;
    const path = join(resolve(root, this.#env.MODELFACTORY_DATA || 'data'), 'admin.key');
    try {
      return readFileSync(path, 'utf8').trim();
    } catch (error) {
      const isOthers = ['EACCES', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '');
      throw new CliError(
        isOthers
          ? `There is no key: MODELFACTORY_KEY is not set, and ${path} belongs to somebody else. Set MODELFACTORY_KEY to a key of yours.`
          : `There is no key: MODELFACTORY_KEY is not set and ${path} cannot be read. It is made when modelfactory starts for the first time; \`npm start\` does so.`,
      );
    }
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What the server says of a refusal. */
function said(response: Response, answer: unknown): CliError {
  const message = (answer as { error?: { message?: unknown } } | undefined)?.error?.message;
  return new CliError(typeof message === 'string' ? message : `status ${response.status}`);
}
