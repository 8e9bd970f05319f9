import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { errorOf, type TestUser } from '../rig.ts';
import { chatRows, type DatanetRig, LICENCE, startDatanetRig } from './rig.ts';

let rig: DatanetRig;
let ann: TestUser;
let bob: TestUser;

beforeAll(async () => {
  rig = await startDatanetRig();
  ann = await rig.person('Ann');
  bob = await rig.person('Bob');
});
afterAll(() => rig.close());

describe('creating', () => {
  test('a Datanet is shown as it was made, with what its owner may do in words', async () => {
    const made = await rig.datanet(ann, {
      name: '  Rivers  of Europe ',
      summary: 'Where they flow',
      description: '# Rivers\n\nMarkdown.',
      tags: ['Water', 'geo graphy', 'water'],
      languages: ['EN', 'pt-br'],
      licence: 'MIT OR  Apache-2.0',
      terms: 'Be kind.',
    });
    const seen = await rig.json(await ann.call('GET', `/api/datanets/${made.id}`), 200);
    expect(seen).toEqual(made);
    expect(seen).toMatchObject({
      object: 'datanet',
      name: 'Rivers of Europe',
      tags: ['water', 'geo graphy'],
      languages: ['en', 'pt-BR'],
      licence: 'MIT OR Apache-2.0',
      terms: 'Be kind.',
      state: 'active',
      version: 0,
      rows: 0,
      owner: { type: 'user', id: ann.id, name: 'Ann' },
      access: { can_read: true, can_contribute: true, can_govern: true, training: 'no_version' },
    });
    expect((seen.access as { message: string }).message).toContain('You govern it.');
  });

  test.each([
    [{ licence: 'Freeware' }, 'licence'],
    [{ licence: 'MIT AND' }, 'licence'],
    [{ licence: `${'('.repeat(100)}MIT${')'.repeat(100)}` }, 'licence'],
    [{ summary: 'x'.repeat(281) }, 'summary'],
    [{ description: 'ä'.repeat(33_000) }, 'description'],
    [{ description: 'half \ud800' }, 'description'],
    [{ terms: 'x'.repeat(16_385) }, 'terms'],
    [{ tags: Array.from({ length: 17 }, (_, index) => `tag${index}`) }, 'tags'],
    [{ tags: ['../etc'] }, 'tags[0]'],
    [{ languages: ['not a language'] }, 'languages[0]'],
    [{ kind: 'poem' }, 'kind'],
    [{ name: '' }, 'name'],
    [{ name: '\u202egnp.exe' }, 'name'],
    [{ name: 'zero\u200bwidth' }, 'name'],
    [{ name: '../..' }, 'name'],
    [{ name: 'x'.repeat(81) }, 'name'],
    [{ surprise: true }, 'body'],
  ])('%j is refused and names the field', async (fields, param) => {
    const body = { name: 'Refused', kind: 'chat', licence: LICENCE, ...fields };
    const response = await ann.call('POST', '/api/datanets', body);
    expect(response.status).toBe(400);
    expect((await errorOf(response)).param).toBe(param);
  });

  test('two names that look the same are one name, among one’s own and among all that are published', async () => {
    const net = await rig.datanet(ann, { name: 'Paypal Corpus' });
    const looksTheSame = ['PAYPAL  corpus', 'Pаypаl Corpus', 'Ｐaypal Corpus'];
    const refused = async (user: TestUser) => {
      for (const name of looksTheSame) {
        const response = await user.call('POST', '/api/datanets', { name, kind: 'chat', licence: LICENCE });
        expect(response.status, name).toBe(409);
        expect((await errorOf(response)).code).toBe('name_taken');
      }
    };
    await refused(ann);
    await rig.contribute(ann, net, chatRows(1));
    await rig.approveAll(ann, net);
    await rig.publish(ann, net);
    await refused(bob);
  });

  test('a name that is not published yet is refused to nobody else, who would learn of it; who publishes first keeps it', async () => {
    const [hers, his] = [
      await rig.datanet(ann, { name: 'Secret plan' }),
      await rig.datanet(bob, { name: 'SECRET plan' }),
    ];
    const other = await rig.datanet(bob, { name: 'Another' });
    expect((await bob.call('PATCH', `/api/datanets/${other.id}`, { name: 'Secret Plan' })).status).toBe(409);
    for (const [user, net, from] of [
      [ann, hers, 0],
      [bob, his, 9],
    ] as const) {
      await rig.contribute(user, net, chatRows(1, from));
      await rig.approveAll(user, net);
    }
    await rig.publish(ann, hers);
    const response = await bob.call('POST', `/api/datanets/${his.id}/versions`, {});
    expect(response.status).toBe(409);
    expect((await errorOf(response)).code).toBe('name_taken');
    expect((await bob.call('PATCH', `/api/datanets/${his.id}`, { name: 'Plan B' })).status).toBe(200);
    expect(await rig.publish(bob, his)).toMatchObject({ version: 1, rows: 1 });
  });

  test('of many who take a name at the same time, each owner gets it once', async () => {
    const body = { name: 'Contested', kind: 'chat', licence: LICENCE };
    const statuses = (
      await Promise.all([ann, bob, ann, bob].map((user) => user.call('POST', '/api/datanets', body)))
    ).map(({ status }) => status);
    // Each has one of their own.
    expect(statuses.sort()).toEqual([201, 201, 409, 409]);
  });

  test('the operator owns nothing, consumers govern nothing', async () => {
    const body = { name: 'Nobodys', kind: 'chat', licence: LICENCE };
    const response = await rig.call('POST', '/api/datanets', body);
    expect(response.status).toBe(403);
    expect(await errorOf(response)).toMatchObject({
      code: 'user_required',
      message: expect.stringContaining('users add'),
    });
    const consumer = await rig.person('Con', 'consumer');
    expect((await consumer.call('POST', '/api/datanets', body)).status).toBe(403);
  });

  test('for an organisation, only its owners make Datanets; strangers do not learn that it is there', async () => {
    const { id } = await rig.json(await ann.call('POST', '/api/organizations', { name: 'River Society' }), 201);
    const made = await rig.datanet(ann, { name: 'Society rivers', organization_id: id });
    expect(made.owner).toEqual({ type: 'organization', id, name: 'River Society' });
    const body = { name: 'Intruder', kind: 'chat', licence: LICENCE, organization_id: id };
    expect((await bob.call('POST', '/api/datanets', body)).status).toBe(404);
    const members = `/api/organizations/${id}/members/${bob.id}`;
    expect((await ann.call('PUT', members, { role: 'member' })).status).toBeLessThan(300);
    expect((await bob.call('POST', '/api/datanets', body)).status).toBe(403);
    // A member sees it before it is published, and governs nothing.
    const seen = await rig.json(await bob.call('GET', `/api/datanets/${made.id}`), 200);
    expect(seen.access).toMatchObject({ can_read: true, can_contribute: true, can_govern: false });
    expect((await bob.call('PATCH', `/api/datanets/${made.id}`, { summary: 'mine' })).status).toBe(403);
  });
});

describe('seeing', () => {
  test('before it is published a Datanet is there for its owner and for admins only', async () => {
    const made = await rig.datanet(ann);
    for (const path of ['', '/rows', '/contributions', '/statistics', '/search?q=a', '/rows/row_1'])
      expect((await bob.call('GET', `/api/datanets/${made.id}${path}`)).status, path).toBe(404);
    expect((await bob.call('PATCH', `/api/datanets/${made.id}`, { summary: 'x' })).status).toBe(404);
    expect((await bob.call('POST', `/api/datanets/${made.id}/review`, { action: 'approve', filter: {} })).status).toBe(
      404,
    );
    expect((await rig.call('GET', `/api/datanets/${made.id}`)).status).toBe(200);
    const list = await rig.json<{ data: { id: string }[] }>(await bob.call('GET', '/api/datanets?limit=100'), 200);
    expect(list.data.map(({ id }) => id)).not.toContain(made.id);
  });

  test.each(['dn_nothing', 'x', '..%2f..%2fetc', `dn_${'a'.repeat(200)}`, '%00', 'dn_%ff'])(
    '%s is no Datanet',
    async (id) => {
      expect((await ann.call('GET', `/api/datanets/${id}`)).status).toBe(404);
    },
  );

  test('the verifier key of rows and versions is public', async () => {
    const response = await rig.app.fetch(new Request('http://gateway.test/api/datanets/vkey'));
    expect(response.status).toBe(200);
    expect((await response.text()).trim()).toBe(rig.app.services.datanets.key.vkey);
  });
});

describe('changing', () => {
  test('all but kind and owner can change; the index of words follows', async () => {
    const made = await rig.datanet(ann, { name: 'Before', summary: 'quagga' });
    const path = `/api/datanets/${made.id}`;
    const changed = await rig.json(
      await ann.call('PATCH', path, { name: 'After', summary: 'okapi', tags: ['zoo'], visibility: 'permissioned' }),
      200,
    );
    expect(changed).toMatchObject({ name: 'After', summary: 'okapi', tags: ['zoo'], visibility: 'permissioned' });
    const ids = async (query: string) =>
      (await rig.json<{ data: { id: string }[] }>(await ann.call('GET', `/api/datanets?${query}`), 200)).data.map(
        ({ id }) => id,
      );
    expect(await ids('q=okapi')).toEqual([made.id]);
    expect(await ids('q=quagga')).toEqual([]);
    expect(await ids('tag=ZOO')).toEqual([made.id]);
    expect((await ann.call('PATCH', path, { kind: 'completion' })).status).toBe(400);
    expect((await ann.call('PATCH', path, { licence: 'nonsense' })).status).toBe(400);
    expect((await ann.call('PATCH', path, { name: 'Paypal Corpus' })).status).toBe(409);
  });
});

describe('listing', () => {
  test('pages are newest first, complete and without repetition; filters narrow them', async () => {
    const carl = await rig.person('Carl');
    const made: string[] = [];
    for (let at = 0; at < 7; at++) {
      const fields = {
        name: `Carl ${at}`,
        licence: at % 2 === 0 ? 'MIT' : 'CC0-1.0',
        kind: at < 3 ? 'completion' : 'chat',
        tags: at === 4 ? ['data science'] : ['data'],
      };
      made.unshift((await rig.datanet(carl, fields)).id);
    }
    interface List {
      data: { id: string }[];
      has_more: boolean;
      last_id: string;
    }
    const list = async (query: string) => rig.json<List>(await carl.call('GET', `/api/datanets?${query}`), 200);
    const seen: string[] = [];
    let after = '';
    for (;;) {
      const page: List = await list(`mine=true&limit=3${after}`);
      seen.push(...page.data.map(({ id }) => id));
      if (!page.has_more) break;
      after = `&after=${page.last_id}`;
    }
    expect(seen).toEqual(made);
    const ids = async (query: string) =>
      (await list(`mine=true&${query}`)).data.map(({ id }) => made.length - 1 - made.indexOf(id));
    expect(await ids('licence=MIT')).toEqual([6, 4, 2, 0]);
    expect(await ids('kind=completion')).toEqual([2, 1, 0]);
    expect(await ids('tag=data%20science')).toEqual([4]);
    expect(await ids('tag=data')).toEqual([6, 5, 3, 2, 1, 0]);
    expect(await ids('q=carl%205')).toEqual([5]);
    expect(await ids('q=carl&licence=CC0-1.0&tag=data&kind=chat')).toEqual([5, 3]);
    expect(await ids(`owner=${carl.id}&visibility=public&state=active`)).toHaveLength(7);
    expect(await ids('owner=user_nobody')).toEqual([]);
  });

  test.each(['q=%22', 'q=***', 'limit=0', 'limit=101', 'kind=poem', 'after=dn_nothing', 'visibility=secret'])(
    '?%s is refused',
    async (query) => {
      expect((await ann.call('GET', `/api/datanets?${query}`)).status).toBe(400);
    },
  );

  test.each([
    'AND',
    'a OR b',
    'name:x',
    '"unclosed',
    'NEAR(a b)',
    'a*',
    '{a} : b',
    "it's",
    'tags : "x"',
    'x^2',
    '-a',
    'a"b',
  ])('what FTS5 would read into %j is only words', async (q) => {
    expect((await ann.call('GET', `/api/datanets?q=${encodeURIComponent(q)}`)).status).toBe(200);
  });
});

test('statistics tell readers of what is published, not who else contributed since', async () => {
  const eve = await rig.person('Eve');
  const net = await rig.datanet(ann);
  await rig.contribute(ann, net, chatRows(3, 70_000));
  await rig.approveAll(ann, net);
  await rig.publish(ann, net);
  await rig.contribute(eve, net, chatRows(2, 71_000));
  const statistics = async (user: TestUser) =>
    rig.json(await user.call('GET', `/api/datanets/${net.id}/statistics`), 200);
  expect(await statistics(bob)).toMatchObject({ scope: 'published', rows: 3, contributors: 1, contributions: 1 });
  expect(await statistics(ann)).toMatchObject({ scope: 'all', rows: 5, contributors: 2, contributions: 2 });
});
