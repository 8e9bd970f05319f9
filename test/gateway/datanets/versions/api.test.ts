import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { verifyText } from '../../../../daemon/receipts/verify.ts';
import { errorOf, type TestUser } from '../../rig.ts';
import { chatRows, type DatanetRig, startDatanetRig, type View } from '../rig.ts';

let rig: DatanetRig;
let ann: TestUser;
let bob: TestUser;
let eve: TestUser;

beforeAll(async () => {
  rig = await startDatanetRig();
  ann = await rig.person('Ann');
  bob = await rig.person('Bob', 'contributor');
  eve = await rig.person('Eve', 'contributor');
});
afterAll(() => rig.close());

interface List<T = View> {
  data: T[];
  has_more: boolean;
  first_id: string | null;
  last_id: string | null;
}
interface Version {
  version: number;
  rows: number;
  added: number;
  removed: number;
  statistics: Record<string, unknown>;
  checkpoint: string;
}

const at = (net: View, path = '') => `/api/datanets/${net.id}/versions${path}`;
const rowsIn = async (user: TestUser, net: View, version: number, query = '') =>
  rig.json<List>(await user.call('GET', at(net, `/${version}/rows${query}`)), 200);

/** Ann's, with two rows of hers and three of Bob's in version 1. */
async function published(fields: Record<string, unknown> = {}, from = 0): Promise<View> {
  const net = await rig.datanet(ann, { visibility: 'public', ...fields });
  await rig.contribute(ann, net, chatRows(2, from));
  await rig.approveAll(ann, net);
  await rig.publish(ann, net);
  return net;
}

async function withBob(from: number): Promise<{ net: View; bobs: string[]; anns: string[]; contribution: View }> {
  const net = await published({}, from);
  const contribution = await rig.contribute(bob, net, chatRows(3, from + 100));
  await rig.approveAll(ann, net);
  await rig.publish(ann, net);
  const { data } = await rowsIn(ann, net, 2);
  const of = (user: TestUser) => data.filter((row) => row.contributor === user.id).map(({ id }) => id);
  return { net, bobs: of(bob), anns: of(ann), contribution };
}

describe('versions over HTTP', () => {
  test('are published by whoever governs, listed newest first, and shown with statistics, root and checkpoint', async () => {
    const { net } = await withBob(1_000);
    const list = await rig.json<List<Version & View>>(await eve.call('GET', at(net, '?limit=1')), 200);
    expect(list).toMatchObject({
      has_more: true,
      first_id: '2',
      last_id: '2',
      data: [{ version: 2, rows: 5, added: 3 }],
    });
    expect(list.data[0]?.statistics).not.toHaveProperty('by_contributor');
    const next = await rig.json<List<Version & View>>(await eve.call('GET', at(net, '?after=2')), 200);
    expect(next).toMatchObject({ has_more: false, data: [{ version: 1, rows: 2 }] });
    const one = await rig.json<Version>(await eve.call('GET', at(net, '/2')), 200);
    expect(one).toMatchObject({
      statistics: {
        rows: 5,
        contributors: 2,
        self_reviewed: 2,
        generated: 0,
        licences: { 'CC-BY-4.0': 5 },
        by_contributor: [
          { contributor: bob.id, rows: 3 },
          { contributor: ann.id, rows: 2 },
        ],
      },
    });
  });

  test('rows come in the order of the tree, page by page', async () => {
    const { net, bobs, anns } = await withBob(2_000);
    const first = await rowsIn(eve, net, 2, '?limit=2');
    expect(first).toMatchObject({ has_more: true, first_id: anns[0], last_id: anns[1] });
    const rest = await rowsIn(eve, net, 2, `?limit=100&after=${first.last_id}`);
    expect(rest.data.map(({ id }) => id)).toEqual(bobs);
    expect(rest.has_more).toBe(false);
    expect((await rowsIn(eve, net, 1)).data.map(({ id }) => id)).toEqual(anns);
  });

  test.each(['0', '3', '-1', '1.5', '01', 'x', '99999999999999999999'])('version %s is not there', async (number) => {
    const net = await published({}, 3_000 + number.length);
    const answer = await ann.call('GET', at(net, `/${number}`));
    expect(answer.status).toBe(404);
    expect((await errorOf(answer)).code).toBe('version_not_found');
  });

  test('what is approved by nobody is not published, and saying so is a 409', async () => {
    const net = await rig.datanet(ann);
    await rig.contribute(ann, net, chatRows(1, 4_000));
    const answer = await ann.call('POST', at(net), {});
    expect(answer.status).toBe(409);
    expect(await errorOf(answer)).toMatchObject({ code: 'nothing_to_publish' });
    await rig.approveAll(ann, net);
    const both = await Promise.all([ann.call('POST', at(net), {}), ann.call('POST', at(net), {})]);
    expect(both.map(({ status }) => status).sort()).toEqual([201, 409]);
  });

  test('notes are text', async () => {
    const net = await rig.datanet(ann);
    for (const notes of ['a\u0000b', 'a\u001b[2J', 'a\ud800', 7, 'x'.repeat(10_001)])
      expect((await ann.call('POST', at(net), { notes })).status).toBe(400);
    expect((await ann.call('POST', at(net), { other: 1 })).status).toBe(400);
  });
});

describe('who may do what', () => {
  test('publishing is for those who govern; what a stranger may not see is not there', async () => {
    const hidden = await rig.datanet(ann, { visibility: 'permissioned' });
    await rig.contribute(ann, hidden, chatRows(2, 5_000));
    await rig.approveAll(ann, hidden);
    // Never published: nobody else knows of it.
    for (const path of ['', '/1', '/1/rows', '/1/rows/row_1/proof', '/1/diff/1', '/1/export'])
      expect((await bob.call('GET', at(hidden, path))).status, path).toBe(404);
    expect((await bob.call('POST', at(hidden), {})).status).toBe(404);
    expect(
      (await bob.call('POST', `/api/datanets/${hidden.id}/withdrawals`, { rows: ['row_1'], reason: 'x' })).status,
    ).toBe(404);
    await rig.publish(ann, hidden);
    // Published and permissioned: its versions are seen, its rows are not.
    const [row] = (await rowsIn(ann, hidden, 1)).data as [View];
    expect((await bob.call('GET', at(hidden, '/1'))).status).toBe(200);
    for (const path of ['/1/rows', '/1/diff/1', '/1/export', '/1/export?format=csv', '/1/export?format=croissant']) {
      const answer = await bob.call('GET', at(hidden, path));
      expect(answer.status, path).toBe(403);
      expect((await errorOf(answer)).code).toBe('access_required');
    }
    const proof = await rig.json<Record<string, unknown>>(
      await bob.call('GET', at(hidden, `/1/rows/${row.id}/proof`)),
      200,
    );
    expect(proof).not.toHaveProperty('content');
    expect(verifyText(JSON.stringify(proof)).ok).toBe(true);
    const publish = await bob.call('POST', at(hidden), {});
    expect(publish.status).toBe(403);
    expect((await errorOf(publish)).code).toBe('not_governing');
    // Of rows that one may not read, one does not learn whose they are.
    expect(
      (await bob.call('POST', `/api/datanets/${hidden.id}/withdrawals`, { rows: [row.id], reason: 'x' })).status,
    ).toBe(404);
  });

  test('a row of another Datanet, or of another version, has no proof here', async () => {
    const { net, bobs } = await withBob(6_000);
    const other = await published({}, 6_500);
    expect((await ann.call('GET', at(net, `/1/rows/${bobs[0]}/proof`))).status).toBe(404);
    expect((await ann.call('GET', at(other, `/1/rows/${bobs[0]}/proof`))).status).toBe(404);
    for (const id of ['row_0', 'row_1e3', 'row_', '1', 'row_99999999'])
      expect((await ann.call('GET', at(net, `/2/rows/${id}/proof`))).status, id).toBe(404);
  });
});

test('a proof from the API verifies against the key that the gateway publishes', async () => {
  const { net, bobs } = await withBob(7_000);
  const vkey = await (await rig.call('GET', '/api/datanets/vkey')).text();
  const text = await (await eve.call('GET', at(net, `/2/rows/${bobs[1]}/proof`))).text();
  expect(verifyText(text, { vkey })).toMatchObject({
    ok: true,
    pinned: true,
    row: { datanet: net.id, contributor: bob.id },
  });
  expect(JSON.parse(text)).toMatchObject({ leafIndex: 3, content: expect.stringContaining('"kind":"chat"') });
});

describe('withdrawals', () => {
  const withdraw = (user: TestUser, net: View, body: unknown) =>
    user.call('POST', `/api/datanets/${net.id}/withdrawals`, body);

  test('a contributor takes their own rows out, nobody else’s; whoever governs takes any', async () => {
    const { net, bobs, anns } = await withBob(8_000);
    const refused = await withdraw(bob, net, { rows: [bobs[0], anns[0]], reason: 'x' });
    expect(refused.status).toBe(403);
    expect((await errorOf(refused)).code).toBe('not_your_rows');
    expect((await withdraw(eve, net, { rows: [bobs[0]], reason: 'x' })).status).toBe(403);
    expect((await withdraw(bob, net, { rows: [bobs[0], 'row_99999999'], reason: 'x' })).status).toBe(404);
    expect((await rig.json<Version>(await ann.call('GET', at(net, '/2')), 200)).rows).toBe(5);
    const own = await rig.json(await withdraw(bob, net, { rows: [bobs[0]], reason: 'Mine.' }), 200);
    expect(own).toEqual({ object: 'datanet.withdrawal', datanet: net.id, rows: 1, erased: false, version: 3 });
    const governed = await rig.json(await withdraw(ann, net, { rows: [bobs[1]], reason: 'Wrong.', erase: true }), 200);
    expect(governed).toMatchObject({ version: 4, erased: true });
    expect((await rowsIn(eve, net, 4)).data.map(({ id }) => id)).toEqual([...anns, bobs[2]]);
    const before = (await rowsIn(eve, net, 2)).data;
    expect(before).toHaveLength(5);
    expect(before.find(({ id }) => id === bobs[1])).toMatchObject({ content: null, state: 'withdrawn', removed_in: 4 });
    // Nothing more to take out.
    expect(await rig.json(await withdraw(bob, net, { rows: [bobs[0]], reason: 'x' }), 200)).toMatchObject({
      version: null,
    });
  });

  test('a whole contribution goes at once; that of another is refused, and one that is not there is not there', async () => {
    const { net, anns, contribution } = await withBob(9_000);
    expect((await withdraw(eve, net, { contribution: contribution.id, reason: 'x' })).status).toBe(403);
    expect((await withdraw(bob, net, { contribution: 'con_none', reason: 'x' })).status).toBe(404);
    expect((await withdraw(ann, net, { contribution: 'con_none', reason: 'x' })).status).toBe(404);
    const answer = await rig.json(await withdraw(bob, net, { contribution: contribution.id, reason: 'All.' }), 200);
    expect(answer).toMatchObject({ rows: 3, version: 3 });
    expect((await rowsIn(eve, net, 3)).data.map(({ id }) => id)).toEqual(anns);
  });

  test('rows that nobody but their contributor and the owner may see are not there for others', async () => {
    const net = await published({}, 10_000);
    await rig.contribute(bob, net, chatRows(1, 10_100));
    const [row] = (await rig.json<List>(await bob.call('GET', `/api/datanets/${net.id}/rows?contributor=me`), 200))
      .data;
    expect((await withdraw(eve, net, { rows: [row?.id], reason: 'x' })).status).toBe(404);
    expect(await rig.json(await withdraw(bob, net, { rows: [row?.id], reason: 'x' }), 200)).toMatchObject({
      version: null,
    });
  });

  test('somebody who lost sight of a Datanet may still take their rows out', async () => {
    const society = await rig.json(await ann.call('POST', '/api/organizations', { name: 'Short society' }), 201);
    const member = `/api/organizations/${society.id}/members/${bob.id}`;
    await ann.call('PUT', member, { role: 'member' });
    const net = await rig.datanet(ann, { organization_id: society.id, visibility: 'permissioned' });
    await rig.contribute(bob, net, chatRows(1, 11_000));
    const [row] = (await rig.json<List>(await bob.call('GET', `/api/datanets/${net.id}/rows?contributor=me`), 200))
      .data;
    expect((await ann.call('DELETE', member)).status).toBeLessThan(300);
    expect((await bob.call('GET', `/api/datanets/${net.id}`)).status).toBe(404);
    expect((await withdraw(bob, net, { rows: ['row_99999999'], reason: 'x' })).status).toBe(404);
    expect(await rig.json(await withdraw(bob, net, { rows: [row?.id], reason: 'Bye.' }), 200)).toMatchObject({
      rows: 1,
    });
  });

  test('says what it does not understand', async () => {
    const { net, bobs } = await withBob(12_000);
    for (const body of [
      { rows: bobs },
      { rows: bobs, reason: '' },
      { rows: [], reason: 'x' },
      { reason: 'x' },
      { rows: bobs, contribution: 'con_1', reason: 'x' },
      { rows: ['12'], reason: 'x' },
      { rows: ['row_1; DROP TABLE datanets'], reason: 'x' },
      { rows: bobs, reason: 'x', erase: 'yes' },
    ])
      expect((await withdraw(bob, net, body)).status, JSON.stringify(body)).toBe(400);
  });
});

test('the difference of two versions counts and lists rows, in both directions', async () => {
  const { net, bobs, anns } = await withBob(13_000);
  await rig.json(await bob.call('POST', `/api/datanets/${net.id}/withdrawals`, { rows: [bobs[0]], reason: 'x' }), 200);
  const difference = async (path: string) => rig.json<List>(await eve.call('GET', at(net, path)), 200);
  expect(await difference('/1/diff/3?limit=1')).toMatchObject({
    object: 'datanet.difference',
    from: 1,
    to: 3,
    added: 2,
    removed: 0,
    unchanged: 2,
    licence_changed: false,
    has_more: true,
    data: [{ id: bobs[1] }],
  });
  expect(await difference('/2/diff/3?rows=removed')).toMatchObject({
    added: 0,
    removed: 1,
    unchanged: 4,
    data: [{ id: bobs[0] }],
  });
  expect(await difference('/3/diff/2')).toMatchObject({ added: 1, removed: 0, data: [{ id: bobs[0] }] });
  expect(await difference('/2/diff/2')).toMatchObject({
    added: 0,
    removed: 0,
    unchanged: 2 + anns.length + 1,
    data: [],
  });
  expect((await eve.call('GET', at(net, '/1/diff/9'))).status).toBe(404);
});

test('acts are in the audit log with what they did', async () => {
  const { net, bobs } = await withBob(14_000);
  await bob.call('POST', `/api/datanets/${net.id}/withdrawals`, { rows: [bobs[0]], reason: 'x', erase: true });
  const { rows } = await rig.database.db.$client.execute({
    sql: "SELECT action, user_id, status, detail FROM audit_log WHERE object = ? AND action IN ('datanet.publish', 'datanet.withdraw') ORDER BY seq",
    args: [net.id],
  });
  expect(rows.map(({ action, user_id, status }) => [action, user_id, status])).toEqual([
    ['datanet.publish', ann.id, 201],
    ['datanet.publish', ann.id, 201],
    ['datanet.withdraw', bob.id, 200],
  ]);
  expect(JSON.parse(rows[2]?.detail as string)).toEqual({ rows: 1, erase: true, version: 3 });
});

test('a key that may only contribute takes out its user’s rows, and nobody else’s where the user governs', async () => {
  const { net, bobs, anns } = await withBob(90_000);
  const { credential } = await rig.key({ userId: ann.id, scopes: ['datanets', 'contribute'] });
  const withdraw = (rows: string[]) =>
    rig.call(
      'POST',
      `/api/datanets/${net.id}/withdrawals`,
      { rows, reason: 'gone', erase: true },
      { authorization: `Bearer ${credential}` },
    );
  const refused = await withdraw([...anns, ...bobs]);
  expect(refused.status).toBe(403);
  expect(await errorOf(refused)).toMatchObject({
    code: 'insufficient_scope',
    message: expect.stringMatching(/govern/),
  });
  expect((await withdraw(anns)).status).toBe(200);
});

test('a Datanet that one may not see is not there, whatever is sent about its rows', async () => {
  const hidden = await rig.datanet(ann, { name: 'Unseen by all' });
  for (const body of [{}, { rows: ['row_1'], reason: 'x' }, { rows: [], reason: 'x' }]) {
    const answers = [];
    for (const id of [hidden.id, `dn_${'0'.repeat(32)}`]) {
      const answer = await eve.call('POST', `/api/datanets/${id}/withdrawals`, body);
      answers.push([answer.status, (await errorOf(answer)).code]);
    }
    expect(answers[0]).toEqual(answers[1]);
  }
});

test('who ceases to govern while a version is made publishes nothing, and takes out nothing of others', async () => {
  const { net, bobs } = await withBob(21_000);
  await rig.contribute(ann, net, chatRows(1, 21_900));
  await rig.approveAll(ann, net);
  const { people } = rig.app.services;
  const { $client } = rig.database.db;
  const asked = people.recheck.bind(people);
  const owned = (by: string) =>
    $client.execute({ sql: 'UPDATE datanets SET owner_user = ? WHERE id = ?', args: [by, net.id] });
  let times = 0;
  people.recheck = async (...args) => {
    const building = "SELECT 1 FROM datanet_versions WHERE datanet_id = ? AND state = 'building'";
    if ((await $client.execute({ sql: building, args: [net.id] })).rows.length > 0) {
      times += 1;
      await owned(eve.id);
    }
    return asked(...args);
  };
  try {
    for (const [path, body] of [
      [at(net), {}],
      [`/api/datanets/${net.id}/withdrawals`, { rows: bobs, reason: 'x', erase: true }],
    ] as const) {
      const answer = await ann.call('POST', path, body);
      expect([answer.status, (await errorOf(answer)).code]).toEqual([403, 'not_governing']);
      await owned(ann.id);
    }
    expect(times).toBe(2);
  } finally {
    people.recheck = asked;
  }
  const { data } = await rig.json<List<Version>>(await ann.call('GET', at(net)), 200);
  expect(data.map(({ version }) => version)).toEqual([2, 1]);
  expect((await rowsIn(ann, net, 2)).data.filter((row) => row.content === null)).toEqual([]);
  // Nothing was left of it: it can be published now.
  expect(await rig.publish(ann, net)).toMatchObject({ version: 3, added: 1 });
});
