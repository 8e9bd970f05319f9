/** Who may do what: every route with every kind of key, and what a key may hand on. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SCOPES } from '../../gateway/auth/scopes.ts';
import { CHAT, errorOf, type Rig, startRig } from './rig.ts';

let rig: Rig;
const keys = new Map<string, string>();
const DAY = 86_400_000;

beforeAll(async () => {
  rig = await startRig({ adapters: ['legal', 'medical'] });
  for (const scope of SCOPES) keys.set(scope, (await rig.key({ scopes: [scope] })).credential);
  const revoked = await rig.key({ scopes: ['admin'] });
  await rig.app.services.keys.revoke(revoked.id);
  keys.set('revoked', revoked.credential);
  keys.set('expired', (await rig.key({ scopes: ['admin'], expiresAt: Date.now() - DAY })).credential);
  keys.set('unknown', `mf-${'A'.repeat(43)}`);
});
afterAll(() => rig.close());

const send = (credential: string | undefined, method: string, path: string, body?: unknown) =>
  rig.call(method, path, body, { authorization: credential === undefined ? '' : `Bearer ${credential}` });

describe('every route × every kind of key', () => {
  test('no route is without a rule, and only these are public', () => {
    const open = rig.app.routes.filter(({ access }) => access === 'public').map(({ path }) => path);
    expect(open.sort()).toEqual([
      '/',
      '/api/datanets/vkey',
      '/api/invitations/accept',
      '/api/session',
      '/api/session/oidc',
      '/api/session/oidc/callback',
      '/health',
      '/log/checkpoint',
      '/log/consistency',
      '/log/tile/{tile}',
      '/log/vkey',
      '/openapi.json',
    ]);
  });

  const kinds = ['none', 'unknown', 'revoked', 'expired', ...SCOPES];
  test.each(kinds)('key: %s', async (kind) => {
    for (const { method, path, access } of rig.app.routes) {
      // Ids that exist nowhere: whoever passes the guard gets 400 or 404 from the handler and changes nothing.
      const address = path
        .replace('{action}', 'pin')
        .replace('{tile}', '0/000')
        .replaceAll(/\{\w+\}/g, 'no-such');
      const response = await send(
        kind === 'none' ? undefined : keys.get(kind),
        method.toUpperCase(),
        address,
        method === 'post' || method === 'patch' ? {} : undefined,
      );
      const holder = (SCOPES as readonly string[]).includes(kind);
      const allowed = access === 'public' || (holder && (access === 'any' || kind === 'admin' || kind === access));
      const expected = allowed ? 'passes' : holder ? 403 : 401;
      // What is refused behind the guard is refused for another reason than the key's scopes.
      const refusal =
        response.status === 401 || response.status === 403 ? (await errorOf(response.clone())).code : null;
      const got = refusal === 'insufficient_scope' || refusal === 'invalid_api_key' ? response.status : 'passes';
      expect(`${method} ${path}: ${got}`).toBe(`${method} ${path}: ${expected}`);
      if (!allowed) {
        const error = await errorOf(response);
        expect([error.code, error.param]).toEqual([holder ? 'insufficient_scope' : 'invalid_api_key', null]);
      }
    }
  });
});

describe('the Authorization header', () => {
  test('whatever stands in it, the answer is 401 in our shape, and the database stays whole', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          fc.string({ unit: 'binary-ascii', maxLength: 600 }),
          fc.constantFrom(
            "Bearer ' OR 1=1 --",
            'Bearer mf-',
            'Basic YWRtaW46YWRtaW4=',
            'Bearer',
            'bearer  ',
            `Bearer mf-${'a'.repeat(42)}`,
            `Bearer mf-${'a'.repeat(44)}`,
            "Bearer mf-'; DROP TABLE keys; --",
            'Bearer undefined',
            'Bearer null',
          ),
          fc.string({ maxLength: 50 }).map((text) => `Bearer ${text}`),
        ),
        async (value) => {
          let headers: Headers;
          try {
            headers = new Headers({ authorization: value });
          } catch {
            return;
          }
          const response = await rig.app.fetch(new Request('http://gateway.test/v1/models', { headers }));
          expect(response.status).toBe(401);
          expect((await errorOf(response)).code).toBe('invalid_api_key');
        },
      ),
      { numRuns: 300 },
    );
    expect((await send(rig.admin, 'GET', '/v1/models')).status).toBe(200);
  });

  test('every part of the credential counts: a key with any one character changed is unknown', async () => {
    for (let index = 3; index < rig.admin.length; index += 7) {
      const other = rig.admin[index] === 'A' ? 'B' : 'A';
      const forged = rig.admin.slice(0, index) + other + rig.admin.slice(index + 1);
      expect((await send(forged, 'GET', '/v1/models')).status).toBe(401);
    }
    // 43 characters hold 258 bits: the last one has two that do not count for the bytes, but they do count here.
    expect((await send(rig.admin, 'GET', '/v1/models')).status).toBe(200);
  });

  test('the scheme is not case sensitive, and other places for a key do not count', async () => {
    const call = (headers: Record<string, string>, path = '/v1/models') =>
      rig.app.fetch(new Request(`http://gateway.test${path}`, { headers }));
    expect((await call({ authorization: `bEARER ${rig.admin}` })).status).toBe(200);
    expect((await call({ 'x-api-key': rig.admin })).status).toBe(401);
    expect((await call({ cookie: `key=${rig.admin}` })).status).toBe(401);
    expect((await call({}, `/v1/models?api_key=${rig.admin}`)).status).toBe(401);
  });
});

describe('a key’s life', () => {
  test('made over HTTP, shown once, stored as a hash only', async () => {
    const made = (await (
      await send(rig.admin, 'POST', '/api/keys', { name: 'app', budget_micros: 5, models: ['legal'] })
    ).json()) as { id: string; key: string };
    expect(made.key).toMatch(/^mf-[A-Za-z0-9_-]{43}$/);
    const listed = await (await send(rig.admin, 'GET', '/api/keys')).text();
    expect(listed).toContain(made.id);
    expect(listed).not.toContain(made.key);
    const dump = JSON.stringify((await rig.database.db.$client.execute('SELECT * FROM keys')).rows);
    expect(dump).not.toContain(made.key);
    expect(dump).not.toContain(made.key.slice(3, 30));
    const digest = Buffer.from(await crypto.subtle.digest('SHA-256', Buffer.from(made.key))).toString('hex');
    expect(dump).toContain(digest);
  });

  test('revoked: the next request fails, though the key was in the cache', async () => {
    const { id, credential } = await rig.key();
    expect((await send(credential, 'GET', '/v1/models')).status).toBe(200);
    expect((await send(keys.get('keys'), 'DELETE', `/api/keys/${id}`)).status).toBe(403);
    expect((await send(rig.admin, 'DELETE', `/api/keys/${id}`)).status).toBe(200);
    expect((await send(credential, 'GET', '/v1/models')).status).toBe(401);
    expect((await send(credential, 'POST', '/v1/chat/completions', CHAT)).status).toBe(401);
  });

  test('revoked by another gateway on the same database: no model computes for it any more, even while it is cached here', async () => {
    const { id, credential } = await rig.key();
    expect((await send(credential, 'POST', '/v1/chat/completions', CHAT)).status).toBe(200);
    await rig.database.db.$client.execute({ sql: 'UPDATE keys SET revoked_at = 1 WHERE id = ?', args: [id] });
    const before = rig.daemon.requests.length;
    expect((await send(credential, 'POST', '/v1/chat/completions', CHAT)).status).toBe(401);
    expect(rig.daemon.requests.length).toBe(before);
  });

  test('changed limits count at once', async () => {
    const { id, credential } = await rig.key({ models: ['legal'] });
    expect((await send(credential, 'POST', '/v1/chat/completions', CHAT)).status).toBe(404);
    await send(rig.admin, 'PATCH', `/api/keys/${id}`, { models: null });
    expect((await send(credential, 'POST', '/v1/chat/completions', CHAT)).status).toBe(200);
  });
});

describe('models a key may not use do not exist for it', () => {
  test('list, look, chat, embed, delete', async () => {
    const { credential } = await rig.key({ scopes: ['inference', 'adapters'], models: ['legal'] });
    const listed = (await (await send(credential, 'GET', '/v1/models')).json()) as { data: { id: string }[] };
    expect(listed.data.map(({ id }) => id)).toEqual(['legal']);
    for (const [method, path, body] of [
      ['GET', '/v1/models/medical', undefined],
      ['POST', '/v1/chat/completions', { ...CHAT, model: 'medical' }],
      ['POST', '/v1/completions', { model: 'medical', prompt: 'x' }],
      ['POST', '/v1/embeddings', { model: 'medical', input: 'x' }],
      ['DELETE', '/v1/models/medical', undefined],
      ['DELETE', '/api/adapters/medical', undefined],
      ['POST', '/api/adapters/medical/unload', undefined],
    ] as const) {
      const response = await send(credential, method, path, body);
      expect([path, response.status, (await errorOf(response)).code]).toEqual([path, 404, 'model_not_found']);
    }
    expect(rig.daemon.adapters.has('medical')).toBe(true);
    const upload = await rig.app.fetch(
      new Request('http://gateway.test/api/adapters?name=other', {
        method: 'POST',
        headers: { authorization: `Bearer ${credential}` },
        body: new FormData(),
      }),
    );
    expect(upload.status).toBe(404);
  });
});

describe('a key hands on no more than it has', () => {
  test.each([
    ['a scope it lacks', { scopes: ['keys'] }, { name: 'x', scopes: ['admin'] }],
    ['inference it lacks', { scopes: ['keys'] }, { name: 'x', scopes: ['inference'] }],
    [
      'models beyond its list',
      { scopes: ['keys', 'inference'], models: ['legal'] },
      { name: 'x', scopes: ['inference'], models: ['legal', 'medical'] },
    ],
    ['all models', { scopes: ['keys', 'inference'], models: ['legal'] }, { name: 'x', scopes: ['inference'] }],
    [
      'any money, if its own is limited',
      { scopes: ['keys', 'inference'], budgetMicros: 5 },
      { name: 'x', scopes: ['inference'], budget_micros: 1 },
    ],
    [
      'a longer life',
      { scopes: ['keys', 'inference'], expiresAt: Date.now() + DAY },
      { name: 'x', scopes: ['inference'], expires_at: Math.floor((Date.now() + 2 * DAY) / 1000) },
    ],
  ])('%s', async (_, own, asked) => {
    const { credential } = await rig.key(own as never);
    const response = await send(credential, 'POST', '/api/keys', asked);
    expect([response.status, (await errorOf(response)).code]).toEqual([403, 'insufficient_scope']);
  });

  test('nor does it touch keys that may do more', async () => {
    const admin = await rig.key({ scopes: ['admin'] });
    const { credential } = await rig.key({ scopes: ['keys', 'inference'] });
    for (const [method, body] of [
      ['DELETE', undefined],
      ['PATCH', { name: 'mine' }],
    ] as const) {
      expect((await send(credential, method, `/api/keys/${admin.id}`, body)).status).toBe(403);
    }
    expect((await send(admin.credential, 'GET', '/api/keys')).status).toBe(200);
  });

  test('within its own bounds it may', async () => {
    const { credential } = await rig.key({ scopes: ['keys', 'inference'], models: ['legal', 'medical'] });
    const made = await send(credential, 'POST', '/api/keys', { name: 'x', models: ['legal'] });
    expect(made.status).toBe(201);
  });
});

test('a receipt is told to the key it was made for, and to admins', async () => {
  const answered = await send(keys.get('inference'), 'POST', '/v1/chat/completions', CHAT);
  const path = `/v1/receipts/${answered.headers.get('x-receipt-id')}`;
  expect((await send(keys.get('inference'), 'GET', path)).status).toBe(200);
  expect((await send(rig.admin, 'GET', path)).status).toBe(200);
  const other = await send((await rig.key()).credential, 'GET', path);
  expect([other.status, (await errorOf(other)).code]).toEqual([404, 'receipt_not_found']);
});

describe('adapters', () => {
  test('files of the server are for admin only; the hub is for whoever manages adapters', async () => {
    const credential = keys.get('adapters');
    for (const source of ['/etc', 'adapters/x', 'file:///etc/passwd', 'hf:a/../../b', 'http://x/y', 'hf:a/b/c']) {
      const response = await send(credential, 'POST', '/api/adapters', { name: 'new', source });
      expect([source, response.status, (await errorOf(response)).code]).toEqual([source, 403, 'insufficient_scope']);
    }
    expect((await send(credential, 'POST', '/api/adapters', { name: 'new', source: 'hf:owner/repo' })).status).toBe(
      201,
    );
    expect((await send(rig.admin, 'POST', '/api/adapters', { name: 'new2', source: '/srv/adapters/x' })).status).toBe(
      201,
    );
    expect((await send(credential, 'GET', '/v1/models/new')).status).toBe(200);
    // Where files lie on the server is told to admin alone.
    expect(await (await send(credential, 'GET', '/api/adapters/legal')).json()).toMatchObject({ source: 'local' });
    expect(await (await send(rig.admin, 'GET', '/api/adapters/legal')).json()).toMatchObject({
      source: '/adapters/legal',
    });
  });

  test('only an admin makes the daemon ask the hub with the operator’s token', async () => {
    for (const [credential, operator] of [
      [keys.get('adapters'), false],
      [rig.admin, true],
    ] as const) {
      await send(credential, 'POST', '/api/adapters', { name: `hub-${operator}`, source: 'hf:owner/gated' });
      expect(rig.daemon.added.at(-1)).toMatchObject({ name: `hub-${operator}`, operator });
    }
    const claimed = { name: 'x', source: 'hf:owner/gated', operator: true };
    expect((await send(keys.get('adapters'), 'POST', '/api/adapters', claimed)).status).toBe(400);
  });

  test('an upload without a name in its address is for admins: nobody else gets past the check of whose it is', async () => {
    const before = rig.daemon.uploads.length;
    const upload = (credential: string | undefined) => {
      const body = new FormData();
      body.append('name', 'medical');
      body.append('replace', 'true');
      body.append('files', new Blob(['x']), 'adapter_model.safetensors');
      const headers = { authorization: `Bearer ${credential}` };
      return rig.app.fetch(new Request('http://gateway.test/api/adapters', { method: 'POST', headers, body }));
    };
    const refused = await upload(keys.get('adapters'));
    expect([refused.status, (await errorOf(refused)).param]).toEqual([400, 'name']);
    expect(rig.daemon.uploads.length).toBe(before);
    expect((await upload(rig.admin)).status).toBe(201);
  });

  test('an upload whose sender may not any more when its end comes, or whose name is another’s by then, makes nothing', async () => {
    const begin = async (credential: string, name: string) => {
      let more = (_: Uint8Array | null) => {};
      const body = new ReadableStream<Uint8Array>({
        start: (controller) => {
          more = (bytes) => (bytes === null ? controller.close() : controller.enqueue(bytes));
        },
      });
      const answer = rig.app.fetch(
        new Request(`http://gateway.test/api/adapters?name=${name}`, {
          method: 'POST',
          headers: { authorization: `Bearer ${credential}`, 'content-type': 'multipart/form-data; boundary=x' },
          body,
          duplex: 'half',
        } as RequestInit),
      );
      more(Buffer.from('--x\r\n'));
      more(Buffer.from('most of it'));
      await new Promise((resolve) => setTimeout(resolve, 50));
      return { more, answer };
    };
    const { id, credential } = await rig.key({ scopes: ['adapters'] });
    const late = await begin(credential, 'late-upload');
    expect((await rig.call('DELETE', `/api/keys/${id}`)).status).toBe(200);
    late.more(Buffer.from('--x--'));
    late.more(null);
    const refused = await late.answer;
    expect([401, 403]).toContain(refused.status);
    expect(rig.daemon.adapters.has('late-upload')).toBe(false);

    const still = await rig.key({ scopes: ['adapters'] });
    const good = await begin(still.credential, 'good-upload');
    good.more(Buffer.from('--x--'));
    good.more(null);
    expect((await good.answer).status).toBe(201);
    expect(rig.daemon.adapters.has('good-upload')).toBe(true);
  });

  test('an upload is piped through to the daemon, as it comes', async () => {
    const form = new FormData();
    form.append('files', new Blob([new Uint8Array(300_000)]), 'adapter_model.safetensors');
    const response = await rig.app.fetch(
      new Request('http://gateway.test/api/adapters?name=uploaded', {
        method: 'POST',
        headers: { authorization: `Bearer ${keys.get('adapters')}` },
        body: form,
      }),
    );
    expect(response.status).toBe(201);
    expect(rig.daemon.uploads.at(-1)).toMatchObject({ name: 'uploaded' });
    expect(rig.daemon.uploads.at(-1)?.bytes).toBeGreaterThan(300_000);
    expect(
      (await send(keys.get('inference'), 'POST', '/v1/chat/completions', { ...CHAT, model: 'uploaded' })).status,
    ).toBe(200);
    expect(await (await send(keys.get('adapters'), 'POST', '/api/adapters/uploaded/pin')).json()).toMatchObject({
      pinned: true,
    });
    expect(await (await send(keys.get('adapters'), 'DELETE', '/api/adapters/uploaded')).json()).toEqual({
      name: 'uploaded',
      deleted: true,
    });
    expect(
      (await send(keys.get('inference'), 'POST', '/v1/chat/completions', { ...CHAT, model: 'uploaded' })).status,
    ).toBe(404);
  });
});

describe('metrics', () => {
  test('need a key by default; where opened, not for what came through a proxy', async () => {
    expect((await send(undefined, 'GET', '/metrics')).status).toBe(401);
    const text = await (await send(keys.get('metrics'), 'GET', '/metrics')).text();
    expect(text).toContain('gen_ai_server_request_duration_seconds_bucket');
    expect(text).toContain('modelfactory_slots{daemon="0",tier="slot"} 3');
    const open = await startRig({ metrics: 'public' });
    const call = (headers: Record<string, string>) =>
      open.app.fetch(new Request('http://gateway.test/metrics', { headers }));
    expect((await call({})).status).toBe(200);
    expect((await call({ 'x-forwarded-for': '1.2.3.4' })).status).toBe(401);
    await open.close();
  });

  test('on loopback are open under names of loopback only: a page of the web may give this machine a name of its own', async () => {
    const open = await startRig({ metrics: 'loopback' });
    const status = async (origin: string) => (await open.app.fetch(new Request(`${origin}/metrics`))).status;
    for (const host of ['127.0.0.1:8080', 'localhost', '[::1]:8080']) expect(await status(`http://${host}`)).toBe(200);
    expect(await status('http://evil.test:8080')).toBe(401);
    await open.close();
  });
});
