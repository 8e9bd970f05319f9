/** The API of Datanets as the benchmark uses it. */
import { openAsBlob } from 'node:fs';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { type OurServer, sleep } from './processes.ts';

const PASSWORD = 'measured twice, cut once';
const POLL_MS = 100;

/** The API with one key. */
export class Api {
  readonly url: string;
  readonly key: string;
  constructor(url: string, key: string) {
    this.url = url;
    this.key = key;
  }

  async call<T>(method: string, at: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
    const isForm = body instanceof FormData;
    const response = await fetch(`${this.url}${at}`, {
      method,
      headers: {
        authorization: `Bearer ${this.key}`,
        ...(body === undefined || isForm ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: isForm ? body : JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${at}: status ${response.status}: ${text.slice(0, 500)}`);
    return JSON.parse(text) as T;
  }

  /** Milliseconds of one request, until its last byte. */
  async time(at: string): Promise<number> {
    const start = performance.now();
    await this.call('GET', at);
    return performance.now() - start;
  }
}

/** A user as a person becomes one: invited, password, log-in, personal key. */
export async function makeUser(server: OurServer, email: string): Promise<{ id: string; api: Api }> {
  const operator = new Api(server.url, server.adminKey);
  const made = await operator.call<{ id: string; invitation: { token: string } }>('POST', '/api/users', {
    email,
    name: email,
    role: 'builder',
  });
  await operator.call('POST', '/api/invitations/accept', { token: made.invitation.token, password: PASSWORD });
  const scopes = ['datanets', 'contribute', 'govern', 'fine_tuning', 'inference', 'account', 'keys'];
  const { key } = await operator.call<{ key: string }>('POST', '/api/keys', {
    name: 'bench',
    user_id: made.id,
    scopes,
  });
  return { id: made.id, api: new Api(server.url, key) };
}

export interface Made {
  id: string;
}
export interface Contribution extends Made {
  state: string;
  rows: number;
  refused: number;
  error: { message: string } | null;
}

export async function send(api: Api, datanet: string, file: string): Promise<Contribution> {
  const form = new FormData();
  form.append('licence', 'CC-BY-4.0');
  form.append('file', await openAsBlob(file), path.basename(file));
  return api.call('POST', `/api/datanets/${datanet}/contributions`, form);
}

export async function read(api: Api, datanet: string, id: string, seconds: number): Promise<Contribution> {
  const deadline = performance.now() + seconds * 1000;
  for (;;) {
    const now = await api.call<Contribution>('GET', `/api/datanets/${datanet}/contributions/${id}`);
    if (now.state !== 'processing' || performance.now() > deadline) return now;
    await sleep(POLL_MS);
  }
}

export const create = (api: Api, name: string, visibility: string) =>
  api.call<Made>('POST', '/api/datanets', { name, kind: 'chat', licence: 'CC-BY-4.0', visibility });
