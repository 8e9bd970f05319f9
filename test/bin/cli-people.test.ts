/** The commands of people and Datanets against the real gateway (over HTTP, with a real database); training is another test's. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { serve } from '@hono/node-server';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Input } from '../../bin/cli/command.ts';
import { parseExpiry } from '../../bin/cli/datanets/access.ts';
import { contributionLine } from '../../bin/cli/datanets/contributions.ts';
import { parseVersionName } from '../../bin/cli/datanets/names.ts';
import { runCli } from '../../bin/cli/program.ts';
import { chatRows } from '../gateway/datanets/rig.ts';
import { type Rig, startRig } from '../gateway/rig.ts';

let folder: string;
let rig: Rig;
let server: Server;
let url: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'cli-people-'));
  rig = await startRig();
  server = serve({ fetch: rig.app.fetch, hostname: '127.0.0.1', port: 0 }) as Server;
  await new Promise((done) => server.once('listening', done));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  await new Promise((done) => {
    server.close(done);
    server.closeAllConnections();
  });
  await rig.close();
  rmSync(folder, { recursive: true, force: true });
});

/** @param key null: none is set. */
async function cli(key: string | null, args: string[], typed: Input | string = '') {
  const out: string[] = [];
  const notes: string[] = [];
  const env = { MODELFACTORY_URL: url, MODELFACTORY_DATA: folder, ...(key !== null && { MODELFACTORY_KEY: key }) };
  const input = typeof typed === 'string' ? (Readable.from([typed]) as unknown as Input) : typed;
  const output = { out: (line: string) => out.push(line), note: (line: string) => notes.push(line) };
  const code = await runCli(args, output, env, input);
  return { code, out: out.join('\n'), notes: notes.join('\n') };
}
const ok = async (key: string | null, args: string[], typed?: Input | string) => {
  const answer = await cli(key, args, typed);
  expect(answer.code, answer.notes).toBe(0);
  return answer;
};
const PASSWORD = 'seven quiet otters at noon';

describe('modelfactory users and account', () => {
  it('from invitation to personal key, the secrets alone on standard output, the password nowhere', async () => {
    const added = await ok(rig.admin, ['users', 'add', 'dora@example.org', '--role', 'builder']);
    expect(added.out).toMatch(/^[\w-]{20,}$/);
    expect(added.notes).toMatch(/account accept TOKEN/);
    const accepted = await ok(null, ['account', 'accept', added.out], `${PASSWORD}\n`);
    expect(accepted.out).toMatch(/^mf-[\w-]{43}$/);
    expect(accepted.notes).not.toContain(PASSWORD);
    expect((await ok(accepted.out, ['account', 'show'])).out).toMatch(
      /^dora <dora@example.org>, user_\w+\nbuilder; .*fine_tuning/,
    );
    // The session that made the key is over.
    expect((await ok(accepted.out, ['account', 'sessions'])).out).toBe('You are logged in nowhere.');

    const again = await ok(null, ['account', 'login', 'DORA@example.org', '--name', 'laptop'], PASSWORD);
    expect(again.out).not.toBe(accepted.out);
    expect((await ok(again.out, ['keys', 'list'])).out).toMatch(/laptop/);
    const wrong = await cli(null, ['account', 'login', 'dora@example.org'], 'not this one at all\n');
    expect(wrong).toMatchObject({ code: 1, out: '', notes: 'error: E-mail address or password is wrong.' });
    expect(await cli(null, ['account', 'login', 'dora@example.org'], '')).toMatchObject({
      code: 1,
      notes: expect.stringContaining('There is no password'),
    });
    const next = 'nine loud geese after dusk';
    await ok(again.out, ['account', 'password'], `${PASSWORD}\n${next}\n`);
    expect((await cli(null, ['account', 'login', 'dora@example.org'], PASSWORD)).code).toBe(1);
    await ok(null, ['account', 'login', 'dora@example.org'], next);
  });

  it('on a terminal a password is asked for twice, and what is typed is not shown', async () => {
    const { out: token } = await ok(rig.admin, ['users', 'add', 'emil@example.org']);
    const typing = (...words: string[]): Input => {
      const terminal = new PassThrough() as unknown as PassThrough & Input;
      terminal.isTTY = true;
      terminal.setRawMode = () => terminal;
      let said = 0;
      const say = () => {
        const word = words[said++];
        if (word === undefined) return;
        terminal.write(`${word}\r`);
        setTimeout(say, 60);
      };
      setTimeout(say, 20);
      return terminal;
    };
    const slipped = await cli(null, ['account', 'accept', token], typing(PASSWORD, 'something else'));
    expect(slipped.code).toBe(1);
    expect(slipped.notes).toMatch(/not the same/);
    const { notes } = await ok(null, ['account', 'accept', token], typing(PASSWORD, PASSWORD));
    expect(notes).toMatch(/^New password.*\nOnce more/);
    expect(notes).not.toContain(PASSWORD);
  });

  it('lists, changes roles, disables and lets in again; by e-mail or id', async () => {
    const { credential, id } = await rig.user({ role: 'contributor', email: 'fritz@example.org' });
    expect((await ok(rig.admin, ['users', 'list', '--search', 'fritz'])).out).toMatch(
      /fritz@example.org .*contributor +active/,
    );
    expect((await ok(rig.admin, ['users', 'role', 'fritz@example.org', 'consumer'])).out).toMatch(
      /is consumer, active/,
    );
    expect((await ok(rig.admin, ['users', 'disable', id])).out).toMatch(/disabled/);
    expect((await cli(credential, ['account', 'show'])).code).toBe(1);
    await ok(rig.admin, ['users', 'enable', id]);
    await ok(credential, ['account', 'show']);
    expect((await ok(rig.admin, ['audit', '--object', id, '--json'])).out).toMatch(/"user.update"/);
    expect(await cli(rig.admin, ['users', 'disable', 'nobody@example.org'])).toMatchObject({
      code: 1,
      notes: 'error: There is no user nobody@example.org.',
    });
    expect(await cli(credential, ['users', 'list'])).toMatchObject({ code: 1 });
  });
});

describe('modelfactory orgs and datanets', () => {
  it('a Datanet from its making to its export, each step as JSON too', async () => {
    const owner = await rig.user({ role: 'contributor', name: 'Gerda' });
    const member = await rig.user({ role: 'contributor', name: 'Hugo' });
    const reader = await rig.user({ role: 'builder', name: 'Ida' });
    const as = (user: { credential: string }, ...args: string[]) => ok(user.credential, args);
    const refused = async (user: { credential: string }, ...args: string[]) => {
      const answer = await cli(user.credential, args);
      expect(answer.code).toBe(1);
      return answer.notes;
    };

    const { out: org } = await as(owner, 'orgs', 'create', 'Lamplighters');
    await as(owner, 'orgs', 'members', 'add', org, member.email);
    expect((await as(member, 'orgs', 'members', 'list', org)).out).toMatch(/Hugo .*member/);
    const made = ['--licence', 'CC-BY-4.0', '--org', org, '--tags', 'light, towns', '--summary', 'Of lamps'];
    const { out: id } = await as(owner, 'datanets', 'create', 'Lamps: a lore', ...made);
    expect(id).toMatch(/^dn_\w+$/);
    expect((await as(owner, 'datanets', 'show', 'lamps: a LORE')).out).toMatch(/^tags +light, towns$/m);

    const file = join(folder, 'rows.jsonl');
    writeFileSync(
      file,
      `${chatRows(6)
        .map((row) => JSON.stringify(row))
        .join('\n')}\n{"broken": \n`,
    );
    expect(await refused(member, 'datanets', 'contribute', id, file)).toMatch(/under CC-BY-4.0.*--accept-licence/);
    const sent = await cli(member.credential, ['datanets', 'contribute', id, file, '--accept-licence']);
    expect(sent.notes).toMatch(/line 7: /);
    const good = join(folder, 'good.jsonl');
    writeFileSync(
      good,
      `${chatRows(6, 50)
        .map((row) => JSON.stringify(row))
        .join('\n')}\n`,
    );
    const { out: contribution } = await as(member, 'datanets', 'contribute', id, good, '--accept-licence');
    expect((await as(owner, 'datanets', 'contributions', id)).out).toContain(contribution);

    const rows = JSON.parse(
      (await as(owner, 'datanets', 'rows', id, '--contribution', contribution, '--json')).out,
    ) as {
      id: string;
    }[];
    expect(rows).toHaveLength(6);
    const [first, second] = rows.map((row) => row.id) as [string, string];
    expect(await refused(owner, 'datanets', 'review', 'reject', id, first)).toMatch(/Say why with --reason/);
    expect(await refused(owner, 'datanets', 'review', 'approve', id)).toMatch(/Name rows, or choose/);
    await as(owner, 'datanets', 'review', 'reject', id, first, '--reason', 'dim');
    const approved = [
      'datanets',
      'review',
      'approve',
      id,
      '--contribution',
      contribution,
      '--min-score',
      '0',
      '--json',
    ];
    expect(JSON.parse((await as(owner, ...approved)).out)).toMatchObject({ changed: 5, not_found: 0 });
    expect((await as(owner, 'datanets', 'publish', id, '--notes', 'first')).out).toBe('1');
    expect((await as(owner, 'datanets', 'versions', id)).out).toMatch(/^1 +publish +5 +\+5 −0 .* first$/m);

    expect(await refused(reader, 'datanets', 'rows', id)).not.toBe('');
    const purpose = ['--purpose', 'To light a town by words.', '--accept-licence'];
    const { out: request } = await as(reader, 'datanets', 'request', id, ...purpose);
    expect(await refused(owner, 'datanets', 'grant', id, request, '--expires', 'soon')).toMatch(/--expires is "soon"/);
    await as(owner, 'datanets', 'grant', id, request, '--expires', '2d');
    expect((await as(reader, 'datanets', 'requests', id)).out).toMatch(/approved/);

    const out = join(folder, 'lamps.csv');
    await as(reader, 'datanets', 'export', `${id}@1`, '--format', 'csv', '--out', out);
    expect(readFileSync(out, 'utf8').trim().split('\n').length).toBeGreaterThanOrEqual(6);
    expect(await refused(reader, 'datanets', 'export', `${id}@1`, '--format', 'csv', '--out', out)).toMatch(/--force/);
    expect(await refused(reader, 'datanets', 'export', `${id}@9`, '--format', 'csv', '--out', `${out}9`)).toMatch(
      /no version 9/,
    );
    expect(existsSync(`${out}9`)).toBe(false);
    const proof = join(folder, 'proof.json');
    await as(reader, 'datanets', 'proof', id, second, '--out', proof);
    expect((await cli(null, ['verify', proof, '--json'])).out).toMatch(/"ok": true/);

    await as(member, 'datanets', 'withdraw', id, second, '--reason', 'mine');
    expect((await as(reader, 'datanets', 'diff', id, '1', '2')).out).toBe(`- ${second}`);
    await as(owner, 'datanets', 'revoke-access', id, request, '--reason', 'over');
    expect(await refused(reader, 'datanets', 'rows', id)).not.toBe('');
    expect((await as(owner, 'datanets', 'revoke', id, '--reason', 'dark')).out).toMatch(/is revoked/);
    expect((await as(reader, 'datanets', 'list', '--search', 'lamps')).out).toMatch(/revoked/);
    await as(owner, 'datanets', 'reactivate', id, '--reason', 'light');
    expect(await refused(reader, 'train', '--datanet', `${id}:0`)).toMatch(/weight/);
    expect(await refused(reader, 'train')).toMatch(/Name a file to train on, or a Datanet/);
    expect(await refused(reader, 'datanets', 'show', 'no such thing')).toMatch(/no Datanet called "no such thing"/);
  });
});

describe('what people write', () => {
  it.each([
    ['dn_abc', { datanet: 'dn_abc', version: null, weight: 1 }],
    ['dn_abc@3', { datanet: 'dn_abc', version: 3, weight: 1 }],
    ['dn_abc@v3:2.5', { datanet: 'dn_abc', version: 3, weight: 2.5 }],
    ['Lamps: a lore@12:3', { datanet: 'Lamps: a lore', version: 12, weight: 3 }],
    ['Lamps: a lore', { datanet: 'Lamps: a lore', version: null, weight: 1 }],
    ['me@home:2', { datanet: 'me@home', version: null, weight: 2 }],
  ])('%s', (text, expected) => expect(parseVersionName(text)).toEqual(expected));

  it('expiries', () => {
    expect(parseExpiry('12h', 1_000_000)).toBe(1_000 + 43_200);
    expect(parseExpiry('30d', 0)).toBe(30 * 86_400);
    expect(parseExpiry('2030-01-31', 0)).toBe(Date.UTC(2030, 0, 31) / 1000);
    for (const bad of ['', '5', '-1d', 'tomorrow', '2030-13-01'])
      expect(() => parseExpiry(bad, 0)).toThrow(/--expires/);
  });

  it('progress tells rate and time left', () => {
    expect(contributionLine({ done: 500, total: 1500, unit: 'rows' }, 10)).toBe(
      '500/1500 rows · 50 rows/s · 20 s left',
    );
    expect(contributionLine({ done: 3, total: null, unit: 'chunks' }, 0)).toBe('3 chunks');
  });
});
