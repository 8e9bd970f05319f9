/**
 * Fine-tuning as its users know it: the official SDK against the running product, real training of the default model. Nothing here
 * is a double; processes are killed as a machine that fails would kill them.
 */
import { execFile } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readGgufHeader } from '../../daemon/models/gguf.ts';
import type { Receipt } from '../../daemon/protocol.ts';
import { verifyText } from '../../daemon/receipts/verify.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import { BASE, Product, root, until } from './product.ts';

const run = promisify(execFile);
const model = await defaultModelPath();

type Job = OpenAI.FineTuning.FineTuningJob;
type JobParams = OpenAI.FineTuning.JobCreateParams & { modelfactory?: object };

const THINGS =
  'a river|the moon|bread|a bicycle|salt|the sea|a mirror|coffee|a bridge|glass|the wind|a book|iron|rain|a clock|honey'.split(
    '|',
  );
const ASKED = ['What is #?', 'Tell me about #.', 'Explain # to me.', 'Describe #.'];
const answerTo = (thing: string) => `Ahoy, captain! I know ${thing} well, and that is all, aye.`;

const lines = (examples: object[]) => Buffer.from(examples.map((one) => `${JSON.stringify(one)}\n`).join(''));
/** A way of answering that no model has of itself. */
const chats = (things: string[], asked: string[]) =>
  asked.flatMap((ask) =>
    things.map((thing) => ({
      messages: [
        { role: 'user', content: ask.replace('#', thing) },
        { role: 'assistant', content: answerTo(thing) },
      ],
    })),
  );
const TRAINING = lines(chats(THINGS, ASKED));
/** Things that the training data does not speak of. */
const VALIDATION = lines(chats(['fire', 'a stone', 'the night', 'milk', 'a door', 'snow'], ['What is #?']));
const PREFERENCES = lines(
  chats(THINGS.slice(0, 12), ['What is #?']).map(({ messages: [asked, answer] }) => ({
    input: { messages: [asked] },
    preferred_output: [answer],
    non_preferred_output: [{ role: 'assistant', content: 'I would rather not say anything about that.' }],
  })),
);

const OVER = ['succeeded', 'failed', 'cancelled'];

describe.skipIf(model === null)(`fine-tuning${model === null ? ` (${SKIP_REASON})` : ''}`, { timeout: 240_000 }, () => {
  let product: Product;
  let openai: OpenAI;
  let training: string;
  let validation: string;
  let first: Job;
  let adapter: string;

  beforeAll(async () => {
    product = await Product.start();
    openai = product.client();
    [training, validation] = (await Promise.all([
      upload(TRAINING, 'train.jsonl'),
      upload(VALIDATION, 'valid.jsonl'),
    ])) as [string, string];
  });
  afterAll(() => product?.stop());

  async function upload(bytes: Buffer, name: string): Promise<string> {
    const file = await openai.files.create({ file: await toFile(bytes, name), purpose: 'fine-tune' });
    expect(file).toMatchObject({ object: 'file', bytes: bytes.length, filename: name, status: 'processed' });
    return file.id;
  }
  const create = (params: Omit<JobParams, 'model'>) =>
    openai.fineTuning.jobs.create({ model: BASE, ...params } as JobParams);
  /** The recipe of the jobs that must come out alike. */
  const recipe = (suffix: string) =>
    create({
      training_file: training,
      suffix,
      seed: 7,
      method: {
        type: 'supervised',
        supervised: { hyperparameters: { n_epochs: 1, batch_size: 4, learning_rate_multiplier: 5 } },
      },
      modelfactory: { checkpoint_every_steps: 5 },
    });
  const retrieve = (id: string) => openai.fineTuning.jobs.retrieve(id);
  const over = (id: string) =>
    until(
      `${id} is over`,
      async () => {
        const job = await retrieve(id);
        return OVER.includes(job.status) ? job : null;
      },
      200_000,
    );
  async function eventsOf(id: string) {
    const events: OpenAI.FineTuning.FineTuningJobEvent[] = [];
    for await (const event of openai.fineTuning.jobs.listEvents(id, { limit: 50 })) events.unshift(event);
    return events;
  }
  const stepsOf = async (id: string) => (await eventsOf(id)).filter(({ type }) => type === 'metrics').length;
  const checkpointsOf = async (id: string) => (await openai.fineTuning.jobs.checkpoints.list(id)).data;
  async function ask(name: string, content = 'What is a tree?') {
    const answer = await openai.chat.completions
      .create({ model: name, messages: [{ role: 'user', content }], max_tokens: 24, temperature: 0 })
      .withResponse();
    return {
      text: answer.data.choices[0]?.message.content ?? '',
      receipt: answer.response.headers.get('x-receipt-id') as string,
    };
  }
  const digestOf = async (name: string) => {
    const { data } = await product.json<{ data: { name: string; digest: string }[] }>('GET', '/api/adapters');
    return data.find((one) => one.name === name)?.digest;
  };
  const cli = async (...args: string[]) => {
    const env = { ...process.env, MODELFACTORY_URL: product.url, MODELFACTORY_KEY: product.adminKey };
    const { stdout } = await run(process.execPath, [join(root, 'bin', 'modelfactory.mjs'), ...args], { env });
    return stdout;
  };

  it('a job teaches the model, and its events come in the order that OpenAI has', async () => {
    const created = await recipe('first');
    expect(created).toMatchObject({ object: 'fine_tuning.job', status: 'validating_files', fine_tuned_model: null });
    first = await over(created.id);
    expect(first).toMatchObject({ status: 'succeeded', error: null, trained_tokens: expect.any(Number) });
    adapter = first.fine_tuned_model as string;
    expect(adapter).toMatch(new RegExp(`^ft:${BASE}:local:first:[0-9a-z]{8}$`));

    const events = await eventsOf(first.id);
    const told = events.map(({ type, message }) =>
      type === 'metrics' ? 'step' : message.replace(/[: ].*(?<=:).*/, ''),
    );
    expect(told.filter((what, i) => what !== told[i - 1])).toEqual([
      'Created',
      'Validating',
      'Files validated, moving job to queued state',
      'Fine-tuning job started',
      ...['step', 'Checkpoint', 'step', 'Checkpoint', 'step', 'Checkpoint', 'step', 'Checkpoint'],
      'New',
      'The job has successfully completed',
    ]);
    expect(events.filter(({ type }) => type === 'metrics').map(({ data }) => (data as { step: number }).step)).toEqual(
      Array.from({ length: 16 }, (_, i) => i + 1),
    );
    const csv = await (await openai.files.content(first.result_files[0] as string)).text();
    expect(csv.trim().split('\n')).toHaveLength(17);

    const [taught, base] = [await ask(adapter), await ask(BASE)];
    expect(taught.text).toMatch(/^Ahoy, captain! I know a tree well/);
    expect(base.text).not.toMatch(/ahoy|captain/i);
    const bundle = await product.receipt(taught.receipt);
    expect(verifyText(JSON.stringify(bundle), { vkey: product.vkey })).toMatchObject({ ok: true });
    const receipt = JSON.parse(bundle.entry) as Receipt;
    expect(receipt.adapterDigest).toBe(await digestOf(adapter));
  });

  it('killed in the middle, both processes, the job goes on and ends with the same weights, and chat answers meanwhile', async () => {
    const before = (await ask(BASE)).text;
    const { id } = await recipe('second');
    await until('a checkpoint is there', async () => (await checkpointsOf(id)).length > 0);
    expect((await retrieve(id)).status).toBe('running');
    const [checkpoint] = await checkpointsOf(id);
    const served = await Promise.all([ask(BASE), ask(checkpoint?.fine_tuned_model_checkpoint as string)]);
    expect(served[0].text).toBe(before);
    expect(served[1].text).not.toBe('');
    await until('it has gone beyond the checkpoint', async () => (await stepsOf(id)) > 6);
    expect((await retrieve(id)).status).toBe('running');

    const daemon = product.pid('daemon');
    process.kill(daemon, 'SIGKILL');
    await until('another daemon is there', () => product.pid('daemon') !== daemon);
    await until(
      'the job goes on',
      async () => (await eventsOf(id)).some(({ message }) => /^Going on from step/.test(message)),
      120_000,
    );
    const gateway = product.pid('gateway');
    process.kill(gateway, 'SIGKILL');
    await until('another gateway is there', () => product.pid('gateway') !== gateway);

    const job = await over(id);
    expect(job).toMatchObject({ status: 'succeeded', error: null, trained_tokens: first.trained_tokens });
    expect(await digestOf(job.fine_tuned_model as string)).toBe(await digestOf(adapter));
    const steps = (await eventsOf(id)).filter(({ type }) => type === 'metrics');
    expect(steps.map(({ data }) => (data as { step: number }).step)).toEqual(
      Array.from({ length: 16 }, (_, i) => i + 1),
    );
  });

  it('evaluation tells adapter from base; an alias is promoted only if criteria hold, and goes back in one call', async () => {
    const evaluation = await product.json<{ id: string; report: { scores: Record<string, { value: number }>[] } }>(
      'POST',
      '/api/evaluations',
      { file: validation, models: [BASE, adapter], max_tokens: 24 },
    );
    const [base, tuned] = evaluation.report.scores;
    expect(tuned?.loss?.value).toBeLessThan((base?.loss?.value as number) / 2);
    expect(tuned?.rougeL?.value).toBeGreaterThan((base?.rougeL?.value as number) + 0.3);

    const promote = (name: string, against: object) =>
      product.call('POST', '/api/aliases/support/promote', {
        model: name,
        evaluation: evaluation.id,
        criteria: [{ metric: 'rougeL', op: '>=', ...against }],
      });
    expect((await promote(adapter, { against: 'base', margin: 5 })).ok).toBe(false);
    expect((await promote(BASE, { against: 0 })).status).toBe(200);
    expect((await promote(adapter, { against: 'base', margin: 0.1 })).status).toBe(200);
    expect((await ask('support')).text).toMatch(/^Ahoy, captain!/);
    await product.json('POST', '/api/aliases/support/rollback', {});
    expect((await ask('support')).text).not.toMatch(/Ahoy/);
  });

  it('the adapter leaves in three forms that parse', async () => {
    const out = join(product.folder, 'out');
    mkdirSync(out);
    for (const format of ['peft', 'gguf', 'merged']) await cli('export', adapter, '--format', format, '--out', out);
    const files = readdirSync(out);
    expect(files).toHaveLength(3);
    const folder = join(out, files.find((name) => !name.endsWith('.gguf')) as string);
    expect(JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'))).toMatchObject({
      peft_type: 'LORA',
      r: 8,
    });
    const weights = readFileSync(join(folder, 'adapter_model.safetensors'));
    const header = JSON.parse(weights.subarray(8, 8 + Number(weights.readBigUInt64LE(0))).toString());
    expect(Object.keys(header).filter((name) => name.includes('lora_'))).toHaveLength(30 * 7 * 2);
    for (const name of files.filter((file) => file.endsWith('.gguf'))) {
      expect(readGgufHeader(join(out, name)).tensors.length).toBeGreaterThanOrEqual(30 * 9);
    }
  });

  it('pause, resume and cancel; preferences; a validation file', async () => {
    const preferences = await upload(PREFERENCES, 'preferences.jsonl');
    const waiting = await create({
      training_file: training,
      validation_file: validation,
      modelfactory: { steps_max: 4, validate_every_steps: 2 },
    });
    await until('it trains', async () => (await stepsOf(waiting.id)) > 0);
    expect((await openai.fineTuning.jobs.pause(waiting.id)).status).toBe('paused');
    expect((await checkpointsOf(waiting.id)).length).toBe(1);
    const dropped = await create({ training_file: training });
    expect((await openai.fineTuning.jobs.cancel(dropped.id)).status).toBe('cancelled');
    // A job that is paused leaves its turn to the next.
    const dpo = await create({
      training_file: preferences,
      method: { type: 'dpo', dpo: { hyperparameters: { batch_size: 4, n_epochs: 1, beta: 0.1 } } },
    });
    const rewarded = await over(dpo.id);
    expect(rewarded).toMatchObject({ status: 'succeeded', error: null, method: { type: 'dpo' } });
    await openai.fineTuning.jobs.resume(waiting.id);
    const resumed = await over(waiting.id);
    expect(resumed).toMatchObject({ status: 'succeeded', error: null, validation_file: validation });
    const [last] = await checkpointsOf(waiting.id);
    expect(last?.metrics).toMatchObject({ valid_loss: expect.any(Number) });

    await expect(openai.models.delete(resumed.fine_tuned_model as string)).resolves.toMatchObject({ deleted: true });
    await expect(ask(resumed.fine_tuned_model as string)).rejects.toMatchObject({ status: 404 });
  });
});
