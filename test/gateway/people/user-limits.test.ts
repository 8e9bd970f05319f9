/** What a user may spend and ask for, over all keys and sessions together: a second key is no second purse. */

import fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { endingTogether } from '../../support/scripted-daemon.ts';
import { CHAT, errorOf, type Rig, startRig, type TestUser } from '../rig.ts';

let rig: Rig;
let clock = 1_900_000_000_000;
let hello: Rig['daemon']['script'];

beforeAll(async () => {
  rig = await startRig({ now: () => clock });
  hello = rig.daemon.script;
});
beforeEach(() => {
  // Whatever a test before has used up of its minute is back.
  clock += 60_000;
});
afterAll(() => rig.close());

/** 9 tokens of prompt and 3 of answer cost 15; what is reserved is 9 + 2 × 10 = 29 once the prompt is counted. */
const ask = (who: Pick<TestUser, 'call'>, extra: object = {}) =>
  who.call('POST', '/v1/chat/completions', { ...CHAT, max_tokens: 10, ...extra });
const limit = (id: string, limits: object) => rig.call('PATCH', `/api/users/${id}`, limits);
const money = async (id: string) => {
  const { budget_micros, spent_micros, reserved_micros } = (await (
    await rig.call('GET', `/api/users/${id}`)
  ).json()) as Record<string, number | null>;
  return { budget: budget_micros, spent: spent_micros, reserved: reserved_micros };
};
async function anotherKey(user: TestUser, body: object = {}): Promise<Pick<TestUser, 'call'> & { id: string }> {
  const made = await (await user.session()).call('POST', '/api/keys', { name: 'another', ...body });
  expect(made.status).toBe(201);
  const { key, id } = (await made.json()) as { key: string; id: string };
  return {
    id,
    call: (method, path, given, headers = {}) =>
      rig.call(method, path, given, { authorization: `Bearer ${key}`, ...headers }),
  };
}

describe('a user’s budget', () => {
  test('counts what every key and every session spends; a new key brings nothing', async () => {
    const user = await rig.user();
    expect((await limit(user.id, { budget_micros: 70 })).status).toBe(200);
    expect((await ask(user)).status).toBe(200);
    expect((await ask(await user.session())).status).toBe(200);
    expect((await ask(await anotherKey(user))).status).toBe(200);
    expect(await money(user.id)).toEqual({ budget: 70, spent: 45, reserved: 0 });
    for (const who of [user, await user.session(), await anotherKey(user)]) {
      const refused = await ask(who);
      expect([refused.status, refused.headers.get('x-limit-of')]).toEqual([429, 'user']);
      const error = await errorOf(refused);
      expect(error).toMatchObject({ type: 'insufficient_quota', code: 'insufficient_quota' });
      expect(error.message).toMatch(/user.*25 micro-units are left/);
    }
    expect((await limit(user.id, { budget_micros: null })).status).toBe(200);
    expect((await ask(user)).status).toBe(200);
  });

  test('a key’s own budget holds besides, and the answer says which of the two it was', async () => {
    const user = await rig.user();
    await limit(user.id, { budget_micros: 1_000 });
    const small = await anotherKey(user, { budget_micros: 28 });
    const refused = await ask(small);
    expect([refused.status, refused.headers.get('x-limit-of')]).toEqual([429, 'key']);
    expect((await errorOf(refused)).message).toMatch(/key.*28 micro-units are left/);
    expect((await ask(user)).status).toBe(200);
  });

  test('parallel requests over several keys and sessions never pass it together', async () => {
    const user = await rig.user();
    await limit(user.id, { budget_micros: 100 });
    const callers = [user, await user.session(), await anotherKey(user), await anotherKey(user), await user.session()];
    const { script, open } = endingTogether();
    rig.daemon.script = script;
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, index) => ask(callers[index % callers.length] as TestUser, { stream: true })),
    );
    // 3 × 29 = 87 fit.
    expect(await money(user.id)).toEqual({ budget: 100, spent: 0, reserved: 87 });
    open();
    await Promise.all(answers.map((answer) => answer.text()));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(3);
    expect(answers.filter(({ headers }) => headers.get('x-limit-of') === 'user')).toHaveLength(17);
    expect(await money(user.id)).toEqual({ budget: 100, spent: 45, reserved: 0 });
    rig.daemon.script = hello;
  });

  test('the sums of a user are those of the user’s keys, however reservations end', async () => {
    const user = await rig.user();
    const other = await rig.user();
    const keyIds = [user.keyId, user.row.accountKey, (await anotherKey(user)).id, other.keyId];
    const { ledger } = rig.app.services;
    const usage = { promptTokens: 1, cachedTokens: 0, completionTokens: 1 };
    await limit(user.id, { budget_micros: 500 });
    let run = 0;
    const step = fc.record({
      kind: fc.constantFrom('reserve', 'reserve', 'post', 'void', 'expire'),
      key: fc.nat(keyIds.length - 1),
      request: fc.nat(9),
      amount: fc.nat(200),
    });
    const sums = async () => {
      const { rows } = await rig.database.db.$client.execute({
        sql: 'SELECT coalesce(sum(spent_micros), 0) AS spent, coalesce(sum(reserved_micros), 0) AS reserved FROM keys WHERE user_id = ?',
        args: [user.id],
      });
      return { spent: Number(rows[0]?.spent), reserved: Number(rows[0]?.reserved) };
    };
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
        const prefix = `user-${run++}`;
        const seen = new Set<string>();
        for (const { kind, key, request, amount } of steps) {
          const name = `${prefix}-${request}`;
          const before = await sums();
          if (kind === 'reserve' && !seen.has(name)) {
            const granted = await ledger.reserve(name, keyIds[key] as string, amount);
            if (granted) seen.add(name);
            const fits = key === 3 || before.spent + before.reserved + amount <= 500;
            expect(granted).toBe(fits);
          } else if (kind === 'post')
            await ledger.post(name, { costMicros: Math.floor(amount / 10), usage, model: 'm' });
          else if (kind === 'void') await ledger.void(name);
          else await ledger.expire(name);
          const { spent, reserved } = await money(user.id);
          expect({ spent, reserved }).toEqual(await sums());
        }
      }),
      { numRuns: 25 },
    );
  });

  test('the database refuses to let a key change hands, or a user’s sums go below zero', async () => {
    const user = await rig.user();
    const run = (sql: string) => rig.database.db.$client.execute({ sql, args: [user.id] });
    await expect(run('UPDATE keys SET user_id = NULL WHERE user_id = ?')).rejects.toThrow('stays with its user');
    await expect(run('UPDATE users SET reserved_micros = -1 WHERE id = ?')).rejects.toThrow('users_money');
  });

  test('a user who was disabled by another gateway computes nothing more, even while cached here', async () => {
    const user = await rig.user();
    expect((await ask(user)).status).toBe(200);
    const before = rig.daemon.requests.length;
    const { $client } = rig.database.db;
    await $client.execute({ sql: `UPDATE users SET state = 'disabled' WHERE id = ?`, args: [user.id] });
    expect((await ask(user)).status).toBe(401);
    expect(rig.daemon.requests.length).toBe(before);
  });
});

describe('a user’s rates', () => {
  test('requests per minute count over all keys and sessions', async () => {
    const user = await rig.user();
    await limit(user.id, { requests_per_minute: 3 });
    for (const who of [user, await user.session(), await anotherKey(user)]) expect((await ask(who)).status).toBe(200);
    const refused = await ask(await anotherKey(user));
    expect([refused.status, refused.headers.get('x-limit-of'), refused.headers.get('retry-after')]).toEqual([
      429,
      'user',
      '20',
    ]);
    expect(refused.headers.get('x-ratelimit-limit-requests')).toBe('3');
    const error = await errorOf(refused);
    expect(error.code).toBe('rate_limit_exceeded');
    expect(error.message).toMatch(/user, all keys and sessions together/);
    clock += 20_000;
    expect((await ask(user)).status).toBe(200);
  });

  test('what is refused by the user’s limit costs the key nothing, and the other way round', async () => {
    const user = await rig.user();
    const key = await anotherKey(user, { requests_per_minute: 1 });
    await limit(user.id, { requests_per_minute: 2 });
    expect((await ask(key)).status).toBe(200);
    for (let index = 0; index < 5; index++) {
      const refused = await ask(key);
      expect([refused.status, refused.headers.get('x-limit-of')]).toEqual([429, 'key']);
    }
    expect((await ask(user)).status).toBe(200);
    expect((await ask(user)).headers.get('x-limit-of')).toBe('user');
  });

  test('tokens per minute', async () => {
    const user = await rig.user();
    await limit(user.id, { tokens_per_minute: 30 });
    expect((await ask(user, { max_tokens: 3 })).status).toBe(200);
    expect((await ask(await anotherKey(user), { max_tokens: 3 })).status).toBe(200);
    const refused = await ask(await user.session(), { max_tokens: 30 });
    expect([refused.status, refused.headers.get('x-limit-of')]).toEqual([429, 'user']);
  });

  test('requests at the same time', async () => {
    const user = await rig.user();
    await limit(user.id, { concurrency: 2 });
    const callers = [user, await user.session(), await anotherKey(user)];
    const { script, open } = endingTogether();
    rig.daemon.script = script;
    const answers = await Promise.all(callers.map((who) => ask(who, { stream: true })));
    expect(answers.map(({ status }) => status).sort()).toEqual([200, 200, 429]);
    const refused = answers.find(({ status }) => status === 429) as Response;
    expect(refused.headers.get('x-limit-of')).toBe('user');
    expect((await errorOf(refused)).code).toBe('concurrency_limit_exceeded');
    open();
    await Promise.all(answers.filter(({ status }) => status === 200).map((answer) => answer.text()));
    expect((await ask(user)).status).toBe(200);
    rig.daemon.script = hello;
  });
});

describe('who sets them', () => {
  test('administrators, at once effective and audited; nobody else, not even with the scope `people`', async () => {
    const user = await rig.user();
    expect((await ask(user)).status).toBe(200);
    const people = await rig.key({ scopes: ['people'] });
    const refused = await rig.call(
      'PATCH',
      `/api/users/${user.id}`,
      { budget_micros: 5 },
      { authorization: `Bearer ${people.credential}` },
    );
    expect([refused.status, (await errorOf(refused)).code]).toEqual([403, 'insufficient_scope']);
    expect((await limit(user.id, { budget_micros: 5, concurrency: 7 })).status).toBe(200);
    expect((await ask(user)).status).toBe(429);
    const { data } = (await (await rig.call('GET', `/api/audit?object=${user.id}`)).json()) as {
      data: { action: string; detail: object }[];
    };
    expect(data[0]).toMatchObject({
      action: 'user.update',
      detail: { budget_micros: 5, concurrency: 7, before: { budget_micros: null, concurrency: null } },
    });
    expect(await (await user.call('GET', '/api/account')).json()).toMatchObject({
      budget_micros: 5,
      concurrency: 7,
      requests_per_minute: null,
      spent_micros: 15,
    });
  });

  test('whoever is invited can have them from the start', async () => {
    const made = await rig.call('POST', '/api/users', {
      email: 'limited@users.test',
      name: 'Limited',
      budget_micros: 9,
      requests_per_minute: 1,
    });
    expect(await made.json()).toMatchObject({ budget_micros: 9, requests_per_minute: 1, tokens_per_minute: null });
  });

  test.each([
    { budget_micros: -1 },
    { budget_micros: 0.5 },
    { requests_per_minute: 0 },
    { concurrency: '5' },
    { spent_micros: 0 },
  ])('%j is refused', async (body) => {
    const user = await rig.user();
    expect((await limit(user.id, body)).status).toBe(400);
  });
});
