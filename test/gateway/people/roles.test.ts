/** Every route × every role, by personal key and by session, against the one table that says who may do what. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Access, ROLE_SCOPES, SCOPES } from '../../../gateway/auth/scopes.ts';
import { ROLES, type Role } from '../../../gateway/db/schema.ts';
import { isCsrfToken } from '../../../gateway/people/sessions.ts';
import { errorOf, type Rig, startRig, type TestUser } from '../rig.ts';

let rig: Rig;
const people = new Map<Role, TestUser>();

beforeAll(async () => {
  rig = await startRig();
  for (const role of ROLES) people.set(role, await rig.user({ role }));
});
afterAll(() => rig.close());

const may = (role: Role, access: Access) => access === 'public' || access === 'any' || ROLE_SCOPES[role].has(access);

/** Ids that exist nowhere: whoever passes the guard gets 400 or 404 from the handler and changes nothing. */
function addressOf(path: string): string {
  return path
    .replace('{action}', 'pin')
    .replace('{tile}', '0/000')
    .replaceAll(/\{\w+\}/g, 'no-such');
}

describe.each(ROLES)('%s', (role) => {
  test.each(['key', 'session'])('by %s', async (kind) => {
    const user = people.get(role) as TestUser;
    for (const { method, path, access } of rig.app.routes) {
      // Anew for each: one of the routes is the one that logs out.
      const who = kind === 'key' ? user : await user.session();
      const body = method === 'post' || method === 'patch' ? {} : undefined;
      const response = await who.call(method.toUpperCase(), addressOf(path), body);
      const refusal = [401, 403].includes(response.status) ? (await errorOf(response)).code : null;
      const got = refusal === 'insufficient_scope' ? 'refused' : response.status === 401 ? 'unknown' : 'passes';
      // Where anybody may ask, a 401 is about what was asked with.
      const expected = may(role, access) ? (access === 'public' && got === 'unknown' ? got : 'passes') : 'refused';
      expect(`${method} ${path}: ${got} (${response.status} ${refusal})`).toBe(
        `${method} ${path}: ${expected} (${response.status} ${refusal})`,
      );
    }
  });
});

test('each role has what the one below it has; only administrators have what is not personal', () => {
  const has = (role: Role, scope: (typeof SCOPES)[number]) => ROLE_SCOPES[role].has(scope);
  for (const scope of SCOPES) {
    if (has('consumer', scope)) expect([scope, has('contributor', scope)]).toEqual([scope, true]);
    if (has('contributor', scope)) expect([scope, has('builder', scope)]).toEqual([scope, true]);
    expect([scope, has('admin', scope)]).toEqual([scope, true]);
  }
  for (const scope of ['admin', 'people', 'audit', 'adapters', 'metrics'] as const)
    for (const role of ['consumer', 'contributor', 'builder'] as const)
      expect([role, scope, has(role, scope)]).toEqual([role, scope, false]);
});

test('the table is told to whoever asks', async () => {
  const consumer = people.get('consumer') as TestUser;
  const answer = (await (await consumer.call('GET', '/api/roles')).json()) as {
    data: { id: Role; scopes: string[] }[];
  };
  expect(answer.data.map(({ id }) => id)).toEqual([...ROLES]);
  for (const { id, scopes } of answer.data) expect(new Set(scopes)).toEqual(ROLE_SCOPES[id]);
});

test('looking at who asks costs no database query once it is known, for keys and for sessions', async () => {
  const user = people.get('builder') as TestUser;
  const session = await user.session();
  const { $client } = rig.database.db;
  let queries = 0;
  for (const name of ['execute', 'batch', 'transaction'] as const) {
    const original = $client[name].bind($client) as (...args: unknown[]) => unknown;
    ($client as unknown as Record<string, unknown>)[name] = (...args: unknown[]) => {
      queries += 1;
      return original(...args);
    };
  }
  // Without the request around it: what is asked of each request.
  const { keys, people: services } = rig.app.services;
  const cookie = session.cookie.split('=')[1] as string;
  for (const [kind, look] of [
    ['key', () => keys.authenticate(user.credential)],
    [
      'session and token',
      async () => isCsrfToken(cookie, session.csrf) && (await services.sessions.authenticate(cookie)),
    ],
  ] as const) {
    expect(await look()).toMatchObject({ userId: user.id });
    queries = 0;
    const from = performance.now();
    for (let index = 0; index < 2_000; index++) await look();
    process.stdout.write(`${kind}: ${((performance.now() - from) / 2).toFixed(1)} µs\n`);
    expect([kind, queries]).toEqual([kind, 0]);
  }
  for (const [kind, who] of [
    ['key', user],
    ['session', session],
  ] as const) {
    await who.call('GET', '/api/roles');
    queries = 0;
    const count = 500;
    const from = performance.now();
    for (let index = 0; index < count; index++) await who.call('GET', '/api/roles');
    const each = (performance.now() - from) / count;
    expect([kind, queries]).toEqual([kind, 0]);
    process.stdout.write(`a whole request by ${kind}, nothing but the check in it: ${each.toFixed(3)} ms\n`);
  }
});
