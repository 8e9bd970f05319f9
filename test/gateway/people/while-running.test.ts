/** What becomes of a request that is under way when its key is revoked, its user disabled, its role or its session taken. */
import { readdir } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Line } from '../../support/scripted-daemon.ts';
import { CHAT, errorOf, type Rig, sseEvents, startRig, type TestUser } from '../rig.ts';

let rig: Rig;
let line: Line | null = null;

beforeAll(async () => {
  rig = await startRig({
    script: (_, given) => {
      line = given;
      given.start();
      given.emit({ type: 'delta', choice: 0, content: 'Hel' });
    },
  });
});
afterAll(() => rig.close());

interface Caller {
  headers: Record<string, string>;
}
const LINES = Array.from({ length: 20 }, (_, index) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: `q${index}` },
      { role: 'assistant', content: 'a' },
    ],
  }),
);

/** An upload that waits in its middle until `meanwhile` is over. */
async function uploadWhile(caller: Caller, meanwhile: () => Promise<unknown>): Promise<Response> {
  const boundary = 'MIDDLE';
  const head = [
    `--${boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n`,
    `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="t.jsonl"\r\ncontent-type: text/plain\r\n\r\n`,
  ].join('');
  const encoder = new TextEncoder();
  let part = 0;
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      part += 1;
      if (part === 1) controller.enqueue(encoder.encode(`${head}${LINES.slice(0, 10).join('\n')}\n`));
      else if (part === 2) {
        await meanwhile();
        controller.enqueue(encoder.encode(LINES.slice(10).join('\n')));
      } else {
        controller.enqueue(encoder.encode(`\r\n--${boundary}--\r\n`));
        controller.close();
      }
    },
  });
  return rig.app.fetch(
    new Request('http://gateway.test/v1/files', {
      method: 'POST',
      headers: { 'content-type': `multipart/form-data; boundary=${boundary}`, ...caller.headers },
      body,
      duplex: 'half',
    } as RequestInit),
  );
}

const byKey = (user: TestUser): Caller => ({ headers: { authorization: `Bearer ${user.credential}` } });
async function bySession(user: TestUser): Promise<Caller & { id: string }> {
  const { id, cookie, csrf } = await user.session();
  return { id, headers: { cookie, 'x-csrf-token': csrf } };
}
const files = async () => Number((await rig.database.db.$client.execute('SELECT count(*) AS n FROM files')).rows[0]?.n);

describe('an upload under way', () => {
  test('is kept when nothing changed, or what changed still allows it', async () => {
    const user = await rig.user({ role: 'builder' });
    expect((await uploadWhile(byKey(user), async () => {})).status).toBe(200);
    const promote = () => rig.call('PATCH', `/api/users/${user.id}`, { role: 'admin' });
    expect((await uploadWhile(await bySession(user), promote)).status).toBe(200);
  });

  const taken = [
    ['the role is taken', 403, (user: TestUser) => rig.call('PATCH', `/api/users/${user.id}`, { role: 'contributor' })],
    ['the user is disabled', 401, (user: TestUser) => rig.call('DELETE', `/api/users/${user.id}`)],
  ] as const;
  test.each(
    taken.flatMap(([what, status, act]) =>
      (['key', 'session'] as const).map((kind) => [what, kind, status, act] as const),
    ),
  )('is not kept when %s (by %s)', async (_, kind, status, act) => {
    const user = await rig.user({ role: 'builder' });
    const before = await files();
    const response = await uploadWhile(kind === 'key' ? byKey(user) : await bySession(user), () => act(user));
    expect(response.status).toBe(status);
    expect(await files()).toBe(before);
  });

  test('is not kept when its key is revoked, by another gateway even', async () => {
    const user = await rig.user({ role: 'builder' });
    const before = await files();
    const { $client } = rig.database.db;
    const revoke = () => $client.execute({ sql: 'UPDATE keys SET revoked_at = 1 WHERE id = ?', args: [user.keyId] });
    expect((await uploadWhile(byKey(user), revoke)).status).toBe(401);
    expect(await files()).toBe(before);
  });

  test('is not kept when its session is ended', async () => {
    const user = await rig.user({ role: 'builder' });
    const session = await bySession(user);
    const before = await files();
    const end = () => user.call('DELETE', `/api/account/sessions/${session.id}`);
    expect((await uploadWhile(session, end)).status).toBe(401);
    expect(await files()).toBe(before);
  });

  test('nothing is left on the disk of what was not kept', async () => {
    expect((await readdir(rig.filesFolder)).length).toBe(await files());
  });
});

describe('an answer that is streamed', () => {
  test('may be finished when its key is revoked meanwhile; the next request fails', async () => {
    const user = await rig.user({ role: 'consumer' });
    const response = await user.call('POST', '/v1/chat/completions', { ...CHAT, stream: true });
    expect(response.status).toBe(200);
    expect((await rig.call('DELETE', `/api/keys/${user.keyId}`)).status).toBe(200);
    expect((await user.call('POST', '/v1/chat/completions', CHAT)).status).toBe(401);
    const running = line as unknown as Line;
    running.emit({ type: 'delta', choice: 0, content: 'lo' });
    running.emit({ type: 'finish', choice: 0, reason: 'stop' });
    running.end(2);
    const events = await sseEvents(response);
    expect(events.at(-1)?.data).toBe('[DONE]');
  });
});

test('asked again without a scope, the caller must still have all it had', async () => {
  const { people, keys } = rig.app.services;
  const user = await rig.user({ role: 'builder' });
  const principal = await keys.authenticate(user.credential);
  if (principal === null) throw new Error('the key must be known');
  await people.recheck(principal);
  await rig.call('PATCH', `/api/users/${user.id}`, { role: 'consumer' });
  await expect(people.recheck(principal)).rejects.toMatchObject({ status: 403 });
  await people.recheck(principal, 'inference');
  await expect(people.recheck(principal, 'fine_tuning')).rejects.toMatchObject({ status: 403 });
  await keys.revoke(user.keyId);
  await expect(people.recheck(principal, 'inference')).rejects.toMatchObject({ status: 401 });
});

test('a refusal tells nothing was kept', async () => {
  const user = await rig.user({ role: 'builder' });
  const response = await uploadWhile(byKey(user), () => rig.call('DELETE', `/api/users/${user.id}`));
  expect(await errorOf(response)).toMatchObject({ code: 'no_longer_valid' });
});

/** A JSON request of which the last byte comes when `meanwhile` is over. */
async function sendWhile(
  caller: Caller,
  method: string,
  path: string,
  body: object,
  meanwhile: () => Promise<unknown>,
) {
  const bytes = new TextEncoder().encode(JSON.stringify(body));
  let part = 0;
  const stream = new ReadableStream<Uint8Array>({
    async pull(controller) {
      part += 1;
      if (part === 1) return controller.enqueue(bytes.subarray(0, -1));
      await meanwhile();
      controller.enqueue(bytes.subarray(-1));
      controller.close();
    },
  });
  const headers = { 'content-type': 'application/json', ...caller.headers };
  const init = { method, headers, body: stream, duplex: 'half' } as RequestInit;
  return rig.app.fetch(new Request(`http://gateway.test${path}`, init));
}

describe('a body that comes slowly', () => {
  test('an administrator who is disabled meanwhile cannot let themselves in again', async () => {
    for (const kind of ['key', 'session'] as const) {
      const user = await rig.user({ role: 'admin' });
      const caller = kind === 'key' ? byKey(user) : await bySession(user);
      const address = `/api/users/${user.id}`;
      const disable = () => rig.call('DELETE', address);
      const response = await sendWhile(caller, 'PATCH', address, { state: 'active' }, disable);
      expect(response.status, kind).toBe(401);
      expect(await (await rig.call('GET', address)).json()).toMatchObject({ state: 'disabled' });
    }
  });

  test('a role that is taken meanwhile hands nothing out any more', async () => {
    const user = await rig.user({ role: 'admin' });
    const demote = () => rig.call('PATCH', `/api/users/${user.id}`, { role: 'consumer' });
    const response = await sendWhile(byKey(user), 'POST', '/api/keys', { name: 'kept', scopes: ['admin'] }, demote);
    expect(response.status).toBe(403);
  });

  test('whoever ceases to own an organisation meanwhile decides nothing about its Datanets', async () => {
    const [ann, bob] = [await rig.user({ role: 'builder' }), await rig.user({ role: 'builder' })];
    const organization = (await (await ann.call('POST', '/api/organizations', { name: 'Slow' })).json()) as {
      id: string;
    };
    const members = `/api/organizations/${organization.id}/members`;
    await ann.call('PUT', `${members}/${bob.id}`, { role: 'owner' });
    const fields = { name: 'Slow', kind: 'chat', licence: 'MIT', organization_id: organization.id };
    const net = (await (await ann.call('POST', '/api/datanets', fields)).json()) as { id: string };
    const at = `/api/datanets/${net.id}`;
    const acts = [
      ['PATCH', at, { summary: 'Mine' }],
      ['POST', `${at}/review`, { action: 'approve', filter: {} }],
      ['POST', `${at}/versions`, {}],
      ['POST', `${at}/withdrawals`, { rows: ['row_1'], reason: 'mine' }],
      ['POST', `${at}/revoke`, { reason: 'mine' }],
    ] as const;
    for (const [method, path, body] of acts) {
      await ann.call('PUT', `${members}/${bob.id}`, { role: 'owner' });
      const leave = () => ann.call('DELETE', `${members}/${bob.id}`);
      const response = await sendWhile(byKey(bob), method, path, body, leave);
      expect(response.status, path).toBe(404);
      expect((await errorOf(response)).code, path).toBe('datanet_not_found');
    }
    expect(await (await ann.call('GET', at)).json()).toMatchObject({ summary: '', state: 'active', version: 0 });
  });
});
