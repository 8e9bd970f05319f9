/** Logging in: guessing, learning who has an account, cookies that somebody else chose, requests that another site made. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { limits } from '../../../gateway/limits.ts';
import { Passwords } from '../../../gateway/people/passwords.ts';
import { errorOf, type Rig, startRig } from '../rig.ts';
import { browser, logIn, member, PASSWORD } from './members.ts';

const WRONG = 'not the password at all';
const DAY = 86_400_000;
let rig: Rig;
let clock = Date.now();

beforeAll(async () => {
  rig = await startRig({ now: () => clock });
});
afterAll(() => rig.close());
beforeEach(async () => {
  await rig.database.db.$client.execute('DELETE FROM login_failures');
});

const outcome = async (response: Response) => [response.status, (await errorOf(response)).code];

describe('log-in and log-out', () => {
  test('with the password, whatever the case of the address; the answer says who one is and sets a cookie that scripts cannot read', async () => {
    const { id, email } = await member(rig, { role: 'contributor' });
    const page = browser(rig);
    const response = await logIn(page, email.toUpperCase());
    expect(response.status).toBe(201);
    expect(response.headers.get('set-cookie')).toMatch(
      /^mf_session=[\w-]{43}; Path=\/; Max-Age=1209600; HttpOnly; SameSite=Lax$/,
    );
    expect(await response.json()).toMatchObject({ user: { id, email, role: 'contributor' }, role: 'contributor' });
    const who = (await (await page.send('GET', '/api/session')).json()) as { csrf_token: string; id: string };
    expect(who.csrf_token).toBe(page.csrf);
    expect((await page.send('GET', '/api/account')).status).toBe(200);
  });

  test('over HTTPS the cookie is for this host and for HTTPS alone, and one without that prefix is not looked at', async () => {
    const { email } = await member(rig);
    const page = browser(rig, { origin: 'https://gateway.test' });
    const response = await logIn(page, email);
    expect(response.headers.get('set-cookie')).toMatch(/^__Host-mf_session=[\w-]{43}; Path=\/; .*; Secure$/);
    expect((await page.send('GET', '/api/account')).status).toBe(200);
    page.cookie = page.cookie.replace('__Host-', '');
    expect((await page.send('GET', '/api/account')).status).toBe(401);
  });

  test('logging out ends the session at once, wherever the cookie is kept', async () => {
    const { email } = await member(rig);
    const page = browser(rig);
    await logIn(page, email);
    const kept = page.cookie;
    expect((await page.send('DELETE', '/api/session')).status).toBe(200);
    expect(page.cookie).toBe('');
    page.cookie = kept;
    expect(await outcome(await page.send('GET', '/api/account'))).toEqual([401, 'session_ended']);
  });

  test('only hashes of cookies and passwords are kept, and none of them is in the log', async () => {
    const { email } = await member(rig);
    const page = browser(rig);
    await logIn(page, email);
    const secret = page.cookie.split('=')[1] as string;
    for (const table of ['sessions', 'users', 'invitations', 'audit_log', 'login_failures']) {
      const dump = JSON.stringify((await rig.database.db.$client.execute(`SELECT * FROM ${table}`)).rows);
      for (const text of [secret, PASSWORD, page.csrf]) expect(dump).not.toContain(text);
    }
    for (const text of [secret, PASSWORD, page.csrf]) expect(rig.logLines.join('')).not.toContain(text);
  });

  test('a session ends after two weeks, or a day in which it was not used', async () => {
    const { email } = await member(rig);
    const page = browser(rig);
    await logIn(page, email);
    for (let day = 0; day < 13; day++) {
      clock += DAY - 1000;
      expect([day, (await page.send('GET', '/api/account')).status]).toEqual([day, 200]);
    }
    clock += DAY;
    expect((await page.send('GET', '/api/account')).status).toBe(401);
    await logIn(page, email);
    clock += DAY;
    expect((await page.send('GET', '/api/account')).status).toBe(401);
    expect((await logIn(page, email)).status).toBe(201);
  });

  test('of too many sessions the oldest end', async () => {
    const { id, email } = await member(rig);
    const first = browser(rig);
    await logIn(first, email);
    for (let count = 0; count < limits.sessionsPerUserMax; count++) {
      clock += 1;
      await logIn(browser(rig), email);
    }
    expect((await first.send('GET', '/api/account')).status).toBe(401);
    expect((await rig.app.services.people.sessions.list(id)).length).toBe(limits.sessionsPerUserMax);
  });

  test.each([
    ['a password of a megabyte', { email: 'a@b.c', password: 'x'.repeat(1_000_000) }],
    ['an address of a megabyte', { email: `${'x'.repeat(1_000_000)}@b.c`, password: WRONG }],
    ['a number for a password', { email: 'a@b.c', password: 1 }],
    ['no password', { email: 'a@b.c' }],
    ['an object for an address', { email: { $ne: null }, password: WRONG }],
    ['something besides', { email: 'a@b.c', password: WRONG, role: 'admin' }],
  ])('refused unread: %s', async (_, body) => {
    expect((await browser(rig).send('POST', '/api/session', body)).status).toBe(400);
  });
});

describe('what changes while somebody logs in', () => {
  test.each([
    ['is disabled', 'DELETE', '', undefined],
    ['loses all sessions and gets another password', 'POST', '/invitation', 'a brand new secret phrase'],
  ] as const)('the user %s: the log-in fails, and no session stays behind', async (_, method, path, next) => {
    const { id, email } = await member(rig);
    const { sessions } = rig.app.services.people;
    const original = sessions.start.bind(sessions);
    const page = browser(rig);
    // The password has been found right, the session is not there yet.
    sessions.start = async (...args) => {
      sessions.start = original;
      const answer = (await (await rig.call(method, `/api/users/${id}${path}`)).json()) as { token: string };
      if (next !== undefined)
        await browser(rig).send('POST', '/api/invitations/accept', { token: answer.token, password: next });
      return original(...args);
    };
    expect(await outcome(await logIn(page, email))).toEqual([401, 'wrong_credentials']);
    expect(page.cookie).toBe('');
    await rig.call('PATCH', `/api/users/${id}`, { state: 'active' });
    expect(await sessions.list(id)).toEqual([]);
  });

  test('a password of another cost gets today’s at the next log-in', async () => {
    const { id, email } = await member(rig);
    const { users } = rig.app.services.people;
    const old = await new Passwords({ N: 8, r: 2, p: 1 }).hash(PASSWORD);
    await users.setPassword(id, old);
    expect((await logIn(browser(rig), email)).status).toBe(201);
    expect((await users.find(id))?.password).toMatch(/^scrypt\$16\$1\$1\$/);
    expect((await logIn(browser(rig), email)).status).toBe(201);
  });
});

describe('guessing', () => {
  test('from the fifth failure on one must wait, twice as long each time, even with the right password; success starts anew', async () => {
    const { email } = await member(rig);
    const page = browser(rig);
    for (let count = 0; count < 5; count++) {
      expect(await outcome(await logIn(page, email, WRONG))).toEqual([401, 'wrong_credentials']);
    }
    const waits: number[] = [];
    for (let count = 0; count < 5; count++) {
      const refused = await logIn(page, email);
      expect([refused.status, (await errorOf(refused.clone())).code]).toEqual([429, 'too_many_attempts']);
      const seconds = Number(refused.headers.get('retry-after'));
      waits.push(seconds);
      clock += seconds * 1000;
      expect((await logIn(page, email, WRONG)).status).toBe(401);
    }
    expect(waits).toEqual([1, 2, 4, 8, 16]);
    clock += 32_000;
    expect((await logIn(page, email)).status).toBe(201);
    for (let count = 0; count < 5; count++) expect((await logIn(page, email, WRONG)).status).toBe(401);
    expect((await logIn(page, email)).status).toBe(429);
  });

  test('the wait never grows beyond a quarter of an hour, and a day later all is forgotten', async () => {
    const { email } = await member(rig);
    const page = browser(rig);
    let seconds = 0;
    for (let count = 0; count < 40; count++) {
      const response = await logIn(page, email, WRONG);
      if (response.status !== 429) continue;
      seconds = Number(response.headers.get('retry-after'));
      clock += seconds * 1000;
    }
    expect(seconds).toBe(limits.loginWaitMsMax / 1000);
    clock += DAY + 1000;
    for (let count = 0; count < 5; count++) expect((await logIn(page, email, WRONG)).status).toBe(401);
  });

  test('a hundred guesses at the same time are no way around it: five are looked at', async () => {
    const { email } = await member(rig);
    const statuses = await Promise.all(
      Array.from({ length: 100 }, async (_, index) => {
        return (await logIn(browser(rig, { address: `198.51.100.${index}` }), email, WRONG)).status;
      }),
    );
    expect(statuses.filter((status) => status === 401).length).toBe(5);
    expect(statuses.filter((status) => status === 429).length).toBe(95);
  });

  test('many accounts from one address wait too, from another address not; an IPv6 network is one address', async () => {
    const { email } = await member(rig);
    const guess = async (address: string, count: number) => {
      const last = { status: 0 };
      for (let index = 0; index < count; index++) {
        clock += 10;
        last.status = (await logIn(browser(rig, { address }), `nobody${index}${address}@x.test`, WRONG)).status;
      }
      return last.status;
    };
    expect(await guess('203.0.113.7', 20)).toBe(401);
    expect((await logIn(browser(rig, { address: '203.0.113.7' }), email)).status).toBe(429);
    expect((await logIn(browser(rig, { address: '203.0.113.8' }), email)).status).toBe(201);
    for (let host = 1; host <= 20; host++) await guess(`2001:db8:1:2::${host.toString(16)}`, 1);
    expect((await logIn(browser(rig, { address: '2001:db8:1:2:ffff::1' }), email)).status).toBe(429);
    expect((await logIn(browser(rig, { address: '2001:db8:1:3::1' }), email)).status).toBe(201);
  });

  test('many who log in rightly from one address do not block it', async () => {
    const { email } = await member(rig);
    for (let count = 0; count < 60; count++) expect((await logIn(browser(rig), email)).status).toBe(201);
  });

  test('refused attempts write no audit rows, so that guessing does not fill the disk', async () => {
    const { email } = await member(rig);
    const rows = async () =>
      Number((await rig.database.db.$client.execute('SELECT count(*) AS n FROM audit_log')).rows[0]?.n);
    const before = await rows();
    for (let count = 0; count < 30; count++) await logIn(browser(rig), email, WRONG);
    expect((await rows()) - before).toBe(5);
  });
});

describe('nobody learns who has an account', () => {
  test('unknown, without a password, disabled and wrong are one answer, byte for byte, with the same work behind it', async () => {
    const disabled = await member(rig);
    await rig.call('DELETE', `/api/users/${disabled.id}`);
    const invited = `invited@members.test`;
    await rig.call('POST', '/api/users', { email: invited, name: 'Invited', role: 'builder' });
    const active = await member(rig);
    const answers = [];
    for (const [email, password] of [
      [active.email, WRONG],
      ['nobody@members.test', WRONG],
      [disabled.email, PASSWORD],
      [invited, PASSWORD],
      ['no address at all', WRONG],
      ['an\u0000na@members.test', WRONG],
    ] as const) {
      const response = await logIn(browser(rig), email, password);
      answers.push([response.status, response.headers.get('set-cookie'), await response.text()]);
    }
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    expect(answers[0]?.[0]).toBe(401);
  });

  test('waits are the same for accounts that do not exist', async () => {
    const { email } = await member(rig);
    const waits = [];
    for (const [index, name] of [email, 'nobody2@members.test'].entries()) {
      const page = browser(rig, { address: `192.0.2.${50 + index}` });
      for (let count = 0; count < 5; count++) await logIn(page, name, WRONG);
      const refused = await logIn(page, name);
      waits.push([refused.status, refused.headers.get('retry-after'), await refused.text()]);
    }
    expect(waits[0]).toEqual(waits[1]);
  });

  test('a password is computed for accounts that do not exist, as for those that do', async () => {
    const slow = await startRig({ people: { passwordCost: { N: 2 ** 15, r: 8, p: 1 } } });
    const { email } = await member(slow);
    const least = async (name: string) => {
      const times: number[] = [];
      for (let count = 0; count < 3; count++) {
        const from = performance.now();
        await logIn(browser(slow), name, WRONG);
        times.push(performance.now() - from);
      }
      return Math.min(...times);
    };
    const known = await least(email);
    const unknown = await least('nobody@members.test');
    await slow.close();
    // 32 MB of work: without it an answer comes in a hundredth of the time.
    expect(unknown / known).toBeGreaterThan(0.25);
  });
});

describe('fixation: a cookie that somebody else chose', () => {
  test('is never adopted, and what it stood for ends with the log-in', async () => {
    const victim = await member(rig);
    const attacker = await member(rig);
    const planted = browser(rig);
    await logIn(planted, attacker.email);
    const known = planted.cookie;
    const page = browser(rig);
    page.cookie = known;
    expect((await logIn(page, victim.email)).status).toBe(201);
    expect(page.cookie).not.toBe(known);
    planted.cookie = known;
    expect((await planted.send('GET', '/api/account')).status).toBe(401);

    const made = browser(rig);
    made.cookie = `mf_session=${'A'.repeat(43)}`;
    await logIn(made, victim.email);
    expect(made.cookie).not.toContain('AAAA');
    const other = browser(rig);
    other.cookie = `mf_session=${'A'.repeat(43)}`;
    expect((await other.send('GET', '/api/account')).status).toBe(401);
  });

  test.each(['', 'x', 'A'.repeat(10_000), '%00', '..', `${'A'.repeat(43)}; mf_session=`])(
    'a cookie that is none: %j',
    async (value) => {
      const page = browser(rig);
      page.cookie = `mf_session=${value}`;
      expect((await page.send('GET', '/api/account')).status).toBe(401);
    },
  );
});

describe('CSRF: a request that another site made', () => {
  test('without the session’s token nothing is changed; with it, from our own pages, it is', async () => {
    const { email } = await member(rig);
    const page = browser(rig);
    await logIn(page, email);
    const change = (headers: Record<string, string>) => page.send('PATCH', '/api/account', { name: 'Forged' }, headers);
    const other = browser(rig);
    await logIn(other, email);
    for (const headers of [
      { 'x-csrf-token': '' },
      { 'x-csrf-token': 'x'.repeat(43) },
      { 'x-csrf-token': `${page.csrf}x` },
      { 'x-csrf-token': other.csrf },
      { origin: 'https://evil.test' },
      { origin: 'null' },
      { origin: 'http://gateway.test.evil.test' },
      { origin: 'http://gateway.test:81' },
      { 'sec-fetch-site': 'cross-site' },
    ])
      expect([headers, ...(await outcome(await change(headers as never)))]).toEqual([headers, 403, 'csrf']);
    expect(await (await page.send('GET', '/api/account')).json()).not.toMatchObject({ name: 'Forged' });
    expect((await change({})).status).toBe(200);
    expect((await change({ 'sec-fetch-site': 'same-origin' })).status).toBe(200);
  });

  test('every route that changes something asks for the token', async () => {
    const admin = await rig.user({ role: 'admin' });
    const session = await admin.session();
    for (const { method, path, access } of rig.app.routes) {
      if (method === 'get' || access === 'public') continue;
      const address = path.replaceAll(/\{\w+\}/g, 'no-such');
      const response = await session.call(method.toUpperCase(), address, method === 'delete' ? undefined : {}, {
        'x-csrf-token': '',
      });
      expect([method, path, ...(await outcome(response))]).toEqual([method, path, 403, 'csrf']);
    }
  });

  test('another site cannot log a browser in, neither with a password nor with a link', async () => {
    const { email } = await member(rig);
    for (const headers of [{ origin: 'https://evil.test' }, { 'sec-fetch-site': 'cross-site' }]) {
      const page = browser(rig);
      const body = { email, password: PASSWORD };
      expect(await outcome(await page.send('POST', '/api/session', body, headers as never))).toEqual([403, 'csrf']);
      const accept = { token: `mfi-${'A'.repeat(43)}`, password: PASSWORD };
      expect(await outcome(await page.send('POST', '/api/invitations/accept', accept, headers as never))).toEqual([
        403,
        'csrf',
      ]);
      expect(page.cookie).toBe('');
    }
  });

  test('a key needs no token, wins over a cookie, and when it is bad the cookie does not help', async () => {
    const one = await rig.user({ role: 'consumer' });
    const session = await (await rig.user({ role: 'admin' })).session();
    const call = (authorization: string) =>
      rig.call('PATCH', '/api/account', { name: 'By key' }, { authorization, cookie: session.cookie });
    expect(await (await call(`Bearer ${one.credential}`)).json()).toMatchObject({ id: one.id, name: 'By key' });
    expect((await call(`Bearer mf-${'A'.repeat(43)}`)).status).toBe(401);
  });

  test('behind a proxy the public address is our own', async () => {
    const proxied = await startRig({ people: { publicUrl: 'https://models.test' } });
    const { email } = await member(proxied);
    const page = browser(proxied);
    const headers = { origin: 'https://models.test' };
    const response = await page.send('POST', '/api/session', { email, password: PASSWORD }, headers);
    expect(response.status).toBe(201);
    expect(response.headers.get('set-cookie')).toMatch(/^__Host-.*; Secure$/);
    const evil = { email, password: PASSWORD };
    expect((await page.send('POST', '/api/session', evil, { origin: 'https://evil.test' })).status).toBe(403);
    await proxied.close();
  });
});
