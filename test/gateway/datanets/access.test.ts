/** Access to Datanets: who may ask, who decides, what a decision is worth, and what it costs to look. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { termsHash } from '../../../gateway/datanets/access/terms.ts';
import { timesAsLong } from '../../support/cost.ts';
import { errorOf, type Rig, startRig, type TestUser } from '../rig.ts';
import { chatExamples, DatanetFixture, type MadeDatanet } from './fixture.ts';

let rig: Rig;
let fixture: DatanetFixture;
let now = Date.now();
let owner: TestUser;
let asker: TestUser;
let datanet: MadeDatanet;
beforeAll(async () => {
  rig = await startRig({ now: () => now });
  fixture = new DatanetFixture(rig.database.db, () => now);
});
afterAll(() => rig?.close());
beforeEach(async () => {
  owner = await rig.user({ role: 'contributor' });
  asker = await rig.user({ role: 'consumer' });
  datanet = await fixture.make({ user: owner.id }, { visibility: 'permissioned', licence: 'MIT' });
  await datanet.publish(chatExamples(3));
});

const path = (rest = '', of = datanet) => `/api/datanets/${of.id}/access-requests${rest}`;
const ASK = { purpose: 'to train a model with it', licence_accepted: 'MIT' };
async function ask(user = asker, body: object = ASK): Promise<{ id: string }> {
  const response = await user.call('POST', path(), body);
  expect(response.status, await response.clone().text()).toBe(201);
  return (await response.json()) as { id: string };
}
const reads = async (user: TestUser) =>
  (await rig.app.services.factory.access.standing({ userId: user.id, scopes: new Set() }, await datanet.row())).reads;
async function organization(members: Record<string, 'owner' | 'member'>): Promise<string> {
  const { $client } = rig.database.db;
  const id = `org_${Object.keys(members).join('').slice(-40)}${Math.random().toString(36).slice(2)}`;
  await $client.execute({
    sql: 'INSERT INTO organizations (id, name, name_key, created_by, created_at) VALUES (?, ?, ?, ?, 0)',
    args: [id, id, id, 'test'],
  });
  for (const [user, role] of Object.entries(members)) {
    await $client.execute({ sql: 'INSERT INTO memberships VALUES (?, ?, ?, 0)', args: [id, user, role] });
  }
  return id;
}

describe('asking', () => {
  test('a purpose and the licence as it is; then it waits, once', async () => {
    const request = await ask();
    expect(request).toMatchObject({
      object: 'datanet.access_request',
      datanet: datanet.id,
      requested_by: asker.id,
      organization_id: null,
      state: 'pending',
      active: false,
      expires_at: null,
    });
    const twice = await asker.call('POST', path(), ASK);
    expect(twice.status).toBe(409);
    expect((await errorOf(twice)).code).toBe('already_requested');
    expect(await reads(asker)).toBe(false);
    const agreed = await asker.call('GET', `/api/datanets/${datanet.id}/licence-acceptance`);
    expect(await agreed.json()).toMatchObject({ licence: 'MIT', accepted: true, required: true });
  });

  test.each([
    ['no purpose', { licence_accepted: 'MIT' }, 400, 'missing_required_parameter'],
    ['a purpose without content', { ...ASK, purpose: `${' '.repeat(20)}x` }, 400, 'string_below_min_length'],
    ['a purpose that is a book', { ...ASK, purpose: 'x'.repeat(2001) }, 400, 'string_above_max_length'],
    [
      'a purpose that turns the text around',
      { ...ASK, purpose: 'to train \u202enialp\u202c models' },
      400,
      'invalid_value',
    ],
    ['another licence', { ...ASK, licence_accepted: 'Apache-2.0' }, 409, 'licence_changed'],
    ['other terms', { ...ASK, terms_sha256: '0'.repeat(64) }, 409, 'licence_changed'],
    ['an organisation that is none of theirs', { ...ASK, organization_id: 'org_x' }, 400, 'organization_not_found'],
    ['what we do not know', { ...ASK, admin: true }, 400, 'invalid_value'],
  ])('refused: %s', async (_, body, status, code) => {
    const response = await asker.call('POST', path(), body);
    expect(response.status).toBe(status);
    expect((await errorOf(response)).code).toBe(code);
    expect(
      await rig.app.services.factory.access.requests.list(datanet.id, {
        requestedBy: null,
        state: null,
        organizationId: null,
        after: null,
        limit: 9,
      }),
    ).toEqual({ rows: [], hasMore: false });
  });

  test('nothing to ask for: a public one, one that one may read, one that is revoked; and nobody to ask for', async () => {
    const open = await fixture.make({ user: owner.id }, { licence: 'MIT' });
    await open.publish(chatExamples(1));
    const code = async (user: Pick<TestUser, 'call'>, of = datanet) =>
      (await errorOf(await user.call('POST', path('', of), ASK))).code;
    expect(await code(asker, open)).toBe('access_open');
    expect(await code(owner)).toBe('already_granted');
    expect(await code(rig)).toBe('user_required');
    await owner.call('POST', `/api/datanets/${datanet.id}/revoke`, { reason: 'over' });
    expect(await code(asker)).toBe('datanet_revoked');
    const draft = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    expect(await code(asker, draft)).toBe('datanet_not_found');
  });

  test('terms of the owner’s own are agreed to by their hash', async () => {
    const strict = await fixture.make(
      { user: owner.id },
      { visibility: 'permissioned', licence: 'MIT', terms: 'No use in weapons.' },
    );
    await strict.publish(chatExamples(1));
    const bare = await asker.call('POST', path('', strict), ASK);
    expect(bare.status).toBe(400);
    expect((await errorOf(bare)).param).toBe('terms_sha256');
    const shown = (await (await asker.call('GET', `/api/datanets/${strict.id}/licence-acceptance`)).json()) as {
      terms: string;
      terms_sha256: string;
    };
    expect(shown.terms).toBe('No use in weapons.');
    const asked = await asker.call('POST', path('', strict), { ...ASK, terms_sha256: shown.terms_sha256 });
    expect(asked.status).toBe(201);
  });
});

describe('deciding', () => {
  test('approved it can be read, until it is revoked or expires', async () => {
    const { id } = await ask();
    const expires_at = Math.floor(now / 1000) + 3600;
    const approved = await owner.call('POST', path(`/${id}/approve`), { expires_at });
    expect(await approved.json()).toMatchObject({ state: 'approved', active: true, expires_at, decided_by: owner.id });
    expect(await reads(asker)).toBe(true);
    now += 3_600_000;
    expect(await reads(asker)).toBe(false);
    expect(await (await asker.call('GET', path(`/${id}`))).json()).toMatchObject({ state: 'approved', active: false });
    const again = await ask();
    expect((await owner.call('POST', path(`/${again.id}/approve`), {})).status).toBe(200);
    expect(await reads(asker)).toBe(true);
    const revoked = await owner.call('POST', path(`/${again.id}/revoke`), { reason: 'misused' });
    expect(await revoked.json()).toMatchObject({ state: 'revoked', active: false, reason: 'misused' });
    expect(await reads(asker)).toBe(false);
  });

  test('of two decisions at the same moment one holds, and the other is told so', async () => {
    for (let round = 0; round < 5; round++) {
      const someone = await rig.user({ role: 'consumer' });
      const { id } = await ask(someone);
      const answers = await Promise.all([
        owner.call('POST', path(`/${id}/approve`), {}),
        owner.call('POST', path(`/${id}/reject`), { reason: 'no' }),
        rig.call('POST', path(`/${id}/approve`), {}),
      ]);
      const statuses = answers.map(({ status }) => status);
      expect(statuses.toSorted()).toEqual([200, 409, 409]);
      const winner = (await answers[statuses.indexOf(200)]?.json()) as { state: string };
      const now = (await (await someone.call('GET', path(`/${id}`))).json()) as { state: string };
      expect(now.state).toBe(winner.state);
      const loser = answers.find(({ status }) => status === 409) as Response;
      expect((await errorOf(loser)).code).toBe('already_decided');
    }
  });

  test('what is rejected or waits cannot be revoked, and what lies in the past is no expiry', async () => {
    const { id } = await ask();
    expect((await owner.call('POST', path(`/${id}/revoke`), { reason: 'no' })).status).toBe(409);
    expect((await owner.call('POST', path(`/${id}/approve`), { expires_at: 1 })).status).toBe(400);
    expect((await owner.call('POST', path(`/${id}/reject`), {})).status).toBe(400);
    expect((await owner.call('POST', path(`/${id}/reject`), { reason: 'no' })).status).toBe(200);
    expect((await owner.call('POST', path(`/${id}/revoke`), { reason: 'no' })).status).toBe(409);
    // A refusal is not for ever.
    await ask();
  });

  test('only whoever governs decides; strangers do not even see the request', async () => {
    const { id } = await ask();
    const stranger = await rig.user({ role: 'contributor' });
    for (const verb of ['approve', 'reject', 'revoke']) {
      const body = verb === 'approve' ? {} : { reason: 'mine' };
      expect((await stranger.call('POST', path(`/${id}/${verb}`), body)).status).toBe(403);
      // The asker's role governs nothing anywhere.
      expect((await asker.call('POST', path(`/${id}/${verb}`), body)).status).toBe(403);
    }
    expect((await stranger.call('GET', path(`/${id}`))).status).toBe(404);
    expect((await asker.call('GET', path(`/${id}`))).status).toBe(200);
    const other = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    await other.publish(chatExamples(1));
    expect((await owner.call('POST', path(`/${id}/approve`, other), {})).status).toBe(404);
    expect((await stranger.call('POST', `/api/datanets/${datanet.id}/revoke`, { reason: 'x' })).status).toBe(403);
  });

  test('the list: all for whoever governs, one’s own for others; filters and pages', async () => {
    const users = [asker, await rig.user({ role: 'consumer' }), await rig.user({ role: 'consumer' })];
    const ids: string[] = [];
    for (const user of users) ids.unshift((await ask(user)).id);
    await owner.call('POST', path(`/${ids[0]}/approve`), {});
    const list = async (user: TestUser, query: string) => {
      const response = await user.call('GET', path(query));
      expect(response.status).toBe(200);
      const { data, has_more } = (await response.json()) as { data: { id: string }[]; has_more: boolean };
      return { ids: data.map(({ id }) => id), has_more };
    };
    expect(await list(owner, '')).toEqual({ ids, has_more: false });
    expect(await list(owner, '?limit=2')).toEqual({ ids: ids.slice(0, 2), has_more: true });
    expect(await list(owner, `?after=${ids[1]}`)).toEqual({ ids: [ids[2]], has_more: false });
    expect(await list(owner, '?state=approved')).toEqual({ ids: [ids[0]], has_more: false });
    expect(await list(owner, `?requested_by=${asker.id}`)).toEqual({ ids: [ids[2]], has_more: false });
    expect(await list(asker, '')).toEqual({ ids: [ids[2]], has_more: false });
    expect(await list(asker, `?requested_by=${users[1]?.id}`)).toEqual({ ids: [], has_more: false });
    expect((await asker.call('GET', path(`?after=${ids[0]}`))).status).toBe(400);
    expect((await asker.call('GET', path('?limit=1000'))).status).toBe(400);
  });
});

describe('organisations', () => {
  test('what one asks for an organisation, its members have, and those who leave have not', async () => {
    const member = await rig.user({ role: 'consumer' });
    const outsider = await rig.user({ role: 'consumer' });
    const id = await organization({ [asker.id]: 'owner', [member.id]: 'member' });
    const request = await ask(asker, { ...ASK, organization_id: id });
    const twice = await member.call('POST', path(), { ...ASK, organization_id: id });
    expect((await errorOf(twice)).code).toBe('already_requested');
    // Their own request is another matter.
    await ask(member);
    expect((await owner.call('POST', path(`/${request.id}/approve`), {})).status).toBe(200);
    expect([await reads(asker), await reads(member), await reads(outsider)]).toEqual([true, true, false]);
    const { $client } = rig.database.db;
    await $client.execute({ sql: 'DELETE FROM memberships WHERE user_id = ?', args: [asker.id] });
    expect([await reads(asker), await reads(member)]).toEqual([false, true]);
  });

  test('owners of the organisation govern its Datanets, members read them', async () => {
    const member = await rig.user({ role: 'contributor' });
    const id = await organization({ [owner.id]: 'owner', [member.id]: 'member' });
    datanet = await fixture.make({ organization: id }, { visibility: 'permissioned', licence: 'MIT' });
    await datanet.publish(chatExamples(1));
    const request = await ask();
    expect(await reads(member)).toBe(true);
    expect((await member.call('POST', path(`/${request.id}/approve`), {})).status).toBe(403);
    expect((await owner.call('POST', path(`/${request.id}/approve`), {})).status).toBe(200);
  });
});

describe('licences', () => {
  test('agreed to as it is now; a change asks again; what was agreed to stays on record', async () => {
    const accept = (body: object) => asker.call('POST', `/api/datanets/${datanet.id}/licence-acceptance`, body);
    const hash = termsHash(await datanet.row());
    expect((await accept({ licence: 'MIT', terms_sha256: '1'.repeat(64) })).status).toBe(409);
    expect((await accept({ licence: 'GPL-3.0-only', terms_sha256: hash })).status).toBe(409);
    expect((await accept({ licence: 'MIT' })).status).toBe(400);
    expect(
      (await rig.call('POST', `/api/datanets/${datanet.id}/licence-acceptance`, { licence: 'MIT', terms_sha256: hash }))
        .status,
    ).toBe(403);
    const agreed = await accept({ licence: 'MIT', terms_sha256: hash });
    const at = Math.floor(now / 1000);
    expect(await agreed.json()).toMatchObject({ accepted: true, accepted_at: at });
    now += 60_000;
    expect(await (await accept({ licence: 'MIT', terms_sha256: hash })).json()).toMatchObject({ accepted_at: at });
    const { $client } = rig.database.db;
    await $client.execute({ sql: "UPDATE datanets SET terms = 'New.' WHERE id = ?", args: [datanet.id] });
    const shown = await asker.call('GET', `/api/datanets/${datanet.id}/licence-acceptance`);
    expect(await shown.json()).toMatchObject({ accepted: false, terms: 'New.' });
    await expect($client.execute('DELETE FROM licence_acceptances')).rejects.toThrow(/on record/);
  });

  test('the hash of licence and terms cannot be had by another pair', () => {
    const hash = (licence: string, terms: string) => termsHash({ licence, terms });
    expect(hash('MIT', 'x')).not.toBe(hash('MI', 'Tx'));
    expect(hash('MIT', '')).not.toBe(hash('MIT', ' '));
  });
});

test('acts are in the audit log, with who and which request', async () => {
  const { id } = await ask();
  await owner.call('POST', path(`/${id}/approve`), {});
  await owner.call('POST', `/api/datanets/${datanet.id}/revoke`, { reason: 'over' });
  const { rows } = await rig.database.db.$client.execute({
    sql: 'SELECT action, user_id, status, detail FROM audit_log WHERE object = ? ORDER BY seq',
    args: [datanet.id],
  });
  expect(rows.map(({ action, user_id, status }) => [action, user_id, status])).toEqual([
    ['access.request', asker.id, 201],
    ['access.approve', owner.id, 200],
    ['datanet.revoke', owner.id, 200],
  ]);
  expect(String(rows[1]?.detail)).toContain(id);
});

test('a decision looks at the database once or twice, over indexes alone', async () => {
  const { access } = rig.app.services.factory;
  const row = await datanet.row();
  const caller = { userId: asker.id, scopes: new Set<string>() };
  const { $client } = rig.database.db;
  const execute = $client.execute.bind($client);
  const lookedAt = async () => {
    const statements: { sql: string; args: unknown }[] = [];
    $client.execute = ((statement: { sql: string; args: unknown }) => {
      statements.push(statement);
      return execute(statement as never);
    }) as typeof $client.execute;
    try {
      await access.standing(caller, row);
    } finally {
      $client.execute = execute;
    }
    for (const { sql, args } of statements) {
      const plan = await execute({ sql: `EXPLAIN QUERY PLAN ${sql}`, args: args as never });
      const scans = plan.rows.map(({ detail }) => String(detail)).filter((step) => /^SCAN (?!CONSTANT)/.test(step));
      expect(scans).toEqual([]);
    }
    return statements.length;
  };
  expect(await lookedAt()).toBe(2);
  const { id } = await ask();
  await owner.call('POST', path(`/${id}/approve`), {});
  expect(await lookedAt()).toBe(1);
  const times = await timesAsLong(
    () => access.standing(caller, row),
    () => execute('SELECT 1'),
  );
  // About twice the least that a look at the database takes; a scan of a table would be far above.
  console.info(`an authorisation check takes ${times.toFixed(1)} times as long as SELECT 1`);
  expect(times).toBeLessThan(10);
});
