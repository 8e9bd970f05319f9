/** The audit log: every act before it begins, its outcome after; nothing removed, nothing rewritten; no row, no act. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { errorOf, type Rig, startRig, type TestUser } from '../rig.ts';
import { browser, logIn, member } from './members.ts';

let rig: Rig;
let admin: TestUser;

beforeAll(async () => {
  rig = await startRig({ adapters: ['legal'] });
  admin = await rig.user({ role: 'admin' });
});
afterAll(() => rig.close());

interface Act {
  id: string;
  action: string;
  user_id: string | null;
  key_id: string | null;
  target: string | null;
  address: string | null;
  request_id: string;
  detail: Record<string, unknown> | null;
  status: number | null;
}
const acts = async (query = '') =>
  (await (await rig.call('GET', `/api/audit${query}`)).json()) as { data: Act[]; has_more: boolean; last_id: string };

test('what changes something outside of inference, files, jobs and measurements is audited', () => {
  /** One’s own work, of which there is a record already; or nothing is changed. */
  const own =
    /^\/v1\/(chat|completions|embeddings|files|fine_tuning\/(jobs|alpha))|^\/api\/(datasets\/inspect|evaluations)$/;
  const without = rig.app.routes
    .filter(({ method, path, audit }) => method !== 'get' && audit === undefined && !own.test(path))
    .map(({ method, path }) => `${method} ${path}`);
  expect(without).toEqual([]);
  for (const { audit } of rig.app.routes) if (audit !== undefined) expect(audit).toMatch(/^[a-z_]+(\.[a-z_]+)+$/);
});

test('who, what, upon what, and how it ended', async () => {
  const made = await admin.call(
    'POST',
    '/api/users',
    { email: 'new@audit.test', name: 'New', role: 'builder' },
    { 'x-request-id': 'my-request' },
  );
  const { id } = (await made.json()) as { id: string };
  const [act] = (await acts('?action=user.create')).data;
  expect(act).toMatchObject({
    action: 'user.create',
    user_id: admin.id,
    key_id: admin.keyId,
    target: id,
    request_id: 'my-request',
    status: 201,
    detail: { email: 'new@audit.test', role: 'builder' },
  });
  const session = await admin.session();
  await session.call('PATCH', `/api/users/${id}`, { role: 'consumer' });
  expect((await acts('?action=user.update')).data[0]).toMatchObject({
    user_id: admin.id,
    target: id,
    status: 200,
    detail: { role: 'consumer', before: { role: 'builder', state: 'invited' }, session: session.id },
  });
});

test('acts that fail are there too, with their status; what the guard refused was no act', async () => {
  await admin.call('DELETE', '/api/users/user_none');
  expect((await acts('?object=user_none')).data[0]).toMatchObject({ action: 'user.disable', status: 404 });
  await admin.call('POST', '/api/users', 'not json');
  expect((await acts('?action=user.create')).data[0]).toMatchObject({ status: 400 });
  const consumer = await rig.user({ role: 'consumer' });
  await consumer.call('DELETE', '/api/users/user_other');
  expect((await acts('?object=user_other')).data).toEqual([]);
});

test('a handler that breaks leaves a row that says so', async () => {
  const { people } = rig.app.services;
  const original = people.users.find;
  people.users.find = () => Promise.reject(new Error('broken'));
  expect((await admin.call('DELETE', '/api/users/user_broken')).status).toBe(500);
  people.users.find = original;
  expect((await acts('?object=user_broken')).data[0]).toMatchObject({ action: 'user.disable', status: 500 });
});

test('log-ins, with the address they came from: those that failed tell which account', async () => {
  const { id, email } = await member(rig);
  const page = browser(rig, { address: '198.51.100.9' });
  await logIn(page, email, 'a wrong password');
  await logIn(page, 'nobody@audit.test', 'a wrong password');
  await logIn(page, email);
  const [good, unknown, wrong] = (await acts('?action=session.start')).data;
  expect(wrong).toMatchObject({ target: id, status: 401, address: '198.51.100.9' });
  expect(unknown).toMatchObject({ target: null, status: 401 });
  expect(good).toMatchObject({ target: id, status: 201, address: '198.51.100.9' });
});

test('a link that is used leaves a row; one that is none does not, so that nobody fills the log with guesses', async () => {
  const { id } = await member(rig);
  const accepted = await acts('?action=invitation.accept&limit=1');
  expect(accepted.data[0]).toMatchObject({ target: id, status: 200, user_id: null, key_id: null });
  const page = browser(rig);
  await page.send('POST', '/api/invitations/accept', {
    token: `mfi-${'A'.repeat(43)}`,
    password: 'violet kettle under',
  });
  expect((await acts('?action=invitation.accept&limit=1')).data[0]?.id).toBe(accepted.data[0]?.id);
});

test('an act whose row cannot be written does not happen', async () => {
  const { id } = await rig.user({ role: 'builder' });
  await rig.database.db.$client.execute(
    `CREATE TRIGGER audit_broken BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'disk full'); END`,
  );
  const refused = await admin.call('DELETE', `/api/users/${id}`);
  const page = browser(rig);
  const login = await logIn(page, 'nobody@audit.test');
  await rig.database.db.$client.execute('DROP TRIGGER audit_broken');
  expect([refused.status, (await errorOf(refused)).code]).toEqual([503, 'audit_unavailable']);
  expect(login.status).toBe(503);
  expect(await (await rig.call('GET', `/api/users/${id}`)).json()).toMatchObject({ state: 'active' });
});

test('rows cannot be removed or rewritten, whoever asks', async () => {
  const { $client } = rig.database.db;
  for (const sql of [
    'DELETE FROM audit_log',
    `UPDATE audit_log SET status = 200`,
    `UPDATE audit_log SET action = 'x'`,
    `UPDATE audit_log SET user_id = NULL, status = 500`,
  ])
    await expect($client.execute(sql)).rejects.toThrow('append-only');
});

test('a credential that somebody put where an id belongs is not kept', async () => {
  const { credential } = await rig.key();
  await admin.call('DELETE', `/api/keys/${credential}`, undefined, { 'x-request-id': credential });
  const dump = JSON.stringify((await rig.database.db.$client.execute('SELECT * FROM audit_log')).rows);
  expect(dump).not.toContain(credential);
  expect(dump).toContain('[redacted]');
});

test('the list comes in pages, newest first, and by user, object and time', async () => {
  const all: string[] = [];
  let page = await acts('?limit=4');
  for (;;) {
    all.push(...page.data.map(({ id }) => id));
    if (!page.has_more) break;
    page = await acts(`?limit=4&after=${page.last_id}`);
  }
  const numbers = all.map((id) => Number(id.slice(4)));
  expect(numbers).toEqual([...numbers].sort((a, b) => b - a));
  expect(new Set(all).size).toBe(all.length);
  expect(all.length).toBeGreaterThan(8);
  const now = Math.floor(Date.now() / 1000);
  expect((await acts(`?user=${admin.id}`)).data.every(({ user_id }) => user_id === admin.id)).toBe(true);
  expect((await acts(`?since=${now + 60}`)).data).toEqual([]);
  expect((await acts(`?until=${now - 3600}`)).data).toEqual([]);
  expect((await acts(`?since=${now - 3600}&until=${now + 60}`)).data.length).toBeGreaterThan(8);
  for (const query of ['after=x', 'after=act_x', 'limit=1000', 'since=yesterday'])
    expect([query, (await rig.call('GET', `/api/audit?${query}`)).status]).toEqual([query, 400]);
});
