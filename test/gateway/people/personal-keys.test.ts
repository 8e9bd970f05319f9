/** Personal keys: one's own and nobody else's, and never more than the role. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ROLES } from '../../../gateway/db/schema.ts';
import { errorOf, type Rig, startRig, type TestUser } from '../rig.ts';

let rig: Rig;
let anna: TestUser;
let ben: TestUser;
let admin: TestUser;

beforeAll(async () => {
  rig = await startRig();
  anna = await rig.user({ role: 'builder' });
  ben = await rig.user({ role: 'consumer' });
  admin = await rig.user({ role: 'admin' });
});
afterAll(() => rig.close());

interface Listed {
  data: { id: string; user_id: string | null; name: string }[];
  has_more: boolean;
  last_id: string;
}
const list = async (user: Pick<TestUser, 'call'>, query = '') =>
  (await (await user.call('GET', `/api/keys${query}`)).json()) as Listed;
const outcome = async (response: Response) => [response.status, (await errorOf(response)).code];

test('a key that a user makes is the user’s, in a session as with a key', async () => {
  const session = await anna.session();
  for (const who of [anna, session]) {
    const made = await who.call('POST', '/api/keys', { name: 'app' });
    expect(made.status).toBe(201);
    expect(await made.json()).toMatchObject({ user_id: anna.id, scopes: ['inference'] });
  }
});

test('users see their own keys, the operator’s keys those of no user, admins all; the keys of accounts are in no list', async () => {
  const own = (await list(anna)).data;
  expect(own.length).toBeGreaterThan(0);
  expect(new Set(own.map(({ user_id }) => user_id))).toEqual(new Set([anna.id]));
  const { credential } = await rig.key({ scopes: ['keys', 'inference'] });
  const operator = await list({
    call: (method, path) => rig.call(method, path, undefined, { authorization: `Bearer ${credential}` }),
  });
  expect(new Set(operator.data.map(({ user_id }) => user_id))).toEqual(new Set([null]));
  const all = (await list(admin)).data;
  for (const user of [anna, ben, admin, { id: null }])
    expect(all.some(({ user_id }) => user_id === user.id)).toBe(true);
  const accounts = [anna, ben, admin].map(({ row }) => row.accountKey);
  for (const { id, name } of all) {
    expect(accounts).not.toContain(id);
    expect(name).not.toBe('account');
  }
  expect((await list(admin, `?user_id=${ben.id}`)).data.map(({ user_id }) => user_id)).toEqual([ben.id]);
  expect(new Set((await list(admin, '?user_id=operator')).data.map(({ user_id }) => user_id))).toEqual(new Set([null]));
  expect((await list(anna, `?user_id=${ben.id}`)).data).toEqual([]);
  expect((await list(anna, '?user_id=operator')).data).toEqual([]);
});

test('the list comes in pages', async () => {
  const seen: string[] = [];
  let page = await list(admin, '?limit=2');
  for (;;) {
    expect(page.data.length).toBeLessThanOrEqual(2);
    seen.push(...page.data.map(({ id }) => id));
    if (!page.has_more) break;
    page = await list(admin, `?limit=2&after=${page.last_id}`);
  }
  expect(seen).toEqual((await list(admin)).data.map(({ id }) => id));
  expect(new Set(seen).size).toBe(seen.length);
  expect((await anna.call('GET', `/api/keys?after=${ben.keyId}`)).status).toBe(400);
});

test('another user’s key, the operator’s and the account’s do not exist for a user', async () => {
  const operator = await rig.key();
  for (const id of [ben.keyId, operator.id, anna.row.accountKey, ben.row.accountKey, 'key_none']) {
    for (const [method, body] of [
      ['PATCH', { name: 'mine' }],
      ['DELETE', undefined],
    ] as const)
      expect([id, ...(await outcome(await anna.call(method, `/api/keys/${id}`, body)))]).toEqual([
        id,
        404,
        'key_not_found',
      ]);
  }
  // Nor can an administrator end the account that pays for sessions.
  expect((await admin.call('DELETE', `/api/keys/${anna.row.accountKey}`)).status).toBe(404);
  expect((await ben.call('GET', '/v1/models')).status).toBe(200);
});

describe('never more than the role', () => {
  test.each(ROLES.filter((role) => role !== 'admin'))('%s', async (role) => {
    const user = await rig.user({ role });
    const session = await user.session();
    for (const scope of ['admin', 'people', 'audit', 'adapters', 'metrics']) {
      const made = await session.call('POST', '/api/keys', { name: 'more', scopes: [scope] });
      expect([scope, ...(await outcome(made))]).toEqual([scope, 403, 'insufficient_scope']);
    }
  });

  test('nor more than the key that asks', async () => {
    const made = await rig.app.services.keys.create({ name: 'narrow', userId: anna.id, scopes: ['keys'] });
    const as = { authorization: `Bearer ${made.credential}` };
    expect(await outcome(await rig.call('POST', '/api/keys', { name: 'x' }, as))).toEqual([403, 'insufficient_scope']);
    const revoke = await rig.call('DELETE', `/api/keys/${anna.keyId}`, undefined, as);
    expect(await outcome(revoke)).toEqual([403, 'insufficient_scope']);
  });

  test('a scope that the role lost is lost to old keys, and they can still be revoked', async () => {
    const user = await rig.user({ role: 'builder' });
    await rig.call('PATCH', `/api/users/${user.id}`, { role: 'consumer' });
    const session = await user.session();
    expect((await user.call('GET', '/v1/files')).status).toBe(403);
    expect((await session.call('DELETE', `/api/keys/${user.keyId}`)).status).toBe(200);
    expect((await user.call('GET', '/v1/models')).status).toBe(401);
  });

  test('an administrator who is one no longer leaves no key behind that still is', async () => {
    const user = await rig.user({ role: 'admin' });
    const made = await user.call('POST', '/api/keys', { name: 'root', scopes: ['admin'] });
    const { key } = (await made.json()) as { key: string };
    const use = () => rig.call('GET', '/api/users', undefined, { authorization: `Bearer ${key}` });
    expect((await use()).status).toBe(200);
    await rig.call('PATCH', `/api/users/${user.id}`, { role: 'consumer' });
    expect((await use()).status).toBe(403);
  });
});

test('for others only administrators make keys, and those have what the user’s role allows', async () => {
  expect(await outcome(await anna.call('POST', '/api/keys', { name: 'x', user_id: ben.id }))).toEqual([
    403,
    'insufficient_scope',
  ]);
  expect(await outcome(await anna.call('POST', '/api/keys', { name: 'x', user_id: null }))).toEqual([
    403,
    'insufficient_scope',
  ]);
  const made = await admin.call('POST', '/api/keys', { name: 'x', user_id: ben.id });
  expect(await made.json()).toMatchObject({ user_id: ben.id });
  const operator = await admin.call('POST', '/api/keys', { name: 'x', user_id: null });
  expect(await operator.json()).toMatchObject({ user_id: null });
  for (const body of [
    { name: 'x', user_id: ben.id, scopes: ['fine_tuning'] },
    { name: 'x', user_id: 'user_none' },
  ])
    expect((await admin.call('POST', '/api/keys', body)).status).toBe(400);
});
