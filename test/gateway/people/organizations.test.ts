/** Organisations: who may see, change and leave them, and that each always has an owner. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limits } from '../../../gateway/limits.ts';
import { timesAsLong } from '../../support/cost.ts';
import { errorOf, type Rig, startRig, type TestUser } from '../rig.ts';

let rig: Rig;
let ada: TestUser;
let ben: TestUser;
let eve: TestUser;
let chief: TestUser;
let made = 0;

beforeAll(async () => {
  rig = await startRig();
  ada = await rig.user({ role: 'contributor', name: 'Ada' });
  ben = await rig.user({ role: 'consumer', name: 'Ben' });
  eve = await rig.user({ role: 'builder', name: 'Eve' });
  chief = await rig.user({ role: 'admin', name: 'Chief' });
});
afterAll(() => rig.close());

type Json = Record<string, unknown>;
const json = async (response: Response) => (await response.json()) as Json;
const ids = (list: Json, field = 'id') => (list.data as Json[]).map((one) => one[field]);

async function organization(owner: TestUser, name = `Organisation number ${made++} ${crypto.randomUUID()}`) {
  const response = await owner.call('POST', '/api/organizations', { name });
  expect(response.status).toBe(201);
  return (await json(response)).id as string;
}
const members = (id: string, user = '') => `/api/organizations/${id}/members${user === '' ? '' : `/${user}`}`;
async function join(id: string, owner: TestUser, user: TestUser, role: 'owner' | 'member' = 'member') {
  const response = await owner.call('PUT', members(id, user.id), { role });
  expect([200, 201]).toContain(response.status);
}
const codeOf = async (response: Response) => `${response.status} ${(await errorOf(response)).code}`;

describe('making and naming', () => {
  test('who makes one owns it, and it is in their list', async () => {
    const response = await ada.call('POST', '/api/organizations', { name: '  Legal   Aid ' });
    const body = await json(response);
    expect(response.status).toBe(201);
    expect(body).toMatchObject({ object: 'organization', name: 'Legal Aid', role: 'owner', members: 1 });
    expect(body.id).toMatch(/^org_[0-9a-f]{32}$/);
    expect(await json(await ada.call('GET', `/api/organizations/${body.id}`))).toEqual(body);
    expect(ids(await json(await ada.call('GET', '/api/organizations')))).toContain(body.id);
    expect(await rig.app.services.organizations.membership(ada.id, body.id as string)).toBe('owner');
  });

  test('a name is had once, whatever the case, width or script it is written in', async () => {
    await organization(ada, 'Oxford Data');
    for (const name of ['oxford data', 'ＯＸＦＯＲＤ ＤＡＴＡ', 'Охford Data', '0xford  Data']) {
      expect(await codeOf(await eve.call('POST', '/api/organizations', { name }))).toBe('409 name_taken');
    }
  });

  test('of many at once with one name, one is made', async () => {
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, i) => (i % 2 ? ada : eve).call('POST', '/api/organizations', { name: 'Rush' })),
    );
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(1);
    expect(answers.filter(({ status }) => status === 409)).toHaveLength(19);
  });

  test.each([
    ['', 'x'.repeat(81), 'a\u202eb', 'a\u200bb', 'a\nb', '\u2066', '...', 'x'.repeat(5000)],
    [null, 7, ['a'], {}],
  ])('bad names are refused', async (...names) => {
    for (const name of names)
      expect((await ada.call('POST', '/api/organizations', { name })).status, JSON.stringify(name)).toBe(400);
  });

  test('the operator’s key, which is nobody’s, owns nothing', async () => {
    const response = await rig.call('POST', '/api/organizations', { name: 'Nobody' });
    const error = await errorOf(response);
    expect([response.status, error.code]).toEqual([403, 'user_required']);
    expect(error.message).toMatch(/users add/);
  });

  test('a consumer makes none', async () => {
    expect(await codeOf(await ben.call('POST', '/api/organizations', { name: 'Consumers' }))).toBe(
      '403 insufficient_scope',
    );
  });

  test('owners rename; to a name of another’s, nobody', async () => {
    const id = await organization(ada, 'Before');
    await organization(eve, 'Taken');
    expect(await json(await ada.call('PATCH', `/api/organizations/${id}`, { name: 'After' }))).toMatchObject({
      name: 'After',
    });
    // Its own name, written otherwise, is free for it.
    expect((await ada.call('PATCH', `/api/organizations/${id}`, { name: 'AFTER' })).status).toBe(200);
    expect(await codeOf(await ada.call('PATCH', `/api/organizations/${id}`, { name: 'TAKEN' }))).toBe('409 name_taken');
    // And what it was called before is free again.
    expect((await eve.call('POST', '/api/organizations', { name: 'before' })).status).toBe(201);
  });

  test('nobody makes more than the limit, not even at once', async () => {
    const busy = await rig.user({ role: 'contributor' });
    const { organizations } = rig.app.services;
    for (let i = 0; i < limits.organizationsPerUserMax - 3; i++)
      await organizations.create(busy.id, `Bulk ${busy.id} ${i}`);
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, i) => busy.call('POST', '/api/organizations', { name: `Late ${busy.id} ${i}` })),
    );
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(3);
    const refused = answers.filter(({ status }) => status !== 201);
    expect(await codeOf(refused[0] as Response)).toBe('409 too_many_organizations');
  });
});

describe('strangers', () => {
  test('for whoever is no member there is none, whatever they try', async () => {
    const id = await organization(ada);
    const absent = `org_${'0'.repeat(32)}`;
    for (const address of [id, absent]) {
      const tries: [string, string, unknown?][] = [
        ['GET', `/api/organizations/${address}`],
        ['PATCH', `/api/organizations/${address}`, { name: 'Mine now' }],
        ['GET', members(address)],
        ['GET', members(address, ada.id)],
        ['GET', members(address, 'me')],
        ['PUT', members(address, eve.id), { role: 'owner' }],
        ['DELETE', members(address, ada.id)],
        ['DELETE', members(address, eve.id)],
      ];
      for (const [method, path, body] of tries)
        expect(`${method} ${path} ${await codeOf(await eve.call(method, path, body))}`).toBe(
          `${method} ${path} 404 organization_not_found`,
        );
    }
    expect(ids(await json(await eve.call('GET', '/api/organizations')))).not.toContain(id);
    const after = await errorOf(await eve.call('GET', `/api/organizations?after=${id}`));
    expect(after).toMatchObject({ code: 'invalid_value', param: 'after' });
    expect(await rig.app.services.organizations.membership(eve.id, id)).toBeNull();
  });

  test('administrators and the operator see and change all', async () => {
    const id = await organization(ada);
    for (const call of [chief.call, rig.call]) {
      expect(await json(await call('GET', `/api/organizations/${id}`))).toMatchObject({ role: null, members: 1 });
      expect(ids(await json(await call('GET', '/api/organizations?limit=100')))).toContain(id);
    }
    expect((await chief.call('PUT', members(id, ben.email), { role: 'owner' })).status).toBe(201);
    expect((await rig.call('DELETE', members(id, ada.id))).status).toBe(200);
    expect(await codeOf(await rig.call('DELETE', members(id, ben.id)))).toBe('409 last_owner');
    expect(await codeOf(await rig.call('PUT', members(id, 'me'), {}))).toBe('404 user_not_found');
  });
});

describe('members', () => {
  test('owners add by id and by e-mail, members only look; neither are told addresses, or ids would lead to them', async () => {
    const id = await organization(ada);
    const byId = await ada.call('PUT', members(id, ben.id), {});
    expect(byId.status).toBe(201);
    const added = await json(byId);
    expect(added).toMatchObject({ user: ben.id, role: 'member', active: true });
    expect(added).not.toHaveProperty('email');
    const byEmail = await ada.call('PUT', members(id, encodeURIComponent(eve.email.toUpperCase())), { role: 'member' });
    expect(byEmail.status).toBe(201);
    expect((await ada.call('PUT', members(id, eve.id), { role: 'member' })).status).toBe(200);

    const seen = await json(await ben.call('GET', members(id)));
    expect(ids(seen, 'user').sort()).toEqual([ada.id, ben.id, eve.id].sort());
    expect((seen.data as Json[]).filter((one) => 'email' in one).map((one) => one.user)).toEqual([ben.id]);
    const owned = await json(await ada.call('GET', members(id)));
    expect((owned.data as Json[]).filter((one) => 'email' in one).map((one) => one.user)).toEqual([ada.id]);
    expect(ids(await json(await chief.call('GET', members(id))), 'email')).toContain(eve.email);
    expect(await json(await ben.call('GET', members(id, 'me')))).toMatchObject({ user: ben.id });

    // By e-mail a member cannot ask who somebody is.
    expect(await codeOf(await eve.call('GET', members(id, ada.email)))).toBe('404 member_not_found');
    expect(await codeOf(await eve.call('PUT', members(id, chief.id), {}))).toBe('403 not_owner');
    expect(await codeOf(await eve.call('PATCH', `/api/organizations/${id}`, { name: 'Eve’s' }))).toBe('403 not_owner');
    expect(await codeOf(await eve.call('DELETE', members(id, ben.id)))).toBe('403 not_owner');
    expect(await codeOf(await eve.call('PUT', members(id, eve.id), { role: 'owner' }))).toBe('403 not_owner');
    expect(await rig.app.services.organizations.of(ben.id)).toContainEqual(
      expect.objectContaining({ organizationId: id, role: 'member' }),
    );
  });

  test('whoever is not there cannot be added, nor whoever is disabled; who is invited can', async () => {
    const id = await organization(ada);
    const { people } = rig.app.services;
    const gone = await rig.user({});
    await people.users.change(gone.row, { state: 'disabled' });
    people.forget();
    for (const who of [`user_${'0'.repeat(32)}`, 'nobody@users.test', gone.id, gone.email, "' OR 1=1 --", '%', '@'])
      expect(await codeOf(await ada.call('PUT', members(id, encodeURIComponent(who)), {})), who).toBe(
        '404 user_not_found',
      );
    const invited = await people.users.create({ email: 'soon@users.test', name: 'Soon', role: 'consumer' });
    expect(await json(await ada.call('PUT', members(id, 'soon@users.test'), {}))).toMatchObject({
      user: invited.id,
      active: false,
    });
  });

  test('members leave, with a key that can only look too; the last owner stays', async () => {
    const id = await organization(ada);
    await join(id, ada, ben);
    expect(await json(await ben.call('DELETE', members(id, 'me')))).toMatchObject({ user: ben.id, deleted: true });
    expect(await codeOf(await ben.call('GET', `/api/organizations/${id}`))).toBe('404 organization_not_found');
    expect(await codeOf(await ada.call('DELETE', members(id, ben.id)))).toBe('404 member_not_found');
    expect(await codeOf(await ada.call('DELETE', members(id, 'me')))).toBe('409 last_owner');
    expect(await codeOf(await ada.call('PUT', members(id, ada.id), { role: 'member' }))).toBe('409 last_owner');
    // Once somebody else owns it too, it goes.
    await join(id, ada, eve, 'owner');
    expect((await ada.call('DELETE', members(id, 'me'))).status).toBe(200);
    expect(await rig.app.services.organizations.membership(eve.id, id)).toBe('owner');
  });

  test('a key without the scope `govern` puts nobody out', async () => {
    const id = await organization(ada);
    await join(id, ada, ben);
    const { credential } = await rig.key({ userId: ada.id, scopes: ['datanets'] });
    const headers = { authorization: `Bearer ${credential}` };
    expect(await codeOf(await rig.call('DELETE', members(id, ben.id), undefined, headers))).toBe(
      '403 insufficient_scope',
    );
    expect(await rig.app.services.organizations.membership(ben.id, id)).toBe('member');
  });

  test('an owner who is disabled does not count as one who stays, keeps the membership, and can do nothing', async () => {
    const id = await organization(ada);
    const former = await rig.user({ role: 'builder' });
    await join(id, ada, former, 'owner');
    const { people, organizations } = rig.app.services;
    await people.users.change(former.row, { state: 'disabled' });
    people.forget();
    expect(await codeOf(await ada.call('DELETE', members(id, 'me')))).toBe('409 last_owner');
    expect((await former.call('GET', `/api/organizations/${id}`)).status).toBe(401);
    expect(await organizations.membership(former.id, id)).toBe('owner');
    expect(await json(await ada.call('GET', members(id, former.id)))).toMatchObject({ role: 'owner', active: false });
    expect((await ada.call('DELETE', members(id, former.id))).status).toBe(200);
  });

  test('two owners who put each other out at once: one goes, one stays', async () => {
    for (let round = 0; round < 20; round++) {
      const id = await organization(ada);
      await join(id, ada, eve, 'owner');
      const answers = await Promise.all([
        ada.call('DELETE', members(id, eve.id)),
        eve.call('DELETE', members(id, ada.id)),
      ]);
      expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
      const left = await json(await chief.call('GET', `${members(id)}?role=owner`));
      expect(left.data).toHaveLength(1);
    }
  });

  test('whatever owners and members do to each other at once, an owner is left', async () => {
    const crowd = [ada, eve, ...(await Promise.all([rig.user({}), rig.user({})]))];
    const act = fc.record({
      by: fc.nat(3),
      on: fc.nat(3),
      what: fc.constantFrom('remove', 'owner', 'member', 'leave'),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(act, { minLength: 2, maxLength: 12 }), async (acts) => {
        const id = await organization(chief);
        for (const one of crowd) await join(id, chief, one, 'owner');
        expect((await chief.call('DELETE', members(id, 'me'))).status).toBe(200);
        const answers = await Promise.all(
          acts.map(({ by, on, what }) => {
            const caller = crowd[by] as TestUser;
            const target = members(id, what === 'leave' ? 'me' : (crowd[on] as TestUser).id);
            return what === 'remove' || what === 'leave'
              ? caller.call('DELETE', target)
              : caller.call('PUT', target, { role: what });
          }),
        );
        for (const { status } of answers) expect([200, 201, 403, 404, 409]).toContain(status);
        const left = await rig.app.services.organizations.members(id, { limit: 10, after: null, role: 'owner' });
        expect(left.rows.length).toBeGreaterThan(0);
      }),
      { numRuns: 25 },
    );
  });

  test('who was an owner when a change was decided, but is none when it is written, changes nothing', async () => {
    const id = await organization(ada);
    await join(id, ada, eve, 'owner');
    const { organizations } = rig.app.services;
    expect(await organizations.remove(id, eve.id, ada.id)).toBe(true);
    expect(await organizations.put(id, ben.id, 'member', eve.id)).toBe(false);
    expect(await organizations.put(id, eve.id, 'owner', eve.id)).toBe(false);
    expect(await organizations.rename(id, 'Eve again', eve.id)).toBe(false);
    expect(await organizations.remove(id, ada.id, eve.id)).toBe(false);
    expect(await organizations.membership(ben.id, id)).toBeNull();
  });
});

describe('lists', () => {
  test('paged, newest first, each once; filtered by name and role', async () => {
    const owner = await rig.user({ role: 'contributor' });
    const made: string[] = [];
    for (let i = 0; i < 7; i++) made.push(await organization(owner, `Paged ${owner.id} ${i}`));
    const foreign = await organization(ada, `Paged foreign ${owner.id}`);
    await join(foreign, ada, owner);
    const walked: unknown[] = [];
    let after = '';
    for (;;) {
      const page = await json(await owner.call('GET', `/api/organizations?limit=3${after}`));
      walked.push(...ids(page));
      expect(page).toMatchObject({ first_id: ids(page)[0], last_id: ids(page).at(-1) });
      if (page.has_more !== true) break;
      after = `&after=${page.last_id}`;
    }
    expect(walked).toEqual([...made, foreign].reverse());
    expect(ids(await json(await owner.call('GET', '/api/organizations?role=member')))).toEqual([foreign]);
    const named = await owner.call('GET', `/api/organizations?name=${encodeURIComponent('PAGED FOR')}`);
    expect(ids(await json(named))).toEqual([foreign]);
    for (const bad of ['limit=0', 'limit=101', 'limit=x', 'role=admin', `name=${'x'.repeat(2000)}`])
      expect((await owner.call('GET', `/api/organizations?${bad}`)).status, bad).toBe(400);
  });

  test('members too', async () => {
    const id = await organization(ada);
    const crowd = await Promise.all(Array.from({ length: 6 }, () => rig.user({ role: 'consumer' })));
    for (const one of crowd) await join(id, ada, one);
    const walked: unknown[] = [];
    let after = '';
    for (;;) {
      const page = await json(await ada.call('GET', `${members(id)}?limit=2${after}`));
      walked.push(...ids(page, 'user'));
      if (page.has_more !== true) break;
      after = `&after=${page.last_id}`;
    }
    expect(walked).toHaveLength(7);
    expect(new Set(walked)).toEqual(new Set([ada.id, ...crowd.map((one) => one.id)]));
    expect(walked.at(-1)).toBe(ada.id);
    expect(await errorOf(await ada.call('GET', `${members(id)}?after=${eve.id}`))).toMatchObject({ param: 'after' });
  });
});

test('every act is in the audit log, with who, what and how it ended', async () => {
  const id = await organization(ada);
  await join(id, ada, ben);
  await ben.call('PUT', members(id, eve.id), {});
  await ada.call('DELETE', members(id, ben.id));
  const { rows } = await rig.app.services.people.audit.list({ object: id }, { limit: 10, after: null });
  expect(rows.map(({ action, userId, status }) => [action, userId, status])).toEqual([
    ['organization.member.remove', ada.id, 200],
    // Ben is a consumer: refused before the act began, so it is not one.
    ['organization.member.put', ada.id, 201],
    ['organization.create', ada.id, 201],
  ]);
});

test('a question about membership costs a look or two at the database', async () => {
  const id = await organization(ada);
  const { organizations } = rig.app.services;
  await organizations.membership(ada.id, id);
  const { $client } = rig.database.db;
  const times = await timesAsLong(
    () => organizations.membership(ada.id, id),
    () => $client.execute('SELECT 1'),
  );
  expect(times).toBeLessThan(10);
});
