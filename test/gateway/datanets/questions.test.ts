import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Script } from '../../support/scripted-daemon.ts';
import type { TestUser } from '../rig.ts';
import { type DatanetRig, LICENCE, startDatanetRig, type View } from './rig.ts';

let rig: DatanetRig;
let ann: TestUser;
let net: View;

const DOCUMENT = [
  '# Rivers\n\nThe Danube rises in the Black Forest and flows into the Black Sea after 2850 kilometres.',
  '# Lakes\n\nLake Balaton is the largest lake of Hungary and is called the Hungarian Sea.',
].join('\n\n');

const asJson = (pairs: { question: string; answer: string }[]) => JSON.stringify({ pairs });

/** Answers as a model would that reads what it is asked about. */
const answering: Script = (request, line) => {
  const asked = JSON.stringify(request.prompt);
  const pairs = asked.includes('Danube')
    ? [{ question: 'Where does the Danube rise?', answer: 'The Danube rises in the Black Forest.' }]
    : [{ question: 'What is Lake Balaton called?', answer: 'Lake Balaton is called the Hungarian Sea.' }];
  return line.say([asJson(pairs)]);
};

beforeEach(async () => {
  rig = await startDatanetRig({ script: answering });
  ann = await rig.person('Ann');
  net = await rig.datanet(ann);
});
afterEach(() => rig.close());

const QUESTIONS = { questions: JSON.stringify({ model: 'tiny-base', per_chunk: 1 }), chunk_characters: '200' };

test('questions about a document become rows marked with the model that wrote them; the contributor pays for each', async () => {
  const done = await rig.upload(ann, net, 'rivers.md', DOCUMENT, QUESTIONS);
  expect(done).toMatchObject({ state: 'ready', rows: 2, options: { questions: { model: 'tiny-base', per_chunk: 1 } } });
  const { data } = await rig.json<{ data: View[] }>(await ann.call('GET', `/api/datanets/${net.id}/rows`), 200);
  expect(data.map(({ generated_by }) => generated_by)).toEqual(['tiny-base', 'tiny-base']);
  expect(data.map(({ content }) => content)).toContainEqual({
    kind: 'chat',
    messages: [
      { role: 'user', content: 'Where does the Danube rise?' },
      { role: 'assistant', content: 'The Danube rises in the Black Forest.' },
    ],
  });
  await rig.settled();
  const paid = await rig.money(ann.keyId);
  expect(paid.spent).toBeGreaterThan(0);
  expect(paid.reserved).toBe(0);
  expect(rig.daemon.settlements.size).toBe(rig.daemon.requests.length);
  expect(rig.daemon.requests.length).toBeGreaterThanOrEqual(2);
});

test('a document that was sent from a browser is paid for by the account', async () => {
  const session = await ann.session();
  const form = new FormData();
  for (const [name, value] of Object.entries({ licence: LICENCE, ...QUESTIONS })) form.append(name, value);
  form.append('file', new Blob([DOCUMENT]), 'rivers.md');
  const sent = await rig.app.fetch(
    new Request(`http://gateway.test/api/datanets/${net.id}/contributions`, {
      method: 'POST',
      headers: { cookie: session.cookie, 'x-csrf-token': session.csrf },
      body: form,
    }),
  );
  const { id } = await rig.json<View>(sent, 202);
  await rig.app.services.datanets.contributions.idle();
  expect(await rig.contribution(ann, net, id)).toMatchObject({ state: 'ready', rows: 2 });
  await rig.settled();
  const row = await rig.app.services.people.users.find(ann.id);
  expect((await rig.money(row?.accountKey as string)).spent).toBeGreaterThan(0);
});

test('a budget that is spent ends it with a reason, and nothing of it is kept', async () => {
  await rig.app.services.keys.patch(ann.keyId, { budgetMicros: 1 });
  const done = await rig.upload(ann, net, 'rivers.md', DOCUMENT, QUESTIONS);
  expect(done).toMatchObject({ state: 'failed', rows: 0, error: { code: 'insufficient_quota' } });
  expect(await rig.money(ann.keyId)).toEqual({ spent: 0, reserved: 0 });
});

test('a model that writes nothing the text bears out makes no rows', async () => {
  rig.daemon.script = (_, line) => line.say(['I would rather not.']);
  const done = await rig.upload(ann, net, 'rivers.md', DOCUMENT, QUESTIONS);
  expect(done).toMatchObject({ state: 'failed', rows: 0, error: { code: 'no_questions' } });
});

test('a key that is revoked meanwhile pays for nothing more', async () => {
  let asked = 0;
  rig.daemon.script = async (request, line) => {
    asked += 1;
    if (asked === 1) await rig.app.services.keys.revoke(ann.keyId);
    return answering(request, line);
  };
  const long = Array.from(
    { length: 12 },
    (_, index) => `# Part ${index}\n\nThe Danube has a part ${index} in the Black Forest.`,
  );
  const { id } = await rig.json(await rig.send(ann, net, 'long.md', long.join('\n\n'), QUESTIONS), 202);
  await rig.app.services.datanets.contributions.idle();
  const row = await rig.app.services.datanets.contributions.rows.get(id);
  expect(row).toMatchObject({ state: 'failed', error: { code: 'key_not_valid' } });
  expect(asked).toBeLessThan(12);
});

test('a start after a crash goes on where the questions ended: what was written is not paid for again', async () => {
  const parts = Array.from(
    { length: 12 },
    (_, index) => `# Part ${index}\n\nThe Danube has a part ${index} in the Black Forest, and rises there.`,
  );
  const partsAsked: string[] = [];
  let reached: () => void = () => {};
  const stuck = new Promise<void>((resolve) => {
    reached = resolve;
  });
  rig.daemon.script = async (request, line) => {
    partsAsked.push(/has a part (\d+) in/.exec(JSON.stringify(request.prompt))?.[1] ?? '');
    if (partsAsked.length <= 8) return answering(request, line);
    line.start();
    reached();
    await line.gone;
  };
  const { id } = await rig.json(await rig.send(ann, net, 'long.md', parts.join('\n\n'), QUESTIONS), 202);
  await stuck;
  await rig.app.services.datanets.contributions.stop();
  const written = [...(await rig.app.services.datanets.contributions.rows.questions(id)).keys()].map(String);
  expect(written.length).toBeGreaterThanOrEqual(5);
  partsAsked.length = 0;
  rig.daemon.script = (request, line) => {
    partsAsked.push(/has a part (\d+) in/.exec(JSON.stringify(request.prompt))?.[1] ?? '');
    return answering(request, line);
  };
  const next = await rig.restarted();
  await next.start({ exclusive: true });
  await next.contributions.idle();
  expect((await rig.contribution(ann, net, id)).state).toBe('ready');
  expect(partsAsked.length).toBeGreaterThan(0);
  expect(partsAsked.filter((part) => written.includes(part))).toEqual([]);
  expect((await next.contributions.rows.questions(id)).size).toBe(0);
  await next.stop();
});

test('taking it back stops the generation and leaves nothing', async () => {
  let started: () => void = () => {};
  const begun = new Promise<void>((resolve) => {
    started = resolve;
  });
  rig.daemon.script = async (_, line) => {
    line.start();
    started();
    await line.gone;
  };
  const { id } = await rig.json(await rig.send(ann, net, 'rivers.md', DOCUMENT, QUESTIONS), 202);
  await begun;
  expect((await ann.call('DELETE', `/api/datanets/${net.id}/contributions/${id}`)).status).toBe(200);
  await rig.app.services.datanets.contributions.idle();
  expect((await ann.call('GET', `/api/datanets/${net.id}/contributions/${id}`)).status).toBe(404);
  await rig.settled();
  expect((await rig.money(ann.keyId)).reserved).toBe(0);
  expect(LICENCE).toBe(net.licence);
});
