import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { errorOf, type TestUser } from '../rig.ts';
import { chatRow, chatRows, type DatanetRig, sentence, startDatanetRig, type View } from './rig.ts';

let rig: DatanetRig;
let ann: TestUser;
let bob: TestUser;

beforeAll(async () => {
  rig = await startDatanetRig();
  ann = await rig.person('Ann');
  bob = await rig.person('Bob');
});
afterAll(() => rig.close());

const review = (user: TestUser, net: View, body: unknown) => user.call('POST', `/api/datanets/${net.id}/review`, body);
interface Rows {
  data: (View & { state: string; contributor: string; state_reason: string | null; reviewer: string | null })[];
}
const rowsOf = async (user: TestUser, net: View, query = '') =>
  (await rig.json<Rows>(await user.call('GET', `/api/datanets/${net.id}/rows?limit=100${query}`), 200)).data;

/** An organisation's Datanet: Ann and Bob both own the organisation. */
async function shared(): Promise<View> {
  const { id } = await rig.json(
    await ann.call('POST', '/api/organizations', { name: `Society ${Math.random()}` }),
    201,
  );
  expect((await ann.call('PUT', `/api/organizations/${id}/members/${bob.id}`, { role: 'owner' })).status).toBeLessThan(
    300,
  );
  return rig.datanet(ann, { organization_id: id });
}

test('rows are approved by name; what was decided before is counted, what is not there too', async () => {
  const net = await rig.datanet(ann);
  await rig.contribute(ann, net, chatRows(4));
  const ids = (await rowsOf(ann, net)).map(({ id }) => id);
  const first = await rig.json(await review(ann, net, { action: 'approve', rows: ids.slice(0, 2) }), 200);
  expect(first).toMatchObject({ changed: 2, already_decided: 0, own: 0, not_found: 0 });
  const reject = { action: 'reject', rows: [...ids.slice(1, 3), 'row_999999', ids[2]], reason: 'Too short.' };
  expect(await rig.json(await review(ann, net, reject), 200)).toMatchObject({
    changed: 1,
    already_decided: 1,
    not_found: 1,
  });
  const rows = await rowsOf(ann, net);
  expect(rows.map(({ state }) => state)).toEqual(['approved', 'approved', 'rejected', 'pending']);
  expect(rows[2]).toMatchObject({ reviewer: ann.id, state_reason: 'Too short.', reviewed_at: expect.any(Number) });
});

test('of two reviews at the same time each row is decided by one', async () => {
  const net = await shared();
  const eve = await rig.person('Eve');
  await ann.call('PUT', `/api/organizations/${(net.owner as { id: string }).id}/members/${eve.id}`, { role: 'member' });
  await rig.contribute(eve, net, chatRows(120, 1_000));
  const ids = (await rowsOf(ann, net)).map(({ id }) => id);
  const outcomes = await Promise.all([
    review(ann, net, { action: 'approve', rows: ids }),
    review(bob, net, { action: 'reject', rows: ids, reason: 'no' }),
    review(ann, net, { action: 'approve', filter: {} }),
    review(bob, net, { action: 'approve', rows: ids }),
  ]);
  const told = await Promise.all(
    outcomes.map((outcome) => rig.json<{ changed: number; already_decided: number }>(outcome, 200)),
  );
  expect(told.reduce((sum, { changed }) => sum + changed, 0)).toBe(120);
  for (const [index, { changed, already_decided }] of told.entries())
    if (index !== 2) expect(changed + already_decided).toBe(100);
  expect(await rowsOf(ann, net, '&state=pending')).toEqual([]);
});

describe('one’s own rows', () => {
  test('whoever governs for others cannot approve them, not by name, not by filter, not as an admin', async () => {
    const net = await shared();
    await rig.contribute(bob, net, chatRows(3, 2_000));
    const ids = (await rowsOf(bob, net)).map(({ id }) => id);
    const refused = await review(bob, net, { action: 'approve', rows: ids });
    expect(refused.status).toBe(403);
    expect(await errorOf(refused)).toMatchObject({ code: 'own_rows' });
    expect(await rig.json(await review(bob, net, { action: 'approve', filter: {} }), 200)).toMatchObject({
      changed: 0,
      own: 3,
    });
    const admin = await rig.person('Root', 'admin');
    await rig.contribute(admin, net, chatRows(2, 3_000));
    const own = (await rowsOf(admin, net, `&contributor=${admin.id}`)).map(({ id }) => id);
    expect((await review(admin, net, { action: 'approve', rows: own })).status).toBe(403);
    // Of others’ rows an admin may, and the other owner may.
    expect(await rig.json(await review(admin, net, { action: 'approve', rows: [ids[0]] }), 200)).toMatchObject({
      changed: 1,
    });
    expect(await rig.json(await review(ann, net, { action: 'approve', filter: {} }), 200)).toMatchObject({
      changed: 4,
      own: 0,
    });
  });

  test('a person who owns the Datanet may, and anybody may reject their own', async () => {
    const mine = await rig.datanet(ann);
    await rig.contribute(ann, mine, chatRows(2, 4_000));
    expect(await rig.json(await review(ann, mine, { action: 'approve', filter: {} }), 200)).toMatchObject({
      changed: 2,
    });
    const net = await shared();
    await rig.contribute(bob, net, chatRows(2, 5_000));
    const reject = { action: 'reject', filter: {}, reason: 'on second thoughts' };
    expect(await rig.json(await review(bob, net, reject), 200)).toMatchObject({ changed: 2, own: 0 });
  });

  test('a contributor who governs nothing reviews nothing', async () => {
    const net = await rig.datanet(ann, { visibility: 'public' });
    await rig.contribute(ann, net, [chatRow(6_000)]);
    await rig.approveAll(ann, net);
    await rig.publish(ann, net);
    await rig.contribute(bob, net, [chatRow(6_001)]);
    const refused = await review(bob, net, { action: 'approve', filter: {} });
    expect(refused.status).toBe(403);
    expect(await errorOf(refused)).toMatchObject({ code: 'not_governing' });
  });
});

test('a filter chooses by contribution, contributor, score and likeness', async () => {
  const net = await rig.datanet(ann);
  const long = sentence(7_000, 60);
  const a = await rig.contribute(ann, net, [chatRow(7_000, long), chatRow(7_000, `${long} again`)]);
  const b = await rig.contribute(ann, net, chatRows(3, 7_100));
  const decide = async (filter: object) =>
    (await rig.json<{ changed: number }>(await review(ann, net, { action: 'approve', filter }), 200)).changed;
  expect(await decide({ contribution: 'con_none' })).toBe(0);
  expect(await decide({ contributor: bob.id })).toBe(0);
  expect(await decide({ near_duplicates: true, contribution: b.id })).toBe(0);
  expect(await decide({ near_duplicates: true, contribution: a.id })).toBe(1);
  expect(await decide({ max_score: 0 })).toBe(0);
  expect(await decide({ contribution: a.id, near_duplicates: false })).toBe(1);
  expect(await decide({ min_score: 0, contributor: ann.id })).toBe(3);
});

test('rows of a contribution that is being read are not reviewed yet', async () => {
  const net = await rig.datanet(ann);
  const done = await rig.contribute(ann, net, chatRows(2, 8_000));
  const set = (state: string) =>
    rig.database.db.$client.execute({ sql: 'UPDATE contributions SET state = ? WHERE id = ?', args: [state, done.id] });
  await set('processing');
  expect(await rig.json(await review(ann, net, { action: 'approve', filter: {} }), 200)).toMatchObject({ changed: 0 });
  const ids = (await rowsOf(ann, net)).map(({ id }) => id);
  expect(await rig.json(await review(ann, net, { action: 'approve', rows: ids }), 200)).toMatchObject({
    changed: 0,
    not_found: 2,
  });
  await set('ready');
  expect(await rig.json(await review(ann, net, { action: 'approve', rows: ids }), 200)).toMatchObject({ changed: 2 });
});

test.each([
  [{ action: 'approve' }],
  [{ action: 'approve', rows: ['row_1'], filter: {} }],
  [{ action: 'approve', rows: [] }],
  [{ action: 'reject', filter: {} }],
  [{ action: 'reject', filter: {}, reason: '   ' }],
  [{ action: 'praise', filter: {} }],
  [{ action: 'approve', filter: { state: 'rejected' } }],
  [{ action: 'approve', rows: Array.from({ length: 1001 }, (_, index) => `row_${index + 1}`) }],
])('%j is refused', async (body) => {
  const net = await rig.datanet(ann);
  expect((await review(ann, net, body)).status).toBe(400);
});

test.each(['row_0', 'row_-1', 'row_1e3', 'row_99999999999999999999', 'con_1', 'row_1; DROP TABLE users'])(
  '%s is no row',
  async (id) => {
    const net = await rig.datanet(ann);
    expect((await review(ann, net, { action: 'approve', rows: [id] })).status).toBe(404);
  },
);
