/** Log-in through an OpenID provider: a real one, run here. Who gets in, and into which account. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { OidcSettings } from '../../../gateway/people/oidc/settings.ts';
import { errorOf, type Rig, startRig } from '../rig.ts';
import { Browser, CLIENT, PUBLIC, type RealProvider, settingsOf, startProvider } from './oidc-rig.ts';

let provider: RealProvider;
let rig: Rig;
/** The same gateway in every other respect, but strangers who log in become contributors. */
let open: Rig;
let clock = 0;
const now = () => Date.now() + clock;
const cookieKey = crypto.getRandomValues(new Uint8Array(32));

beforeAll(async () => {
  provider = await startProvider();
  const rigOf = (change: Partial<OidcSettings>) =>
    startRig({
      now,
      people: { publicUrl: PUBLIC },
      oidc: { settings: settingsOf(provider.issuer, change), cookieKey },
    });
  rig = await rigOf({});
  open = await rigOf({ role: 'contributor' });
});
afterAll(async () => {
  await rig.close();
  await open.close();
  await provider.close();
});
beforeEach(() => {
  clock = 0;
});

let count = 0;
/** Somebody whom the provider knows, under a name of their own. */
function person(email: string | null = null, more: object = {}): { login: string; email: string } {
  count += 1;
  const login = `subject-${count}`;
  const address = email ?? `person${count}@id.test`;
  provider.people.set(login, { email: address, email_verified: true, name: `Person ${count}`, ...more });
  return { login, email: address };
}
const invite = (email: string, at = rig) =>
  at.app.services.people.users.create({ email, name: 'Invited', role: 'builder' });
const codeOf = async (response: Response) => `${response.status} ${(await errorOf(response)).code}`;
const userOf = (email: string, at = rig) => at.app.services.people.users.byEmail(email);

describe('who was invited', () => {
  test('logs in, is active from then on, and the link that would have set a password is void', async () => {
    const { login, email } = person();
    const user = await invite(email);
    const { people } = rig.app.services;
    const { token } = (await people.invitations.create(user, 'test')) ?? { token: '' };
    const browser = new Browser(rig.app);
    const answer = await browser.logIn(login, '/datanets?tag=law#top');
    expect(answer.status).toBe(303);
    expect(answer.headers.get('location')).toBe('/datanets?tag=law#top');
    expect(answer.headers.get('cache-control')).toBe('no-store');
    expect(await browser.whoAmI()).toMatchObject({ status: 200, email, role: 'builder' });
    const session = browser.setCookies.find((text) => text.startsWith('__Host-mf_session=')) as string;
    for (const word of ['HttpOnly', 'Secure', 'SameSite=Lax', 'Path=/']) expect(session).toContain(word);
    const attempt = browser.setCookies.find((text) => text.startsWith('__Host-mf_oidc=')) as string;
    for (const word of ['HttpOnly', 'Secure', 'SameSite=Lax', 'Path=/', 'Max-Age=600']) expect(attempt).toContain(word);
    expect([...browser.jar().keys()]).toEqual(['__Host-mf_session']);
    expect(await userOf(email)).toMatchObject({ id: user.id, state: 'active', password: null });
    const accept = { token, password: 'a long enough password 77' };
    expect(await codeOf(await rig.call('POST', '/api/invitations/accept', accept, { authorization: '' }))).toBe(
      '400 invalid_invitation',
    );
  });

  test('asks the provider for a code with PKCE, and sends nothing that tells who is asking', async () => {
    const url = new URL(await new Browser(rig.app).begin());
    const asked = Object.fromEntries(url.searchParams);
    expect(asked).toMatchObject({
      response_type: 'code',
      client_id: CLIENT.id,
      redirect_uri: `${PUBLIC}/api/session/oidc/callback`,
      scope: 'openid email profile',
      code_challenge_method: 'S256',
    });
    for (const name of ['state', 'nonce', 'code_challenge']) expect(asked[name]).toMatch(/^[\w-]{43}$/);
    expect(new Set([asked.state, asked.nonce, asked.code_challenge]).size).toBe(3);
  });

  test('is the same account afterwards, whatever e-mail the provider tells then', async () => {
    const { login, email } = person();
    const user = await invite(email);
    expect((await new Browser(rig.app).logIn(login)).status).toBe(303);
    provider.people.set(login, { email: 'chief@users.test', email_verified: false });
    const chief = await rig.user({ role: 'admin', email: 'chief@users.test' });
    const again = new Browser(rig.app);
    expect((await again.logIn(login)).status).toBe(303);
    expect(await again.whoAmI()).toMatchObject({ email, role: 'builder' });
    expect(await rig.app.services.oidc.identities.of(user.id)).toHaveLength(1);
    expect(await rig.app.services.oidc.identities.of(chief.id)).toHaveLength(0);
  });

  test.each([
    ['is not checked', { email_verified: false }],
    ['is not said to be checked', { email_verified: undefined }],
    ['is checked in a word, not in truth', { email_verified: 'true' }],
    ['is not told', { email: undefined }],
    ['is no text', { email: ['ada@id.test'] }],
  ])('does not get in while the e-mail %s', async (_, claims) => {
    const { login, email } = person(null, claims);
    await invite(email);
    const browser = new Browser(rig.app);
    expect(await codeOf(await browser.logIn(login))).toBe('403 email_not_verified');
    expect(browser.session).toBeUndefined();
    expect(await userOf(email)).toMatchObject({ state: 'invited' });
  });

  test('an address that only looks the same is another mailbox', async () => {
    await invite('kelvin@id.test');
    for (const email of ['\u212aelvin@id.test', 'ｋelvin@id.test', 'kelvin@ⓘd.test', 'kelvin@id.test\u200b']) {
      const { login } = person(email);
      expect(await codeOf(await new Browser(rig.app).logIn(login)), email).toBe('403 email_not_verified');
    }
    expect(await userOf('kelvin@id.test')).toMatchObject({ state: 'invited' });
    // ASCII capitals are no difference to any mail server.
    const { login } = person('Kelvin@ID.test');
    expect((await new Browser(rig.app).logIn(login)).status).toBe(303);
  });
});

describe('strangers', () => {
  test('are refused where only the invited come in, and leave nothing behind', async () => {
    const { login, email } = person();
    const browser = new Browser(rig.app);
    const answer = await browser.logIn(login);
    const error = await errorOf(answer);
    expect([answer.status, error.code]).toEqual([403, 'not_invited']);
    expect(error.message).toMatch(/Ask an administrator/);
    expect(await userOf(email)).toBeNull();
    expect(browser.jar().size).toBe(0);
    expect(await browser.whoAmI()).toEqual({ status: 401 });
  });

  test('become what the settings say where strangers may come', async () => {
    const { login, email } = person(null, { name: '  Zoë\u00a0 Müller ' });
    const browser = new Browser(open.app);
    expect((await browser.logIn(login)).status).toBe(303);
    expect(await browser.whoAmI()).toMatchObject({ email, role: 'contributor' });
    const user = await userOf(email, open);
    expect(user).toMatchObject({ name: 'Zoë Müller', state: 'active', password: null });
    const again = new Browser(open.app);
    expect((await again.logIn(login)).status).toBe(303);
    expect((await userOf(email, open))?.id).toBe(user?.id);
  });

  test('a name that nobody could read is replaced', async () => {
    const { login, email } = person('silent@id.test', { name: '\u202e\u200b' });
    expect((await new Browser(open.app).logIn(login)).status).toBe(303);
    expect(await userOf(email, open)).toMatchObject({ name: 'silent' });
  });

  test('one who comes twice at the same moment is one user', async () => {
    const { login, email } = person();
    const browsers = Array.from({ length: 4 }, () => new Browser(open.app));
    const back = await Promise.all(browsers.map(async (one) => one.authenticate(await one.begin(), login)));
    const answers = await Promise.all(back.map((url, i) => (browsers[i] as Browser).request(url)));
    expect(answers.map(({ status }) => status)).toEqual([303, 303, 303, 303]);
    const user = await userOf(email, open);
    expect(await open.app.services.oidc.identities.of(user?.id as string)).toHaveLength(1);
    for (const one of browsers) expect(await one.whoAmI()).toMatchObject({ email });
  });
});

describe('accounts that are in use', () => {
  test('are never taken by e-mail, with or without a password, whatever the settings', async () => {
    for (const at of [rig, open]) {
      const { login, email } = person();
      const user = await at.user({ role: 'admin', email });
      const browser = new Browser(at.app);
      expect(await codeOf(await browser.logIn(login))).toBe('403 not_linked');
      expect(browser.session).toBeUndefined();
      expect(await at.app.services.oidc.identities.of(user.id)).toHaveLength(0);
    }
  });

  test('an invited account that has a password by now is in use', async () => {
    const { login, email } = person();
    const user = await invite(email);
    await rig.app.services.people.users.setPassword(user.id, 'scrypt$…');
    expect(await codeOf(await new Browser(rig.app).logIn(login))).toBe('403 not_linked');
    expect(await userOf(email)).toMatchObject({ state: 'invited' });
  });

  test('disabled ones stay shut, linked or not', async () => {
    const { login, email } = person();
    const user = await invite(email);
    expect((await new Browser(rig.app).logIn(login)).status).toBe(303);
    const { people } = rig.app.services;
    await people.changeUser((await people.users.find(user.id)) as never, { state: 'disabled' });
    expect(await codeOf(await new Browser(rig.app).logIn(login))).toBe('403 account_disabled');
    const other = person();
    const unused = await invite(other.email);
    await people.changeUser(unused, { state: 'disabled' });
    expect(await codeOf(await new Browser(rig.app).logIn(other.login))).toBe('403 account_disabled');
    expect(await userOf(other.email)).toMatchObject({ state: 'disabled' });
  });
});

/** A browser in which a user is logged in as with a password. */
async function browserOf(user: Awaited<ReturnType<Rig['user']>>): Promise<Browser> {
  const browser = new Browser(rig.app);
  const client = { address: null, userAgent: null, cookie: null, secure: true };
  const { setCookie } = await rig.app.services.people.sessions.start(user.row, 'password', client);
  browser.jar().set('__Host-mf_session', (setCookie.split(';')[0] as string).split('=')[1] as string);
  return browser;
}

describe('linking', () => {
  const LINK = '/api/session/oidc/link';
  const begin = async (browser: Browser, body: object = {}) => {
    const response = await browser.send('POST', LINK, body);
    expect(response.status).toBe(200);
    return ((await response.json()) as { url: string }).url;
  };
  const identitiesOf = (id: string) => rig.app.services.oidc.identities.of(id);

  test('in a session, whatever e-mail the identity has; then it lets its user in', async () => {
    const user = await rig.user({ role: 'contributor' });
    const { login } = person();
    const browser = await browserOf(user);
    const session = browser.session;
    const back = await browser.authenticate(await begin(browser, { return_to: '/account' }), login);
    const answer = await browser.request(back);
    expect([answer.status, answer.headers.get('location')]).toEqual([303, '/account']);
    expect(browser.session).toBe(session);
    const other = new Browser(rig.app);
    expect((await other.logIn(login)).status).toBe(303);
    expect(await other.whoAmI()).toMatchObject({ email: user.email, role: 'contributor' });
    const list = (await (await browser.request(`${PUBLIC}${LINK}`)).json()) as { data: object[] };
    expect(list.data).toEqual([
      { object: 'identity', issuer: provider.issuer, subject: login, created_at: expect.any(Number) },
    ]);
  });

  test('is begun by our own pages only: without the session’s token nothing begins', async () => {
    const user = await rig.user({});
    const browser = await browserOf(user);
    for (const headers of [
      {},
      { 'x-csrf-token': 'x'.repeat(43) },
      { origin: 'https://evil.test', 'x-csrf-token': (await browser.whoAmI()).csrf as string },
    ]) {
      const response = await browser.request(`${PUBLIC}${LINK}`, { method: 'POST', headers, body: '{}' });
      expect(await codeOf(response)).toBe('403 csrf');
    }
    expect(await codeOf(await user.call('POST', LINK, {}))).toBe('400 not_a_session');
    expect(await codeOf(await rig.call('POST', LINK, {}))).toBe('400 not_a_session');
    expect(await codeOf(await rig.call('GET', LINK))).toBe('403 user_required');
    expect(browser.jar().has('__Host-mf_oidc')).toBe(false);
  });

  test('ends in the session in which it began, in no other browser and not after logging out', async () => {
    const attacker = await rig.user({});
    const victim = await rig.user({});
    const { login } = person();
    const attackers = await browserOf(attacker);
    const back = await attackers.authenticate(await begin(attackers), login);
    // The address with the attacker's code, opened in the victim's browser.
    const victims = await browserOf(victim);
    expect(await codeOf(await victims.request(back))).toBe('400 oidc_state');
    // Even with the attacker's cookie planted there.
    victims.jar().set('__Host-mf_oidc', attackers.jar().get('__Host-mf_oidc') as string);
    expect(await codeOf(await victims.request(back))).toBe('401 session_ended');
    expect(await identitiesOf(victim.id)).toHaveLength(0);

    const late = await attackers.authenticate(await begin(attackers), login);
    await rig.app.services.people.sessions.endAll(attacker.id);
    expect(await codeOf(await attackers.request(late))).toBe('401 session_ended');
    expect(await identitiesOf(attacker.id)).toHaveLength(0);
  });

  test('one identity, one account', async () => {
    const { login } = person();
    const [first, second] = [await rig.user({}), await rig.user({})];
    for (const [user, expected] of [
      [first, 303],
      [first, 303],
      [second, 409],
    ] as const) {
      const browser = await browserOf(user);
      const answer = await browser.request(await browser.authenticate(await begin(browser), login));
      expect(answer.status).toBe(expected);
      if (expected === 409) expect((await errorOf(answer)).code).toBe('identity_taken');
    }
    expect(await identitiesOf(first.id)).toHaveLength(1);
    expect(await identitiesOf(second.id)).toHaveLength(0);
  });

  test('is undone by its user alone, unless it is the only way in', async () => {
    const user = await rig.user({});
    const { login } = person();
    const browser = await browserOf(user);
    await browser.request(await browser.authenticate(await begin(browser), login));
    const address = `${LINK}?${new URLSearchParams({ issuer: provider.issuer, subject: login })}`;
    const stranger = await rig.user({});
    expect(await codeOf(await stranger.call('DELETE', address))).toBe('404 identity_not_found');
    expect(await codeOf(await browser.send('DELETE', address))).toBe('409 last_log_in');
    await rig.app.services.people.users.setPassword(user.id, 'scrypt$…');
    expect((await browser.send('DELETE', address)).status).toBe(200);
    expect(await codeOf(await browser.send('DELETE', address))).toBe('404 identity_not_found');
    expect(await codeOf(await new Browser(rig.app).logIn(login))).toBe('403 not_invited');
  });
});

describe('state, and what it is worth', () => {
  test('a callback serves once, here and at another gateway', async () => {
    const { login, email } = person();
    await invite(email);
    const browser = new Browser(rig.app);
    const back = await browser.authenticate(await browser.begin(), login);
    const cookie = browser.jar().get('__Host-mf_oidc') as string;
    expect((await browser.request(back)).status).toBe(303);
    expect(await codeOf(await browser.request(back))).toBe('400 oidc_state');
    const thief = new Browser(rig.app);
    thief.jar().set('__Host-mf_oidc', cookie);
    expect(await codeOf(await thief.request(back))).toBe('400 oidc_state');
    // Another gateway has not seen it; there the provider refuses the code.
    const elsewhere = new Browser(open.app);
    elsewhere.jar().set('__Host-mf_oidc', cookie);
    expect(await codeOf(await elsewhere.request(back))).toBe('400 oidc_code_refused');
    for (const one of [thief, elsewhere]) expect(one.session).toBeUndefined();
  });

  test('another state, another browser, an altered cookie, too late: all refused, none logs in', async () => {
    const { login, email } = person();
    await invite(email);
    const fresh = async () => {
      const browser = new Browser(rig.app);
      const url = new URL(await browser.authenticate(await browser.begin(), login));
      return { browser, url, jar: browser.jar() };
    };
    const tries: Record<string, (one: Awaited<ReturnType<typeof fresh>>) => Promise<unknown> | unknown> = {
      'another state': ({ url }) => url.searchParams.set('state', 'A'.repeat(43)),
      'no state': ({ url }) => url.searchParams.delete('state'),
      'two states': ({ url }) => {
        const state = url.searchParams.get('state') as string;
        url.searchParams.delete('state');
        url.searchParams.append('state', 'A'.repeat(43));
        url.searchParams.append('state', state);
      },
      'no cookie': ({ jar }) => jar.delete('__Host-mf_oidc'),
      'the cookie of another log-in': async ({ jar }) => {
        const other = new Browser(rig.app);
        await other.begin();
        jar.set('__Host-mf_oidc', other.jar().get('__Host-mf_oidc') as string);
      },
      'an altered cookie': ({ jar }) => {
        const parts = (jar.get('__Host-mf_oidc') as string).split('.');
        parts[3] = `${parts[3]?.startsWith('A') ? 'B' : 'A'}${parts[3]?.slice(1)}`;
        jar.set('__Host-mf_oidc', parts.join('.'));
      },
      'a cookie under the name for plain HTTP': ({ jar }) => {
        jar.set('mf_oidc', jar.get('__Host-mf_oidc') as string);
        jar.delete('__Host-mf_oidc');
      },
      'an unencrypted cookie': ({ jar, url }) => {
        const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
        const claims = { state: url.searchParams.get('state'), nonce: 'n', verifier: 'v', returnTo: '/', link: null };
        jar.set('__Host-mf_oidc', `${part({ alg: 'none' })}.${part({ ...claims, jti: 'x', exp: 9e9 })}.`);
      },
      'a huge cookie': ({ jar }) => jar.set('__Host-mf_oidc', 'A'.repeat(5000)),
      'eleven minutes later': () => {
        clock = 11 * 60_000;
      },
      'an answer of another provider': ({ url }) => url.searchParams.set('iss', 'https://evil.test'),
      'an answer that says of no provider': ({ url }) => url.searchParams.delete('iss'),
    };
    for (const [name, alter] of Object.entries(tries)) {
      const one = await fresh();
      await alter(one);
      const answer = await one.browser.request(one.url.href);
      expect(`${name}: ${await codeOf(answer)}`).toBe(`${name}: 400 oidc_state`);
      expect(one.browser.session, name).toBeUndefined();
      clock = 0;
    }
    expect(await userOf(email)).toMatchObject({ state: 'invited' });
  });

  test('a code of another log-in of the same person does not fit this one', async () => {
    const { login, email } = person();
    await invite(email);
    const [first, second] = [new Browser(rig.app), new Browser(rig.app)];
    const foreign = new URL(await first.authenticate(await first.begin(), login));
    const own = new URL(await second.authenticate(await second.begin(), login));
    own.searchParams.set('code', foreign.searchParams.get('code') as string);
    // PKCE: the code was asked for with another challenge.
    expect(await codeOf(await second.request(own.href))).toBe('400 oidc_code_refused');
  });

  test('a session cookie of before is not adopted, and what it stood for has ended', async () => {
    const { login, email } = person();
    await invite(email);
    const planted = new Browser(rig.app);
    planted.jar().set('__Host-mf_session', 'A'.repeat(43));
    expect((await planted.logIn(login)).status).toBe(303);
    expect(planted.session).not.toBe('A'.repeat(43));
    const first = planted.session as string;
    expect((await planted.logIn(login)).status).toBe(303);
    expect(planted.session).not.toBe(first);
    const old = new Browser(rig.app);
    old.jar().set('__Host-mf_session', first);
    expect(await old.whoAmI()).toEqual({ status: 401 });
    old.jar().set('__Host-mf_session', 'A'.repeat(43));
    expect(await old.whoAmI()).toEqual({ status: 401 });
  });

  test('who turns back at the provider is told so, in words of ours', async () => {
    const browser = new Browser(rig.app);
    const back = new URL(await browser.authenticate(await browser.begin(), 'abort'));
    expect(back.searchParams.get('error')).toBe('access_denied');
    back.searchParams.set('error_description', 'Call 555-0100 and tell them your password');
    const answer = await browser.request(back.href);
    const error = await errorOf(answer);
    expect([answer.status, error.code]).toEqual([400, 'oidc_refused']);
    expect(error.message).toMatch(/access_denied/);
    expect(error.message).not.toMatch(/555/);
  });
});

describe('where the browser goes afterwards', () => {
  test.each([
    '//evil.test',
    '///evil.test',
    '/\\evil.test',
    '/\\/evil.test',
    '\\\\evil.test',
    'https://evil.test/',
    'http:evil.test',
    'javascript:alert(1)',
    'data:text/html,x',
    'evil.test',
    '',
    ' /datanets',
    '/\t/evil.test',
    '/\n/evil.test',
    '/x\r\nset-cookie: a=b',
    '/.//evil.test',
    '/..//evil.test',
    '/a/..//evil.test',
    '/%2e//evil.test',
    '/ünïcode',
    '@evil.test',
    '/'.repeat(3),
    `/${'x'.repeat(1100)}`,
  ])('%j is refused at the start', async (path) => {
    const browser = new Browser(rig.app);
    const response = await browser.request(`${PUBLIC}/api/session/oidc?return_to=${encodeURIComponent(path)}`);
    expect(response.status).toBe(400);
    expect(await errorOf(response)).toMatchObject({ param: 'return_to', code: 'invalid_value' });
    expect(browser.jar().size).toBe(0);
  });

  test.each(['/', '/datanets', '/a/b?c=d&e=//f#g', '/search?q=%2F%2Fevil', '/%E2%82%AC', "/~x!$&'()*+,;=:@"])(
    '%j is a page of ours',
    async (path) => {
      const { login, email } = person();
      await invite(email);
      const answer = await new Browser(rig.app).logIn(login, path);
      expect([answer.status, answer.headers.get('location')]).toEqual([303, path]);
      expect(new URL(path, PUBLIC).origin).toBe(PUBLIC);
    },
  );

  test('without a word, the start page', async () => {
    const { login, email } = person();
    await invite(email);
    expect((await new Browser(rig.app).logIn(login)).headers.get('location')).toBe('/');
  });
});

test('e-mail and name may stand in the ID token itself, and other algorithms sign it', async () => {
  for (const alg of ['ES256', 'PS256', 'EdDSA']) {
    const other = await startProvider({ claimsIn: 'id_token', alg });
    const another = await startRig({
      people: { publicUrl: PUBLIC },
      oidc: { settings: settingsOf(other.issuer, { role: 'consumer' }) },
    });
    try {
      other.people.set('ida', { email: 'ida@id.test', email_verified: true, name: 'Ida' });
      const browser = new Browser(another.app);
      expect((await browser.logIn('ida')).status).toBe(303);
      expect(await browser.whoAmI()).toMatchObject({ email: 'ida@id.test', role: 'consumer' });
    } finally {
      await another.close();
      await other.close();
    }
  }
});

test('the provider does not know this gateway: its runner is told, the browser only that much', async () => {
  const wrong = await startRig({
    people: { publicUrl: PUBLIC },
    oidc: { settings: settingsOf(provider.issuer, { clientSecret: 'another secret' }) },
  });
  try {
    const { login } = person();
    const answer = await new Browser(wrong.app).logIn(login);
    expect(await codeOf(answer)).toBe('502 oidc_misconfigured');
    const log = wrong.logLines.join('');
    expect(log).toMatch(/invalid_client/);
    expect(log).not.toMatch(/another secret/);
  } finally {
    await wrong.close();
  }
});

test('where no provider is set up the routes say so', async () => {
  const without = await startRig();
  try {
    for (const path of ['/api/session/oidc', '/api/session/oidc/callback?code=x&state=y'])
      expect(await codeOf(await without.call('GET', path))).toBe('404 oidc_off');
    const user = await without.user({});
    const session = await user.session();
    expect(await codeOf(await session.call('POST', '/api/session/oidc/link', {}))).toBe('404 oidc_off');
    expect((await user.call('GET', '/api/session/oidc/link')).status).toBe(200);
  } finally {
    await without.close();
  }
});

test('log-ins and links are in the audit log; codes, tokens, cookies and secrets are nowhere', async () => {
  const { login, email } = person();
  const user = await invite(email);
  const browser = new Browser(rig.app);
  const back = await browser.authenticate(await browser.begin(), login);
  const attempt = browser.jar().get('__Host-mf_oidc') as string;
  expect((await browser.request(back)).status).toBe(303);
  const { people } = rig.app.services;
  const { rows } = await people.audit.list({ object: user.id }, { limit: 10, after: null });
  expect(rows).toHaveLength(1);
  expect(rows[0]).toMatchObject({
    action: 'session.oidc',
    status: 303,
    detail: { issuer: provider.issuer, subject: login, how: 'invited', session: expect.stringMatching(/^sess_/) },
  });
  const { rows: before } = await people.audit.list({ action: 'session.oidc' }, { limit: 100, after: null });
  const stranger = person();
  await new Browser(rig.app).logIn(stranger.login);
  const { rows: after } = await people.audit.list({ action: 'session.oidc' }, { limit: 100, after: null });
  expect(after[0]).toMatchObject({ status: 403, detail: { subject: stranger.login } });
  expect(after.length).toBe(Math.min(100, before.length + 1));
  // Callbacks that prove nothing are anybody's, and fill no log.
  await rig.call('GET', '/api/session/oidc/callback?state=x&code=y', undefined, { authorization: '' });
  expect((await people.audit.list({ action: 'session.oidc' }, { limit: 100, after: null })).rows[0]?.seq).toBe(
    after[0]?.seq,
  );
  const everything = rig.logLines.join('') + JSON.stringify(after);
  for (const secret of [
    new URL(back).searchParams.get('code') as string,
    attempt,
    browser.session as string,
    CLIENT.secret,
  ])
    expect(everything).not.toContain(secret);
});
