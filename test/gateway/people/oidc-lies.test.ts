/** A provider that lies, fails or floods: nobody gets in, and who asks is told in words. */
import { exportSPKI, SignJWT, UnsecuredJWT } from 'jose';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { ApiError } from '../../../gateway/errors.ts';
import { limits } from '../../../gateway/limits.ts';
import { Oidc } from '../../../gateway/people/oidc/oidc.ts';
import type { OidcSettings } from '../../../gateway/people/oidc/settings.ts';
import { errorOf, type Rig, startRig } from '../rig.ts';
import { Browser, CLIENT, keyPair, type LyingProvider, PUBLIC, settingsOf, startLyingProvider } from './oidc-rig.ts';

type Pair = Awaited<ReturnType<typeof keyPair>>;
let rsa: Pair;
let ec: Pair;
let stranger: Pair;
let open: { rig: Rig; liar: LyingProvider }[] = [];
/** For those who are all to be refused; whoever got in would be seen by all that follow. */
let shared: Started;

beforeAll(async () => {
  [rsa, ec, stranger] = await Promise.all([keyPair('RS256'), keyPair('ES256'), keyPair('RS256')]);
  shared = await start();
  open = [];
});
afterAll(async () => {
  await shared.rig.close();
  await shared.liar.close();
});
afterEach(async () => {
  for (const { rig, liar } of open) {
    await rig.close();
    await liar.close();
  }
  open = [];
});

/** A gateway that lets strangers in, so that a lie that is believed shows. */
async function start(change: Partial<OidcSettings> = {}, now: () => number = Date.now) {
  const liar = await startLyingProvider();
  liar.lies.keys = () => ({ keys: [rsa.publicJwk, ec.publicJwk] });
  const rig = await startRig({
    now,
    people: { publicUrl: PUBLIC },
    oidc: { settings: settingsOf(liar.issuer, { role: 'consumer', ...change }) },
  });
  const one = { rig, liar, browser: new Browser(rig.app) };
  open.push(one);
  return one;
}
type Started = Awaited<ReturnType<typeof start>>;

/** To the provider and straight back with a code. */
async function logIn({ browser, liar }: Started): Promise<Response> {
  const url = new URL(await browser.begin());
  liar.nonce = url.searchParams.get('nonce') as string;
  const state = url.searchParams.get('state') as string;
  return browser.request(`${PUBLIC}/api/session/oidc/callback?${new URLSearchParams({ state, code: 'code' })}`);
}

const seconds = (offset = 0) => Math.floor(Date.now() / 1000) + offset;
function claimsOf(liar: LyingProvider, nonce: string): Record<string, unknown> {
  return {
    iss: liar.issuer,
    sub: 'mallory',
    aud: CLIENT.id,
    iat: seconds(),
    exp: seconds(300),
    nonce,
    email: 'mallory@id.test',
    email_verified: true,
    name: 'Mallory',
  };
}
const sign = (claims: Record<string, unknown>, pair = rsa, header: object = {}) =>
  new SignJWT(claims)
    .setProtectedHeader({ alg: pair.jwk.alg as string, kid: pair.jwk.kid as string, ...header })
    .sign(pair.privateKey);
const codeOf = async (response: Response) => `${response.status} ${(await errorOf(response)).code}`;

async function expectNobody({ rig, browser }: Started): Promise<void> {
  expect(browser.session).toBeUndefined();
  expect(await rig.app.services.people.users.byEmail('mallory@id.test')).toBeNull();
}

describe('ID tokens', () => {
  test('the honest one is believed, so that the others are refused for what is wrong with them', async () => {
    for (const pair of [rsa, ec]) {
      const one = await start();
      one.liar.lies.token = async ({ nonce }) => ({ id_token: await sign(claimsOf(one.liar, nonce), pair) });
      expect((await logIn(one)).status).toBe(303);
      expect(await one.browser.whoAmI()).toMatchObject({ email: 'mallory@id.test', role: 'consumer' });
    }
  });

  const good: Record<string, (claims: Record<string, unknown>) => Record<string, unknown>> = {
    'issued by a clock that is a little fast': (c) => ({ ...c, iat: seconds(50) }),
    'ended by a clock that is a little slow': (c) => ({ ...c, exp: seconds(-50) }),
    'for one audience in a list': (c) => ({ ...c, aud: [CLIENT.id] }),
    'for several audiences, but given to us': (c) => ({ ...c, aud: ['other', CLIENT.id], azp: CLIENT.id }),
  };
  test.each(Object.entries(good))('believed: %s', async (_, change) => {
    const one = await start();
    one.liar.lies.token = async ({ nonce }) => ({ id_token: await sign(change(claimsOf(one.liar, nonce))) });
    expect((await logIn(one)).status).toBe(303);
  });

  type Make = (claims: Record<string, unknown>) => Promise<unknown> | unknown;
  const without = (claims: Record<string, unknown>, name: string) => {
    const { [name]: _, ...rest } = claims;
    return rest;
  };
  const evil: Record<string, Make> = {
    'signed with another key': (c) => sign(c, stranger),
    'signed with another key under the name of the right one': (c) => sign(c, stranger, { kid: rsa.jwk.kid }),
    'alg none': (c) => new UnsecuredJWT(c).encode(),
    'alg none, written otherwise': (c) => {
      const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
      return `${part({ alg: 'NonE', kid: rsa.jwk.kid })}.${part(c)}.`;
    },
    'HS256 with the public key as the secret': async (c) =>
      new SignJWT(c)
        .setProtectedHeader({ alg: 'HS256', kid: rsa.jwk.kid as string })
        .sign(new TextEncoder().encode(await exportSPKI(rsa.publicKey))),
    'HS256 with the client secret': (c) =>
      new SignJWT(c).setProtectedHeader({ alg: 'HS256' }).sign(new TextEncoder().encode(CLIENT.secret.repeat(2))),
    'RS384, which is not pinned': async (c) => {
      const other = await keyPair('RS384');
      return sign(c, other);
    },
    'a key that the token brings along': async (c) =>
      sign(c, stranger, { jwk: stranger.publicJwk, kid: stranger.jwk.kid }),
    'a signature of nothing': async (c) => `${(await sign(c)).split('.').slice(0, 2).join('.')}.`,
    'other claims under a right signature': async (c) => {
      const [head, , tail] = (await sign(c)).split('.');
      const body = Buffer.from(JSON.stringify({ ...c, email: 'chief@users.test' })).toString('base64url');
      return [head, body, tail].join('.');
    },
    'another issuer': (c) => sign({ ...c, iss: 'https://evil.test' }),
    'our issuer with a slash more': (c) => sign({ ...c, iss: `${c.iss}/` }),
    'no issuer': (c) => sign(without(c, 'iss')),
    'another audience': (c) => sign({ ...c, aud: 'somebody-else' }),
    'no audience': (c) => sign(without(c, 'aud')),
    'an empty list of audiences': (c) => sign({ ...c, aud: [] }),
    'several audiences, given to nobody': (c) => sign({ ...c, aud: [CLIENT.id, 'other'] }),
    'given to another client': (c) => sign({ ...c, azp: 'other' }),
    'several audiences, given to another': (c) => sign({ ...c, aud: [CLIENT.id, 'other'], azp: 'other' }),
    expired: (c) => sign({ ...c, exp: seconds(-61), iat: seconds(-300) }),
    'without an end': (c) => sign(without(c, 'exp')),
    'an end that is no number': (c) => sign({ ...c, exp: '9999999999' }),
    'issued long ago, though it has not ended': (c) => sign({ ...c, iat: seconds(-700), exp: seconds(9e6) }),
    'issued in the future': (c) => sign({ ...c, iat: seconds(120) }),
    'without a time': (c) => sign(without(c, 'iat')),
    'not yet valid': (c) => sign({ ...c, nbf: seconds(300) }),
    'another nonce': (c) => sign({ ...c, nonce: 'A'.repeat(43) }),
    'no nonce': (c) => sign(without(c, 'nonce')),
    'a nonce in a list': (c) => sign({ ...c, nonce: [c.nonce] }),
    'no subject': (c) => sign(without(c, 'sub')),
    'an empty subject': (c) => sign({ ...c, sub: '' }),
    'a subject that is no text': (c) => sign({ ...c, sub: 7 as never }),
    'an endless subject': (c) => sign({ ...c, sub: 'x'.repeat(256) }),
    'an access token': (c) => sign(c, rsa, { typ: 'at+jwt' }),
    'a log-out token': (c) => sign(c, rsa, { typ: 'logout+jwt' }),
    'a critical extension that nobody knows': async (c) => {
      const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
      const head = part({ alg: 'RS256', kid: rsa.jwk.kid, crit: ['x'], x: 1 });
      const signature = await crypto.subtle.sign(
        'RSASSA-PKCS1-v1_5',
        rsa.privateKey,
        Buffer.from(`${head}.${part(c)}`),
      );
      return `${head}.${part(c)}.${Buffer.from(signature).toString('base64url')}`;
    },
    'not a token': () => 'a.b.c',
    'five parts': () => 'a.b.c.d.e',
    'an empty text': () => '',
  };
  test.each(Object.entries(evil))('refused: %s', async (_, make) => {
    const one = { ...shared, browser: new Browser(shared.rig.app) };
    one.rig.logLines.length = 0;
    one.liar.lies.token = async ({ nonce }) => ({ id_token: await make(claimsOf(one.liar, nonce)) });
    const answer = await logIn(one);
    const error = await errorOf(answer);
    expect([answer.status, error.code]).toEqual([401, 'oidc_token_invalid']);
    // What was wrong is for the log.
    expect(error.message).toBe('The OpenID provider’s answer is not valid, so nobody was logged in.');
    const log = one.rig.logLines.join('');
    expect(log).toContain('oidc_token_invalid');
    expect(log).not.toContain('mallory@id.test');
    await expectNobody(one);
  });

  test('the algorithms of the settings are the only ones', async () => {
    const one = await start({ algorithms: ['ES256'] });
    one.liar.lies.token = async ({ nonce }) => ({ id_token: await sign(claimsOf(one.liar, nonce), rsa) });
    expect(await codeOf(await logIn(one))).toBe('401 oidc_token_invalid');
    one.liar.lies.token = async ({ nonce }) => ({ id_token: await sign(claimsOf(one.liar, nonce), ec) });
    expect((await logIn(one)).status).toBe(303);
  });

  test('a symmetric key among the provider’s keys signs nothing', async () => {
    const one = await start();
    const secret = crypto.getRandomValues(new Uint8Array(32));
    one.liar.lies.keys = () => ({
      keys: [{ kty: 'oct', k: Buffer.from(secret).toString('base64url'), kid: 'hs', alg: 'HS256' }],
    });
    one.liar.lies.token = async ({ nonce }) => ({
      id_token: await new SignJWT(claimsOf(one.liar, nonce))
        .setProtectedHeader({ alg: 'HS256', kid: 'hs' })
        .sign(secret),
    });
    expect(await codeOf(await logIn(one))).toBe('401 oidc_token_invalid');
    await expectNobody(one);
  });

  test('new keys of the provider are found', async () => {
    const one = await start();
    one.liar.lies.keys = () => ({ keys: [ec.publicJwk] });
    one.liar.lies.token = async ({ nonce }) => ({ id_token: await sign(claimsOf(one.liar, nonce), ec) });
    expect((await logIn(one)).status).toBe(303);
    const asked = one.liar.asked.filter((path) => path === '/keys').length;
    expect((await logIn(one)).status).toBe(303);
    expect(one.liar.asked.filter((path) => path === '/keys')).toHaveLength(asked);
  });
});

describe('what the provider says of somebody elsewhere', () => {
  const bare = ({ email: _, email_verified: __, ...rest }: Record<string, unknown>) => rest;

  test('is of the one who logged in, or is not believed', async () => {
    const one = await start();
    one.liar.lies.token = async ({ nonce }) => ({
      id_token: await sign(bare(claimsOf(one.liar, nonce))),
      access_token: 'token',
    });
    one.liar.lies.userinfo = () => ({ sub: 'somebody else', email: 'mallory@id.test', email_verified: true });
    expect(await codeOf(await logIn(one))).toBe('401 oidc_token_invalid');
    one.liar.lies.userinfo = () => ({ email: 'mallory@id.test', email_verified: true });
    expect(await codeOf(await logIn(one))).toBe('401 oidc_token_invalid');
    await expectNobody(one);
    one.liar.lies.userinfo = () => ({ sub: 'mallory', email: 'mallory@id.test', email_verified: true });
    expect((await logIn(one)).status).toBe(303);
  });

  test('an e-mail in the token is not mixed with a word about another one there', async () => {
    const one = await start();
    one.liar.lies.token = async ({ nonce }) => ({
      id_token: await sign({ ...claimsOf(one.liar, nonce), email_verified: false }),
      access_token: 'token',
    });
    one.liar.lies.userinfo = () => ({ sub: 'mallory', email: 'mallory@id.test', email_verified: true });
    expect(await codeOf(await logIn(one))).toBe('403 email_not_verified');
    await expectNobody(one);
  });

  test('a header that would break off the request is not sent', async () => {
    const one = await start();
    one.liar.lies.token = async ({ nonce }) => ({
      id_token: await sign(bare(claimsOf(one.liar, nonce))),
      access_token: 'a\r\nx-evil: 1',
    });
    expect(await codeOf(await logIn(one))).toBe('403 email_not_verified');
    expect(one.liar.asked).not.toContain('/me');
  });
});

describe('a provider that does not work', () => {
  const begin = ({ browser }: Started) => browser.request(`${PUBLIC}/api/session/oidc`);
  /** Streams for ever, or until the reader has had enough. */
  function endless(counter: { bytes: number }, head: string): Response {
    const chunk = new TextEncoder().encode(`${head}${'x'.repeat(64 * 1024)}`);
    const body = new ReadableStream({
      async pull(controller) {
        counter.bytes += chunk.byteLength;
        if (counter.bytes > 64 * 1024 * 1024) return controller.close();
        controller.enqueue(chunk);
        await new Promise((resolve) => setImmediate(resolve));
      },
    });
    return new Response(body, { headers: { 'content-type': 'application/json' } });
  }

  test('is down: a clear answer that says when to come back, and it is not asked again at once', async () => {
    // A clock that stands, so that nothing ends because the machine is slow.
    let clock = Date.now();
    const one = await start({}, () => clock);
    await one.liar.close();
    const answer = await begin(one);
    const error = await errorOf(answer);
    expect([answer.status, error.code, answer.headers.get('retry-after')]).toEqual([503, 'oidc_unavailable', '2']);
    expect(error.message).toMatch(/cannot be used now.*password/);
    expect(error.message).not.toContain(one.liar.issuer);
    expect(one.browser.jar().size).toBe(0);
    expect(one.rig.logLines.join('')).toContain('ECONNREFUSED');
    clock += limits.oidcRetryMs;
    expect(await codeOf(await begin(one))).toBe('503 oidc_unavailable');
  });

  test('a hundred people who try while it is down make one request, and it recovers', async () => {
    // A clock that stands, so that nothing ends because the machine is slow.
    let clock = Date.now();
    const one = await start({}, () => clock);
    one.liar.lies.description = () => new Response('', { status: 500 });
    const answers = await Promise.all(Array.from({ length: 100 }, () => begin(one)));
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([503]));
    expect(one.liar.asked).toHaveLength(1);
    one.liar.lies.description = null;
    expect((await begin(one)).status).toBe(503);
    clock += limits.oidcRetryMs;
    expect((await begin(one)).status).toBe(302);
    expect((await begin(one)).status).toBe(302);
    expect(one.liar.asked).toHaveLength(2);
    // An hour later it is read anew; if that fails the old one serves.
    clock += limits.oidcDescriptionMs;
    one.liar.lies.description = () => new Response('', { status: 500 });
    expect((await begin(one)).status).toBe(302);
    expect(one.liar.asked).toHaveLength(3);
  });

  const bad: Record<string, [(honest: Record<string, unknown>) => Response | object, string]> = {
    'is not JSON': [() => new Response('<html>'), '502 oidc_misconfigured'],
    'is not UTF-8': [() => new Response(new Uint8Array([0x7b, 0xff, 0x7d])), '502 oidc_misconfigured'],
    'is a list': [() => [1], '502 oidc_misconfigured'],
    'is of another issuer': [(one) => ({ ...one, issuer: 'https://evil.test' }), '502 oidc_misconfigured'],
    'names no token address': [({ token_endpoint: _, ...rest }) => rest, '502 oidc_misconfigured'],
    'names a key address without TLS': [
      (one) => ({ ...one, jwks_uri: 'http://id.example.org/keys' }),
      '502 oidc_misconfigured',
    ],
    'sends browsers elsewhere than the web': [
      (one) => ({ ...one, authorization_endpoint: 'javascript:alert(1)' }),
      '502 oidc_misconfigured',
    ],
    'sends browsers off without TLS': [
      (one) => ({ ...one, authorization_endpoint: 'http://127.0.0.1.evil.test/auth' }),
      '502 oidc_misconfigured',
    ],
    'has its token address in a file': [
      (one) => ({ ...one, token_endpoint: 'file:///etc/passwd' }),
      '502 oidc_misconfigured',
    ],
    'is elsewhere, where the right one lies': [
      () => new Response(null, { status: 302, headers: { location: '/elsewhere' } }),
      '503 oidc_unavailable',
    ],
    'is deep': [() => new Response(`${'['.repeat(100_000)}`), '502 oidc_misconfigured'],
    'is missing': [() => new Response('no', { status: 404 }), '503 oidc_unavailable'],
  };
  test.each(Object.entries(bad))('whose description %s', async (_, [make, expected]) => {
    const liar = await startLyingProvider();
    liar.lies.description = make;
    // Another provider for the same gateway: only what is under test is made anew.
    const { database } = shared.rig;
    const users = shared.rig.app.services.people.users;
    const oidc = new Oidc({ db: database.db, users, now: Date.now }, { settings: settingsOf(liar.issuer) });
    try {
      const error = await oidc.start('/', null).then(
        () => 'started',
        (thrown: ApiError) => `${thrown.status} ${thrown.code}`,
      );
      expect(error).toBe(expected);
    } finally {
      await liar.close();
    }
  });

  test('whose description never ends is cut off', async () => {
    const one = await start();
    const counter = { bytes: 0 };
    one.liar.lies.description = () => endless(counter, '{"issuer":"');
    const before = process.memoryUsage().arrayBuffers;
    expect(await codeOf(await begin(one))).toBe('503 oidc_unavailable');
    // What had been sent into buffers by then, far from all of it.
    expect(counter.bytes).toBeLessThan(32 * 1024 * 1024);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(48 * 1024 * 1024);
  });

  test('whose keys, tokens or word about people never end, or do not come, logs nobody in', async () => {
    const one = await start();
    const honest = async ({ nonce }: { nonce: string }) => ({ id_token: await sign(claimsOf(one.liar, nonce)) });
    const { lies } = one.liar;
    lies.token = () => endless({ bytes: 0 }, '{"id_token":"');
    expect(await codeOf(await logIn(one))).toBe('503 oidc_unavailable');
    lies.token = () => new Response('oops', { status: 500 });
    expect(await codeOf(await logIn(one))).toBe('503 oidc_unavailable');
    lies.token = () => new Response('oops', { status: 200 });
    expect(await codeOf(await logIn(one))).toBe('502 oidc_misconfigured');
    lies.token = () => ({ access_token: 'only' });
    expect(await codeOf(await logIn(one))).toBe('502 oidc_misconfigured');
    lies.token = () => Response.json({ error: 'invalid_grant' }, { status: 400 });
    expect(await codeOf(await logIn(one))).toBe('400 oidc_code_refused');
    lies.token = honest;
    lies.keys = () => endless({ bytes: 0 }, '{"keys":["');
    expect(await codeOf(await logIn(one))).toBe('503 oidc_unavailable');
    lies.keys = () => new Response('', { status: 500 });
    expect(await codeOf(await logIn(one))).toBe('503 oidc_unavailable');
    lies.keys = () => ({ keys: 'none' });
    expect(await codeOf(await logIn(one))).toBe('503 oidc_unavailable');
    lies.keys = () => ({ keys: [] });
    expect(await codeOf(await logIn(one))).toBe('401 oidc_token_invalid');
    await expectNobody(one);
  });
});

test('the client proves itself as the provider wants it: in the header, in the form, or by PKCE alone', async () => {
  for (const [methods, secret] of [
    [undefined, CLIENT.secret],
    [['client_secret_post'], CLIENT.secret],
    [['client_secret_post', 'client_secret_basic'], CLIENT.secret],
    [['none'], null],
  ] as const) {
    const one = await start({ clientSecret: secret });
    one.liar.lies.description = (honest) => ({ ...honest, token_endpoint_auth_methods_supported: methods });
    const seen: { form: URLSearchParams; authorization: string | null }[] = [];
    one.liar.lies.token = async ({ nonce, form, authorization }) => {
      seen.push({ form, authorization });
      return { id_token: await sign(claimsOf(one.liar, nonce)) };
    };
    expect((await logIn(one)).status).toBe(303);
    const { form, authorization } = seen[0] as (typeof seen)[0];
    expect(form.get('code_verifier')).toMatch(/^[\w-]{43}$/);
    expect(form.get('redirect_uri')).toBe(`${PUBLIC}/api/session/oidc/callback`);
    const inForm = [form.get('client_id'), form.get('client_secret')];
    if (secret === null) expect([authorization, ...inForm]).toEqual([null, CLIENT.id, null]);
    else if (methods?.length === 1) expect([authorization, ...inForm]).toEqual([null, CLIENT.id, CLIENT.secret]);
    else {
      expect(inForm).toEqual([null, null]);
      const [id, password] = Buffer.from((authorization as string).slice('Basic '.length), 'base64')
        .toString()
        .split(':')
        .map((half) => new URLSearchParams(`x=${half}`).get('x'));
      expect([id, password]).toEqual([CLIENT.id, CLIENT.secret]);
    }
  }
});
