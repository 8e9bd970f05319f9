/** Training on versions of Datanets: who may, when it is asked, what exactly is sent, and what stays on record of it. */
import { createHash } from 'node:crypto';
import { eq } from 'drizzle-orm';
import type OpenAI from 'openai';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { canonicalJson, leafHash } from '../../../daemon/evidence.ts';
import { termsHash } from '../../../gateway/datanets/access/terms.ts';
import { datanetRows } from '../../../gateway/db/datanet-schema.ts';
import { chatExamples, DatanetFixture, type MadeDatanet } from '../datanets/fixture.ts';
import { errorOf, type TestUser } from '../rig.ts';
import { chatLines, type FactoryRig, preferenceLines, startFactoryRig } from './rig.ts';

let rig: FactoryRig;
let fixture: DatanetFixture;
let owner: TestUser;
let builder: TestUser;
let now = Date.now();
beforeAll(async () => {
  rig = await startFactoryRig({ now: () => now });
  fixture = new DatanetFixture(rig.database.db, () => now, rig.app.services.datanets.key);
});
afterAll(() => rig?.close());
beforeEach(async () => {
  now = Math.max(now, Date.now());
  Object.assign(rig.training, { stepMs: 2, steps: 4, memoryAvailableBytes: 8e9, problems: [], failAt: null });
  owner = await rig.user();
  builder = await rig.user();
});

const fileOf = (datanet: MadeDatanet, version = 1) => `file-${datanet.id}-v${version}`;
async function accept(user: TestUser, datanet: MadeDatanet): Promise<void> {
  const row = await datanet.row();
  const body = { licence: row.licence, terms_sha256: termsHash(row) };
  const response = await user.call('POST', `/api/datanets/${datanet.id}/licence-acceptance`, body);
  expect(response.status).toBe(200);
}
/** @returns the id of the request, approved */
async function grant(
  user: TestUser,
  datanet: MadeDatanet,
  options: object = {},
  organization_id: string | null = null,
): Promise<string> {
  const { licence } = await datanet.row();
  const path = `/api/datanets/${datanet.id}/access-requests`;
  const asked = await user.call('POST', path, {
    purpose: 'to train a model with it',
    licence_accepted: licence,
    organization_id,
  });
  expect(asked.status).toBe(201);
  const { id } = (await asked.json()) as { id: string };
  expect((await owner.call('POST', `${path}/${id}/approve`, options)).status).toBe(200);
  return id;
}
type Extension = { sources: Record<string, unknown>[]; marks: Record<string, unknown>[] };
const extensionOf = (job: unknown) => (job as { modelfactory: Extension }).modelfactory;
const create = (user: TestUser, body: object) =>
  user.call('POST', '/v1/fine_tuning/jobs', { model: 'tiny-base', seed: 11, ...body });
async function made(user: TestUser, body: object): Promise<string> {
  const response = await create(user, body);
  expect(response.status, await response.clone().text()).toBe(200);
  return ((await response.json()) as { id: string }).id;
}
/** What the daemon was sent for a job, line by line. */
function sentFor(id: string): string[] {
  const run = rig.training.runs.get(id)?.run;
  const dataset = rig.training.datasets.get(run?.request.dataset ?? '');
  return (dataset?.examples ?? []).map((example) => canonicalJson(example) as string);
}
const sha = (parts: Uint8Array[]) => {
  const sum = createHash('sha256');
  for (const part of parts) sum.update(part);
  return sum.digest('hex');
};

describe('versions of Datanets as files', () => {
  test('the OpenAI SDK retrieves, reads, lists and trains on them; nothing but the id is ours', async () => {
    const datanet = await fixture.make({ user: owner.id }, { name: `Recipes ${owner.id.slice(5, 11)}` });
    await datanet.publish(chatExamples(12));
    await accept(builder, datanet);
    const openai = rig.client(builder.credential);
    const file = await openai.files.retrieve(fileOf(datanet));
    expect(file).toMatchObject({ id: fileOf(datanet), object: 'file', purpose: 'datanet', status: 'processed' });
    expect(file.bytes).toBeGreaterThan(500);
    const lines = (await (await openai.files.content(file.id)).text()).trim().split('\n');
    expect(lines).toHaveLength(12);
    expect(JSON.parse(lines[3] as string)).toEqual({
      messages: [
        { role: 'user', content: 'Question about row 3' },
        { role: 'assistant', content: 'Answer about row 3' },
      ],
    });
    const job = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file.id, seed: 3 });
    expect(job.training_file).toBe(file.id);
    expect((await rig.until(job.id)).status).toBe('succeeded');
  });

  test('they are not among uploads; with purpose=datanet come those one may train on, page by page', async () => {
    const mine = await fixture.make({ user: owner.id });
    await mine.publish(chatExamples(2, 'first'));
    await mine.publish(chatExamples(2, 'second'));
    const agreed = await fixture.make({ user: builder.id });
    await agreed.publish(chatExamples(2));
    await accept(owner, agreed);
    const unread = await fixture.make({ user: builder.id }, { visibility: 'permissioned' });
    await unread.publish(chatExamples(2));
    const openai = rig.client(owner.credential);
    const uploads: string[] = [];
    for await (const { id } of openai.files.list()) uploads.push(id);
    expect(uploads).toEqual([]);
    const files: string[] = [];
    for await (const { id } of openai.files.list({ purpose: 'datanet', limit: 1 })) files.push(id);
    expect(files).toEqual([fileOf(agreed), fileOf(mine, 2), fileOf(mine, 1)]);
  });

  test('list, retrieve and create say the same of a version whose rows were withdrawn, and of one whose licence is not accepted', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(12, 'first'));
    // Came with version 2 and leaves with version 3: version 1 never had it.
    await datanet.publish(chatExamples(1, 'second'));
    await datanet.withdraw([datanet.seqs[12] as number]);
    const seen = async (user: TestUser) => {
      const openai = rig.client(user.credential);
      const listed: string[] = [];
      for await (const { id } of openai.files.list({ purpose: 'datanet', limit: 1 })) listed.push(id);
      const told = [];
      for (const version of [1, 2, 3]) {
        const file = fileOf(datanet, version);
        const { status } = await openai.files.retrieve(file);
        const response = await create(user, { training_file: file });
        const code = response.status === 200 ? null : (await errorOf(response)).code;
        told.push({ listed: listed.includes(file), status, code });
      }
      return told;
    };
    const good = { listed: true, status: 'processed', code: null };
    const gone = { listed: false, status: 'error', code: 'rows_withdrawn' };
    expect(await seen(owner)).toEqual([good, gone, good]);
    const later = { listed: false, status: 'uploaded', code: 'licence_not_accepted' };
    expect(await seen(builder)).toEqual([later, later, later]);
    await accept(builder, datanet);
    expect(await seen(builder)).toEqual([good, gone, good]);
    const why = await rig.client(owner.credential).files.retrieve(fileOf(datanet, 2));
    expect(why.status_details).toMatch(/A row of version 2 .* was withdrawn since\. Train on a newer version/);
  });

  test('what training on one takes can be asked before', async () => {
    const datanet = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    await datanet.publish(chatExamples(12));
    const answer = await owner.call('POST', '/api/datasets/inspect', { file: fileOf(datanet) });
    expect(await answer.json()).toMatchObject({
      report: { ok: true, kind: 'chat', examples: 12 },
      statistics: { examples: 12 },
      estimate: { fits: true },
    });
    const refused = await builder.call('POST', '/api/datasets/inspect', { file: fileOf(datanet) });
    expect(refused.status).toBe(400);
    expect((await errorOf(refused)).code).toBe('file_not_found');
  });

  test('for whoever may not read it there is no such file, in the very same words', async () => {
    const datanet = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    await datanet.publish(chatExamples(12));
    const absent = await builder.call('GET', `/v1/files/file-dn_nothing-v1`);
    for (const path of ['', '/content']) {
      const answer = await builder.call('GET', `/v1/files/${fileOf(datanet)}${path}`);
      expect(answer.status).toBe(404);
      const { message, ...rest } = await errorOf(answer);
      expect(message).toBe(`No such File object: ${fileOf(datanet)}`);
      expect(rest).toEqual({ ...(await errorOf(absent.clone())), message: undefined });
    }
    expect((await builder.call('DELETE', `/v1/files/${fileOf(datanet)}`)).status).toBe(404);
    expect((await owner.call('GET', `/v1/files/${fileOf(datanet, 2)}`)).status).toBe(404);
    expect((await owner.call('GET', `/v1/files/file-${datanet.id}-v0`)).status).toBe(404);
    const refused = await owner.call('DELETE', `/v1/files/${fileOf(datanet)}`);
    expect(refused.status).toBe(403);
    expect((await errorOf(refused)).code).toBe('file_not_deletable');
  });
});

describe('permission when a job is made', () => {
  test('each reason in words', async () => {
    const open = await fixture.make({ user: owner.id });
    await open.publish(chatExamples(12));
    const closed = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    await closed.publish(chatExamples(12));
    const refusal = async (user: TestUser, training_file: string) => {
      const response = await create(user, { training_file });
      return { status: response.status, ...(await errorOf(response)) };
    };
    expect(await refusal(builder, fileOf(open))).toMatchObject({
      status: 403,
      type: 'permission_error',
      code: 'licence_not_accepted',
      param: 'training_file',
    });
    expect(await refusal(builder, fileOf(closed))).toMatchObject({ status: 403, code: 'access_required' });
    await grant(builder, closed);
    await made(builder, { training_file: fileOf(closed) });
    const revoked = await owner.call('POST', `/api/datanets/${open.id}/revoke`, { reason: 'a mistake' });
    expect(revoked.status).toBe(200);
    expect(await refusal(owner, fileOf(open))).toMatchObject({ status: 403, code: 'datanet_revoked' });
    // What was never published is not seen by others: as any file that is not there.
    const draft = await fixture.make({ user: owner.id });
    const hidden = await refusal(builder, fileOf(draft));
    expect(hidden).toMatchObject({ status: 400, code: 'file_not_found' });
    expect(await refusal(builder, 'file-nothing')).toMatchObject({ status: 400, code: 'file_not_found' });
    // The operator's key administers, but nobody stands behind it who could agree to a licence.
    const operator = await rig.call('POST', '/v1/fine_tuning/jobs', {
      model: 'tiny-base',
      training_file: fileOf(closed),
    });
    expect(operator.status).toBe(403);
    expect((await errorOf(operator)).code).toBe('user_required');
    const consumer = await rig.user({ role: 'consumer' });
    expect((await create(consumer, { training_file: fileOf(closed) })).status).toBe(403);
  });

  test('a licence that changed asks again', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(12));
    await accept(builder, datanet);
    const patched = await owner.call('PATCH', `/api/datanets/${datanet.id}`, { licence: 'CC-BY-SA-4.0' });
    expect(patched.status, await patched.text()).toBe(200);
    expect((await errorOf(await create(builder, { training_file: fileOf(datanet) }))).code).toBe(
      'licence_not_accepted',
    );
    await accept(builder, datanet);
    await made(builder, { training_file: fileOf(datanet) });
  });

  test('rows that were withdrawn are not trained on again, whichever version is named', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(14));
    await datanet.withdraw([datanet.seqs[2] as number]);
    const refused = await create(owner, { training_file: fileOf(datanet, 1) });
    expect(refused.status).toBe(403);
    expect(await errorOf(refused)).toMatchObject({ code: 'rows_withdrawn' });
    const id = await made(owner, { training_file: fileOf(datanet, 2) });
    expect((await rig.until(id)).status).toBe('succeeded');
    expect(sentFor(id)).toHaveLength(13);
  });
});

describe('permission when a run begins', () => {
  /** A job that is queued at the daemon and has not begun. */
  async function waiting(datanet: MadeDatanet): Promise<string> {
    rig.training.stepMs = null;
    const id = await made(builder, { training_file: fileOf(datanet) });
    await rig.until(id, 'queued');
    await expect.poll(() => rig.training.runs.get(id)?.run.status).toBe('queued');
    return id;
  }
  async function closedTo(user: TestUser): Promise<{ datanet: MadeDatanet; request: string }> {
    const datanet = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    await datanet.publish(chatExamples(12));
    return { datanet, request: await grant(user, datanet) };
  }
  async function failsWith(id: string, word: RegExp): Promise<void> {
    const job = await rig.until(id, 'failed');
    expect(job).toMatchObject({ status: 'failed', error: { code: 'permission_revoked' } });
    expect(job.error?.message).toMatch(word);
    expect(rig.training.runs.get(id)?.run.status).toBe('cancelled');
    expect(rig.training.runs.get(id)?.run.step).toBe(0);
  }

  test('access that is taken back stops what waits for its turn, and tells which Datanet', async () => {
    const { datanet, request } = await closedTo(builder);
    const id = await waiting(datanet);
    const body = { reason: 'not agreed any more' };
    const revoked = await owner.call('POST', `/api/datanets/${datanet.id}/access-requests/${request}/revoke`, body);
    expect(revoked.status).toBe(200);
    await failsWith(id, new RegExp(datanet.id));
  });

  test('so does the revocation of the Datanet', async () => {
    const { datanet } = await closedTo(builder);
    const id = await waiting(datanet);
    const revoked = await owner.call('POST', `/api/datanets/${datanet.id}/revoke`, { reason: 'a complaint' });
    expect(revoked.status).toBe(200);
    await failsWith(id, /revoked/);
  });

  test('a grant that expired is none', async () => {
    const datanet = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    await datanet.publish(chatExamples(12));
    await grant(builder, datanet, { expires_at: Math.floor(now / 1000) + 3600 });
    const id = await waiting(datanet);
    await rig.app.services.factory.askAgain({});
    expect((await rig.until(id, 'queued')).status).toBe('queued');
    now += 2 * 3_600_000;
    await rig.app.services.factory.askAgain({});
    await failsWith(id, /access/);
  });

  test.each([
    ['a user who is disabled', { state: 'disabled' }, /disabled/],
    ['a role that may not train', { role: 'consumer' }, /consumer/],
  ])('%s', async (_, change, word) => {
    const { datanet } = await closedTo(builder);
    const id = await waiting(datanet);
    expect((await rig.call('PATCH', `/api/users/${builder.id}`, change)).status).toBe(200);
    await failsWith(id, word);
  });

  test('whoever leaves the organisation that has access has it no longer', async () => {
    const datanet = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
    await datanet.publish(chatExamples(12));
    const made = await owner.call('POST', '/api/organizations', { name: `Bakers ${datanet.id.slice(3, 12)}` });
    expect(made.status, await made.clone().text()).toBe(201);
    const { id: organization } = (await made.json()) as { id: string };
    const member = `/api/organizations/${organization}/members/${builder.id}`;
    expect((await owner.call('PUT', member, { role: 'member' })).status).toBe(201);
    await grant(builder, datanet, {}, organization);
    const id = await waiting(datanet);
    expect((await owner.call('DELETE', member)).status).toBe(200);
    await failsWith(id, /no access/);
  });

  test('revoked while its files are validated: the run is never put', async () => {
    const { datanet } = await closedTo(builder);
    const plain = rig.daemon.extra;
    let revoked = false;
    rig.daemon.extra = async (request, response, url) => {
      if (url.pathname === '/datasets' && !revoked) {
        revoked = true;
        await owner.call('POST', `/api/datanets/${datanet.id}/revoke`, { reason: 'meanwhile' });
      }
      return (await plain?.(request, response, url)) ?? false;
    };
    try {
      const id = await made(builder, { training_file: fileOf(datanet) });
      expect((await rig.until(id)).error?.code).toBe('permission_revoked');
      expect(revoked).toBe(true);
      expect(rig.training.runs.has(id)).toBe(false);
    } finally {
      rig.daemon.extra = plain as NonNullable<typeof plain>;
    }
  });

  test('what has begun goes on and is marked; after a pause it does not go on', async () => {
    const { datanet } = await closedTo(builder);
    Object.assign(rig.training, { stepMs: 30, steps: 12 });
    const body = { training_file: fileOf(datanet) };
    const [goes, paused] = [await made(builder, body), await made(builder, body)];
    const begun = async (id: string) => {
      const job = await rig.until(id, 'running');
      return job.status;
    };
    expect(await begun(goes)).toBe('running');
    expect(await begun(paused)).toBe('running');
    expect((await builder.call('POST', `/v1/fine_tuning/jobs/${paused}/pause`)).status).toBe(200);
    await rig.until(paused, 'paused');
    const revoked = await owner.call('POST', `/api/datanets/${datanet.id}/revoke`, { reason: 'later' });
    expect(await revoked.json()).toMatchObject({ state: 'revoked', adapters_marked: 2 });
    const resumed = await builder.call('POST', `/v1/fine_tuning/jobs/${paused}/resume`);
    expect(resumed.status).toBe(200);
    expect((await rig.until(paused, 'failed')).error?.code).toBe('permission_revoked');
    const done = await rig.until(goes);
    expect(done.status).toBe('succeeded');
    expect(extensionOf(done).marks).toMatchObject([{ kind: 'revocation', datanet: datanet.id, version: 1 }]);
    const model = done.fine_tuned_model as string;
    const details = (await (await builder.call('GET', '/api/models')).json()) as {
      data: { id: string; marks: number }[];
    };
    expect(details.data.find(({ id }) => id === model)?.marks).toBe(1);
    expect(details.data.find(({ id }) => id === `${model}:ckpt-step-6`)?.marks).toBe(1);
    expect(details.data.find(({ id }) => id === 'tiny-base')?.marks).toBe(0);
  });
});

describe('mixtures', () => {
  test('shares by weight, interleaved, each source bound by the digest of what was sent of it', async () => {
    const datanet = await fixture.make({ user: owner.id });
    const version = await datanet.publish(chatExamples(30, 'shared'));
    const file = await rig.upload('own.jsonl', chatLines(10, 'own'), rig.client(owner.credential));
    const mixture = [
      { file: fileOf(datanet), weight: 0.75 },
      { file, weight: 0.25 },
    ];
    const id = await made(owner, { modelfactory: { mixture } });
    const job = await rig.until(id);
    expect(job).toMatchObject({ status: 'succeeded', training_file: fileOf(datanet) });
    const lines = sentFor(id);
    expect(lines).toHaveLength(40);
    const shared = lines.filter((line) => line.includes('shared'));
    expect(shared).toHaveLength(30);
    expect(new Set(shared).size).toBe(30);
    expect(lines.map((line) => line.includes('shared'))).not.toEqual([...Array(40).keys()].map((at) => at < 30));
    const { sources } = extensionOf(job);
    const all = await rig.database.db.select().from(datanetRows);
    const leafOfLine = new Map(all.map(({ content, leafHash }) => [content, leafHash]));
    expect(sources).toMatchObject([
      {
        file: fileOf(datanet),
        datanet: datanet.id,
        version: 1,
        root: version.root,
        weight: 3,
        examples: 30,
        digest: sha(shared.map((line) => leafOfLine.get(line) as Buffer)),
      },
      { file, datanet: null, version: null, root: null, weight: 1, examples: 10 },
    ]);
    const own = rig.training.datasets.get(rig.training.runs.get(id)?.run.request.dataset as string)?.examples ?? [];
    const digestOwn = sha(
      own
        .filter((example) => JSON.stringify(example).includes('own'))
        .map((example) => createHash('sha256').update(JSON.stringify(example)).digest()),
    );
    expect(sources[1]?.digest).toBe(digestOwn);
    // And so it reaches the run, its record and its card.
    const notes = rig.training.runs.get(id)?.run.request.notes ?? {};
    expect(notes.source_1).toContain(version.root);
    expect(notes.source_1).toContain(String(sources[0]?.digest));
    expect(Object.values(notes).every((note) => note.length <= 512)).toBe(true);
  });

  test('the same job twice is the same data; another seed, another row or another order is not', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(20, 'shared'));
    const client = rig.client(owner.credential);
    const own = chatLines(10, 'own').split('\n');
    const upload = (lines: string[]) => rig.upload('own.jsonl', lines.join('\n'), client);
    const [file, changed, turned] = [
      await upload(own),
      await upload([...own.slice(0, 9), chatLines(1, 'other')]),
      await upload([...own].reverse()),
    ];
    const datasetOf = async (second: string, seed: number) => {
      const mixture = [
        { file: fileOf(datanet), weight: 1 },
        { file: second, weight: 2 },
      ];
      const id = await made(owner, { seed, modelfactory: { mixture } });
      const job = await rig.until(id);
      expect(job.status).toBe('succeeded');
      const digests = extensionOf(job).sources.map(({ digest }) => digest);
      return { dataset: rig.training.runs.get(id)?.run.request.dataset, digests };
    };
    const first = await datasetOf(file, 5);
    expect(await datasetOf(file, 5)).toEqual(first);
    for (const other of [await datasetOf(file, 6), await datasetOf(changed, 5), await datasetOf(turned, 5)]) {
      expect(other.dataset).not.toBe(first.dataset);
      expect(other.digests[1]).not.toBe(first.digests[1]);
    }
  });

  test('what a request must not say', async () => {
    const client = rig.client(builder.credential);
    const [a, b] = [
      await rig.upload('a.jsonl', chatLines(10), client),
      await rig.upload('b.jsonl', chatLines(10, 'b'), client),
    ];
    const refusal = async (modelfactory: object, rest: object = {}) => {
      const response = await create(builder, { modelfactory, ...rest });
      expect(response.status).toBe(400);
      return (await errorOf(response)).param;
    };
    const part = (file: string, weight: number) => ({ file, weight });
    expect(await refusal({ mixture: [part(a, 1)] })).toBe('modelfactory.mixture');
    expect(await refusal({ mixture: [part(a, 1), part(a, 2)] })).toBe('modelfactory.mixture[1].file');
    expect(await refusal({ mixture: [part(a, 1), part('file-no', 2)] })).toBe('modelfactory.mixture[1].file');
    expect(await refusal({ mixture: [part(a, 0), part(b, 2)] })).toBe('modelfactory.mixture[0].weight');
    expect(await refusal({ mixture: [part(a, 1e7), part(b, 2)] })).toBe('modelfactory.mixture[0].weight');
    expect(await refusal({ mixture: [part(a, 1), part(b, 1)] }, { training_file: b })).toBe('training_file');
    expect(await refusal({ mixture: [part(a, 1), part(b, 1)] }, { validation_file: b })).toBe('validation_file');
    expect(await refusal({})).toBe('training_file');
    const both = await create(builder, { training_file: a, modelfactory: { mixture: [part(a, 1), part(b, 1)] } });
    expect(both.status).toBe(200);
  });

  test('sources of two kinds, and a source without a share, fail the job in words', async () => {
    const client = rig.client(builder.credential);
    const chats = await rig.upload('a.jsonl', chatLines(10), client);
    const pairs = await rig.upload('b.jsonl', preferenceLines(10), client);
    const more = await rig.upload('c.jsonl', chatLines(10, 'c'), client);
    const failure = async (mixture: object[]) => {
      const job = await rig.until(await made(builder, { modelfactory: { mixture } }));
      return job.error;
    };
    const mixed = await failure([
      { file: chats, weight: 1 },
      { file: pairs, weight: 1 },
    ]);
    expect(mixed).toMatchObject({ code: 'invalid_training_file', message: expect.stringMatching(/one kind/) });
    const none = await failure([
      { file: chats, weight: 1_000_000 },
      { file: more, weight: 0.001 },
    ]);
    expect(none?.message).toMatch(/Source 2 of the mixture would give none of the 20 examples/);
  });

  test('a validation file that is in the training data is told of, a Datanet’s too', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(12));
    const client = rig.client(owner.credential);
    const same = chatExamples(12).map((example) =>
      JSON.stringify({ messages: 'messages' in example ? example.messages : [] }),
    );
    const all = await rig.upload('same.jsonl', same.join('\n'), client);
    const job = await rig.until(await made(owner, { training_file: fileOf(datanet), validation_file: all }));
    expect(job.error).toMatchObject({
      code: 'invalid_validation_file',
      message: expect.stringMatching(/training file/),
    });
    const some = await rig.upload('some.jsonl', [...same.slice(0, 2), chatLines(10, 'new')].join('\n'), client);
    const turned = await rig.until(await made(owner, { training_file: some, validation_file: fileOf(datanet) }));
    expect(turned.status).toBe('succeeded');
    expect(extensionOf(turned).sources).toMatchObject([
      { role: 'training', file: some },
      { role: 'validation', file: fileOf(datanet), examples: 12 },
    ]);
    expect((await rig.messages(turned.id)).join('\n')).toMatch(/validation file has 2 warning\(s\): overlap × 2/);
  });

  describe('a database that somebody wrote to who has not the key', () => {
    /** Around the triggers, as somebody would who can write to the database's file. */
    async function tampered(sql: string, args: (string | number)[]): Promise<void> {
      const client = rig.database.db.$client;
      const { rows } = await client.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN ('datanet_rows', 'datanet_versions')",
      );
      for (const { name } of rows) await client.execute(`DROP TRIGGER ${name}`);
      await client.execute({ sql, args });
      for (const { sql: made } of rows) await client.execute(String(made));
    }
    const failureOf = async (file: string) => (await rig.until(await made(owner, { training_file: file }))).error;
    const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');
    async function published(): Promise<{ datanet: MadeDatanet; seq: number; content: string }> {
      const datanet = await fixture.make({ user: owner.id });
      await datanet.publish(chatExamples(12));
      const seq = datanet.seqs[4] as number;
      const [row] = await rig.database.db.select().from(datanetRows).where(eq(datanetRows.seq, seq));
      return { datanet, seq, content: row?.content as string };
    }

    test('a content that was changed stops the job, also where its hash was changed with it', async () => {
      const { datanet, seq, content } = await published();
      const other = content.replace('row 4', 'row X');
      await tampered('UPDATE datanet_rows SET content = ? WHERE seq = ?', [other, seq]);
      const told = {
        code: 'source_damaged',
        message: expect.stringMatching(`row_${seq} of .* is not what was published`),
      };
      expect(await failureOf(fileOf(datanet))).toMatchObject(told);
      await tampered('UPDATE datanet_rows SET content_hash = ? WHERE seq = ?', [sha256(other), seq]);
      expect(await failureOf(fileOf(datanet))).toMatchObject(told);
      await tampered('UPDATE datanet_rows SET content = ?, content_hash = ? WHERE seq = ?', [
        content,
        sha256(content),
        seq,
      ]);
      expect(await failureOf(fileOf(datanet))).toBeNull();
    });

    test('nor do leaves that were forged with it: the root, and then the signature, do not fit', async () => {
      const { datanet, seq, content } = await published();
      const other = content.replace('row 4', 'row X');
      const entry = `{"record":{"content":"${sha256(other)}"},"signature":""}`;
      await tampered('UPDATE datanet_rows SET content = ?, entry = ?, leaf_hash = ? WHERE seq = ?', [
        other,
        entry,
        Buffer.from(leafHash(entry)) as unknown as string,
        seq,
      ]);
      expect(await failureOf(fileOf(datanet))).toMatchObject({
        code: 'source_damaged',
        message: expect.stringMatching(/do not give the root that was published/),
      });
      // A whole version under another key: the root fits its rows, and nobody signed it.
      const forged = new DatanetFixture(rig.database.db, () => now);
      const own = await forged.make({ user: owner.id });
      await own.publish(chatExamples(12));
      expect(await failureOf(fileOf(own))).toMatchObject({
        code: 'source_damaged',
        message: expect.stringMatching(/does not verify with this server's key/),
      });
    });

    test('nor the signed checkpoint of another version', async () => {
      const datanet = await fixture.make({ user: owner.id });
      await datanet.publish(chatExamples(12, 'first'));
      await datanet.publish(chatExamples(12, 'second'));
      await tampered(
        'UPDATE datanet_versions SET (root, checkpoint) = (SELECT root, checkpoint FROM datanet_versions WHERE datanet_id = ?1 AND number = 1) WHERE datanet_id = ?1 AND number = 2',
        [datanet.id],
      );
      await tampered('UPDATE datanet_rows SET added_in = NULL WHERE datanet_id = ? AND added_in = 2', [datanet.id]);
      expect(await failureOf(fileOf(datanet, 2))).toMatchObject({
        code: 'source_damaged',
        message: expect.stringMatching(/is that of another version/),
      });
    });
  });
});

describe('what stays on record', () => {
  test('the adapter tells Datanets, versions, roots, contributors and marks, to whoever may use it', async () => {
    const contributor = await rig.user({ role: 'contributor', name: 'Ada' });
    const datanet = await fixture.make({ user: owner.id }, { licence: 'MIT' });
    await datanet.publish(chatExamples(8, 'hers'), contributor.id);
    const version = await datanet.publish(chatExamples(6, 'his'), owner.id);
    await accept(builder, datanet);
    const job = await rig.until(await made(builder, { training_file: fileOf(datanet, 2) }));
    const model = job.fine_tuned_model as string;
    const path = `/api/adapters/${encodeURIComponent(model)}/sources`;
    const answer = (await (await builder.call('GET', path)).json()) as { sources: Record<string, unknown>[] };
    expect(answer).toMatchObject({
      object: 'adapter.sources',
      adapter: model,
      job: job.id,
      sources: [
        {
          datanet: datanet.id,
          version: 2,
          root: version.root,
          rows: 14,
          examples: 14,
          licence: 'MIT',
          state: 'active',
          contributors: [
            { user: contributor.id, name: 'Ada', rows: 8 },
            { user: owner.id, rows: 6 },
          ],
        },
      ],
      marks: [],
    });
    expect((await owner.call('GET', path)).status).toBe(404);
    expect((await contributor.call('GET', '/api/adapters/ft:none/sources')).status).toBe(404);
    expect((await builder.call('GET', `${path.replace('/sources', ':ckpt-step-2/sources')}`)).status).toBe(200);
    // A personal key deletes what its user made; the record of it stays.
    expect(await rig.client(builder.credential).models.delete(model)).toMatchObject({ deleted: true });
    expect((await builder.call('GET', path)).status).toBe(200);
  });

  test('a withdrawal marks the adapters that were trained on the row, with how many; and none that sampled others', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(40, 'shared'));
    fixture.versions.onWithdrawn = (...of) => rig.app.services.factory.rowsWithdrawn(...of);
    const whole = await made(owner, { training_file: fileOf(datanet) });
    const file = await rig.upload('own.jsonl', chatLines(10, 'own'), rig.client(owner.credential));
    // 12 of the 40: a quarter of 50, and the half goes to the first.
    const sampling = await made(owner, {
      modelfactory: {
        mixture: [
          { file, weight: 3 },
          { file: fileOf(datanet), weight: 1 },
        ],
      },
    });
    for (const id of [whole, sampling]) expect((await rig.until(id)).status).toBe('succeeded');
    const contents = new Map(
      (await rig.database.db.select().from(datanetRows)).map(({ seq, content }) => [content as string, seq]),
    );
    const sampled = sentFor(sampling).flatMap((line) => contents.get(line) ?? []);
    expect(sampled).toHaveLength(12);
    const others = datanet.seqs.filter((seq) => !sampled.includes(seq));
    const marksOf = async (id: string) => extensionOf(await rig.until(id)).marks;
    await datanet.withdraw(others.slice(0, 2));
    expect(await marksOf(whole)).toMatchObject([{ kind: 'withdrawal', version: 1, rows: 2 }]);
    expect(await marksOf(sampling)).toEqual([]);
    now += 1000;
    const version = await datanet.withdraw([sampled[0] as number, sampled[5] as number, others[4] as number]);
    expect(await marksOf(whole)).toMatchObject([{ rows: 2 }, { rows: 3 }]);
    expect(await marksOf(sampling)).toMatchObject([{ kind: 'withdrawal', datanet: datanet.id, version: 1, rows: 2 }]);
    // Told twice, as after a crash, it is one mark.
    await rig.app.services.factory.rowsWithdrawn(await datanet.row(), version as never, [sampled[0] as number]);
    expect(await marksOf(sampling)).toHaveLength(1);
    const models = (await (await owner.call('GET', '/api/models')).json()) as { data: { id: string; marks: number }[] };
    const job: OpenAI.FineTuning.FineTuningJob = await rig.until(whole);
    expect(models.data.find(({ id }) => id === job.fine_tuned_model)?.marks).toBe(2);
  });

  test('what waits when a row of its version is withdrawn does not begin', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(20));
    fixture.versions.onWithdrawn = (...of) => rig.app.services.factory.rowsWithdrawn(...of);
    rig.training.stepMs = null;
    const id = await made(owner, { training_file: fileOf(datanet) });
    await rig.until(id, 'queued');
    await expect.poll(() => rig.training.runs.has(id)).toBe(true);
    await datanet.withdraw([datanet.seqs[0] as number]);
    const job = await rig.until(id, 'failed');
    expect(job.error).toMatchObject({ code: 'permission_revoked', message: expect.stringMatching(/withdrawn/) });
  });

  test('revoked, active again, revoked again: marks stay, and each revocation is one', async () => {
    const datanet = await fixture.make({ user: owner.id });
    await datanet.publish(chatExamples(12));
    const id = await made(owner, { training_file: fileOf(datanet) });
    await rig.until(id);
    const act = (verb: string) => owner.call('POST', `/api/datanets/${datanet.id}/${verb}`, { reason: 'for the test' });
    expect((await act('revoke')).status).toBe(200);
    expect((await act('revoke')).status).toBe(409);
    expect((await act('reactivate')).status).toBe(200);
    now += 1000;
    expect((await act('revoke')).status).toBe(200);
    expect(extensionOf(await rig.until(id)).marks).toHaveLength(2);
    await expect(rig.database.db.$client.execute('DELETE FROM adapter_marks')).rejects.toThrow(/on record/);
    await expect(rig.database.db.$client.execute('DELETE FROM job_sources')).rejects.toThrow(/on record/);
  });
});

test('the database itself keeps what a job was trained on, who was given access, and Datanets that were published', async () => {
  const datanet = await fixture.make({ user: owner.id }, { visibility: 'permissioned' });
  await datanet.publish(chatExamples(12, 'kept'));
  await grant(builder, datanet);
  const id = await made(builder, { training_file: fileOf(datanet) });
  await rig.until(id);
  await datanet.withdraw(datanet.seqs.slice(0, 1));
  const run = (sql: string, of: string) => rig.database.db.$client.execute({ sql, args: [of] });
  for (const change of ["digest = 'x'", 'examples = 1', 'digest = NULL', "root = 'x'", "file_id = 'x'", 'version = 2'])
    await expect(run(`UPDATE job_sources SET ${change} WHERE job_id = ?`, id), change).rejects.toThrow(/on record/);
  await expect(run('DELETE FROM job_sources WHERE job_id = ?', id)).rejects.toThrow(/on record/);
  await expect(run('UPDATE adapter_marks SET rows = 0 WHERE job_id = ?', id)).rejects.toThrow(/on record/);
  await expect(run('DELETE FROM access_requests WHERE datanet_id = ?', datanet.id)).rejects.toThrow(/on record/);
  await expect(run('DELETE FROM datanets WHERE id = ?', datanet.id)).rejects.toThrow(/on record/);
});
