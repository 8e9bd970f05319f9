/** From a file to a promoted alias: a real gateway over a real daemon with a tiny model, spoken to by OpenAI's SDK where it has words for it. */
import { writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { serve } from '@hono/node-server';
import OpenAI, { toFile } from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runCli } from '../../../bin/cli/program.ts';
import { type App, createApp } from '../../../gateway/app.ts';
import { type OpenedDatabase, openDatabase } from '../../../gateway/db/open.ts';
import { diskStorage } from '../../../gateway/factory/files/storage.ts';
import { TOKEN } from '../../daemon/engine/rig.ts';
import { type EvaluationRig, startEvaluationRig } from '../../daemon/evaluation/rig.ts';
import { assertOpenAi, hasOpenAiSchema } from '../openai-schema.ts';
import { errorOf, noDatanets, PRICE, TRAINING } from '../rig.ts';

let daemon: EvaluationRig;
let database: OpenedDatabase;
let folder: string;
let app: App;
let admin: string;
let adminId: string;
let openai: OpenAI;
let file: string;

const call = async (method: string, path: string, body?: unknown, credential = admin) =>
  app.fetch(
    new Request(`http://gateway.test${path}`, {
      method,
      headers: { authorization: `Bearer ${credential}`, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    }),
  );

beforeAll(async () => {
  daemon = await startEvaluationRig();
  await daemon.adapter('a', { rank: 4, deviation: 0.2, seed: 3 });
  await daemon.adapter('b', { rank: 4, deviation: 0.2, seed: 4 });
  folder = await mkdtemp(join(tmpdir(), 'mf-evaluations-'));
  database = await openDatabase({
    url: `file:${join(folder, 'gateway.db')}`,
    migrationsFolder: fileURLToPath(new URL('../../../migrations/gateway', import.meta.url)),
  });
  app = createApp({
    db: database.db,
    exclusiveDatabase: true,
    daemons: { urls: [daemon.url], token: TOKEN, fetch: (url, init) => fetch(url, init) },
    price: PRICE,
    factory: { storage: diskStorage(join(folder, 'files')), ...TRAINING },
    datanets: noDatanets(),
    log: { info() {}, warn() {}, error: (fields, message) => console.error(message, fields) },
    metrics: 'key',
    version: '0',
  });
  const made = await app.services.keys.create({ name: 'admin', scopes: ['admin'] });
  admin = made.credential;
  adminId = made.row.id;
  openai = new OpenAI({
    apiKey: admin,
    baseURL: 'http://gateway.test/v1',
    maxRetries: 0,
    fetch: async (url, init) => app.fetch(new Request(url as string, init as RequestInit)),
  });
  const lines = Array.from({ length: 12 }, (_, i) =>
    JSON.stringify({
      messages: [
        { role: 'user', content: `say ${i}` },
        { role: 'assistant', content: `the answer is ${i} and no other` },
      ],
    }),
  ).join('\n');
  file = (await openai.files.create({ file: await toFile(Buffer.from(lines), 'held-out.jsonl'), purpose: 'fine-tune' }))
    .id;
});
afterAll(async () => {
  await app.services.settler.idle();
  database.close();
  await daemon.close();
  await rm(folder, { recursive: true, force: true });
});

interface Evaluation {
  id: string;
  models: string[];
  report: {
    examples: number;
    costMicros: number;
    request: object;
    scores: { model: string | null; loss: { value: number }; graders: Record<string, { value: number }> }[];
  };
}

describe('evaluations at the gateway', () => {
  test('an uploaded file, base and two adapters, a grader; the report is kept and what was generated is paid', async () => {
    const before = await app.services.keys.find(adminId);
    const answer = await call('POST', '/api/evaluations', {
      file,
      models: ['tiny', 'a', 'b'],
      max_tokens: 8,
      graders: [
        {
          type: 'text_similarity',
          name: 'close',
          evaluation_metric: 'fuzzy_match',
          input: '{{ sample.output_text }}',
          reference: '{{ item.reference }}',
        },
      ],
    });
    expect(answer.status).toBe(200);
    const evaluation = (await answer.json()) as Evaluation;
    expect(evaluation.models).toEqual(['tiny', 'a', 'b']);
    expect(evaluation.report.examples).toBe(12);
    expect(evaluation.report.scores.map(({ model }) => model)).toEqual([null, 'a', 'b']);
    expect(evaluation.report.scores[1]?.graders.close?.value).toBeGreaterThan(0);
    // Hashes of keys are between gateway and daemon.
    expect(JSON.stringify(evaluation)).not.toContain('callerHash');
    const after = await app.services.keys.find(adminId);
    expect(evaluation.report.costMicros).toBeGreaterThan(0);
    expect((after?.spentMicros ?? 0) - (before?.spentMicros ?? 0)).toBe(evaluation.report.costMicros);
    expect(after?.reservedMicros).toBe(0);
    expect(((await (await call('GET', `/api/evaluations/${evaluation.id}`)).json()) as Evaluation).id).toBe(
      evaluation.id,
    );
    const listed = (await (await call('GET', '/api/evaluations?limit=1')).json()) as { data: Evaluation[] };
    expect(listed.data.map(({ id }) => id)).toEqual([evaluation.id]);
    const other = await app.services.keys.create({ name: 'o', scopes: ['fine_tuning'] });
    expect((await call('GET', `/api/evaluations/${evaluation.id}`, undefined, other.credential)).status).toBe(404);

    // And on to an alias: the better of the two is promoted, the other is refused against it.
    const losses = evaluation.report.scores.map(({ loss }) => loss.value) as [number, number, number];
    const [good, bad] = losses[1] < losses[2] ? ['a', 'b'] : ['b', 'a'];
    const current = [{ metric: 'loss', op: '<', against: 'current' }];
    const first = await call('POST', '/api/aliases/support/promote', {
      model: good,
      evaluation: evaluation.id,
      criteria: [{ metric: 'loss', op: '<=', against: 'base', margin: 100 }],
    });
    expect(first.status).toBe(200);
    const refused = await call('POST', '/api/aliases/support/promote', {
      model: bad,
      evaluation: evaluation.id,
      criteria: current,
    });
    expect((await errorOf(refused)).code).toBe('criteria_not_met');
    const ask = (model: string) =>
      openai.chat.completions.create({
        model,
        messages: [{ role: 'user', content: 'say 3' }],
        temperature: 0,
        max_tokens: 8,
      });
    const [named, aliased] = [await ask(good as string), await ask('support')];
    expect(aliased.model).toBe(good);
    expect(aliased.choices[0]?.message.content).toBe(named.choices[0]?.message.content);
    // An alias can be evaluated by its name too, and is the model that it stands for.
    const again = (await (
      await call('POST', '/api/evaluations', { file, models: ['support'], generate: false, examples: 4 })
    ).json()) as Evaluation;
    expect(again.models).toEqual([good]);
    expect(again.report.examples).toBe(4);
  });

  test('progress as server-sent events, the report last', async () => {
    const answer = await call('POST', '/api/evaluations', { file, models: ['tiny'], max_tokens: 4, stream: true });
    expect(answer.headers.get('content-type')).toContain('text/event-stream');
    const events = (await answer.text())
      .split('\n\n')
      .filter((block) => block.startsWith('data: {'))
      .map((block) => JSON.parse(block.slice(6)) as { type: string; total?: number; evaluation?: Evaluation });
    expect(events[0]).toMatchObject({ type: 'progress', done: 0, total: 24, phase: 'score' });
    expect(events.at(-1)?.type).toBe('report');
    expect(events.at(-1)?.evaluation?.report.scores).toHaveLength(1);
  });

  test('what cannot be evaluated is refused by name', async () => {
    const tried = async (body: object, credential = admin) =>
      errorOf(await call('POST', '/api/evaluations', { file, models: ['tiny'], generate: false, ...body }, credential));
    expect(await tried({ file: 'file-none' })).toMatchObject({ param: 'file' });
    expect(await tried({ models: ['nobody'] })).toMatchObject({ code: 'model_not_found' });
    expect(await tried({ models: ['a', 'a'] })).toMatchObject({ param: 'models[1]' });
    expect(await tried({ file: undefined })).toMatchObject({ param: 'file', code: 'missing_required_parameter' });
    expect(await tried({ job: 'ftjob-none', file: undefined })).toMatchObject({ code: 'job_not_found' });
    expect(await tried({ examples: 0 })).toMatchObject({ param: 'examples' });
    expect(await tried({ graders: [{ type: 'python', name: 'p', source: 'x' }] })).toMatchObject({
      code: 'unsupported_value',
    });
    expect(await tried({ graders: [{ type: 'string_check', name: 'p', input: 'x', reference: 'y' }] })).toMatchObject({
      param: 'graders[0].operation',
    });
    const broken = await openai.files.create({
      file: await toFile(Buffer.from('{"messages": 1}\n'), 'x.jsonl'),
      purpose: 'evals',
    });
    expect(await tried({ file: broken.id })).toMatchObject({ code: 'invalid_file' });
    const poor = await app.services.keys.create({ name: 'poor', scopes: ['fine_tuning'], budgetMicros: 1 });
    // Another key's file does not exist for it.
    expect(await tried({}, poor.credential)).toMatchObject({ param: 'file' });
  });
});

describe('graders of the OpenAI API', () => {
  const run = (grader: object, item: object, sample: string) =>
    openai.fineTuning.alpha.graders.run({ grader, item, model_sample: sample } as never);

  test('run through the SDK: a check, a similarity by embeddings, and a served model as judge', async () => {
    const check = await run(
      {
        type: 'string_check',
        name: 'Example',
        operation: 'ilike',
        input: '{{sample.output_text}}',
        reference: '{{item.label}}',
      },
      { label: 'BEAR' },
      'fuzzy wuzzy was a bear',
    );
    expect(check).toMatchObject({
      reward: 1,
      metadata: { name: 'Example', type: 'string_check', token_usage: null },
      sub_rewards: {},
    });
    const near = await run(
      {
        type: 'text_similarity',
        name: 'near',
        evaluation_metric: 'cosine',
        input: '{{sample.output_text}}',
        reference: '{{item.label}}',
      },
      { label: 'same' },
      'same',
    );
    expect(near.reward).toBeCloseTo(1, 4);
    const before = await app.services.keys.find(adminId);
    const judged = await run(
      {
        type: 'score_model',
        name: 'judge',
        model: 'a',
        range: [-1e15, 1e15],
        input: [{ role: 'user', content: [{ type: 'input_text', text: 'Rate {{sample.output_text}}' }] }],
        sampling_params: { temperature: 1, top_p: 1, seed: 42 },
      },
      {},
      'this',
    );
    expect(judged.metadata).toMatchObject({ sampled_model_name: 'a', errors: { model_grader_parse_error: false } });
    expect(judged.metadata.token_usage).toBeGreaterThan(5);
    expect(Object.keys(judged.model_grader_token_usage_per_model)).toEqual(['a']);
    const after = await app.services.keys.find(adminId);
    expect(after?.spentMicros).toBeGreaterThan(before?.spentMicros ?? 0);
    expect(after?.reservedMicros).toBe(0);
    const missing = await run(
      { type: 'string_check', name: 'x', operation: 'eq', input: '{{item.nothing}}', reference: 'y' },
      {},
      '',
    );
    if (hasOpenAiSchema) for (const answer of [check, near, judged, missing]) assertOpenAi('RunGraderResponse', answer);
    expect(missing).toMatchObject({ reward: 0, metadata: { errors: { invalid_variable_error: true } } });
  });

  test('validate gives the grader back, or says what is wrong with it', async () => {
    const grader = {
      type: 'string_check' as const,
      name: 'n',
      operation: 'eq' as const,
      input: '{{sample.output_text}}',
      reference: 'x',
    };
    expect(await openai.fineTuning.alpha.graders.validate({ grader })).toEqual({ grader });
    const refused = (bad: object) => openai.fineTuning.alpha.graders.validate({ grader: bad as never });
    await expect(refused({ ...grader, input: '{{ secrets }}' })).rejects.toMatchObject({
      status: 400,
      code: 'invalid_template',
    });
    await expect(refused({ ...grader, operation: 'is' })).rejects.toMatchObject({
      status: 400,
      param: 'grader.operation',
    });
    await expect(refused({ ...grader, type: 'multi' })).rejects.toMatchObject({
      status: 400,
      code: 'unsupported_value',
    });
    await expect(
      refused({ type: 'score_model', name: 'j', model: 'nobody', input: [{ role: 'user', content: 'x' }] }),
    ).rejects.toMatchObject({ status: 404 });
    const image = [{ role: 'user', content: [{ type: 'input_image', image_url: 'x' }] }];
    await expect(refused({ type: 'score_model', name: 'j', model: 'a', input: image })).rejects.toMatchObject({
      status: 400,
      param: 'grader.input[0].content',
    });
  });
});

describe('the command line', () => {
  test('evaluates a file, promotes by what it must reach, refuses with the numbers, rolls back', async () => {
    const server = serve({ fetch: app.fetch, hostname: '127.0.0.1', port: 0 }) as Server;
    await new Promise((done) => server.once('listening', done));
    const env = {
      MODELFACTORY_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      MODELFACTORY_KEY: admin,
    };
    const cli = async (...args: string[]) => {
      const out: string[] = [];
      const notes: string[] = [];
      const code = await runCli(args, { out: (line) => out.push(line), note: (line) => notes.push(line) }, env);
      return { code, out: out.join('\n'), notes: notes.join('\n') };
    };
    const data = join(folder, 'cli.jsonl');
    const lines = Array.from({ length: 10 }, (_, i) =>
      JSON.stringify({ prompt: `count ${i}`, completion: ` then ${i + 1}` }),
    );
    writeFileSync(data, lines.join('\n'));
    const grader = join(folder, 'grader.json');
    const both = { input: '{{ sample.output_text }}', reference: '{{ item.reference }}' };
    writeFileSync(grader, JSON.stringify({ type: 'string_check', name: 'other', operation: 'ne', ...both }));

    const evaluated = await cli(
      'evaluate',
      data,
      '--model',
      'tiny',
      '--model',
      'a',
      '--grader',
      grader,
      '--max-tokens',
      '4',
    );
    expect(evaluated.notes).toMatch(/10 examples, .* Promote with/s);
    expect(evaluated.code).toBe(0);
    expect(
      evaluated.out
        .split('\n')[0]
        ?.trim()
        .split(/\s{2,}/),
    ).toEqual(['tiny', 'a']);
    expect(evaluated.out).toMatch(/ROUGE-L +0\.\d+ \[0\.\d+, \d/);
    expect(evaluated.out).toMatch(/grader:other +1\.000 \[1\.000, 1\.000\]/);

    const refused = await cli(
      'promote',
      'counting',
      'a',
      '--require',
      'loss <= base - 50',
      '--require',
      'grader:other >= 0.5',
    );
    expect(refused.code).toBe(1);
    expect(refused.notes).toMatch(/loss <= base - 50: it is .* and had to be <=/);
    const promoted = await cli('promote', 'counting', 'a', '--require', 'loss <= base + 50');
    expect(promoted).toMatchObject({ code: 0 });
    expect(promoted.out).toContain('counting stands for a now (version 1)');
    expect((await cli('aliases')).out).toMatch(/counting +a +1 +promote/);
    expect((await cli('promote', 'counting', 'tiny', '--require', 'grader:other >= current')).code).toBe(0);
    expect((await cli('rollback', 'counting')).out).toContain('counting stands for a again');
    expect((await cli('rollback', 'counting')).notes).toContain('stood for nothing before');
    for (const bad of ['rougeL', 'rougeL => base', 'rougeL >= best', 'loss < base * 2'])
      expect((await cli('promote', 'counting', 'a', '--require', bad)).notes).toContain('is no criterion');
    expect((await cli('evaluate', join(folder, 'none.jsonl'), '--model', 'a')).notes).toContain('There is no file');
    expect((await cli('promote', 'x', 'nobody', '--require', 'loss < 1')).notes).toContain('No evaluation has nobody');
    await new Promise((done) => {
      server.close(done);
      server.closeAllConnections();
    });
  });
});
