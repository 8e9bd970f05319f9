import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { canonicalJson } from '../../../daemon/evidence.ts';
import { shownFilename } from '../../../gateway/datanets/contributions/filename.ts';
import { contentHash } from '../../../gateway/datanets/versions/leaf.ts';
import { limits } from '../../../gateway/limits.ts';
import { until } from '../../support/eventually.ts';
import { errorOf, type TestUser } from '../rig.ts';
import { chatRow, chatRows, type DatanetRig, LICENCE, sentence, startDatanetRig, type View } from './rig.ts';

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

/** Public, and published once, so that everybody may contribute. */
async function open(fields: Record<string, unknown> = {}): Promise<View> {
  const net = await rig.datanet(ann, fields);
  const kind = fields.kind ?? 'chat';
  const first = kind === 'chat' ? chatRow(900_000) : { prompt: 'First', completion: sentence(900_000) };
  expect((await rig.contribute(ann, net, [first])).state).toBe('ready');
  await rig.approveAll(ann, net);
  await rig.publish(ann, net);
  return net;
}

interface Rows {
  data: (View & { content: Record<string, unknown>; state: string; near_duplicate_of: string | null; score: number })[];
  has_more: boolean;
  last_id: string;
}
const rowsOf = async (user: TestUser, net: View, query = '') =>
  (await rig.json<Rows>(await user.call('GET', `/api/datanets/${net.id}/rows?limit=100${query}`), 200)).data;
const count = async (sql: string, ...args: (string | number)[]) =>
  Number(Object.values((await rig.database.db.$client.execute({ sql, args })).rows[0] ?? {})[0]);

describe('what becomes of a contribution', () => {
  test('rows sent as JSON are stored in canonical form, signed, indexed and pending', async () => {
    const net = await open();
    const sent = [chatRow(1), chatRow(2)];
    const done = await rig.contribute(bob, net, sent);
    expect(done).toMatchObject({
      state: 'ready',
      rows: 2,
      refused: 0,
      contributor: bob.id,
      licence: LICENCE,
      filename: 'rows.jsonl',
    });
    const rows = await rowsOf(bob, net, '&contributor=me');
    expect(rows).toHaveLength(2);
    for (const row of rows) {
      expect(row).toMatchObject({ state: 'pending', contributor: bob.id, contribution: done.id, generated_by: null });
      const text = canonicalJson(row.content) as string;
      expect(row.content_hash).toBe(contentHash(text));
      expect(row.size).toBe(text.length);
    }
    expect(rows.map(({ content }) => content.messages)).toEqual([sent[1]?.messages, sent[0]?.messages]);
    // The file is not kept once it is read.
    expect(await readdir(join(rig.filesFolder, '..', 'contributions'))).toEqual([]);
  });

  test.each([
    [
      'data.jsonl',
      chatRows(3, 10)
        .map((row) => JSON.stringify(row))
        .join('\n'),
      {},
      3,
    ],
    ['data.json', JSON.stringify(chatRows(3, 20)), {}, 3],
    ['data.csv', `question,answer\n"${sentence(31)}","${sentence(32)}"\n"a, ""b""\nc","${sentence(33)}"`, {}, 2],
    ['data.tsv', `mr\tref\n${sentence(41)}\t${sentence(42)}`, { columns: '{"prompt":"mr","completion":"ref"}' }, 1],
    ['alpaca.jsonl', JSON.stringify({ instruction: sentence(51), input: '', output: sentence(52) }), {}, 1],
  ])('%s becomes rows', async (name, text, fields, rows) => {
    const net = await open();
    expect(await rig.upload(bob, net, name, text, fields)).toMatchObject({ state: 'ready', rows, refused: 0 });
  });

  test('documents become rows of completion Datanets, a paragraph or more each', async () => {
    const net = await open({ kind: 'completion' });
    const text = `# Rivers\n\n${sentence(60, 40)}\n\n## Lakes\n\n${sentence(61, 40)}\n`;
    const done = await rig.upload(bob, net, 'rivers.md', text);
    expect(done.state, JSON.stringify(done)).toBe('ready');
    const rows = await rowsOf(bob, net, '&contributor=me');
    expect(rows.length).toBe(done.rows);
    for (const { content } of rows) expect(content).toMatchObject({ kind: 'completion', prompt: '' });
    expect(rows.map(({ content }) => content.completion).join('\n')).toContain(sentence(61, 40).slice(0, 30));
  });

  test.each([
    ['chat', 'notes.txt', {}, 'questions'],
    ['preference', 'notes.txt', {}, 'file'],
    ['completion', 'notes.txt', { questions: '{"model":"tiny-base"}' }, 'questions'],
    ['completion', 'notes.txt', { format: 'chat' }, 'format'],
    ['chat', 'rows.jsonl', { questions: '{"model":"tiny-base"}' }, 'questions'],
    ['chat', 'notes.txt', { questions: '{"model":"no-such-model"}' }, 'model'],
    ['chat', 'program.exe', {}, 'file'],
    ['chat', 'archive.jsonl.zip', {}, 'file'],
    ['chat', 'rows.jsonl', { columns: 'not json' }, 'columns'],
    ['chat', 'rows.jsonl', { surprise: 'x' }, 'surprise'],
  ])('a %s Datanet refuses %s with %j', async (kind, name, fields, param) => {
    const net = await rig.datanet(ann, { kind });
    const response = await rig.send(ann, net, name, 'some text', fields);
    expect(response.status).toBeGreaterThanOrEqual(400);
    expect(response.status).toBeLessThan(500);
    expect((await errorOf(response)).param).toBe(param);
    expect(await readdir(join(rig.filesFolder, '..', 'contributions'))).toEqual([]);
  });

  test('who does not agree to the licence contributes nothing', async () => {
    const net = await open();
    for (const licence of ['MIT', 'cc-by-4.0', '']) {
      const response = await rig.send(bob, net, 'rows.jsonl', JSON.stringify(chatRow(70)), { licence });
      expect(response.status).toBe(400);
      expect((await errorOf(response)).param).toBe('licence');
    }
    const response = await bob.call('POST', `/api/datanets/${net.id}/contributions`, { rows: [chatRow(70)] });
    expect(await errorOf(response)).toMatchObject({ param: 'licence', code: 'missing_required_parameter' });
    expect(await rowsOf(bob, net, '&contributor=me')).toEqual([]);
  });

  test('what is wrong with records is told with their lines; the good ones are taken', async () => {
    const net = await open();
    const text = [
      JSON.stringify(chatRow(80)),
      'no json',
      JSON.stringify({ messages: [{ role: 'user', content: 'no answer' }] }),
      JSON.stringify(chatRow(81)),
    ].join('\n');
    const done = await rig.upload(bob, net, 'mixed.jsonl', text);
    expect(done).toMatchObject({ state: 'ready', rows: 2, refused: 2 });
    expect(done.problems.map(({ line, rule }) => [line, rule])).toEqual([
      [2, 'not_a_dictionary'],
      [3, 'example_missing_assistant_message'],
    ]);
  });

  test('rows of another kind are refused, with the way to send them', async () => {
    const net = await open();
    const done = await rig.contribute(bob, net, [{ prompt: 'a', completion: 'b' }]);
    expect(done).toMatchObject({ state: 'failed', rows: 0, error: { code: 'no_rows' } });
    expect(done.problems[0]).toMatchObject({ rule: 'wrong_kind', message: expect.stringContaining('columns') });
    const mapped = await rig.contribute(bob, net, [{ prompt: sentence(90), completion: sentence(91) }], {
      columns: { prompt: 'prompt', completion: 'completion' },
    });
    expect(mapped).toMatchObject({ state: 'ready', rows: 1 });
  });

  test('a row that is too long is refused, its neighbours are not', async () => {
    const net = await open();
    const long = chatRow(92, 'x'.repeat(limits.contributionRowCharactersMax));
    const done = await rig.contribute(bob, net, [chatRow(93), long, chatRow(94)]);
    expect(done).toMatchObject({ rows: 2, refused: 1 });
    expect(done.problems[0]).toMatchObject({ line: 2, rule: 'row_too_long' });
  });
});

describe('repetitions', () => {
  test('the same row from whomever is one row: who came first keeps the credit, even if it was rejected', async () => {
    const net = await open();
    await rig.contribute(bob, net, [chatRow(100), chatRow(100), chatRow(101)]);
    const [row] = (await rowsOf(ann, net)).filter(({ contributor }) => contributor === bob.id);
    const reject = { action: 'reject', rows: [row?.id], reason: 'no' };
    expect((await ann.call('POST', `/api/datanets/${net.id}/review`, reject)).status).toBe(200);
    const again = await rig.contribute(eve, net, [chatRow(101), chatRow(100)]);
    expect(again).toMatchObject({ state: 'failed', refused: 2, error: { code: 'no_rows' } });
    expect(again.problems.map(({ rule }) => rule)).toEqual(['duplicate', 'duplicate']);
    const owners = (await rowsOf(ann, net)).map(({ contributor }) => contributor);
    expect(owners.filter((one) => one === bob.id)).toHaveLength(2);
    expect(owners).not.toContain(eve.id);
  });

  test('the order of keys, spaces and escapes make no other row of it', async () => {
    const net = await open();
    const a = `{"messages":[{"role":"user","content":"caf\\u00e9 ${sentence(110)}"},{"role":"assistant","content":"ok ${sentence(111)}"}]}`;
    const b = `{ "messages" : [ {"content":"café ${sentence(110)}","role":"user"}, {"content":"ok ${sentence(111)}", "role":"assistant"} ] }`;
    expect((await rig.upload(bob, net, 'a.jsonl', `${a}\n${b}`)).rows).toBe(1);
  });

  test('many accounts that send nearly the same are flagged, within one contribution and across', async () => {
    const net = await open();
    const base = sentence(120, 60);
    await rig.contribute(bob, net, [chatRow(120, base)]);
    const original = (await rowsOf(ann, net)).find(({ contributor }) => contributor === bob.id);
    for (const name of ['Sybil', 'Sybille', 'Sibyl']) {
      const sybil = await rig.person(name, 'contributor');
      const done = await rig.contribute(sybil, net, [chatRow(120, `${base} ${name}`), chatRow(120, `${name} ${base}`)]);
      expect(done.rows).toBe(2);
      const rows = await rowsOf(sybil, net, '&contributor=me&near_duplicates=true');
      expect(rows).toHaveLength(2);
      for (const row of rows) {
        expect(row.reasons).toContainEqual(expect.objectContaining({ rule: 'near_duplicate' }));
        expect(row.score).toBeLessThan(original?.score ?? 0);
        expect(row.near_duplicate_of).toMatch(/^row_\d+$/);
      }
    }
    expect(original?.near_duplicate_of).toBeNull();
    // Different sentences are not.
    await rig.contribute(bob, net, chatRows(30, 1_000));
    const flagged = await rowsOf(bob, net, '&contributor=me&near_duplicates=true');
    expect(flagged).toEqual([]);
  });

  test('contributions that bring the same at the same time make one row of it', async () => {
    const net = await open();
    const rows = chatRows(40, 2_000);
    const sent = await Promise.all(
      [bob, eve, ann].map((user) =>
        user.call('POST', `/api/datanets/${net.id}/contributions`, { rows, licence: LICENCE }),
      ),
    );
    expect(sent.map(({ status }) => status)).toEqual([202, 202, 202]);
    await rig.app.services.datanets.contributions.idle();
    expect(await count('SELECT count(*) FROM datanet_rows WHERE datanet_id = ?', net.id)).toBe(41);
  });
});

describe('bad input', () => {
  test.each([
    [
      'half a character',
      '{"messages":[{"role":"user","content":"\\ud800"},{"role":"assistant","content":"b"}]}',
      'not_unicode',
    ],
    ['Latin-1', Buffer.from('{"messages":[{"role":"user","content":"caf\xe9"}]}', 'latin1'), 'not_utf8'],
    ['UTF-16', Buffer.from('\ufeff{"messages":[]}', 'utf16le'), 'not_utf8'],
    ['an overlong form', Buffer.from([0x22, 0xc0, 0xaf, 0x22]), 'not_utf8'],
    ['zeros', Buffer.alloc(1000), 'not_a_dictionary'],
    ['deep nesting', `{"messages":${'['.repeat(5000)}${']'.repeat(5000)}}`, 'too_deep'],
    ['a prototype', '{"__proto__":{"messages":[]},"constructor":1}', 'unknown_format'],
  ])('%s is refused, and nothing of it is kept', async (_, content, rule) => {
    const net = await open();
    const done = await rig.upload(bob, net, 'bad.jsonl', content);
    expect(done).toMatchObject({ state: 'failed', rows: 0, error: { code: 'no_rows' } });
    expect(done.problems[0]?.rule).toBe(rule);
    expect(await count('SELECT count(*) FROM datanet_rows WHERE contribution_id = ?', done.id)).toBe(0);
  });

  test('text with NUL, controls and right-to-left marks goes in and comes out as it was', async () => {
    const net = await open();
    const strange = `a\u0000b \u202e\u0007 ${sentence(130)} 🏳️‍🌈 e\u0301 é \ufeff`;
    const done = await rig.contribute(bob, net, [chatRow(131, strange)]);
    expect(done.state).toBe('ready');
    const [row] = await rowsOf(bob, net, '&contributor=me');
    expect(row?.content.messages).toContainEqual({ role: 'assistant', content: strange });
  });

  test('names of files are never paths and have nothing unseen', async () => {
    const net = await open();
    const names: [string, string][] = [
      ['../../etc/passwd.jsonl', 'passwd.jsonl'],
      ['C:\\windows\\rows.jsonl', 'rows.jsonl'],
      ['rows\u202egnp.jsonl', 'rowsgnp.jsonl'],
      ['ro\u0000ws\u200b.jsonl', 'rows.jsonl'],
    ];
    for (const [index, [given, shown]] of names.entries()) expect(shownFilename(given), `${index}`).toBe(shown);
    const done = await rig.upload(bob, net, '../../../../tmp/evil/rows.jsonl', JSON.stringify(chatRow(140)));
    expect(done.filename).toBe('rows.jsonl');
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 400 }), (name) => {
        const shown = shownFilename(name);
        expect(shown).not.toMatch(/[/\\\p{C}]/u);
        expect(['', '.', '..']).not.toContain(shown);
        expect([...shown].length).toBeLessThanOrEqual(limits.fileNameCharactersMax);
      }),
    );
  });

  test('a million rows are refused before one is stored', async () => {
    const net = await open({ kind: 'completion' });
    const before = await count('SELECT count(*) FROM datanet_rows');
    const line = Buffer.from('{"prompt":"","completion":"a"}\n');
    const done = await rig.upload(bob, net, 'million.jsonl', Buffer.alloc(1_000_000 * line.length, line));
    expect(done).toMatchObject({ state: 'failed', rows: 0, error: { code: 'too_many_rows' } });
    expect(done.error?.message).toContain(String(limits.contributionRowsMax));
    for (const [name, content] of [
      ['million.csv', `prompt,response\n${'"a","b"\n'.repeat(1_000_000)}`],
      ['million.json', `[${'{},'.repeat(999_999)}{}]`],
      ['numbers.json', `[${'1,'.repeat(999_999)}1]`],
    ] as const)
      expect((await rig.upload(bob, net, name, content)).error?.code, name).toBe('too_many_rows');
    expect(await count('SELECT count(*) FROM datanet_rows')).toBe(before);
  });

  test('blank lines are no rows: they do not count against the most there may be', async () => {
    const net = await open();
    const text = `${JSON.stringify(chatRow(150))}${'\n'.repeat(limits.contributionRowsMax + 10)}${JSON.stringify(chatRow(151))}`;
    expect(await rig.upload(bob, net, 'blank.jsonl', text)).toMatchObject({ state: 'ready', rows: 2 });
  });
});

describe('permission', () => {
  test('the operator, consumers, strangers of a permissioned Datanet and contributors to a revoked one are refused', async () => {
    const net = await open({ visibility: 'permissioned' });
    const path = `/api/datanets/${net.id}/contributions`;
    const body = { rows: [chatRow(160)], licence: LICENCE };
    expect(await errorOf(await rig.call('POST', path, body))).toMatchObject({ code: 'user_required' });
    expect(await errorOf(await eve.call('POST', path, body))).toMatchObject({ code: 'access_required' });
    expect((await eve.call('GET', `/api/datanets/${net.id}/rows`)).status).toBe(403);
    expect((await eve.call('GET', `/api/datanets/${net.id}/search?q=a`)).status).toBe(403);
    expect((await eve.call('GET', `/api/datanets/${net.id}`)).status).toBe(200);
    const consumer = await rig.person('Con', 'consumer');
    expect((await consumer.call('POST', path, body)).status).toBe(403);
  });

  test('what one may do is asked again when the upload has ended: a role, a key or a Datanet taken away meanwhile counts', async () => {
    const { users, keys, datanets } = {
      users: rig.app.services.people.users,
      keys: rig.app.services.keys,
      datanets: rig.database.db.$client,
    };
    const cases: [string, (user: TestUser, net: View) => Promise<unknown>, number][] = [
      [
        'role',
        async (user) => rig.app.services.people.changeUser((await users.find(user.id))!, { role: 'consumer' }),
        403,
      ],
      [
        'user',
        async (user) => rig.app.services.people.changeUser((await users.find(user.id))!, { state: 'disabled' }),
        401,
      ],
      ['key', async (user) => keys.revoke(user.keyId), 401],
      [
        'Datanet',
        async (_, net) =>
          datanets.execute({ sql: "UPDATE datanets SET state = 'revoked' WHERE id = ?", args: [net.id] }),
        403,
      ],
      ['licence', async (_, net) => ann.call('PATCH', `/api/datanets/${net.id}`, { licence: 'MIT' }), 400],
    ];
    for (const [name, change, status] of cases) {
      const user = await rig.person(`Slow ${name}`, 'contributor');
      const net = await open();
      const boundary = 'x-boundary';
      const part = (text: string) => new TextEncoder().encode(text);
      const head = `--${boundary}\r\ncontent-disposition: form-data; name="licence"\r\n\r\n${LICENCE}\r\n--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\ncontent-type: application/octet-stream\r\n\r\n`;
      const body = new ReadableStream<Uint8Array>({
        async start(controller) {
          controller.enqueue(part(head));
          controller.enqueue(part(`${JSON.stringify(chatRow(170))}\n`));
          await new Promise((resolve) => setTimeout(resolve, 30));
          await change(user, net);
          controller.enqueue(part(`${JSON.stringify(chatRow(171))}\r\n--${boundary}--\r\n`));
          controller.close();
        },
      });
      const response = await rig.app.fetch(
        new Request(`http://gateway.test/api/datanets/${net.id}/contributions`, {
          method: 'POST',
          headers: {
            authorization: `Bearer ${user.credential}`,
            'content-type': `multipart/form-data; boundary=${boundary}`,
          },
          body,
          duplex: 'half',
        } as RequestInit),
      );
      expect(response.status, name).toBe(status);
      expect(await count('SELECT count(*) FROM contributions WHERE contributor = ?', user.id), name).toBe(0);
      expect(await readdir(join(rig.filesFolder, '..', 'contributions')), name).toEqual([]);
    }
  });

  test('contributors see their own contributions and pending rows, those who govern all, others none', async () => {
    const net = await open();
    const mine = await rig.contribute(bob, net, [chatRow(180)]);
    const [row] = await rowsOf(bob, net, '&contributor=me');
    const one = `/api/datanets/${net.id}/contributions/${mine.id}`;
    const rowPath = `/api/datanets/${net.id}/rows/${row?.id}`;
    expect((await bob.call('GET', one)).status).toBe(200);
    expect((await ann.call('GET', one)).status).toBe(200);
    expect((await eve.call('GET', one)).status).toBe(404);
    expect((await eve.call('DELETE', one)).status).toBe(404);
    expect((await ann.call('DELETE', one)).status).toBe(403);
    expect((await bob.call('GET', rowPath)).status).toBe(200);
    expect((await ann.call('GET', rowPath)).status).toBe(200);
    expect((await eve.call('GET', rowPath)).status).toBe(404);
    expect((await rowsOf(eve, net)).map(({ id }) => id)).not.toContain(row?.id);
    expect(await rowsOf(eve, net, `&contribution=${mine.id}`)).toEqual([]);
    expect(await rowsOf(eve, net, `&contributor=${bob.id}`)).toEqual([]);
    expect(await rowsOf(eve, net, '&state=pending')).toEqual([]);
    const listed = await rig.json<{ data: View[] }>(
      await eve.call('GET', `/api/datanets/${net.id}/contributions`),
      200,
    );
    expect(listed.data).toEqual([]);
    // A row of one Datanet is not found in another.
    const other = await open();
    expect((await ann.call('GET', `/api/datanets/${other.id}/rows/${row?.id}`)).status).toBe(404);
    expect((await ann.call('GET', `/api/datanets/${other.id}/contributions/${mine.id}`)).status).toBe(404);
  });
});

describe('limits of a user', () => {
  test('so many contributions at once, and so many bytes a day', async () => {
    const small = await startDatanetRig({ datanets: { bytesPerDay: 2_000 } });
    try {
      const owner = await small.person('Owner');
      const net = await small.datanet(owner);
      const text = JSON.stringify(chatRow(1));
      expect((await small.upload(owner, net, 'a.jsonl', text)).state).toBe('ready');
      const over = await small.send(owner, net, 'b.jsonl', text.repeat(10));
      expect(over.status).toBe(429);
      expect(await errorOf(over)).toMatchObject({ code: 'contribution_quota_exceeded' });
      // Whoever takes back what they sent has sent it all the same.
      const back = await small.upload(owner, net, 'd.jsonl', JSON.stringify(chatRow(2, 'word '.repeat(180))));
      expect(back.state).toBe('ready');
      const again = await small.send(owner, net, 'e.jsonl', JSON.stringify(chatRow(3, 'text '.repeat(180))));
      expect(again.status).toBe(429);
      expect((await owner.call('DELETE', `/api/datanets/${net.id}/contributions/${back.id}`)).status).toBe(200);
      const round = await small.send(owner, net, 'e.jsonl', JSON.stringify(chatRow(3, 'text '.repeat(180))));
      expect([round.status, (await errorOf(round)).code]).toEqual([429, 'contribution_quota_exceeded']);
      // As if all that may be were on their way; those that have come whole make room.
      const { receiving } = small.app.services.datanets.contributions;
      const arrived = Array.from({ length: limits.contributionsUnderWayMax }, () => receiving.begin(owner.id, 99));
      const flood = await small.send(owner, net, 'c.jsonl', '{}');
      expect([flood.status, (await errorOf(flood)).code]).toEqual([429, 'contribution_limit_exceeded']);
      for (const end of arrived) end?.();
      const refused = await small.send(owner, net, 'c.txt', '{}');
      expect([refused.status, receiving.begin(owner.id, 1) === null]).toEqual([400, false]);
      // As if four were being read.
      for (let at = 0; at < limits.contributionsUnderWayMax; at++)
        await small.database.db.$client.execute({
          sql: `INSERT INTO contributions (id, datanet_id, contributor, key_id, filename, bytes, sha256, options, licence, state, created_at)
            VALUES (?, ?, ?, 'k', 'f', 0, '', '{}', '', 'processing', 0)`,
          args: [`con_${at}`, net.id, owner.id],
        });
      const busy = await small.send(owner, net, 'c.jsonl', '{}');
      expect(busy.status).toBe(429);
      expect(await errorOf(busy)).toMatchObject({ code: 'contribution_limit_exceeded' });
    } finally {
      await small.close();
    }
  });
});

describe('taking back', () => {
  const leftOf = async (id: string) => ({
    contributions: await count('SELECT count(*) FROM contributions WHERE id = ?', id),
    rows: await count('SELECT count(*) FROM datanet_rows WHERE contribution_id = ?', id),
  });

  test('a contribution goes with its rows, their words and signatures; then others may contribute the same', async () => {
    const net = await open();
    const texts = await count('SELECT count(*) FROM datanet_signatures');
    const bands = await count('SELECT count(*) FROM datanet_bands');
    const rows = chatRows(600, 5_000);
    const done = await rig.contribute(bob, net, rows);
    expect(done.rows).toBe(600);
    const found = async () =>
      count(
        'SELECT count(*) FROM datanet_rows_text WHERE datanet_rows_text MATCH ?',
        `net : dn${(await rig.app.services.datanets.records.get(net.id))?.seq}`,
      );
    expect(await found()).toBe(601);
    expect((await bob.call('DELETE', `/api/datanets/${net.id}/contributions/${done.id}`)).status).toBe(200);
    expect(await leftOf(done.id)).toEqual({ contributions: 0, rows: 0 });
    expect(await count('SELECT count(*) FROM datanet_signatures')).toBe(texts);
    expect(await count('SELECT count(*) FROM datanet_bands')).toBe(bands);
    expect(await found()).toBe(1);
    expect((await bob.call('GET', `/api/datanets/${net.id}/contributions/${done.id}`)).status).toBe(404);
    expect(await rig.contribute(eve, net, rows.slice(0, 5))).toMatchObject({ state: 'ready', rows: 5, refused: 0 });
  });

  test('while it is being read, too', async () => {
    const net = await open();
    const body = { rows: chatRows(3_000, 10_000), licence: LICENCE };
    const { id } = await rig.json(await bob.call('POST', `/api/datanets/${net.id}/contributions`, body), 202);
    await until(async () => (await leftOf(id)).rows > 0);
    expect((await rig.contribution(bob, net, id)).progress).toMatchObject({ unit: 'bytes' });
    expect((await bob.call('DELETE', `/api/datanets/${net.id}/contributions/${id}`)).status).toBe(200);
    await rig.app.services.datanets.contributions.idle();
    expect(await leftOf(id)).toEqual({ contributions: 0, rows: 0 });
  });

  test('not once a row of it is published', async () => {
    const net = await open();
    const done = await rig.contribute(bob, net, chatRows(3, 20_000));
    await rig.approveAll(ann, net);
    await rig.publish(ann, net);
    const response = await bob.call('DELETE', `/api/datanets/${net.id}/contributions/${done.id}`);
    expect(response.status).toBe(409);
    expect(await leftOf(done.id)).toEqual({ contributions: 1, rows: 3 });
  });
});
