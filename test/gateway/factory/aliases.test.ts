/** Aliases: they move only when a report says so, and come back in one call. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { EvaluationReport, EvaluationScores, Measured } from '../../../daemon/protocol.ts';
import { createApp } from '../../../gateway/app.ts';
import { checkCriteria } from '../../../gateway/factory/evaluations/criteria.ts';
import { adapterOf } from '../../support/scripted-daemon.ts';
import { errorOf, NO_FILES, noDatanets, PRICE, type Rig, startRig } from '../rig.ts';

let rig: Rig;
const digestOf = (name: string) => Buffer.from(name.padEnd(32, '-')).toString('hex').slice(0, 64);
const about = (value: number): Measured => ({ value, low: value - 0.05, high: value + 0.05 });

function scoresOf(model: string | null, loss: number, rougeL: number): EvaluationScores {
  return {
    model,
    adapterDigest: model === null ? null : digestOf(model),
    loss: about(loss),
    perplexity: about(Math.exp(loss)),
    tokenAccuracy: about(0.5),
    rougeL: about(rougeL),
    graders: { polite: about(rougeL / 2) },
    graderFailures: {},
  };
}

/** As an evaluation leaves it. */
async function report(id: string, scores: EvaluationScores[], key = 'admin', extra: Partial<EvaluationReport> = {}) {
  const principal = { keyId: key, ownerId: key } as Parameters<typeof rig.app.services.evaluations.add>[0];
  await rig.app.services.evaluations.add(principal, 'file-x', {
    id,
    createdAt: new Date().toISOString(),
    baseDigest: rig.daemon.model.digest,
    dataset: 'c'.repeat(64),
    examples: 10,
    unanswered: 0,
    request: {} as EvaluationReport['request'],
    scores,
    samples: [],
    seconds: 1,
    usage: { promptTokens: 1, cachedTokens: 0, completionTokens: 1 },
    costMicros: 0,
    ...extra,
  });
}

const BETTER = [{ metric: 'rougeL', op: '>=', against: 'base', margin: 0.02 }];
const promote = (alias: string, model: string, extra: object = {}, headers = {}) =>
  rig.call(
    'POST',
    `/api/aliases/${alias}/promote`,
    { model, evaluation: 'eval-1', criteria: BETTER, ...extra },
    headers,
  );
const rollback = (alias: string) => rig.call('POST', `/api/aliases/${alias}/rollback`, {});
const targetOf = async (alias: string) =>
  ((await (await rig.call('GET', `/api/aliases/${alias}`)).json()) as { model: string }).model;
const ask = async (model: string, credential?: string) =>
  (await rig.client(credential).chat.completions.create({ model, messages: [{ role: 'user', content: 'Hi' }] })).model;

beforeEach(async () => {
  rig = await startRig({ adapters: ['one', 'two', 'three'] });
  for (const name of ['one', 'two', 'three'])
    rig.daemon.adapters.set(name, { ...adapterOf(name), digest: digestOf(name) });
  await report('eval-1', [
    scoresOf(null, 3, 0.2),
    scoresOf('one', 2, 0.3),
    scoresOf('two', 1.9, 0.35),
    scoresOf('three', 2.5, 0.21),
  ]);
});
afterEach(() => rig.close());

describe('promotion', () => {
  test('an alias stands for a model once its criteria hold, and is a model for the OpenAI SDK', async () => {
    const promoted = await promote('support', 'one');
    expect(promoted.status).toBe(200);
    expect(await promoted.json()).toMatchObject({
      object: 'alias',
      alias: 'support',
      model: 'one',
      digest: digestOf('one'),
      version: 1,
      evaluation: 'eval-1',
      criteria: [{ criterion: 'rougeL >= base + 0.02', value: 0.3, bound: 0.22, met: true }],
    });
    expect(await ask('support')).toBe('one');
    expect(rig.daemon.requests.at(-1)?.adapter).toBe('one');
    const stream = await rig
      .client()
      .chat.completions.create({ model: 'support', messages: [{ role: 'user', content: 'Hi' }], stream: true });
    for await (const chunk of stream) expect(chunk.model).toBe('one');
    const models = await rig.client().models.list();
    expect(models.data.map(({ id }) => id)).toContain('support');
    expect((await rig.client().models.retrieve('support')).id).toBe('support');
    const details = (await (await rig.call('GET', '/api/models')).json()) as { data: object[] };
    expect(details.data).toContainEqual(expect.objectContaining({ id: 'support', kind: 'alias', model: 'one' }));
  });

  test('is refused with the numbers of each criterion that fails, and changes nothing', async () => {
    await promote('support', 'one');
    const refused = await promote('support', 'three', {
      criteria: [
        { metric: 'rougeL', op: '>=', against: 'base', margin: 0.02 },
        { metric: 'loss', op: '<', against: 'current' },
        { metric: 'rougeL', op: '>', against: 0.1 },
        { metric: 'grader:polite', op: '>=', against: 'current' },
      ],
    });
    expect(refused.status).toBe(409);
    const { code, message } = await errorOf(refused);
    expect(code).toBe('criteria_not_met');
    expect(message).toContain('rougeL >= base + 0.02: it is 0.21, and had to be >= 0.22');
    expect(message).toContain('loss < current: it is 2.5, and had to be < 2');
    expect(message).toContain('grader:polite >= current: it is 0.105, and had to be >= 0.15');
    expect(message).not.toContain('rougeL > 0.1');
    expect(await targetOf('support')).toBe('one');
  });

  test('rollback goes back, promotion by promotion, until there is nothing before', async () => {
    await promote('support', 'one');
    await promote('support', 'two', { criteria: [{ metric: 'loss', op: '<', against: 'current' }] });
    expect(await targetOf('support')).toBe('two');
    expect(await (await rollback('support')).json()).toMatchObject({ model: 'one', action: 'rollback', version: 3 });
    expect(await ask('support')).toBe('one');
    await promote('support', 'three', { criteria: [{ metric: 'loss', op: '<', against: 'base' }] });
    expect(await (await rollback('support')).json()).toMatchObject({ model: 'one', version: 5 });
    const nothing = await rollback('support');
    expect(nothing.status).toBe(409);
    expect((await errorOf(nothing)).code).toBe('nothing_to_roll_back');
    const { history } = (await (await rig.call('GET', '/api/aliases/support')).json()) as {
      history: { model: string; action: string; version: number }[];
    };
    expect(history.map(({ model, action }) => `${action} ${model}`)).toEqual([
      'rollback one',
      'promote three',
      'rollback one',
      'promote two',
      'promote one',
    ]);
  });

  test('of two at once, one is told that the alias was changed', async () => {
    await promote('support', 'one');
    for (let round = 0; round < 5; round += 1) {
      const answers = await Promise.all([
        promote('support', 'one'),
        promote('support', 'two'),
        promote('support', 'one'),
      ]);
      const statuses = answers.map(({ status }) => status).toSorted();
      expect(statuses[0]).toBe(200);
      for (const answer of answers) {
        if (answer.status !== 200) expect(await errorOf(answer)).toMatchObject({ code: 'alias_changed' });
      }
    }
    // Whoever wrote, no version was written twice and none is missing.
    const { history } = (await (await rig.call('GET', '/api/aliases/support')).json()) as {
      history: { version: number }[];
    };
    expect(history.map(({ version }) => version)).toEqual(history.map((_, i) => history.length - i));
  });

  test('a version that two computed at the same time is written by one alone', async () => {
    const { aliases } = rig.app.services;
    const row = {
      alias: 'x',
      version: 1,
      action: 'promote' as const,
      digest: null,
      origin: 1,
      parent: null,
      evaluation: null,
      checks: [],
      keyId: 'k',
      owner: 'k',
    };
    const written = await Promise.all(['one', 'two', 'three'].map((model) => aliases.append({ ...row, model })));
    expect(written.filter((one) => one !== null)).toHaveLength(1);
    expect((await aliases.find('x'))?.model).toBe(written.find((one) => one !== null)?.model);
  });

  test('needs a report of these weights over this base', async () => {
    expect(await errorOf(await promote('support', 'one', { evaluation: 'eval-none' }))).toMatchObject({
      code: 'evaluation_not_found',
    });
    await report('eval-2', [scoresOf(null, 3, 0.2), scoresOf('two', 1, 0.9)]);
    expect(await errorOf(await promote('support', 'one', { evaluation: 'eval-2' }))).toMatchObject({
      code: 'model_not_evaluated',
    });
    await report('eval-3', [scoresOf(null, 3, 0.2), scoresOf('one', 1, 0.9)], 'admin', { baseDigest: 'f'.repeat(64) });
    expect(await errorOf(await promote('support', 'one', { evaluation: 'eval-3' }))).toMatchObject({
      code: 'evaluation_outdated',
    });
    rig.daemon.adapters.set('one', { ...adapterOf('one'), digest: '9'.repeat(64) });
    rig.app.services.pool.invalidate();
    expect(await errorOf(await promote('support', 'one'))).toMatchObject({ code: 'evaluation_outdated' });
    // The report has no base: what is compared with it does not hold.
    await report('eval-4', [scoresOf('two', 1, 0.9)]);
    const { message } = await errorOf(await promote('support', 'two', { evaluation: 'eval-4' }));
    expect(message).toContain('the report has no rougeL of the base');
    const first = await errorOf(
      await promote('support', 'two', { criteria: [{ metric: 'loss', op: '<', against: 'current' }] }),
    );
    expect(first.message).toContain('what the alias stands for now');
  });
});

describe('what an alias stands for', () => {
  test('is a version: weights replaced under the name are not served, a kept version is', async () => {
    await promote('support', 'one');
    rig.daemon.adapters.set('one', { ...adapterOf('one'), digest: '9'.repeat(64) });
    rig.app.services.pool.invalidate();
    const gone = await rig.call('POST', '/v1/chat/completions', {
      model: 'support',
      messages: [{ role: 'user', content: 'Hi' }],
    });
    expect(gone.status).toBe(409);
    expect((await errorOf(gone)).code).toBe('alias_target_missing');
    const kept = `one@${digestOf('one').slice(0, 12)}`;
    rig.daemon.adapters.set(kept, { ...adapterOf(kept), digest: digestOf('one') });
    rig.app.services.pool.invalidate();
    expect(await ask('support')).toBe(kept);
  });

  test('is not deleted or replaced by the way', async () => {
    await promote('support', 'one');
    for (const [method, path] of [
      ['DELETE', '/v1/models/one'],
      ['DELETE', '/api/adapters/one'],
    ] as const) {
      const answer = await rig.call(method, path);
      expect(answer.status).toBe(409);
      expect((await errorOf(answer)).message).toContain('`support`');
    }
    const replaced = await rig.call('POST', '/api/adapters', { name: 'one', source: '/somewhere', replace: true });
    expect((await errorOf(replaced)).code).toBe('model_in_use');
    expect(await errorOf(await rig.call('DELETE', '/v1/models/support'))).toMatchObject({
      code: 'model_not_deletable',
    });
    expect(rig.daemon.adapters.has('one')).toBe(true);
    expect((await rig.call('DELETE', '/api/adapters/one?force=true')).status).toBe(200);
    expect(rig.daemon.adapters.has('one')).toBe(false);
    const chat = await rig.call('POST', '/v1/chat/completions', {
      model: 'support',
      messages: [{ role: 'user', content: 'Hi' }],
    });
    expect((await errorOf(chat)).code).toBe('alias_target_missing');
  });

  test('names do not collide: neither alias with model nor model with alias', async () => {
    expect(await errorOf(await promote('two', 'one'))).toMatchObject({ code: 'name_taken' });
    expect(await errorOf(await promote('tiny-base', 'one'))).toMatchObject({ code: 'name_taken' });
    await promote('support', 'one');
    const taken = await rig.call('POST', '/api/adapters', { name: 'support', source: '/somewhere' });
    expect(taken.status).toBe(409);
    for (const bad of ['ft:x', 'a@b', '.hidden', 'x'.repeat(65), '%2e%2e'])
      expect((await promote(encodeURIComponent(bad), 'one')).status).toBe(400);
  });

  test('is deleted by its owner; then it is no model any more, and the name is free', async () => {
    await promote('support', 'one');
    expect((await rig.call('DELETE', '/api/aliases/support')).status).toBe(200);
    expect((await rig.call('GET', '/api/aliases/support')).status).toBe(404);
    await expect(rig.client().models.retrieve('support')).rejects.toMatchObject({ status: 404 });
    expect((await rig.call('DELETE', '/api/adapters/one')).status).toBe(200);
    expect(await (await promote('support', 'two')).json()).toMatchObject({ version: 3, model: 'two' });
    expect((await errorOf(await rollback('support'))).code).toBe('nothing_to_roll_back');
  });

  test('permissions: a key needs the alias or the model on its list, and only owners move an alias', async () => {
    await promote('support', 'one');
    const alias = await rig.key({ models: ['support'] });
    const target = await rig.key({ models: ['one'] });
    const other = await rig.key({ models: ['two'] });
    expect(await ask('support', alias.credential)).toBe('one');
    expect(await ask('support', target.credential)).toBe('one');
    await expect(ask('support', other.credential)).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
    await expect(ask('one', alias.credential)).rejects.toMatchObject({ status: 404 });
    const seen = await rig.client(other.credential).models.list();
    expect(seen.data.map(({ id }) => id)).toEqual(['two']);
    expect((await promote('support', 'two', {}, { authorization: `Bearer ${alias.credential}` })).status).toBe(403);
    const tuner = await rig.key({ scopes: ['fine_tuning', 'inference'] });
    const headers = { authorization: `Bearer ${tuner.credential}` };
    expect(await errorOf(await promote('support', 'two', {}, headers))).toMatchObject({ code: 'not_owner' });
    expect((await rig.call('POST', '/api/aliases/support/rollback', {}, headers)).status).toBe(403);
    expect((await rig.call('DELETE', '/api/aliases/support', undefined, headers)).status).toBe(403);
    // Whoever may not even use it learns nothing of it.
    const stranger = await rig.key({ scopes: ['fine_tuning'], models: ['two'] });
    for (const [method, path, body] of [
      ['POST', '/rollback', {}],
      ['DELETE', '', undefined],
      ['GET', '', undefined],
    ] as const) {
      const asked = { authorization: `Bearer ${stranger.credential}` };
      const answer = await rig.call(method, `/api/aliases/support${path}`, body, asked);
      expect([answer.status, (await errorOf(answer)).code]).toEqual([404, 'alias_not_found']);
    }
    // Another key's report does not exist for it either.
    expect(await errorOf(await promote('mine', 'two', {}, headers))).toMatchObject({ code: 'evaluation_not_found' });
    await report('eval-own', [scoresOf(null, 3, 0.2), scoresOf('two', 1, 0.9)], tuner.id);
    expect((await promote('mine', 'two', { evaluation: 'eval-own' }, headers)).status).toBe(200);
  });

  test('survives: another gateway on the same database serves it', async () => {
    await promote('support', 'two');
    const app = createApp({
      db: rig.database.db,
      exclusiveDatabase: false,
      daemons: {
        urls: [rig.daemon.url],
        token: 'scripted-daemon-token-0123456789abcdef',
        fetch: (url, init) => fetch(url, init),
      },
      price: PRICE,
      factory: NO_FILES,
      datanets: noDatanets(),
      log: { info() {}, warn() {}, error() {} },
      metrics: 'key',
      version: '0',
    });
    expect((await app.services.aliases.find('support'))?.model).toBe('two');
  });
});

test('criteria that are no criteria are refused by name', async () => {
  const tried = async (one: object) => errorOf(await promote('support', 'one', { criteria: [one] }));
  expect((await tried({ metric: 'fame', op: '>', against: 0 })).param).toBe('criteria[0].metric');
  expect((await tried({ metric: 'loss', op: '==', against: 0 })).param).toBe('criteria[0].op');
  expect((await tried({ metric: 'loss', op: '<', against: 'best' })).param).toBe('criteria[0].against');
  expect((await tried({ metric: 'loss', op: '<', against: 'base', margin: 'much' })).param).toBe('criteria[0].margin');
  expect((await tried({ metric: 'grader:none', op: '<', against: 1 })).message).toContain(
    'no grader:none of this model',
  );
  expect((await promote('support', 'one', { criteria: [] })).status).toBe(400);
  expect((await promote('support', 'nobody')).status).toBe(404);
});

test('a confident criterion compares the unfavourable end of the interval', () => {
  const compared = { candidate: scoresOf('one', 2, 0.3), base: scoresOf(null, 2.04, 0.27), current: null };
  const one = { metric: 'rougeL', op: '>=' as const, against: 'base' as const, margin: 0, confident: false };
  expect(checkCriteria([one], compared)[0]?.met).toBe(true);
  expect(checkCriteria([{ ...one, confident: true }], compared)[0]).toMatchObject({ met: false, value: 0.25 });
  expect(checkCriteria([{ ...one, metric: 'loss', op: '<=', confident: true }], compared)[0]).toMatchObject({
    met: false,
    value: 2.05,
  });
});
