/** Users: invited, given a password, changed, disabled; and what each of these ends. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limits } from '../../../gateway/limits.ts';
import { errorOf, type Rig, startRig } from '../rig.ts';
import { browser, logIn, member, PASSWORD } from './members.ts';

let rig: Rig;
let clock = Date.now();

beforeAll(async () => {
  rig = await startRig({ now: () => clock });
});
afterAll(() => rig.close());

const outcome = async (response: Response) => [response.status, (await errorOf(response)).code];
let count = 0;

async function invite(input: object = {}): Promise<{ id: string; email: string; invitation: { token: string } }> {
  count += 1;
  const body = { email: `user${count}@users.test`, name: `User ${count}`, role: 'builder', ...input };
  const response = await rig.call('POST', '/api/users', body);
  expect(response.status).toBe(201);
  return (await response.json()) as never;
}

const accept = (token: string, password = PASSWORD) =>
  browser(rig).send('POST', '/api/invitations/accept', { token, password });

describe('invitations', () => {
  test('the token is shown once, kept as a hash, sets the password once, and only then one can log in', async () => {
    const { id, email, invitation } = await invite();
    expect(invitation.token).toMatch(/^mfi-[\w-]{43}$/);
    expect((await logIn(browser(rig), email)).status).toBe(401);
    expect(await (await rig.call('GET', `/api/users/${id}`)).json()).toMatchObject({
      state: 'invited',
      has_password: false,
    });
    const dump = JSON.stringify((await rig.database.db.$client.execute('SELECT * FROM invitations')).rows);
    expect(dump).not.toContain(invitation.token.slice(4));
    expect(await (await accept(invitation.token)).json()).toMatchObject({ id, state: 'active', has_password: true });
    expect((await logIn(browser(rig), email)).status).toBe(201);
    expect(await outcome(await accept(invitation.token, 'another good password'))).toEqual([400, 'invalid_invitation']);
    expect((await logIn(browser(rig), email)).status).toBe(201);
  });

  test('used, expired, replaced, of a disabled user, unknown and malformed are one answer', async () => {
    const used = (await invite()).invitation.token;
    await accept(used);
    const replaced = await invite();
    expect((await rig.call('POST', `/api/users/${replaced.id}/invitation`)).status).toBe(201);
    const disabled = await invite();
    await rig.call('DELETE', `/api/users/${disabled.id}`);
    const expired = await invite();
    clock += limits.invitationMs;
    const answers = [];
    for (const token of [
      used,
      replaced.invitation.token,
      disabled.invitation.token,
      expired.invitation.token,
      `mfi-${'A'.repeat(43)}`,
      "mfi-' OR 1=1 --",
      'x',
    ]) {
      const response = await accept(token);
      answers.push([response.status, await response.text()]);
    }
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    expect(answers[0]?.[0]).toBe(400);
  });

  test('of many who use one link at the same time, one sets the password', async () => {
    const { email, invitation } = await invite();
    const passwords = Array.from({ length: 8 }, (_, index) => `${PASSWORD} ${index}`);
    const statuses = await Promise.all(
      passwords.map(async (password) => (await accept(invitation.token, password)).status),
    );
    expect(statuses.filter((status) => status === 200).length).toBe(1);
    const winner = passwords[statuses.indexOf(200)] as string;
    expect((await logIn(browser(rig), email, winner)).status).toBe(201);
  });

  test('a weak password is refused and the link stays good', async () => {
    const { email, invitation } = await invite();
    for (const weak of ['short', 'password1234', email, 'x'.repeat(300)])
      expect(await outcome(await accept(invitation.token, weak))).toEqual([400, 'weak_password']);
    expect((await accept(invitation.token)).status).toBe(200);
  });

  test('a new link for somebody who lost the password ends all sessions when it is used, not before', async () => {
    const { id, email } = await member(rig);
    const page = browser(rig);
    await logIn(page, email);
    const made = await rig.call('POST', `/api/users/${id}/invitation`);
    const { token } = (await made.json()) as { token: string };
    expect((await page.send('GET', '/api/account')).status).toBe(200);
    expect((await accept(token, 'an entirely new one')).status).toBe(200);
    expect((await page.send('GET', '/api/account')).status).toBe(401);
    expect((await logIn(page, email)).status).toBe(401);
    expect((await logIn(page, email, 'an entirely new one')).status).toBe(201);
  });
});

describe('making users', () => {
  test('addresses that read the same are one account', async () => {
    await invite({ email: 'Twin@users.test' });
    for (const email of ['twin@users.test', 'TWIN@USERS.TEST', 'ｔｗｉｎ@users.test', ' twin@users.test ']) {
      const response = await rig.call('POST', '/api/users', { email, name: 'Twin', role: 'builder' });
      expect([email, ...(await outcome(response))]).toEqual([email, 409, 'email_taken']);
    }
    expect((await logIn(browser(rig), 'twin@users.test')).status).toBe(401);
  });

  test('of many at the same time, one gets the address, and none leaves a key behind', async () => {
    const keys = async () =>
      Number((await rig.database.db.$client.execute('SELECT count(*) AS n FROM keys')).rows[0]?.n);
    const before = await keys();
    const statuses = await Promise.all(
      Array.from({ length: 10 }, async () => {
        const body = { email: 'race@users.test', name: 'Race', role: 'consumer' };
        return (await rig.call('POST', '/api/users', body)).status;
      }),
    );
    expect(statuses.sort()).toEqual([201, ...Array(9).fill(409)]);
    expect((await keys()) - before).toBe(1);
  });

  test.each([
    ['an address with a control character', { email: 'a\u0007@users.test' }, 'email'],
    ['an address of 10,000 characters', { email: `${'a'.repeat(10_000)}@users.test` }, 'email'],
    ['no address', { email: 'anna' }, 'email'],
    ['a name that changes the direction of writing', { name: 'Anna\u202egnp.exe' }, 'name'],
    ['a name nobody sees', { name: '\u200b\u200b' }, 'name'],
    ['a name of 10,000 characters', { name: 'a'.repeat(10_000) }, 'name'],
    ['a role there is not', { role: 'owner' }, 'role'],
    ['a password', { password: PASSWORD }, 'body'],
    ['a state', { state: 'active' }, 'body'],
  ])('refused: %s', async (_, change, param) => {
    const body = { email: 'fresh@users.test', name: 'Fresh', role: 'builder', ...change };
    const response = await rig.call('POST', '/api/users', body);
    expect([response.status, (await errorOf(response)).param]).toEqual([400, param]);
  });

  test('whoever manages people with less than all scopes hands out no more than that', async () => {
    const { credential } = await rig.key({ scopes: ['people', 'inference', 'keys', 'datanets', 'account'] });
    const as = { authorization: `Bearer ${credential}` };
    const make = (role: string) =>
      rig.call('POST', '/api/users', { email: `made-${role}@users.test`, name: 'Made', role }, as);
    expect((await make('consumer')).status).toBe(201);
    for (const role of ['contributor', 'builder', 'admin'])
      expect(await outcome(await make(role))).toEqual([403, 'insufficient_scope']);
    const admin = await member(rig, { role: 'admin' });
    const consumer = await member(rig, { role: 'consumer' });
    for (const [method, path, body] of [
      ['PATCH', `/api/users/${admin.id}`, { role: 'consumer' }],
      ['PATCH', `/api/users/${consumer.id}`, { role: 'admin' }],
      ['DELETE', `/api/users/${admin.id}`, undefined],
      ['POST', `/api/users/${admin.id}/invitation`, undefined],
      ['DELETE', `/api/users/${admin.id}/sessions`, undefined],
    ] as const)
      expect([method, path, ...(await outcome(await rig.call(method, path, body, as)))]).toEqual([
        method,
        path,
        403,
        'insufficient_scope',
      ]);
  });
});

test('lists: newest first, in pages, by role, state and part of name or address', async () => {
  const other = await startRig();
  for (let index = 0; index < 7; index++) {
    await other.user({
      role: index % 2 === 0 ? 'builder' : 'consumer',
      email: `u${index}@list.test`,
      name: index === 3 ? '100% Anna_B' : `Person ${index}`,
    });
  }
  const list = async (query: string) =>
    (await (await other.call('GET', `/api/users?${query}`)).json()) as {
      data: { id: string; email: string }[];
      has_more: boolean;
      last_id: string;
    };
  const emails: string[] = [];
  let page = await list('limit=3');
  for (;;) {
    emails.push(...page.data.map(({ email }) => email));
    if (!page.has_more) break;
    page = await list(`limit=3&after=${page.last_id}`);
  }
  expect(emails).toEqual([6, 5, 4, 3, 2, 1, 0].map((index) => `u${index}@list.test`));
  expect((await list('role=consumer')).data.length).toBe(3);
  expect((await list('state=disabled')).data.length).toBe(0);
  expect((await list(`q=${encodeURIComponent('0% anna_')}`)).data.map(({ email }) => email)).toEqual(['u3@list.test']);
  expect((await list('q=%25')).data.length).toBe(1);
  for (const query of ['limit=101', 'limit=0', 'role=x', 'after=user_x', `q=${'x'.repeat(200)}`])
    expect([query, (await other.call('GET', `/api/users?${query}`)).status]).toEqual([query, 400]);
  await other.close();
});

describe('what a change ends', () => {
  test('a disabled user’s keys, sessions and links are dead with the next request; made active again, the keys live', async () => {
    const { id, email } = await member(rig);
    const page = browser(rig);
    await logIn(page, email);
    const made = await page.send('POST', '/api/keys', { name: 'mine', scopes: ['inference', 'account'] });
    const { key } = (await made.json()) as { key: string };
    const withKey = () => rig.call('GET', '/v1/models', undefined, { authorization: `Bearer ${key}` });
    expect((await withKey()).status).toBe(200);
    const link = await rig.call('POST', `/api/users/${id}/invitation`);
    const { token } = (await link.json()) as { token: string };
    expect(await (await rig.call('DELETE', `/api/users/${id}`)).json()).toMatchObject({ state: 'disabled' });
    expect((await withKey()).status).toBe(401);
    expect((await page.send('GET', '/api/account')).status).toBe(401);
    expect((await accept(token)).status).toBe(400);
    expect((await logIn(browser(rig), email)).status).toBe(401);
    expect(await outcome(await rig.call('POST', `/api/users/${id}/invitation`))).toEqual([409, 'user_disabled']);
    expect((await rig.call('PATCH', `/api/users/${id}`, { state: 'active' })).status).toBe(200);
    expect((await withKey()).status).toBe(200);
    expect((await page.send('GET', '/api/account')).status).toBe(401);
    expect((await logIn(page, email)).status).toBe(201);
  });

  test('a role counts with the next request, for keys and sessions, down and up', async () => {
    const user = await rig.user({ role: 'builder' });
    const session = await user.session();
    const both = async () => [
      (await user.call('GET', '/v1/files')).status,
      (await session.call('GET', '/v1/files')).status,
    ];
    expect(await both()).toEqual([200, 200]);
    await rig.call('PATCH', `/api/users/${user.id}`, { role: 'consumer' });
    expect(await both()).toEqual([403, 403]);
    await rig.call('PATCH', `/api/users/${user.id}`, { role: 'builder' });
    expect(await both()).toEqual([200, 200]);
  });

  test('when the last active administrator goes, the answer says so', async () => {
    const other = await startRig();
    const first = await other.user({ role: 'admin' });
    const second = await other.user({ role: 'admin' });
    const demote = async (id: string) =>
      (await (await other.call('PATCH', `/api/users/${id}`, { role: 'builder' })).json()) as { warning?: string };
    expect((await demote(first.id)).warning).toBeUndefined();
    expect((await demote(second.id)).warning).toContain('No user is an active administrator');
    await other.close();
  });

  test('an invited user does not become active by an administrator’s word, since there is no password', async () => {
    const { id } = await invite();
    expect((await rig.call('PATCH', `/api/users/${id}`, { state: 'active' })).status).toBe(400);
  });
});

describe('one’s own account', () => {
  test('profile with role and scopes; the name can be changed, role, state and address cannot', async () => {
    const user = await rig.user({ role: 'contributor' });
    const session = await user.session();
    expect(await (await session.call('GET', '/api/account')).json()).toMatchObject({
      id: user.id,
      role: 'contributor',
      scopes: ['inference', 'keys', 'datanets', 'contribute', 'govern', 'account'],
    });
    expect(await (await session.call('PATCH', '/api/account', { name: '  Anna   B ' })).json()).toMatchObject({
      name: 'Anna B',
    });
    for (const body of [{ role: 'admin' }, { name: 'x', role: 'admin' }, { state: 'active' }, { email: 'x@y.z' }])
      expect((await session.call('PATCH', '/api/account', body)).status).toBe(400);
  });

  test('a new password needs the old one, ends the other sessions and open links, and guessing the old one is slowed down', async () => {
    const { id, email } = await member(rig);
    const [page, other] = [browser(rig), browser(rig)];
    await logIn(page, email);
    await logIn(other, email);
    const link = (await (await rig.call('POST', `/api/users/${id}/invitation`)).json()) as { token: string };
    const change = (current_password: string, new_password: string) =>
      page.send('POST', '/api/account/password', { current_password, new_password });
    expect(await outcome(await change('wrong password', 'another fine phrase'))).toEqual([403, 'wrong_credentials']);
    expect(await outcome(await change(PASSWORD, 'password1234'))).toEqual([400, 'weak_password']);
    expect(await (await change(PASSWORD, 'another fine phrase')).json()).toMatchObject({ sessions_ended: 1 });
    expect((await page.send('GET', '/api/account')).status).toBe(200);
    expect((await other.send('GET', '/api/account')).status).toBe(401);
    expect((await accept(link.token)).status).toBe(400);
    expect((await logIn(other, email)).status).toBe(401);
    expect((await logIn(other, email, 'another fine phrase')).status).toBe(201);
    for (let attempt = 0; attempt < 5; attempt++) await change('wrong password', 'yet another phrase');
    expect(await outcome(await change('another fine phrase', 'yet another phrase'))).toEqual([
      429,
      'too_many_attempts',
    ]);
  });

  test('sessions: a list of one’s own, ended one by one or all others at once; another’s does not exist', async () => {
    const { email } = await member(rig);
    const pages = [browser(rig), browser(rig), browser(rig)] as const;
    for (const page of pages) await logIn(page, email);
    const listed = (await (await pages[0].send('GET', '/api/account/sessions')).json()) as {
      data: { id: string; current: boolean; address: string }[];
    };
    expect(listed.data.length).toBe(3);
    expect(listed.data.filter(({ current }) => current).length).toBe(1);
    expect(listed.data[0]?.address).toBe('192.0.2.1');
    const stranger = browser(rig);
    await logIn(stranger, (await member(rig)).email);
    for (const { id } of listed.data)
      expect(await outcome(await stranger.send('DELETE', `/api/account/sessions/${id}`))).toEqual([
        404,
        'session_not_found',
      ]);
    const { id } = (await (await pages[1].send('GET', '/api/session')).json()) as { id: string };
    expect((await pages[0].send('DELETE', `/api/account/sessions/${id}`)).status).toBe(200);
    expect((await pages[0].send('DELETE', `/api/account/sessions/${id}`)).status).toBe(404);
    expect((await pages[1].send('GET', '/api/account')).status).toBe(401);
    expect(await (await pages[0].send('DELETE', '/api/account/sessions')).json()).toMatchObject({ ended: 1 });
    expect((await pages[2].send('GET', '/api/account')).status).toBe(401);
    expect((await pages[0].send('GET', '/api/account')).status).toBe(200);
  });

  test('an administrator ends all sessions of a user', async () => {
    const { id, email } = await member(rig);
    const page = browser(rig);
    await logIn(page, email);
    expect(await (await rig.call('DELETE', `/api/users/${id}/sessions`)).json()).toMatchObject({ ended: 1 });
    expect((await page.send('GET', '/api/account')).status).toBe(401);
  });

  test('the operator’s key has no account, and is told how to get one', async () => {
    const response = await rig.call('GET', '/api/account');
    const error = await errorOf(response);
    expect([response.status, error.code]).toEqual([403, 'user_required']);
    expect(error.message).toContain('modelfactory users add');
  });
});
