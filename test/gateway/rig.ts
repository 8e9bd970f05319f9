/** A gateway in this process over a scripted daemon and a real database file; everything is gone after `close`. */
import { mkdtempSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import OpenAI from 'openai';
import { Agent } from 'undici';
import { createKey } from '../../daemon/evidence.ts';
import { type App, type AppDeps, createApp } from '../../gateway/app.ts';
import type { NewKey } from '../../gateway/auth/key-store.ts';
import { ROLE_SCOPES } from '../../gateway/auth/scopes.ts';
import type { MetricsAccess } from '../../gateway/config.ts';
import { undiciPost } from '../../gateway/daemons/undici-post.ts';
import { processIngester } from '../../gateway/datanets/contributions/process-ingester.ts';
import { type OpenedDatabase, openDatabase } from '../../gateway/db/open.ts';
import type { Role, UserRow } from '../../gateway/db/schema.ts';
import { diskStorage } from '../../gateway/factory/files/storage.ts';
import { createLog } from '../../gateway/log.ts';
import { nodeStream } from '../../gateway/node-stream.ts';
import { DAEMON_TOKEN, type Script, type ScriptedDaemon, startScriptedDaemon } from '../support/scripted-daemon.ts';

export const PRICE = { inputMicrosPerMillion: 1_000_000, outputMicrosPerMillion: 2_000_000, currency: 'USD' };

export const TRAINING = { trainingMicrosPerMillion: 3_000_000, organization: 'local' };
/** For apps that no test uploads to. */
export const NO_FILES = { storage: diskStorage(join(tmpdir(), 'mf-no-files')), ...TRAINING };

/** For apps without Datanets. */
export function noDatanets(): AppDeps['datanets'] {
  const folder = mkdtempSync(join(tmpdir(), 'mf-no-datanets-'));
  return { key: createKey(join(folder, 'datanets.key')), storage: diskStorage(join(folder, 'contributions')) };
}

export interface TestSession {
  id: string;
  /** Name and value, as a browser sends it. */
  cookie: string;
  csrf: string;
  /** A request as one of our own pages sends it. */
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Response>;
}

export interface TestUser {
  id: string;
  email: string;
  /** The user as it was made. */
  row: UserRow;
  /** A personal key with every scope of the role. */
  credential: string;
  keyId: string;
  /** A request with the personal key. */
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Response>;
  /** Logs in without a password. */
  session(): Promise<TestSession>;
}

export interface Rig {
  app: App;
  daemon: ScriptedDaemon;
  database: OpenedDatabase;
  /** Of its file. */
  databaseUrl: string;
  /** A credential with all scopes. */
  admin: string;
  logLines: string[];
  filesFolder: string;
  key(options?: Partial<NewKey>): Promise<{ id: string; credential: string }>;
  /** A user who is active, without a password. */
  user(options?: { role?: Role; email?: string; name?: string }): Promise<TestUser>;
  client(credential?: string): OpenAI;
  /** A request with the admin's key, unless the headers say otherwise. */
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Response>;
  money(keyId: string): Promise<{ spent: number; reserved: number }>;
  settled(): Promise<void>;
  close(): Promise<void>;
}

export async function startRig(
  options: {
    adapters?: string[];
    script?: Script;
    now?: () => number;
    metrics?: MetricsAccess;
    webOnly?: boolean;
    people?: AppDeps['people'];
    oidc?: AppDeps['oidc'];
    datanets?: Partial<AppDeps['datanets']>;
    /** Contributions are read in processes of their own, as in production; without it in this one, which is quicker for a few rows. */
    ingestApart?: boolean;
  } = {},
): Promise<Rig> {
  const folder = await mkdtemp(join(tmpdir(), 'mf-gateway-'));
  const daemon = await startScriptedDaemon(options);
  const url = `file:${join(folder, 'gateway.db')}`;
  const database = await openDatabase({
    url,
    migrationsFolder: fileURLToPath(new URL('../../migrations/gateway', import.meta.url)),
  });
  // Streams are read as on Node in production, or with `fetch` alone as on any other runtime.
  const agent = options.webOnly === true ? undefined : new Agent({ headersTimeout: 0, bodyTimeout: 0 });
  const logLines: string[] = [];
  const app = createApp({
    db: database.db,
    exclusiveDatabase: true,
    daemons: {
      urls: [daemon.url],
      token: DAEMON_TOKEN,
      fetch: (url, init) => fetch(url, init),
      ...(agent === undefined ? {} : { post: undiciPost(agent) }),
    },
    // Without a socket there is no direct way, and streams are Web streams.
    direct: nodeStream,
    price: PRICE,
    factory: { storage: diskStorage(join(folder, 'files')), ...TRAINING },
    datanets: {
      key: createKey(join(folder, 'keys', 'datanets.key')),
      storage: diskStorage(join(folder, 'contributions')),
      ...(options.ingestApart === true ? { ingester: processIngester({ url }) } : {}),
      ...options.datanets,
    },
    log: createLog({
      level: 'info',
      secrets: [DAEMON_TOKEN],
      destination: { write: (line: string) => void logLines.push(line) },
    }),
    metrics: options.metrics ?? 'key',
    version: '0.0.0',
    settlementAbsencesMax: 5,
    people: {
      passwordCost: { N: 16, r: 1, p: 1 },
      addressOf: (env) => (env as { address?: string } | undefined)?.address ?? null,
      ...options.people,
    },
    ...(options.oidc === undefined ? {} : { oidc: options.oidc }),
    ...(options.now === undefined ? {} : { now: options.now }),
  });
  const { keys, people, settler } = app.services;
  const { credential: admin } = await keys.create({ name: 'admin', scopes: ['admin'] });
  const call: Rig['call'] = async (method, path, body, headers = {}) =>
    app.fetch(
      new Request(`http://gateway.test${path}`, {
        method,
        headers: {
          authorization: `Bearer ${admin}`,
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body === undefined
          ? {}
          : {
              body: typeof body === 'string' || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
            }),
      }),
    );
  let usersMade = 0;
  return {
    app,
    daemon,
    database,
    databaseUrl: url,
    admin,
    logLines,
    filesFolder: join(folder, 'files'),
    async key(input = {}) {
      const { row, credential } = await keys.create({ name: 'test', scopes: ['inference'], ...input });
      return { id: row.id, credential };
    },
    async user({ role = 'builder', email, name } = {}) {
      usersMade += 1;
      const row = await people.users.create({
        email: email ?? `${role}${usersMade}@users.test`,
        name: name ?? `${role} ${usersMade}`,
        role,
        state: 'active',
      });
      const key = await keys.create({ name: 'personal', userId: row.id, scopes: [...ROLE_SCOPES[role]] });
      const { credential } = key;
      return {
        id: row.id,
        email: row.email,
        row,
        credential,
        keyId: key.row.id,
        call: (method, path, body, headers = {}) =>
          call(method, path, body, { authorization: `Bearer ${credential}`, ...headers }),
        async session() {
          const client = { address: null, userAgent: null, cookie: null, secure: false };
          const { session, setCookie, csrfToken } = await people.sessions.start(row, 'password', client);
          const cookie = setCookie.split(';')[0] as string;
          return {
            id: session.id,
            cookie,
            csrf: csrfToken,
            call: (method, path, body, headers = {}) =>
              call(method, path, body, { authorization: '', cookie, 'x-csrf-token': csrfToken, ...headers }),
          };
        },
      };
    },
    client: (credential = admin) =>
      new OpenAI({
        apiKey: credential,
        baseURL: 'http://gateway.test/v1',
        maxRetries: 0,
        fetch: async (url, init) => app.fetch(new Request(url as string, init as RequestInit)),
      }),
    call,
    async money(keyId) {
      const row = await keys.find(keyId);
      return { spent: row?.spentMicros ?? -1, reserved: row?.reservedMicros ?? -1 };
    },
    settled: () => settler.idle(),
    async close() {
      await app.services.factory.stop();
      await app.services.datanets.stop();
      await settler.idle();
      await agent?.destroy();
      await daemon.stop();
      database.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export interface SseEvent {
  data: string;
  json: Record<string, unknown> | null;
}

/** The data events of a finished stream. */
export async function sseEvents(response: Response): Promise<SseEvent[]> {
  const text = await response.text();
  return text
    .split('\n\n')
    .filter((block) => block.startsWith('data: '))
    .map((block) => {
      const data = block.slice('data: '.length);
      return { data, json: data === '[DONE]' ? null : (JSON.parse(data) as Record<string, unknown>) };
    });
}

export const CHAT = { model: 'tiny-base', messages: [{ role: 'user', content: 'Hi' }] };

/** The parsed body of an error answer; anything missing from it fails the expectations on it. */
export async function errorOf(
  response: Response,
): Promise<{ message: string; type: string; code: string | null; param: string | null }> {
  return (
    (await response.json()) as { error: { message: string; type: string; code: string | null; param: string | null } }
  ).error;
}
