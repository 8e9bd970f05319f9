/** The audit log: every act before it begins, its outcome after; nothing removed, nothing rewritten; no row, no act. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limits } from '../../../gateway/limits.ts';
import { PASSING_ACTS } from '../../../gateway/people/audit.ts';
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

describe('how the log is read', () => {
  const DAY = 86_400_000;
  let old: Rig;
  let clock = 1_900_000_000_000;
  beforeAll(async () => {
    old = await startRig({ now: () => clock, people: { auditKeptMs: 30 * DAY } });
  });
  afterAll(() => old.close());
  const listed = async (query: string) => {
    const response = await old.call('GET', `/api/audit${query}`);
    return (await response.json()) as { data: Act[]; has_more: boolean; last_id: string };
  };

  test('by time, actor, action and object an index leads to the page: nothing is walked through or sorted', async () => {
    const seen: string[] = [];
    const { $client } = old.database.db;
    const execute = $client.execute.bind($client);
    $client.execute = (async (statement: { sql: string; args: never[] }) => {
      if (
        /from "audit_log"/.test(statement.sql ?? '') &&
        !/order by "audit_log"."seq" desc limit/.test(statement.sql)
      ) {
        const plan = await execute({ sql: `EXPLAIN QUERY PLAN ${statement.sql}`, args: statement.args });
        seen.push(plan.rows.map(({ detail }) => String(detail)).join('; '));
      }
      return execute(statement);
    }) as never;
    await old.call('POST', '/api/users', { email: 'x@audit.test', name: 'X' });
    const [act] = (await listed('')).data;
    for (const query of [
      '?since=1',
      '?since=1&until=2',
      '?user=user_x',
      '?user=user_x&since=1',
      '?key=key_x',
      '?object=x&until=5',
      '?action=user.create',
      `?after=${act?.id}`,
      `?user=user_x&after=${act?.id}`,
    ])
      await listed(query);
    $client.execute = execute as never;
    expect(seen.length).toBeGreaterThanOrEqual(10);
    for (const plan of seen) {
      expect(plan).toMatch(/USING INDEX audit_/);
      expect(plan).not.toMatch(/TEMP B-TREE/);
    }
    // Whatever is asked for begins at its place in the index; only the whole list goes through it from its end.
    for (const plan of seen.slice(1)) expect(plan).toMatch(/^SEARCH/);
  });

  test('pages of acts of one moment, and of acts whose clocks went back, are whole and in the order of time', async () => {
    const user = await old.user({ role: 'builder' });
    for (let index = 0; index < 7; index++) {
      if (index === 4) clock -= 5_000;
      await user.call('PATCH', '/api/account', { name: `Name ${index}` });
    }
    clock += 5_000;
    const found: Act[] = [];
    let page = await listed(`?user=${user.id}&limit=2`);
    for (;;) {
      found.push(...page.data);
      if (!page.has_more) break;
      page = await listed(`?user=${user.id}&limit=2&after=${page.last_id}`);
    }
    expect(found).toHaveLength(7);
    expect(new Set(found.map(({ id }) => id)).size).toBe(7);
    const whole = (await listed(`?user=${user.id}&limit=100`)).data;
    expect(found.map(({ id }) => id)).toEqual(whole.map(({ id }) => id));
  });

  test('by the key that acted', async () => {
    const { id, credential } = await old.key({ scopes: ['keys', 'inference'] });
    await old.call('POST', '/api/keys', { name: 'made' }, { authorization: `Bearer ${credential}` });
    expect((await listed(`?key=${id}`)).data.map(({ action, key_id }) => [action, key_id])).toEqual([
      ['key.create', id],
    ]);
  });
});

describe('retention', () => {
  const DAY = 86_400_000;
  let clock = 1_900_000_000_000;
  const rigOf = (auditKeptMs: number | null) => startRig({ now: () => clock, people: { auditKeptMs } });
  const actionsOf = async (old: Rig) =>
    (await old.database.db.$client.execute('SELECT action, status FROM audit_log ORDER BY seq')).rows.map(
      ({ action, status }) => `${action} ${status}`,
    );
  async function someActs(old: Rig): Promise<void> {
    const user = await old.user({ role: 'builder' });
    await user.call('PATCH', '/api/account', { name: 'Another' });
    await user.call('POST', '/api/keys', { name: 'mine' });
    await user.call('DELETE', '/api/keys/key_none');
    await old.call('PATCH', `/api/users/${user.id}`, { budget_micros: 5, role: 'consumer' });
  }

  test('what passes and what was refused goes when it is old; money, keys and roles stay; and pruning is an entry itself', async () => {
    const old = await rigOf(30 * DAY);
    await someActs(old);
    await old.app.services.people.prune();
    expect(await actionsOf(old)).toEqual(['account.update 200', 'key.create 201', 'key.revoke 404', 'user.update 200']);
    clock += 30 * DAY + 1;
    await someActs(old);
    await old.app.services.people.prune();
    expect(await actionsOf(old)).toEqual([
      'key.create 201',
      'user.update 200',
      'account.update 200',
      'key.create 201',
      'key.revoke 404',
      'user.update 200',
      'audit.prune 200',
    ]);
    const { data } = (await (await old.call('GET', '/api/audit?action=audit.prune')).json()) as { data: Act[] };
    expect(data).toMatchObject([
      { action: 'audit.prune', status: 200, user_id: null, detail: { removed: 2, before: clock - 30 * DAY } },
    ]);
    await old.close();
  });

  test('once a day, so that pruning does not fill the log; and in portions while there is more', async () => {
    const old = await rigOf(30 * DAY);
    const { $client } = old.database.db;
    const fill = (rows: number, at: number) =>
      $client.execute({
        sql: `INSERT INTO audit_log (at, action, request_id, status, kept)
              WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT ?2, 'session.start', 'r', 201, 0 FROM n`,
        args: [rows, at],
      });
    await fill(limits.auditPruneRowsMax + 10, clock - 31 * DAY);
    const { audit } = old.app.services.people;
    expect([await audit.prune(), await audit.prune(), await audit.prune()]).toEqual([limits.auditPruneRowsMax, 10, 0]);
    await fill(3, clock - 31 * DAY);
    expect(await audit.prune()).toBe(0);
    clock += DAY;
    expect(await audit.prune()).toBe(3);
    expect(await actionsOf(old)).toEqual(Array.from({ length: 3 }, () => 'audit.prune 200'));
    await old.close();
  });

  test('an operator may keep everything', async () => {
    const old = await rigOf(null);
    await someActs(old);
    clock += 1000 * DAY;
    expect(await old.app.services.people.audit.prune()).toBe(0);
    expect(await actionsOf(old)).toHaveLength(4);
    await old.close();
  });

  test('the database takes nothing out that stays, is not old, or is not covered by an open act that says so', async () => {
    const old = await rigOf(30 * DAY);
    await someActs(old);
    const run = (sql: string) => old.database.db.$client.execute(sql);
    await expect(run('DELETE FROM audit_log WHERE kept = 0')).rejects.toThrow('append-only');
    await run(
      `INSERT INTO audit_log (at, action, request_id, detail) VALUES (${clock}, 'audit.prune', 'x', '{"before":${clock}}')`,
    );
    await expect(run('DELETE FROM audit_log WHERE kept = 0')).rejects.toThrow('append-only');
    await run(
      `INSERT INTO audit_log (at, action, request_id, detail) VALUES (${clock + 1}, 'audit.prune', 'x', '{"before":${clock + 1}}')`,
    );
    await expect(run('DELETE FROM audit_log WHERE kept = 1')).rejects.toThrow('append-only');
    await expect(run('UPDATE audit_log SET kept = 0 WHERE status = 201')).rejects.toThrow('append-only');
    await expect(run(`UPDATE audit_log SET kept = 0, status = 200 WHERE action = 'audit.prune'`)).rejects.toThrow(
      'append-only',
    );
    await old.close();
  });

  test('acts about keys, users, members and rights are never passing ones', () => {
    for (const { audit } of rig.app.routes)
      if (
        audit !== undefined &&
        /^(key|user|organization|access|permission|licence|identity|alias|model)\./.test(audit)
      )
        expect([audit, PASSING_ACTS.has(audit)]).toEqual([audit, false]);
    const named = new Set(rig.app.routes.map(({ audit }) => audit));
    for (const act of PASSING_ACTS) expect(named).toContain(act);
  });
});

describe('how many rows one user may write in a minute', () => {
  let clock = 1_900_000_000_000;
  let full: Rig;
  beforeAll(async () => {
    full = await startRig({ now: () => clock });
  });
  afterAll(() => full.close());
  const rows = async () =>
    Number((await full.database.db.$client.execute('SELECT count(*) AS n FROM audit_log')).rows[0]?.n);

  test('is bounded over keys and sessions; what comes after is refused, not done unwritten; others are not touched', async () => {
    const user = await full.user({ role: 'admin' });
    const session = await user.session();
    const other = await full.user({ role: 'builder' });
    const before = await rows();
    for (let index = 0; index < limits.auditActsPerMinute; index++)
      await (index % 2 === 0 ? user : session).call('DELETE', '/api/keys/key_none');
    expect((await rows()) - before).toBe(limits.auditActsPerMinute);
    for (const who of [user, session]) {
      const refused = await who.call('PATCH', `/api/users/${other.id}`, { role: 'consumer' });
      expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '1']);
      expect((await errorOf(refused)).code).toBe('too_many_acts');
    }
    expect(await (await full.call('GET', `/api/users/${other.id}`)).json()).toMatchObject({ role: 'builder' });
    expect((await rows()) - before).toBe(limits.auditActsPerMinute);
    expect((await other.call('PATCH', '/api/account', { name: 'Still' })).status).toBe(200);
    expect((await full.call('PATCH', `/api/users/${other.id}`, { name: 'Me too' })).status).toBe(200);
    clock += 1_000;
    expect((await user.call('PATCH', `/api/users/${other.id}`, { role: 'consumer' })).status).toBe(200);
  });

  test('log-ins count by the network they come from', async () => {
    const { email } = await member(full);
    const page = browser(full, { address: '2001:db8::1' });
    const begun = await rows();
    const { audit } = full.app.services.people;
    for (let index = 0; index < limits.auditActsPerMinute; index++)
      await audit.begin({
        action: 'session.start',
        userId: null,
        keyId: null,
        object: null,
        requestId: 'r',
        address: `2001:db8::${index}`,
        detail: null,
      });
    const refused = await logIn(page, email);
    expect([refused.status, (await errorOf(refused)).code]).toEqual([429, 'too_many_acts']);
    expect((await rows()) - begun).toBe(limits.auditActsPerMinute);
    expect((await logIn(browser(full, { address: '192.0.2.77' }), email)).status).toBe(201);
  });
});
