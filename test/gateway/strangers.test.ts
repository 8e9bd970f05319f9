/**
 * Every object × stranger: for each address that names an object, somebody else's does not exist (404, in the same words as one that nobody
 * has), or, where it may be seen, what may not be done with it is refused (403). A route that is not in the table fails the test.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ROLE_SCOPES } from '../../gateway/auth/scopes.ts';
import { chatRows, LICENCE } from './datanets/rig.ts';
import { chatLines, type FactoryRig, startFactoryRig } from './factory/rig.ts';
import { CHAT, errorOf, type TestUser } from './rig.ts';

let rig: FactoryRig;
let owner: TestUser;
let stranger: TestUser;
/** A key of the operator's that may do what builders may, and belongs to nobody. */
let operator: string;
/** Real ids by what stands for them in the table. */
const ids: Record<string, string> = {};

/** Status for the stranger; `scope`: the role alone forbids it. */
type Answer = 200 | 201 | 400 | 403 | 404 | 'scope';
type Case = [address: string, answer: Answer, body?: object | undefined];

/** HIDDEN was never published; SHOWN is permissioned, and its description is for everybody. */
const DATANET = (path: string, shown: Answer, body?: object): Case[] => [
  [`/api/datanets/HIDDEN${path}`, 404, body],
  [`/api/datanets/SHOWN${path.replace('HIDDEN_', 'SHOWN_')}`, shown, body],
];
const reason = { reason: 'because' };
const reject = { action: 'reject', rows: ['row_1'], ...reason };
const request = { purpose: 'to learn about rivers', licence_accepted: LICENCE };
const one = '/api/datanets/{id}';
const version = `${one}/versions/{version}`;
const acc = `${one}/access-requests/{acc}`;

const TABLE: Record<string, Case[]> = {
  'get /v1/models/{model}': [['/v1/models/MODEL', 404]],
  'delete /v1/models/{model}': [['/v1/models/MODEL', 404]],
  'get /v1/files/{id}': [
    ['/v1/files/FILE', 404],
    ['/v1/files/file-HIDDEN-v1', 404],
    ['/v1/files/file-SHOWN-v1', 404],
  ],
  'get /v1/files/{id}/content': [
    ['/v1/files/FILE/content', 404],
    ['/v1/files/file-SHOWN-v1/content', 404],
  ],
  'delete /v1/files/{id}': [['/v1/files/FILE', 404]],
  'get /v1/fine_tuning/jobs/{id}': [['/v1/fine_tuning/jobs/JOB', 404]],
  'get /v1/fine_tuning/jobs/{id}/events': [['/v1/fine_tuning/jobs/JOB/events', 404]],
  'get /v1/fine_tuning/jobs/{id}/checkpoints': [['/v1/fine_tuning/jobs/JOB/checkpoints', 404]],
  'post /v1/fine_tuning/jobs/{id}/cancel': [['/v1/fine_tuning/jobs/JOB/cancel', 404]],
  'post /v1/fine_tuning/jobs/{id}/pause': [['/v1/fine_tuning/jobs/JOB/pause', 404]],
  'post /v1/fine_tuning/jobs/{id}/resume': [['/v1/fine_tuning/jobs/JOB/resume', 404]],
  'get /v1/fine_tuning/checkpoints/{checkpoint}/permissions': [
    ['/v1/fine_tuning/checkpoints/MODEL/permissions', 'scope'],
  ],
  'post /v1/fine_tuning/checkpoints/{checkpoint}/permissions': [
    ['/v1/fine_tuning/checkpoints/MODEL/permissions', 'scope', { project_ids: ['key_x'] }],
  ],
  'delete /v1/fine_tuning/checkpoints/{checkpoint}/permissions/{id}': [
    ['/v1/fine_tuning/checkpoints/MODEL/permissions/cp_x', 'scope'],
  ],
  'get /v1/receipts/{id}': [['/v1/receipts/RECEIPT', 404]],

  'get /api/adapters/{name}': [['/api/adapters/MODEL', 'scope']],
  'delete /api/adapters/{name}': [['/api/adapters/MODEL', 'scope']],
  'post /api/adapters/{name}/{action}': [['/api/adapters/MODEL/pin', 'scope', {}]],
  'get /api/adapters/{name}/export': [['/api/adapters/MODEL/export?format=peft', 404]],
  'get /api/adapters/{name}/card': [['/api/adapters/MODEL/card', 404]],
  'get /api/adapters/{name}/sources': [['/api/adapters/MODEL/sources', 404]],
  'get /api/evaluations/{id}': [['/api/evaluations/EVALUATION', 404]],
  'get /api/aliases/{alias}': [['/api/aliases/ALIAS', 404]],
  'post /api/aliases/{alias}/promote': [
    [
      '/api/aliases/ALIAS/promote',
      404,
      { model: 'tiny-base', evaluation: 'ev', criteria: [{ metric: 'loss', op: '<', against: 9 }] },
    ],
  ],
  'post /api/aliases/{alias}/rollback': [['/api/aliases/ALIAS/rollback', 404, {}]],
  'delete /api/aliases/{alias}': [['/api/aliases/ALIAS', 404]],

  [`get ${one}`]: DATANET('', 200),
  [`patch ${one}`]: DATANET('', 403, { summary: 'mine now' }),
  [`post ${one}/contributions`]: DATANET('/contributions', 403, { licence: LICENCE, rows: chatRows(1, 900) }),
  // One's own: none.
  [`get ${one}/contributions`]: DATANET('/contributions', 200),
  [`get ${one}/contributions/{contribution}`]: DATANET('/contributions/HIDDEN_CONTRIBUTION', 404),
  [`delete ${one}/contributions/{contribution}`]: DATANET('/contributions/HIDDEN_CONTRIBUTION', 404),
  [`get ${one}/rows`]: DATANET('/rows', 403),
  [`get ${one}/rows/{row}`]: DATANET('/rows/HIDDEN_ROW', 404),
  [`get ${one}/search`]: DATANET('/search?q=river*', 403),
  [`get ${one}/statistics`]: DATANET('/statistics', 200),
  [`post ${one}/review`]: DATANET('/review', 403, reject),
  [`post ${one}/versions`]: DATANET('/versions', 403, {}),
  [`get ${one}/versions`]: DATANET('/versions', 200),
  [`get ${version}`]: DATANET('/versions/1', 200),
  [`get ${version}/rows`]: DATANET('/versions/1/rows', 403),
  // A leaf holds hashes only; contents go along for readers alone.
  [`get ${version}/rows/{row}/proof`]: DATANET('/versions/1/rows/HIDDEN_ROW/proof', 200),
  [`get ${version}/diff/{other}`]: DATANET('/versions/1/diff/2', 403),
  [`get ${version}/export`]: DATANET('/versions/1/export?format=jsonl', 403),
  [`post ${one}/withdrawals`]: DATANET('/withdrawals', 404, { contribution: 'CONTRIBUTION_OF_EACH', ...reason }),
  [`post ${one}/access-requests`]: [
    ['/api/datanets/HIDDEN/access-requests', 404, request],
    ['/api/datanets/SHOWN/access-requests', 201, request],
  ],
  [`get ${one}/access-requests`]: DATANET('/access-requests', 200),
  [`get ${acc}`]: DATANET('/access-requests/REQUEST', 404),
  [`post ${acc}/approve`]: DATANET('/access-requests/REQUEST/approve', 403, {}),
  [`post ${acc}/reject`]: DATANET('/access-requests/REQUEST/reject', 403, reason),
  [`post ${acc}/revoke`]: DATANET('/access-requests/REQUEST/revoke', 403, reason),
  [`get ${one}/licence-acceptance`]: DATANET('/licence-acceptance', 200),
  [`post ${one}/licence-acceptance`]: [
    ['/api/datanets/HIDDEN/licence-acceptance', 404, { licence: LICENCE, terms_sha256: 'x' }],
  ],
  [`post ${one}/revoke`]: DATANET('/revoke', 403, reason),
  [`post ${one}/reactivate`]: DATANET('/reactivate', 403, reason),

  'get /api/users/{id}': [['/api/users/USER', 'scope']],
  'patch /api/users/{id}': [['/api/users/USER', 'scope', { role: 'admin' }]],
  'delete /api/users/{id}': [['/api/users/USER', 'scope']],
  'post /api/users/{id}/invitation': [['/api/users/USER/invitation', 'scope', {}]],
  'delete /api/users/{id}/sessions': [['/api/users/USER/sessions', 'scope']],
  'delete /api/account/sessions/{id}': [['/api/account/sessions/SESSION', 404]],
  'get /api/organizations/{id}': [['/api/organizations/ORG', 404]],
  'patch /api/organizations/{id}': [['/api/organizations/ORG', 404, { name: 'Mine now' }]],
  'get /api/organizations/{id}/members': [['/api/organizations/ORG/members', 404]],
  'get /api/organizations/{id}/members/{user}': [['/api/organizations/ORG/members/USER', 404]],
  'put /api/organizations/{id}/members/{user}': [['/api/organizations/ORG/members/me', 404, { role: 'owner' }]],
  'delete /api/organizations/{id}/members/{user}': [['/api/organizations/ORG/members/USER', 404]],
  'patch /api/keys/{id}': [['/api/keys/KEY', 404, { name: 'mine now' }]],
  'delete /api/keys/{id}': [['/api/keys/KEY', 404]],

  // The log is for everybody.
  'get /log/tile/{tile}': [],
};

beforeAll(async () => {
  rig = await startFactoryRig({ adapters: ['legal'] });
  owner = await rig.user({ role: 'builder', name: 'Owner' });
  stranger = await rig.user({ role: 'builder', name: 'Stranger' });
  const scopes = [...ROLE_SCOPES.builder];
  operator = (await rig.key({ scopes })).credential;
  const { services } = rig.app;
  const json = async (response: Response) => {
    const body = (await response.json()) as Record<string, unknown> & { id: string };
    expect(response.status, JSON.stringify(body)).toBeLessThan(300);
    return body;
  };
  const make = async (path: string, body: object) => json(await owner.call('POST', path, body));

  const openai = rig.client(owner.credential);
  ids.FILE = await rig.upload('train.jsonl', chatLines(12), openai);
  const job = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: ids.FILE });
  ids.JOB = job.id;
  ids.MODEL = (await rig.until(job.id)).fine_tuned_model as string;
  const chat = await owner.call('POST', '/v1/chat/completions', { ...CHAT, model: ids.MODEL });
  expect(chat.status).toBe(200);
  ids.RECEIPT = chat.headers.get('x-receipt-id') as string;
  await chat.text();
  await rig.settled();
  // What needs an engine that measures is written as the parts that measure write it.
  ids.EVALUATION = 'eval_ofTheOwner';
  const principal = { ownerId: owner.id, keyId: owner.keyId } as never;
  await services.evaluations.add(principal, ids.FILE, { id: ids.EVALUATION, scores: [], request: {} } as never);
  ids.ALIAS = 'ofTheOwner';
  const version = { version: 1, origin: 1, parent: null, evaluation: null, checks: [], digest: 'c'.repeat(64) };
  const by = { keyId: owner.keyId, owner: owner.id, action: 'promote' as const };
  await services.aliases.append({ alias: ids.ALIAS, model: ids.MODEL, ...version, ...by } as never);

  ids.ORG = (await make('/api/organizations', { name: 'Of the owner' })).id;
  for (const [which, visibility] of [
    ['HIDDEN', 'public'],
    ['SHOWN', 'permissioned'],
  ] as const) {
    const fields = { name: which, kind: 'chat', licence: LICENCE, visibility, organization_id: null };
    const { id } = await make('/api/datanets', fields);
    ids[which] = id;
    const from = which === 'HIDDEN' ? 0 : 100;
    const body = { licence: LICENCE, rows: chatRows(3, from) };
    ids[`${which}_CONTRIBUTION`] = (await make(`/api/datanets/${id}/contributions`, body)).id;
    await services.datanets.contributions.idle();
    const rows = (await json(await owner.call('GET', `/api/datanets/${id}/rows`))).data as { id: string }[];
    ids[`${which}_ROW`] = rows[0]?.id as string;
  }
  await make(`/api/datanets/${ids.SHOWN}/review`, { action: 'approve', filter: {} });
  await make(`/api/datanets/${ids.SHOWN}/versions`, {});
  await make(`/api/datanets/${ids.SHOWN}/contributions`, { licence: LICENCE, rows: chatRows(2, 200) });
  await services.datanets.contributions.idle();
  await make(`/api/datanets/${ids.SHOWN}/review`, { action: 'approve', filter: {} });
  await make(`/api/datanets/${ids.SHOWN}/versions`, {});
  const third = await rig.user({ role: 'builder', name: 'Third' });
  ids.REQUEST = (await json(await third.call('POST', `/api/datanets/${ids.SHOWN}/access-requests`, request))).id;

  ids.USER = owner.id;
  ids.KEY = owner.keyId;
  ids.SESSION = (await owner.session()).id;
});
afterAll(() => rig.close());

/** Ids that nobody has, of the same form. */
function nobodys(name: string): string {
  const id = ids[name] as string;
  if (name.endsWith('_ROW')) return 'row_987654321';
  return id.replace(/[0-9A-Za-z]+$/, (tail) => 'q'.repeat(tail.length));
}
const NAMES = /\b(CONTRIBUTION_OF_EACH|[A-Z]+_[A-Z]+|[A-Z]{3,})\b/g;
function named<T extends string | object | undefined>(what: T, address: string, id: (name: string) => string): T {
  if (what === undefined) return what;
  const text = JSON.stringify(what).replaceAll(NAMES, (name) => {
    const meant =
      name === 'CONTRIBUTION_OF_EACH' ? `${address.includes('SHOWN') ? 'SHOWN' : 'HIDDEN'}_CONTRIBUTION` : name;
    return ids[meant] === undefined ? name : id(meant);
  });
  return JSON.parse(text);
}
const real = (name: string) => ids[name] as string;

const cases = Object.entries(TABLE).flatMap(([route, list]) =>
  list.map(([address, answer, body]) => ({
    method: route.split(' ')[0]?.toUpperCase() as string,
    address,
    answer,
    body,
  })),
);
const missing = cases.filter(({ answer }) => answer === 404);

test('the table has every route that names an object, and no other', () => {
  const routes = rig.app.routes.filter(({ path }) => path.includes('{')).map(({ method, path }) => `${method} ${path}`);
  expect(Object.keys(TABLE).sort()).toEqual(routes.sort());
});

describe('objects of somebody else', () => {
  test('its owner sees all that the stranger is refused', async () => {
    for (const { method, address, answer } of cases) {
      if (method !== 'GET' || answer === 'scope' || address.includes('HIDDEN/versions/1')) continue;
      // What needs a published version, and the weights, of which the scripted daemon has none.
      if (/file-HIDDEN|\/card|\/export\?format=peft/.test(address)) continue;
      // A request is for whoever asked and whoever governs; it is one of the other Datanet.
      if (address.includes('HIDDEN/access-requests/')) continue;
      const response = await owner.call('GET', named(address, address, real));
      expect(`${address}: ${response.status}`).toBe(`${address}: 200`);
      await response.body?.cancel();
    }
  });

  test.each(cases)('$method $address: $answer', async ({ method, address, answer, body }) => {
    const response = await stranger.call(method, named(address, address, real), named(body, address, real));
    if (typeof answer === 'number' && answer < 300) {
      expect(response.status).toBe(answer);
      return;
    }
    const error = await errorOf(response);
    expect(response.status, error.message).toBe(answer === 'scope' ? 403 : answer);
    if (answer === 'scope') expect(error.code).toBe('insufficient_scope');
    else expect(error.code).not.toBe('insufficient_scope');
  });

  test('the same words as for what nobody has, so nothing tells that it is there', async () => {
    for (const { method, address, body } of missing) {
      // Under a name that nobody has an alias is made, so what is looked at next is another thing.
      if (address.endsWith('/promote')) continue;
      const ask = async (id: (name: string) => string) => {
        const response = await stranger.call(method, named(address, address, id), named(body, address, id));
        const { message, ...rest } = await errorOf(response);
        // The id that was asked for is the only thing that may differ.
        const masked = Object.keys(ids)
          .map(id)
          .sort((a, b) => b.length - a.length)
          .reduce((text, one) => text.replaceAll(one, '#'), message);
        return { status: response.status, ...rest, message: masked };
      };
      // A Datanet that is visible is there; of its parts the same holds.
      const part = (name: string) => (name === 'SHOWN' && !address.includes('file-') ? real(name) : nobodys(name));
      expect({ address, ...(await ask(real)) }).toEqual({ address, ...(await ask(part)) });
    }
  });

  test('a key of the operator that administers nothing is a stranger too', async () => {
    for (const { method, address, body } of missing) {
      const response = await rig.call(method, named(address, address, real), named(body, address, real), {
        authorization: `Bearer ${operator}`,
      });
      const { code } = await errorOf(response);
      if (code === 'user_required') continue;
      expect(`${method} ${address}: ${response.status}`).toBe(`${method} ${address}: 404`);
    }
  });

  test('lists do not have them, and nothing that strangers tried has changed them', async () => {
    const texts = await Promise.all(
      [
        '/v1/models',
        '/v1/files',
        '/v1/fine_tuning/jobs',
        '/api/evaluations',
        '/api/aliases',
        '/api/keys',
        '/api/organizations',
        '/api/account/sessions',
        '/api/datanets?limit=100',
        `/api/datanets/${ids.SHOWN}/contributions`,
      ].map(async (path) => {
        const response = await stranger.call('GET', path);
        expect(`${path}: ${response.status}`).toBe(`${path}: 200`);
        return response.text();
      }),
    );
    const seen = texts.join('\n');
    for (const [name, id] of Object.entries(ids)) {
      // The owner of a Datanet that is shown is named there.
      if (['SHOWN', 'USER', 'SHOWN_ROW', 'HIDDEN_ROW'].includes(name)) continue;
      expect(seen, name).not.toContain(id);
    }
    const look = async (path: string) => (await owner.call('GET', path)).json() as Promise<Record<string, unknown>>;
    expect(await look(`/api/datanets/${ids.HIDDEN}`)).toMatchObject({ name: 'HIDDEN', summary: '', version: 0 });
    expect(await look(`/api/datanets/${ids.SHOWN}`)).toMatchObject({
      summary: '',
      version: 2,
      rows: 5,
      state: 'active',
    });
    expect(await look(`/api/organizations/${ids.ORG}`)).toMatchObject({ name: 'Of the owner', members: 1 });
    expect(await look(`/api/datanets/${ids.SHOWN}/access-requests/${ids.REQUEST}`)).toMatchObject({ state: 'pending' });
    const { data } = (await look('/api/account/sessions')) as { data: { id: string }[] };
    expect(data.map(({ id }) => id)).toContain(ids.SESSION);
  });
});
