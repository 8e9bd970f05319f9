/** A stranger's fine-tuning script, with the real OpenAI SDK, against the gateway and a daemon that trains by script. */
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { adapterOf } from '../../support/scripted-daemon.ts';
import { assertOpenAi, hasOpenAiSchema } from '../openai-schema.ts';
import { errorOf, sseEvents } from '../rig.ts';
import { chatLines, type FactoryRig, preferenceLines, startFactoryRig } from './rig.ts';

let rig: FactoryRig;
let openai: OpenAI;
beforeAll(async () => {
  rig = await startFactoryRig();
  openai = rig.openai;
});
afterAll(() => rig?.close());
beforeEach(() => {
  Object.assign(rig.training, { stepMs: 2, steps: 6, memoryAvailableBytes: 8e9, problems: [], failAt: null });
});

/** As OpenAI's description has it; `paused` is in its examples but not in its list. */
function conforms(schema: string, value: unknown): void {
  if (!hasOpenAiSchema) return;
  const plain = JSON.parse(JSON.stringify(value)) as { status?: string };
  assertOpenAi(schema, plain.status === 'paused' ? { ...plain, status: 'queued' } : plain);
}
const raw = async (path: string) => (await rig.call('GET', path)).json();

describe('a job from file to model', () => {
  test('upload, create, poll, chat with the model: nothing but address and key is ours', async () => {
    const file = await openai.files.create({
      file: await toFile(Buffer.from(chatLines(20)), 'train.jsonl'),
      purpose: 'fine-tune',
    });
    conforms('OpenAIFile', file);
    const created = await openai.fineTuning.jobs.create({
      model: 'tiny-base',
      training_file: file.id,
      suffix: 'my-run',
      seed: 7,
      metadata: { team: 'a' },
      method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 2 } } },
    });
    conforms('FineTuningJob', created);
    expect(created.status).toBe('validating_files');
    expect(created.fine_tuned_model).toBeNull();
    const job = await rig.until(created.id);
    conforms('FineTuningJob', job);
    expect(job).toMatchObject({
      status: 'succeeded',
      seed: 7,
      trained_tokens: 600,
      error: null,
      estimated_finish: null,
    });
    expect(job.fine_tuned_model).toMatch(/^ft:tiny-base:local:my-run:[0-9a-f]{8}$/);
    // 20 examples: batch 4; two epochs as asked; multiplier 1.
    expect(job.hyperparameters).toEqual({ n_epochs: 2, batch_size: 4, learning_rate_multiplier: 1 });
    const { request } = rig.training.runs.get(job.id)?.run ?? {};
    expect(request?.recipe).toMatchObject({ learningRate: 2e-4, batchSize: 4, epochs: 2, seed: 7 });

    const [id] = job.result_files as [string];
    const results = await openai.files.retrieve(id);
    conforms('OpenAIFile', results);
    expect(results.purpose).toBe('fine-tune-results');
    const csv = (await (await openai.files.content(id)).text()).split('\n');
    expect(csv[0]).toBe(
      'step,train_loss,train_mean_token_accuracy,valid_loss,validation_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy',
    );
    expect(csv.filter(Boolean)).toHaveLength(7);

    const model = job.fine_tuned_model as string;
    const chat = await openai.chat.completions.create({ model, messages: [{ role: 'user', content: 'Hi' }] });
    expect(chat.choices[0]?.message.content).toBe('Hello world');
    expect(rig.daemon.requests.at(-1)?.adapter).toBe(model);
    const removed = await openai.models.delete(model);
    expect(removed).toMatchObject({ id: model, deleted: true });
    await expect(openai.models.retrieve(model)).rejects.toMatchObject({ status: 404 });
  });

  test('the events come in the order of OpenAI, newest first in the list, each once', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    const validation = await rig.upload('valid.jsonl', chatLines(10, 'other'));
    const { id } = await openai.fineTuning.jobs.create({
      model: 'tiny-base',
      training_file: file,
      validation_file: validation,
    });
    const { fine_tuned_model: model } = await rig.until(id);
    expect(await rig.messages(id)).toEqual([
      `Created fine-tuning job: ${id}`,
      `Validating training file: ${file} and validation file: ${validation}`,
      'Files validated, moving job to queued state',
      'Fine-tuning job started',
      'Step 1/6: training loss=2.00',
      'Step 2/6: training loss=1.00',
      'Step 3/6: training loss=0.67',
      `Checkpoint created at step 3 with Snapshot ID: ${model}:ckpt-step-3`,
      'Step 4/6: training loss=0.50',
      'Step 5/6: training loss=0.40',
      'Step 6/6: training loss=0.33',
      `New fine-tuned model created: ${model}`,
      'The job has successfully completed',
    ]);
    const list = await raw(`/v1/fine_tuning/jobs/${id}/events?limit=4`);
    conforms('ListFineTuningJobEventsResponse', list);
    const { data, has_more } = list as { data: { id: string; type: string; message: string }[]; has_more: boolean };
    expect(has_more).toBe(true);
    expect(data.map(({ type }) => type)).toEqual(['message', 'message', 'metrics', 'metrics']);
    const all: string[] = [];
    for await (const event of openai.fineTuning.jobs.listEvents(id, { limit: 5 })) all.push(event.id);
    expect(new Set(all).size).toBe(13);
  });

  test('checkpoints are models at once, told with their metrics', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    rig.training.stepMs = 5;
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    await rig.until(id);
    const list = await raw(`/v1/fine_tuning/jobs/${id}/checkpoints`);
    conforms('ListFineTuningJobCheckpointsResponse', list);
    const [checkpoint] = (await openai.fineTuning.jobs.checkpoints.list(id)).data;
    conforms('FineTuningJobCheckpoint', checkpoint);
    expect(checkpoint).toMatchObject({ step_number: 3, fine_tuning_job_id: id, metrics: { step: 3 } });
    const model = checkpoint?.fine_tuned_model_checkpoint as string;
    const chat = await openai.chat.completions.create({ model, messages: [{ role: 'user', content: 'Hi' }] });
    expect(chat.model).toBe(model);
  });

  test('a checkpoint that was deleted, or whose name has other weights now, is not told as one that can be used', async () => {
    rig.training.steps = 8;
    const file = await rig.upload('a.jsonl', chatLines(12));
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    await rig.until(id);
    type State = { modelfactory: { state: string } };
    const stateOf = async () => {
      const { data } = await openai.fineTuning.jobs.checkpoints.list(id);
      return (data[0] as unknown as State).modelfactory.state;
    };
    expect(await stateOf()).toBe('available');
    const { data } = await openai.fineTuning.jobs.checkpoints.list(id);
    const name = data[0]?.fine_tuned_model_checkpoint as string;
    const adapter = rig.daemon.adapters.get(name) as ReturnType<typeof adapterOf>;
    rig.daemon.adapters.set(name, { ...adapter, digest: 'd'.repeat(64) });
    rig.app.services.pool.invalidate();
    expect(await stateOf()).toBe('replaced');
    await openai.models.delete(name);
    expect(await stateOf()).toBe('removed');
    await expect(openai.models.retrieve(name)).rejects.toMatchObject({ status: 404 });
    await rig.daemon.stop();
    rig.app.services.pool.invalidate();
    expect(await stateOf()).toBe('unknown');
    await rig.daemon.restart();
    rig.app.services.pool.invalidate();
  });

  test('events live over SSE: from the first to the last, then the end', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    rig.training.stepMs = 10;
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    const response = await rig.call('GET', `/v1/fine_tuning/jobs/${id}/events`, undefined, {
      accept: 'text/event-stream',
    });
    expect(response.headers.get('content-type')).toMatch(/^text\/event-stream/);
    const events = await sseEvents(response);
    expect(events.at(-1)?.data).toBe('[DONE]');
    const messages = events.slice(0, -1).map(({ json }) => json?.message);
    expect(messages).toEqual(await rig.messages(id));
    for (const { json } of events.slice(0, -1)) conforms('FineTuningJobEvent', json);
  });

  test('pause, resume, cancel', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    Object.assign(rig.training, { stepMs: 10, steps: 1000 });
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    const early = await openai.fineTuning.jobs.resume(id).catch((error: unknown) => error);
    expect(early).toMatchObject({ status: 400, code: 'invalid_job_state' });
    const running = await rig.until(id, 'running');
    conforms('FineTuningJob', running);
    const paused = (await openai.fineTuning.jobs.pause(id)) as unknown as { status: string };
    conforms('FineTuningJob', paused);
    expect(paused.status).toBe('paused');
    const { step } = rig.training.runs.get(id)?.run ?? { step: -1 };
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(rig.training.runs.get(id)?.run.step).toBe(step);
    expect(['queued', 'running']).toContain((await openai.fineTuning.jobs.resume(id)).status);
    await rig.until(id, 'running');
    const cancelled = await openai.fineTuning.jobs.cancel(id);
    conforms('FineTuningJob', cancelled);
    expect(cancelled).toMatchObject({ status: 'cancelled', fine_tuned_model: null });
    expect(rig.training.runs.get(id)?.run.status).toBe('cancelled');
    await expect(openai.fineTuning.jobs.cancel(id)).rejects.toMatchObject({ status: 400 });
    expect((await rig.messages(id)).at(-1)).toBe('Fine-tuning job cancelled');
  });

  test('preference data with dpo; a model of OpenAI stands for the base that is here', async () => {
    const file = await rig.upload('pairs.jsonl', preferenceLines(12));
    const { id } = await openai.fineTuning.jobs.create({
      model: 'gpt-4o-mini-2024-07-18',
      training_file: file,
      method: { type: 'dpo', dpo: { hyperparameters: { beta: 0.2 } } },
    });
    const job = await rig.until(id);
    conforms('FineTuningJob', job);
    expect(job).toMatchObject({ status: 'succeeded', model: 'tiny-base' });
    expect(job.method).toMatchObject({ type: 'dpo', dpo: { hyperparameters: { beta: 0.2 } } });
    expect(rig.training.runs.get(id)?.run.request.recipe.method).toEqual({ type: 'dpo', beta: 0.2 });
    expect((await rig.messages(id))[1]).toContain('tiny-base is trained instead');
  });

  test('the extension block reaches the recipe and comes back as resolved', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    const validation_file = await rig.upload('valid.jsonl', chatLines(10, 'other'));
    const modelfactory = {
      rank: 32,
      target_modules: ['q_proj', 'v_proj'],
      dropout: 0.1,
      learning_rate: 1e-3,
      scheduler: 'linear',
      packing: false,
      early_stopping: { patience: 2 },
      checkpoint_every_steps: 5,
      steps_max: 50,
    };
    const body = { model: 'tiny-base', training_file: file, validation_file, modelfactory };
    const { id } = await openai.fineTuning.jobs.create(body as never);
    const job = (await rig.until(id)) as unknown as { modelfactory: object; hyperparameters: object };
    expect(job.modelfactory).toMatchObject({
      ...modelfactory,
      alpha: 64,
      early_stopping: { patience: 2, min_delta: 0 },
    });
    expect(job.hyperparameters).toMatchObject({ learning_rate_multiplier: 5 });
    expect(rig.training.runs.get(id)?.run.request.recipe.adapter).toEqual({
      type: 'lora',
      rank: 32,
      alpha: 64,
      rslora: false,
      targets: ['q_proj', 'v_proj'],
      dropout: 0.1,
    });
  });

  test('lists: newest first, pages, filters by metadata', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    const make = (metadata?: Record<string, string>) =>
      openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file, ...(metadata && { metadata }) });
    const a = await make({ run: 'x', 'odd "key"': "it's" });
    const b = await make();
    await Promise.all([rig.until(a.id), rig.until(b.id)]);
    const list = await raw('/v1/fine_tuning/jobs?limit=1');
    conforms('ListPaginatedFineTuningJobsResponse', list);
    expect(list).toMatchObject({ has_more: true, data: [{ id: b.id }] });
    expect(await raw(`/v1/fine_tuning/jobs?limit=1&after=${b.id}`)).toMatchObject({ data: [{ id: a.id }] });
    const filtered = await openai.fineTuning.jobs.list({ metadata: { 'odd "key"': "it's" } });
    expect(filtered.data.map(({ id }) => id)).toEqual([a.id]);
    const none = (await raw('/v1/fine_tuning/jobs?metadata=null&limit=100')) as { data: { id: string }[] };
    expect(none.data.map(({ id }) => id)).toContain(b.id);
    expect(none.data.map(({ id }) => id)).not.toContain(a.id);
  });
});

describe('what a job refuses', () => {
  const create = async (body: object, credential?: string) =>
    rig.call('POST', '/v1/fine_tuning/jobs', body, credential ? { authorization: `Bearer ${credential}` } : {});

  test('requests that cannot be: each names its field', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    const user = (await openai.files.create({ file: await toFile(Buffer.from('x'), 'x.txt'), purpose: 'user_data' }))
      .id;
    const ok = { model: 'tiny-base', training_file: file };
    const table: [object, string, number?][] = [
      [{ training_file: file }, 'model'],
      [{ model: 'tiny-base' }, 'training_file'],
      [{ ...ok, model: 'no-such-model' }, 'model'],
      [{ ...ok, training_file: 'file-nope' }, 'training_file'],
      [{ ...ok, training_file: user }, 'training_file'],
      [{ ...ok, validation_file: file }, 'validation_file'],
      [{ ...ok, suffix: 'x'.repeat(65) }, 'suffix'],
      [{ ...ok, seed: -1 }, 'seed'],
      [{ ...ok, hyperparameters: { n_epochs: 51 } }, 'hyperparameters.n_epochs'],
      [{ ...ok, hyperparameters: { batch_size: 'big' } }, 'hyperparameters.batch_size'],
      [{ ...ok, method: { type: 'reinforcement', reinforcement: { grader: {} } } }, 'method.type'],
      [{ ...ok, method: { type: 'supervised', dpo: {} } }, 'method.dpo'],
      [{ ...ok, integrations: [{ type: 'wandb', wandb: { project: 'p' } }] }, 'integrations'],
      [{ ...ok, metadata: Object.fromEntries(Array.from({ length: 17 }, (_, i) => [`k${i}`, 'v'])) }, 'metadata'],
      [{ ...ok, modelfactory: { rank: 0 } }, 'modelfactory.rank'],
      [{ ...ok, modelfactory: { early_stopping: { patience: 1 } } }, 'modelfactory.early_stopping'],
    ];
    for (const [body, param] of table) {
      const response = await create(body);
      const error = await errorOf(response);
      expect(`${response.status} ${error.param}`).toBe(`400 ${param}`);
      expect(error.message.length).toBeGreaterThan(20);
    }
    const unknown = await create({ ...ok, epochs: 3 });
    expect(unknown.status).toBe(400);
  });

  const failures: [name: string, text: () => string, code: string, message: RegExp][] = [
    [
      'three examples',
      () => chatLines(3),
      'invalid_n_examples',
      /^Training file has 3 example\(s\), but must have at least 10 examples$/,
    ],
    [
      'no assistant',
      () => chatLines(10).replaceAll('"role":"assistant"', '"role":"user"'),
      'invalid_training_file',
      /Line 1: .*assistant/,
    ],
    [
      'mixed formats',
      () => `${chatLines(10)}\n{"prompt":"a","completion":"b"}`,
      'invalid_training_file',
      /Line 11: .*same format/,
    ],
    ['preferences without dpo', () => preferenceLines(12), 'invalid_training_file', /dpo/],
  ];
  test.each(failures)('a file with %s fails the job before anything is trained', async (_, text, code, message) => {
    const file = await rig.upload('bad.jsonl', text());
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    const job = await rig.until(id);
    conforms('FineTuningJob', job);
    expect(job).toMatchObject({ status: 'failed', error: { code, param: 'training_file' } });
    expect(job.error?.message).toMatch(message);
    const [last] = (await openai.fineTuning.jobs.listEvents(id)).data;
    expect(last).toMatchObject({ level: 'error', data: { error_code: code, error_param: 'training_file' } });
    expect(rig.training.runs.has(id)).toBe(false);
  });

  test.each([
    ['n_epochs', 1.5, /expected "auto" or an integer, but got 1\.5\./],
    ['n_epochs', 'many', /expected "auto" or an integer, but got a value of type string\./],
    // What JSON makes of NaN.
    ['learning_rate_multiplier', null, /expected "auto" or a number, but got null\./],
    ['learning_rate_multiplier', 0, /must be greater than 0\./],
    ['batch_size', 257, /must be at most 256\./],
  ])('%s = %s is refused with all that it can be', async (name, value, message) => {
    const body = { model: 'tiny-base', training_file: 'file-x', hyperparameters: { [name]: value } };
    const response = await rig.call('POST', '/v1/fine_tuning/jobs', body);
    expect(response.status).toBe(400);
    expect(await errorOf(response)).toMatchObject({
      param: `hyperparameters.${name}`,
      message: expect.stringMatching(message),
    });
  });

  test('a validation file that repeats the training file validates nothing', async () => {
    const training_file = await rig.upload('train.jsonl', chatLines(12));
    const validation_file = await rig.upload('valid.jsonl', chatLines(11));
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file, validation_file });
    expect(await rig.until(id)).toMatchObject({
      status: 'failed',
      error: { code: 'invalid_validation_file', param: 'validation_file' },
    });
    const partly = await rig.upload('valid.jsonl', `${chatLines(3)}\n${chatLines(8, 'other')}`);
    const second = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file, validation_file: partly });
    expect((await rig.until(second.id)).status).toBe('succeeded');
    expect((await rig.messages(second.id)).join('\n')).toContain('overlap × 3');
  });

  test('memory that will not suffice is said before it happens', async () => {
    rig.training.memoryAvailableBytes = 1e9;
    const file = await rig.upload('train.jsonl', chatLines(12));
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    const job = await rig.until(id);
    expect(job.error).toMatchObject({ code: 'insufficient_memory' });
    expect(job.error?.message).toMatch(/2\.0 GB.*1\.0 GB.*batch_size/);
  });

  test('what the chat template refuses names the example', async () => {
    rig.training.problems = [{ example: 4, message: 'the template refuses the role tool' }];
    const file = await rig.upload('train.jsonl', chatLines(12));
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    expect((await rig.until(id)).error?.message).toMatch(/Example 4: the template refuses/);
  });

  test('a base model that changed before the run began is named, and nothing is trained on the other', async () => {
    const file = await rig.upload('train.jsonl', chatLines(12));
    // What the daemon serves is remembered for a moment; the job is taken in by that.
    await openai.models.list();
    rig.daemon.model.id = 'other-base';
    try {
      const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
      const { status, error } = await rig.until(id);
      expect([status, error?.code]).toEqual(['failed', 'base_changed']);
      expect(error?.message).toMatch(/tiny-base.*other-base/);
      expect(rig.training.runs.has(id)).toBe(false);
    } finally {
      rig.daemon.model.id = 'tiny-base';
      rig.app.services.pool.invalidate();
    }
  });

  test('a loss that is no number fails the job with the daemon’s words; its checkpoint stays', async () => {
    const message = 'The loss was NaN at step 5; the checkpoint of step 3 is kept.';
    rig.training.failAt = { step: 5, error: { code: 'loss_not_finite', message, param: null } };
    const file = await rig.upload('train.jsonl', chatLines(12));
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    const job = await rig.until(id);
    conforms('FineTuningJob', job);
    expect(job).toMatchObject({
      status: 'failed',
      fine_tuned_model: null,
      error: { code: 'loss_not_finite', message },
    });
    expect((await openai.fineTuning.jobs.checkpoints.list(id)).data).toHaveLength(1);
  });

  test('so many jobs at a time and no more; the refusal is not tried again by SDKs', async () => {
    rig.training.stepMs = null;
    const { credential } = await rig.key({ scopes: ['fine_tuning', 'inference'] });
    const client = rig.client(credential);
    const file = await rig.upload('train.jsonl', chatLines(12), client);
    const jobs: string[] = [];
    for (let i = 0; i < 16; i++)
      jobs.push((await client.fineTuning.jobs.create({ model: 'tiny-base', training_file: file })).id);
    const response = await create({ model: 'tiny-base', training_file: file }, credential);
    expect(response.status).toBe(429);
    expect(response.headers.get('x-should-retry')).toBe('false');
    expect(await errorOf(response)).toMatchObject({ type: 'rate_limit_error', code: 'job_limit_exceeded' });
    for (const id of jobs) expect((await client.fineTuning.jobs.cancel(id)).status).toBe('cancelled');
    expect((await create({ model: 'tiny-base', training_file: file }, credential)).status).toBe(200);
  });
});

describe('whose is what', () => {
  test('another key sees neither file nor job nor model, until it is permitted; the owner deletes its own', async () => {
    const scopes = ['fine_tuning', 'inference'] as const;
    const mine = rig.client((await rig.key({ scopes: [...scopes] })).credential);
    const otherKey = await rig.key({ scopes: [...scopes, 'adapters'] });
    const other = rig.client(otherKey.credential);
    const file = await rig.upload('train.jsonl', chatLines(12), mine);
    const { id } = await mine.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    const { fine_tuned_model } = await rig.until(id);
    const model = fine_tuned_model as string;
    const messages = [{ role: 'user' as const, content: 'Hi' }];
    const hidden = [
      () => other.files.retrieve(file),
      () => other.files.content(file),
      () => other.files.delete(file),
      () => other.fineTuning.jobs.retrieve(id),
      () => other.fineTuning.jobs.cancel(id),
      () => other.fineTuning.jobs.listEvents(id),
      () => other.fineTuning.jobs.checkpoints.list(id),
      () => other.models.retrieve(model),
      () => other.models.delete(model),
      () => other.chat.completions.create({ model, messages }),
    ];
    for (const attempt of hidden) await expect(attempt()).rejects.toMatchObject({ status: 404 });
    await expect(other.fineTuning.jobs.create({ model: 'tiny-base', training_file: file })).rejects.toMatchObject({
      status: 400,
      code: 'file_not_found',
    });
    expect((await other.files.list()).data).toEqual([]);
    expect((await other.fineTuning.jobs.list()).data).toEqual([]);
    expect((await other.models.list()).data.map((one) => one.id)).not.toContain(model);
    expect((await mine.models.list()).data.map((one) => one.id)).toContain(model);

    // Weights that were replaced and kept are their owner's as well.
    const kept = `${model}@${'c'.repeat(12)}`;
    rig.daemon.adapters.set(kept, adapterOf(kept));
    rig.app.services.pool.invalidate();
    await expect(other.chat.completions.create({ model: kept, messages })).rejects.toMatchObject({ status: 404 });
    expect((await mine.chat.completions.create({ model: kept, messages })).model).toBe(kept);

    const [checkpoint] = (await mine.fineTuning.jobs.checkpoints.list(id)).data;
    const name = checkpoint?.fine_tuned_model_checkpoint as string;
    await expect(other.chat.completions.create({ model: name, messages })).rejects.toMatchObject({ status: 404 });
    const path = `/v1/fine_tuning/checkpoints/${encodeURIComponent(name)}/permissions`;
    const refused = await rig.call(
      'POST',
      path,
      { project_ids: [otherKey.id] },
      { authorization: `Bearer ${otherKey.credential}` },
    );
    expect(refused.status).toBe(403);
    const permitted = await (await rig.call('POST', path, { project_ids: [otherKey.id] })).json();
    conforms('ListFineTuningCheckpointPermissionResponse', permitted);
    expect((await other.chat.completions.create({ model: name, messages })).model).toBe(name);
    await expect(other.chat.completions.create({ model, messages })).rejects.toMatchObject({ status: 404 });
    // To use it is not to own it, whatever else the key may do.
    await expect(other.models.delete(name)).rejects.toMatchObject({ status: 403 });
    const authorization = `Bearer ${otherKey.credential}`;
    const address = `/api/adapters/${encodeURIComponent(name)}`;
    expect((await rig.call('DELETE', address, undefined, { authorization })).status).toBe(403);
    const replacing = { name, source: 'hf:owner/repo', replace: true };
    expect((await rig.call('POST', '/api/adapters', replacing, { authorization })).status).toBe(403);
    const list = (await raw(path)) as { data: { id: string }[] };
    conforms('ListFineTuningCheckpointPermissionResponse', list);
    const removed = await (await rig.call('DELETE', `${path}/${list.data[0]?.id}`)).json();
    conforms('DeleteFineTuningCheckpointPermissionResponse', removed);
    await expect(other.chat.completions.create({ model: name, messages })).rejects.toMatchObject({ status: 404 });

    // To a user it is permitted with every key and in every session.
    const user = await rig.user({ role: 'consumer' });
    const session = await user.session();
    const chat = (who: Pick<typeof user, 'call'>) =>
      who.call('POST', '/v1/chat/completions', { model: name, messages });
    expect([(await chat(user)).status, (await chat(session)).status]).toEqual([404, 404]);
    expect((await rig.call('POST', path, { project_ids: [user.row.accountKey] })).status).toBe(400);
    expect((await rig.call('POST', path, { project_ids: [user.id] })).status).toBe(200);
    expect([(await chat(user)).status, (await chat(session)).status]).toEqual([200, 200]);

    expect(await mine.models.delete(model)).toMatchObject({ deleted: true });
    conforms('DeleteFileResponse', await mine.files.delete(file));
  });

  test('right before the model is told of, it is asked again whether its owner may train and whether the base is the same', async () => {
    const user = await rig.user();
    const theirs = rig.client(user.credential);
    const held = async () => {
      Object.assign(rig.training, { steps: 4, holdAt: 3 });
      const file = await rig.upload('a.jsonl', chatLines(12), theirs);
      const { id } = await theirs.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
      await expect.poll(() => rig.training.runs.get(id)?.run.step).toBe(3);
      return id;
    };
    const { digest } = rig.daemon.model;
    const other = await held();
    rig.daemon.model.digest = 'e'.repeat(64);
    rig.training.holdAt = null;
    expect(await rig.until(other)).toMatchObject({
      status: 'failed',
      error: { code: 'base_changed' },
      fine_tuned_model: null,
    });
    rig.daemon.model.digest = digest;
    rig.app.services.pool.invalidate();

    const id = await held();
    const disabled = await rig.call('PATCH', `/api/users/${user.id}`, { state: 'disabled' });
    expect(disabled.status, await disabled.text()).toBe(200);
    rig.training.holdAt = null;
    const job = await rig.until(id);
    expect(job).toMatchObject({ status: 'failed', fine_tuned_model: null, error: { code: 'permission_revoked' } });
    expect(job.error?.message).toMatch(/The account that the job belongs to is disabled/);
    const { adapter } = rig.training.runs.get(id)?.run.request ?? {};
    expect(rig.daemon.adapters.has(adapter as string)).toBe(false);
  });

  test('training is paid once, by what was trained; a budget that does not cover it fails the job before it begins', async () => {
    const { id: keyId, credential } = await rig.key({ scopes: ['fine_tuning'], budgetMicros: 30_000 });
    const client = rig.client(credential);
    const file = await rig.upload('train.jsonl', chatLines(12), client);
    const { id } = await client.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    await rig.until(id);
    // 600 tokens at 3 a million.
    expect(await rig.money(keyId)).toEqual({ spent: 1800, reserved: 0 });
    const dear = await client.fineTuning.jobs.create({
      model: 'tiny-base',
      training_file: file,
      hyperparameters: { n_epochs: 50 },
    });
    expect((await rig.until(dear.id)).error).toMatchObject({ code: 'exceeded_quota' });
    expect(await rig.money(keyId)).toEqual({ spent: 1800, reserved: 0 });
  });
});

test('inspection tells problems, statistics, and what training would take', async () => {
  const good = await rig.upload('train.jsonl', chatLines(30));
  const answer = (await (await rig.call('POST', '/api/datasets/inspect', { file: good })).json()) as Record<
    string,
    unknown
  >;
  expect(answer).toMatchObject({
    object: 'dataset.inspection',
    report: { ok: true, examples: 30, kind: 'chat' },
    statistics: { examples: 30, kind: 'chat' },
    recipe: { n_epochs: 3, batch_size: 4, learning_rate_multiplier: 1, rank: 8 },
    estimate: { steps: 24, fits: true, currency: 'USD' },
  });
  const { trained_tokens, cost_micros } = answer.estimate as { trained_tokens: number; cost_micros: number };
  expect(cost_micros).toBe(trained_tokens * 3);
  // Measuring by a validation file takes time, so it is part of what is estimated.
  const validation_file = await rig.upload('valid.jsonl', chatLines(5));
  const inspected = (body: object) =>
    rig.call('POST', '/api/datasets/inspect', { file: good, ...body }).then((response) => response.json());
  expect(await inspected({ validation_file })).toMatchObject({ recipe: { validate_every_steps: 3 } });
  expect(await inspected({ estimate: false })).toMatchObject({ statistics: { examples: 30 }, estimate: null });
  expect(await inspected({ validation_file: 'file-x' })).toMatchObject({ error: { param: 'validation_file' } });
  const bad = await rig.upload('bad.csv', 'mr,ref\na,b\nc\n');
  const columns = { prompt: 'mr', completion: 'ref' };
  const report = await (await rig.call('POST', '/api/datasets/inspect', { file: bad, columns })).json();
  expect(report).toMatchObject({
    report: { ok: false, problems: [{ line: 3, rule: 'column_count' }] },
    statistics: null,
    estimate: null,
  });
});
