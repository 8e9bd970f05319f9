/** Nobody hands on more than they have: keys by keys and sessions, in every field, at every moment; and links by whoever may make them. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Principal, Scope } from '../../../gateway/auth/scopes.ts';
import { limits } from '../../../gateway/limits.ts';
import { errorOf, type Rig, startRig, type TestUser } from '../rig.ts';
import { browser, PASSWORD } from './members.ts';

let rig: Rig;
const DAY = 86_400_000;

beforeAll(async () => {
  rig = await startRig();
});
afterAll(() => rig.close());

const as = (credential: string) => ({ authorization: `Bearer ${credential}` });
const codeOf = async (response: Response) => `${response.status} ${(await errorOf(response)).code}`;

/** Everything in which `made` goes beyond `maker`; nothing, if it does not. */
function beyond(made: Principal, maker: Principal): string[] {
  const admin = maker.scopes.has('admin');
  const most = (own: number, fallback: number) => (admin && own >= fallback ? Number.POSITIVE_INFINITY : own);
  return [
    ...[...made.scopes].filter((scope) => !admin && !maker.scopes.has(scope)),
    ...(maker.models !== null && [...(made.models ?? ['(all)'])].some((model) => !maker.models?.has(model))
      ? ['models']
      : []),
    ...((made.expiresAt ?? Number.POSITIVE_INFINITY) > (maker.expiresAt ?? Number.POSITIVE_INFINITY)
      ? ['expiresAt']
      : []),
    ...((made.budgetMicros ?? Number.POSITIVE_INFINITY) > (maker.budgetMicros ?? Number.POSITIVE_INFINITY)
      ? ['budgetMicros']
      : []),
    ...(made.requestsPerMinute > most(maker.requestsPerMinute, limits.requestsPerMinuteDefault)
      ? ['requestsPerMinute']
      : []),
    ...(made.tokensPerMinute > most(maker.tokensPerMinute, limits.tokensPerMinuteDefault) ? ['tokensPerMinute'] : []),
    ...(made.concurrency > most(maker.concurrency, limits.concurrencyDefault) ? ['concurrency'] : []),
    ...(made.userId !== maker.userId && !admin ? ['userId'] : []),
  ];
}

describe('a key made or changed by a key', () => {
  const maybe = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: null });
  const models = maybe(fc.subarray(['a', 'b', 'c'], { minLength: 1 }));
  const scopes = fc
    .subarray<Scope>(['inference', 'adapters', 'fine_tuning', 'metrics', 'admin', 'people'])
    .map((some) => [...some, 'keys' as Scope]);
  const own = fc.record({
    scopes,
    models,
    requestsPerMinute: maybe(fc.constantFrom(1, 50, 200_000)),
    tokensPerMinute: maybe(fc.constantFrom(1, 50, 200_000_000)),
    concurrency: maybe(fc.constantFrom(1, 50, 600)),
    budgetMicros: fc.constantFrom(null, null, 5),
    expiresAt: maybe(fc.constantFrom(DAY, 2 * DAY)),
  });
  const asked = fc.record(
    {
      models,
      requests_per_minute: maybe(fc.constantFrom(1, 50, 200_000)),
      tokens_per_minute: maybe(fc.constantFrom(1, 50, 200_000_000)),
      concurrency: maybe(fc.constantFrom(1, 50, 600)),
      budget_micros: maybe(fc.constantFrom(1, 1_000)),
      expires_at: maybe(fc.constantFrom(DAY / 2, 3 * DAY)),
    },
    { requiredKeys: [] },
  );
  const bodyOf = ({ expires_at, ...rest }: { expires_at?: number | null }, now: number) => ({
    ...rest,
    ...(expires_at === undefined
      ? {}
      : { expires_at: expires_at === null ? null : Math.floor((now + expires_at) / 1000) }),
  });

  test('has in no field more than its maker', async () => {
    const { keys } = rig.app.services;
    let made = 0;
    await fc.assert(
      fc.asyncProperty(own, scopes, asked, asked, fc.boolean(), async (mine, given, first, second, within) => {
        const wanted = within ? given.filter((scope) => mine.scopes.includes(scope)) : given;
        const now = Date.now();
        // Half of the time like its maker but for one field, or hardly any would be made.
        const alike = {
          models: mine.models,
          requests_per_minute: mine.requestsPerMinute,
          tokens_per_minute: mine.tokensPerMinute,
          concurrency: mine.concurrency,
          expires_at: mine.expiresAt,
        };
        const few = within ? Object.fromEntries(Object.entries(first).slice(0, 1)) : first;
        const { credential } = await rig.key({
          ...mine,
          expiresAt: mine.expiresAt === null ? null : now + mine.expiresAt,
        });
        const maker = (await keys.authenticate(credential)) as Principal;
        const response = await rig.call(
          'POST',
          '/api/keys',
          { name: 'x', scopes: wanted, ...(within ? bodyOf(alike, now) : {}), ...bodyOf(few, now) },
          as(credential),
        );
        if (response.status !== 201) return;
        made += 1;
        const child = (await response.json()) as { key: string; id: string };
        expect(beyond((await keys.authenticate(child.key)) as Principal, maker)).toEqual([]);
        await rig.call('PATCH', `/api/keys/${child.id}`, bodyOf(second, now), as(credential));
        expect(beyond((await keys.authenticate(child.key)) as Principal, maker)).toEqual([]);
        // Nor does the child, by its own hand.
        await rig.call('PATCH', `/api/keys/${child.id}`, bodyOf(second, now), as(child.key));
        expect(beyond((await keys.authenticate(child.key)) as Principal, maker)).toEqual([]);
      }),
      { numRuns: 300 },
    );
    expect(made).toBeGreaterThan(30);
  });

  test.each([
    ['expires', { expiresAt: Date.now() + DAY }, {}],
    ['is for some models', { models: ['a'] }, {}],
    ['is for few requests', { requestsPerMinute: 5 }, {}],
    ['has a budget', { budgetMicros: 5 }, { budget_micros: 1 }],
  ])(
    'an administrator’s key that %s cannot make one that is not so limited, nor lift the limit of another',
    async (_, mine, body) => {
      const { credential } = await rig.key({ scopes: ['admin'], ...mine });
      const lift = { expires_at: null, models: null, requests_per_minute: null, budget_micros: null };
      expect(await codeOf(await rig.call('POST', '/api/keys', { name: 'x', ...body }, as(credential)))).toBe(
        '403 insufficient_scope',
      );
      const other = await rig.key(mine);
      expect(await codeOf(await rig.call('PATCH', `/api/keys/${other.id}`, lift, as(credential)))).toBe(
        '403 insufficient_scope',
      );
      expect((await rig.call('PATCH', `/api/keys/${other.id}`, { name: 'y' }, as(credential))).status).toBe(200);
      expect((await rig.call('DELETE', `/api/keys/${other.id}`, undefined, as(credential))).status).toBe(200);
    },
  );

  /** A request whose body's second half waits for `meanwhile`. */
  async function slowly(
    method: string,
    path: string,
    body: object,
    headers: Record<string, string>,
    meanwhile: () => Promise<unknown>,
  ): Promise<Response> {
    const text = new TextEncoder().encode(JSON.stringify(body));
    let part = 0;
    const stream = new ReadableStream<Uint8Array>({
      async pull(controller) {
        part += 1;
        if (part === 1) controller.enqueue(text.slice(0, 5));
        else {
          await meanwhile();
          controller.enqueue(text.slice(5));
          controller.close();
        }
      },
    });
    return rig.app.fetch(
      new Request(`http://gateway.test${path}`, {
        method,
        headers: { 'content-type': 'application/json', ...headers },
        body: stream,
        duplex: 'half',
      } as RequestInit),
    );
  }

  test('is judged by what its maker is when the body has come, not when it began to', async () => {
    const maker = await rig.key({ scopes: ['keys', 'inference'] });
    const narrow = { models: ['a'] };
    const made = await slowly('POST', '/api/keys', { name: 'x' }, as(maker.credential), () =>
      rig.call('PATCH', `/api/keys/${maker.id}`, narrow),
    );
    expect(await codeOf(made)).toBe('403 insufficient_scope');
    const other = await rig.key({ scopes: ['inference'] });
    const changed = await slowly('PATCH', `/api/keys/${other.id}`, { name: 'mine' }, as(maker.credential), () =>
      rig.database.db.$client.execute({ sql: `UPDATE keys SET scopes = '["admin"]' WHERE id = ?`, args: [other.id] }),
    );
    expect(await codeOf(changed)).toBe('403 insufficient_scope');
  });

  test('many at once are not more than a user may have', async () => {
    const user = await rig.user({ role: 'consumer' });
    const { keys } = rig.app.services;
    for (let index = 0; index < limits.keysPerUserMax - 4; index++)
      await keys.create({ name: 'one', userId: user.id, scopes: ['inference'] });
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => user.call('POST', '/api/keys', { name: 'more' })),
    );
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(3);
    const refused = answers.find(({ status }) => status !== 201) as Response;
    expect(await codeOf(refused)).toBe('400 key_quota_exceeded');
    expect((await keys.list({ userId: user.id, limit: 500, after: null })).rows).toHaveLength(limits.keysPerUserMax);
  });

  test('of a session whose user was given a lower role while the body came there is none with the old scopes', async () => {
    const user = await rig.user({ role: 'builder' });
    const { cookie, csrf } = await user.session();
    const made = await slowly(
      'POST',
      '/api/keys',
      { name: 'x', scopes: ['fine_tuning'] },
      { cookie, 'x-csrf-token': csrf },
      () => rig.call('PATCH', `/api/users/${user.id}`, { role: 'consumer' }),
    );
    expect(await codeOf(made)).toBe('403 insufficient_scope');
  });

  describe('whoever manages people without being an administrator', () => {
    let people: string;
    beforeAll(async () => {
      people = (await rig.key({ scopes: ['people', 'inference', 'keys', 'datanets', 'account'] })).credential;
    });
    const invite = (user: Pick<TestUser, 'id'>) =>
      rig.call('POST', `/api/users/${user.id}/invitation`, undefined, as(people));
    const accept = (token: string) =>
      browser(rig).send('POST', '/api/invitations/accept', { token, password: PASSWORD });

    test('has no link left by which to become somebody who was made one since', async () => {
      const user = await rig.user({ role: 'consumer' });
      const { token } = (await (await invite(user)).json()) as { token: string };
      expect((await rig.call('PATCH', `/api/users/${user.id}`, { role: 'admin' })).status).toBe(200);
      expect(await codeOf(await accept(token))).toBe('400 invalid_invitation');
      expect(await codeOf(await invite(user))).toBe('403 insufficient_scope');
    });

    test('a link for the first password ends with the role it was made for, and the answer says so', async () => {
      const made = await rig.call('POST', '/api/users', { email: 'role@handing.test', name: 'Role' });
      const { id, invitation } = (await made.json()) as { id: string; invitation: { token: string } };
      const same = await rig.call('PATCH', `/api/users/${id}`, { name: 'Other', role: 'consumer' });
      expect(await same.json()).not.toHaveProperty('warning');
      const changed = await rig.call('PATCH', `/api/users/${id}`, { role: 'builder' });
      expect(await changed.json()).toMatchObject({ role: 'builder', warning: expect.stringContaining('users invite') });
      expect(await codeOf(await accept(invitation.token))).toBe('400 invalid_invitation');
      const again = (await (await rig.call('POST', `/api/users/${id}/invitation`)).json()) as { token: string };
      expect((await accept(again.token)).status).toBe(200);
    });

    test('does not disable whoever becomes an administrator while the body of the request comes', async () => {
      const user = await rig.user({ role: 'consumer' });
      const refused = await slowly('PATCH', `/api/users/${user.id}`, { state: 'disabled' }, as(people), () =>
        rig.call('PATCH', `/api/users/${user.id}`, { role: 'admin' }),
      );
      expect(await codeOf(refused)).toBe('403 insufficient_scope');
      expect(await (await rig.call('GET', `/api/users/${user.id}`)).json()).toMatchObject({ state: 'active' });
    });

    test('and who was judged by a role that is no longer theirs is not changed', async () => {
      const { people: who } = rig.app.services;
      const { row } = await rig.user({ role: 'consumer' });
      await rig.call('PATCH', `/api/users/${row.id}`, { role: 'admin' });
      await expect(who.changeUser(row, { state: 'disabled' })).rejects.toMatchObject({
        status: 409,
        code: 'user_changed',
      });
      expect(await who.invitations.create(row, 'somebody')).toBeNull();
    });
  });
});
