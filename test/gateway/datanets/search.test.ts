import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limits } from '../../../gateway/limits.ts';
import { errorOf, type TestUser } from '../rig.ts';
import { chatRow, chatRows, type DatanetRig, startDatanetRig, type View } from './rig.ts';

let rig: DatanetRig;
let ann: TestUser;
let bob: TestUser;
let net: View;

interface Hit extends View {
  match: { score: number; snippet: string; highlights: [number, number][] };
  state: string;
  contributor: string;
}
const search = async (user: TestUser, datanet: View, q: string) =>
  rig.json<{ data: Hit[]; bounded: boolean }>(
    await user.call('GET', `/api/datanets/${datanet.id}/search?q=${encodeURIComponent(q)}`),
    200,
  );

beforeAll(async () => {
  rig = await startDatanetRig();
  ann = await rig.person('Ann');
  bob = await rig.person('Bob');
  net = await rig.datanet(ann);
  await rig.contribute(ann, net, [
    chatRow(1, 'The Danube flows through Vienna, Bratislava, Budapest and Belgrade.'),
    chatRow(2, 'The Rhine flows into the North Sea; the Danube does not. Danube, Danube!'),
    chatRow(3, 'Crème brûlée is not a river, NAÏVE as that may sound.'),
  ]);
  await rig.approveAll(ann, net);
  await rig.publish(ann, net);
});
afterAll(() => rig.close());

describe('what is found', () => {
  test('the rows with the words, best first, with the words marked', async () => {
    const { data, bounded } = await search(bob, net, 'danube');
    expect(bounded).toBe(false);
    expect(data).toHaveLength(2);
    expect(data[0]?.match.snippet).toContain('Rhine');
    expect(data[0]?.match.score).toBeGreaterThan(data[1]?.match.score ?? 0);
    for (const { match } of data)
      for (const [start, end] of match.highlights) expect(match.snippet.slice(start, end).toLowerCase()).toBe('danube');
    expect(data[0]?.match.highlights).toHaveLength(3);
  });

  test('case and accents make no difference, phrases do', async () => {
    expect((await search(bob, net, 'CREME brulee naive')).data).toHaveLength(1);
    expect((await search(bob, net, '"north sea"')).data).toHaveLength(1);
    expect((await search(bob, net, '"sea north"')).data).toHaveLength(0);
    expect((await search(bob, net, 'vienna rhine')).data).toHaveLength(0);
  });

  test('other Datanets’ rows are not, whatever is asked for', async () => {
    const other = await rig.datanet(ann, { visibility: 'permissioned' });
    await rig.contribute(ann, other, [chatRow(4, 'Danube secrets')]);
    for (const q of [
      'secrets',
      'secrets OR danube',
      '") OR net : (dn2',
      'net : dn2',
      'dn2',
      'body : secrets',
      '* secrets',
    ])
      for (const { datanet } of (await search(bob, net, q)).data) expect(datanet).toBe(net.id);
    expect((await search(ann, other, 'secrets')).data).toHaveLength(1);
  });

  test('pending and rejected rows only by those who govern and by who contributed them', async () => {
    await rig.contribute(bob, net, [chatRow(5, 'A pending Danube of Bob’s')]);
    const eve = await rig.person('Eve');
    expect((await search(bob, net, 'pending')).data).toHaveLength(1);
    expect((await search(ann, net, 'pending')).data).toHaveLength(1);
    expect((await search(eve, net, 'pending')).data).toHaveLength(0);
  });

  test('readers find published rows behind very many that they may not see', async () => {
    const busy = await rig.datanet(ann);
    await rig.contribute(ann, busy, [chatRow(6, 'platypus, published')]);
    await rig.approveAll(ann, busy);
    await rig.publish(ann, busy);
    await rig.contribute(
      ann,
      busy,
      chatRows(3 * limits.searchRankedMax, 50_000).map((row, index) => ({
        ...row,
        ...chatRow(50_000 + index, `platypus ${index} of many ${index}`),
      })),
    );
    const found = await search(bob, busy, 'platypus');
    expect(found.data.map(({ match }) => match.snippet)).toEqual(
      ['platypus, published'].map(() => expect.stringContaining('published')),
    );
    const all = await search(ann, busy, 'platypus');
    expect(all).toMatchObject({ bounded: true });
    expect(all.data).toHaveLength(20);
  });
});

test.each(['', '   ', '***', '"', 'x'.repeat(300)])('%j is refused', async (q) => {
  const response = await bob.call('GET', `/api/datanets/${net.id}/search?q=${encodeURIComponent(q)}`);
  expect(response.status).toBe(400);
  expect((await errorOf(response)).param).toBe('q');
});

test('statistics count what one may see', async () => {
  const own = await rig.json(await ann.call('GET', `/api/datanets/${net.id}/statistics`), 200);
  const others = await rig.json(await bob.call('GET', `/api/datanets/${net.id}/statistics`), 200);
  expect(own).toMatchObject({
    scope: 'all',
    rows: 4,
    states: { approved: 3, pending: 1 },
    contributors: 2,
    contributions: 2,
  });
  expect(others).toMatchObject({ scope: 'published', rows: 3, states: { approved: 3, pending: 0 } });
  expect((own.scores as number[]).reduce((sum, rows) => sum + rows, 0)).toBe(4);
  expect((own.characters as { mean: number }).mean).toBeGreaterThan(50);
});

test('pages of rows are complete and without repetition, whatever states they have', async () => {
  const paged = await rig.datanet(ann);
  await rig.contribute(ann, paged, chatRows(25, 60_000));
  const list = async (query: string) =>
    rig.json<{ data: View[]; has_more: boolean; last_id: string }>(
      await ann.call('GET', `/api/datanets/${paged.id}/rows?${query}`),
      200,
    );
  const ids = (await list('limit=100')).data.map(({ id }) => id);
  expect(ids).toHaveLength(25);
  const reviewOf = (action: string, rows: string[]) =>
    ann.call('POST', `/api/datanets/${paged.id}/review`, {
      action,
      rows,
      ...(action === 'reject' ? { reason: 'x' } : {}),
    });
  await reviewOf(
    'approve',
    ids.filter((_, index) => index % 3 === 0),
  );
  await reviewOf(
    'reject',
    ids.filter((_, index) => index % 3 === 1),
  );
  await rig.publish(ann, paged);
  const seen: string[] = [];
  for (let after = ''; ; ) {
    const page = await list(`limit=4${after}`);
    seen.push(...page.data.map(({ id }) => id));
    if (!page.has_more) break;
    after = `&after=${page.last_id}`;
  }
  expect(seen).toEqual(ids);
  expect((await list('version=1&limit=100')).data.map(({ id }) => id)).toEqual(
    ids.filter((_, index) => index % 3 === 0),
  );
  expect((await ann.call('GET', `/api/datanets/${paged.id}/rows?version=2`)).status).toBe(404);
  const seenByBob = await rig.json<{ data: View[] }>(
    await bob.call('GET', `/api/datanets/${paged.id}/rows?limit=100`),
    200,
  );
  expect(seenByBob.data.map(({ id }) => id)).toEqual(ids.filter((_, index) => index % 3 === 0));
});

test('a row that was withdrawn is found by those who govern and by its contributor, by readers no longer', async () => {
  const eve = await rig.person('Eve');
  const given = await rig.datanet(ann);
  await rig.contribute(ann, given, [chatRow(72, 'A newt does not.')]);
  await rig.approveAll(ann, given);
  await rig.publish(ann, given);
  await rig.contribute(eve, given, [chatRow(71, 'The axolotl keeps its gills.')]);
  await rig.approveAll(ann, given);
  await rig.publish(ann, given);
  const [hit] = (await search(bob, given, 'axolotl')).data;
  const body = { rows: [hit?.id], reason: 'not mine to give' };
  expect((await eve.call('POST', `/api/datanets/${given.id}/withdrawals`, body)).status).toBe(200);
  expect((await search(bob, given, 'axolotl')).data).toEqual([]);
  expect((await search(bob, given, 'newt')).data).toHaveLength(1);
  for (const user of [ann, eve]) expect((await search(user, given, 'axolotl')).data).toHaveLength(1);
});
