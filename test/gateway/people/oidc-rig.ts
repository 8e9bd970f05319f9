/** For the tests of OpenID: a real provider on a port of its own, one that is made to lie, and a browser with cookies. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type CryptoKey, exportJWK, generateKeyPair, type JWK } from 'jose';
import Provider from 'oidc-provider';
import { vi } from 'vitest';
import type { App } from '../../../gateway/app.ts';
import { ALGORITHMS_DEFAULT, type OidcSettings } from '../../../gateway/people/oidc/settings.ts';

/** Where browsers reach the gateway under test. */
export const PUBLIC = 'https://gateway.test';
export const CLIENT = { id: 'modelfactory', secret: 'a secret: with + signs & spaces %' };
const CALLBACK = `${PUBLIC}/api/session/oidc/callback`;

export function settingsOf(issuer: string, change: Partial<OidcSettings> = {}): OidcSettings {
  return {
    issuer,
    clientId: CLIENT.id,
    clientSecret: CLIENT.secret,
    role: null,
    algorithms: ALGORITHMS_DEFAULT,
    publicUrl: PUBLIC,
    ...change,
  };
}

async function listen(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function close(server: Server): Promise<void> {
  server.closeAllConnections();
  return new Promise((resolve) => void server.close(() => resolve()));
}

export async function keyPair(
  alg: string,
): Promise<{ privateKey: CryptoKey; publicKey: CryptoKey; jwk: JWK; publicJwk: JWK }> {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true });
  const kid = `${alg}-${crypto.randomUUID()}`;
  return {
    privateKey,
    publicKey,
    jwk: { ...(await exportJWK(privateKey)), kid, alg, use: 'sig' },
    publicJwk: { ...(await exportJWK(publicKey)), kid, alg, use: 'sig' },
  };
}

/** What the provider knows of somebody. */
export interface Person {
  email?: string;
  email_verified?: unknown;
  name?: string;
}

export interface RealProvider {
  issuer: string;
  /** By the name they log in with, which is their subject too. */
  people: Map<string, Person>;
  close(): Promise<void>;
}

/** @param options.claimsIn where e-mail and name are told: both happen in the world. */
export async function startProvider(
  options: { claimsIn?: 'userinfo' | 'id_token'; alg?: string } = {},
): Promise<RealProvider> {
  const { claimsIn = 'userinfo', alg = 'RS256' } = options;
  const people = new Map<string, Person>();
  const handler: { current: ((req: IncomingMessage, res: ServerResponse) => void) | null } = { current: null };
  const server = createServer((req, res) => handler.current?.(req, res));
  const issuer = await listen(server);
  // It warns that its log-in form and its memory are for trials, which this is.
  const silent = [vi.spyOn(console, 'warn'), vi.spyOn(console, 'info')].map((spy) => spy.mockImplementation(() => {}));
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: CLIENT.id,
        client_secret: CLIENT.secret,
        redirect_uris: [CALLBACK],
        post_logout_redirect_uris: [`${PUBLIC}/`],
        response_types: ['code'],
        grant_types: ['authorization_code'],
        id_token_signed_response_alg: alg as 'RS256',
      },
    ],
    jwks: { keys: [(await keyPair(alg)).jwk] } as never,
    cookies: { keys: ['for a trial'] },
    pkce: { required: () => true },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
    conformIdTokenClaims: claimsIn === 'userinfo',
    features: { devInteractions: { enabled: true } },
    ttl: { AccessToken: 600, AuthorizationCode: 60, IdToken: 600, Interaction: 600, Session: 600, Grant: 600 },
    findAccount: (_, id) => ({
      accountId: id,
      claims: async () => ({ sub: id, ...people.get(id) }),
    }),
  });
  for (const spy of silent) spy.mockRestore();
  handler.current = provider.callback();
  return { issuer, people, close: () => close(server) };
}

/** What a lying provider answers; each part can be replaced. `null`: as an honest one would. */
export interface Lies {
  description: ((honest: Record<string, unknown>) => Response | object) | null;
  token:
    | ((request: {
        nonce: string;
        form: URLSearchParams;
        authorization: string | null;
      }) => Promise<Response | object> | Response | object)
    | null;
  userinfo: (() => Response | object) | null;
  keys: (() => Response | object) | null;
}

export interface LyingProvider {
  issuer: string;
  lies: Lies;
  /** Paths that were asked for. */
  asked: string[];
  /** Of the log-in that the browser was sent here with. */
  nonce: string;
  close(): Promise<void>;
}

export async function startLyingProvider(): Promise<LyingProvider> {
  const lies: Lies = { description: null, token: null, userinfo: null, keys: null };
  const asked: string[] = [];
  const state = { nonce: '' };
  const answerOf = async (path: string, request: IncomingMessage): Promise<Response | object> => {
    if (path === '/.well-known/openid-configuration' || path === '/elsewhere') {
      const honest = {
        issuer,
        authorization_endpoint: `${issuer}/auth`,
        token_endpoint: `${issuer}/token`,
        jwks_uri: `${issuer}/keys`,
        userinfo_endpoint: `${issuer}/me`,
      };
      return (path === '/elsewhere' ? null : lies.description?.(honest)) ?? honest;
    }
    if (path === '/keys') return lies.keys?.() ?? { keys: [] };
    if (path === '/me') return lies.userinfo?.() ?? {};
    if (path === '/token') {
      let body = '';
      for await (const chunk of request) body += chunk;
      const form = new URLSearchParams(body);
      return (
        (await lies.token?.({ nonce: state.nonce, form, authorization: request.headers.authorization ?? null })) ?? {}
      );
    }
    return new Response('nothing here', { status: 404 });
  };
  const server = createServer(async (req, res) => {
    const path = (req.url ?? '').split('?')[0] as string;
    asked.push(path);
    const answer = await answerOf(path, req);
    const response = answer instanceof Response ? answer : Response.json(answer);
    res.writeHead(response.status, Object.fromEntries(response.headers));
    res.on('error', () => {});
    if (response.body !== null) for await (const chunk of response.body) if (!res.destroyed) res.write(chunk);
    res.end();
  });
  const issuer = await listen(server);
  return {
    issuer,
    lies,
    asked,
    get nonce() {
      return state.nonce;
    },
    set nonce(value: string) {
      state.nonce = value;
    },
    close: () => close(server),
  };
}

/** Follows redirects and keeps cookies as a browser does; the gateway is called in this process, everything else over HTTP. */
export class Browser {
  readonly #app: App;
  readonly #jars = new Map<string, Map<string, string>>();
  /** Every address it was sent to. */
  readonly visited: string[] = [];
  /** Set-cookie headers of the gateway, as they came. */
  readonly setCookies: string[] = [];

  constructor(app: App) {
    this.#app = app;
  }

  jar(origin = PUBLIC): Map<string, string> {
    const jar = this.#jars.get(origin) ?? new Map<string, string>();
    this.#jars.set(origin, jar);
    return jar;
  }

  async request(url: string, init: RequestInit & { headers?: Record<string, string> } = {}): Promise<Response> {
    const { origin } = new URL(url);
    const jar = this.jar(origin);
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ');
    const headers = { ...(cookie === '' ? {} : { cookie }), ...init.headers };
    this.visited.push(url);
    const response =
      origin === PUBLIC
        ? await this.#app.fetch(new Request(url, { ...init, headers }))
        : await fetch(url, { ...init, headers, redirect: 'manual' });
    for (const text of response.headers.getSetCookie()) {
      if (origin === PUBLIC) this.setCookies.push(text);
      const [pair = ''] = text.split(';');
      const at = pair.indexOf('=');
      const value = pair.slice(at + 1);
      if (value === '' || /max-age=0|expires=thu, 01 jan 1970/i.test(text)) jar.delete(pair.slice(0, at));
      else jar.set(pair.slice(0, at), value);
    }
    return response;
  }

  /** To the provider as far as its log-in form, or its answer if it knows the browser already. */
  async begin(returnTo?: string): Promise<string> {
    const query = returnTo === undefined ? '' : `?return_to=${encodeURIComponent(returnTo)}`;
    const response = await this.request(`${PUBLIC}/api/session/oidc${query}`);
    if (response.status !== 302) throw new Error(`not sent to the provider: ${await response.text()}`);
    return response.headers.get('location') as string;
  }

  /** At the provider: logs in as somebody and consents. @returns the address back to the gateway, not yet visited. */
  async authenticate(authorizationUrl: string, who: string | 'abort'): Promise<string> {
    let url = authorizationUrl;
    for (let step = 0; step < 12; step++) {
      const response = await this.request(url);
      const location = response.headers.get('location');
      if (location !== null) {
        url = new URL(location, url).href;
        if (url.startsWith(PUBLIC)) return url;
        continue;
      }
      const page = await response.text();
      if (who === 'abort') {
        url = new URL(/href="([^"]*abort)"/.exec(page)?.[1] as string, url).href;
        continue;
      }
      const prompt = /name="prompt" value="(\w+)"/.exec(page)?.[1];
      const action = /action="([^"]+)"/.exec(page)?.[1];
      if (prompt === undefined || action === undefined) throw new Error(`no form at ${url}: ${page.slice(0, 500)}`);
      const submitted = await this.request(new URL(action, url).href, {
        method: 'POST',
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        body: new URLSearchParams({ prompt, login: who, password: 'any' }).toString(),
      });
      url = new URL(submitted.headers.get('location') as string, url).href;
    }
    throw new Error(`still at ${url}`);
  }

  /** The whole way. @returns the gateway's answer to the callback. */
  async logIn(who: string, returnTo?: string): Promise<Response> {
    return this.request(await this.authenticate(await this.begin(returnTo), who));
  }

  get session(): string | undefined {
    return this.jar().get('__Host-mf_session');
  }

  /** Who the gateway says this browser is. */
  async whoAmI(): Promise<{ status: number; email?: string; role?: string; csrf?: string; id?: string }> {
    const response = await this.request(`${PUBLIC}/api/session`);
    if (response.status !== 200) return { status: response.status };
    const body = (await response.json()) as {
      id: string;
      user: { id: string; email: string };
      role: string;
      csrf_token: string;
    };
    return { status: 200, email: body.user.email, role: body.role, csrf: body.csrf_token, id: body.id };
  }

  /** As one of our own pages sends it. */
  async send(method: string, path: string, body?: unknown): Promise<Response> {
    const { csrf = '' } = await this.whoAmI();
    return this.request(`${PUBLIC}${path}`, {
      method,
      headers: { origin: PUBLIC, 'x-csrf-token': csrf, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  }
}
