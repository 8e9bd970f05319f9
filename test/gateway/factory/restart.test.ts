/** Either process may stop at any moment: jobs go on where the rows say, nothing is told twice, nothing is lost. */
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import OpenAI, { toFile } from 'openai';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type App, createApp } from '../../../gateway/app.ts';
import { type OpenedDatabase, openDatabase } from '../../../gateway/db/open.ts';
import { diskStorage } from '../../../gateway/factory/files/storage.ts';
import { DAEMON_TOKEN, type ScriptedDaemon, startScriptedDaemon } from '../../support/scripted-daemon.ts';
import { noDatanets, PRICE, TRAINING } from '../rig.ts';
import { chatLines } from './rig.ts';
import { type ScriptedTraining, scriptTraining } from './scripted-training.ts';

const migrationsFolder = fileURLToPath(new URL('../../../migrations/gateway', import.meta.url));
let folder: string;
let daemon: ScriptedDaemon;
let training: ScriptedTraining;
let credential: string | undefined;
let running: { app: App; database: OpenedDatabase } | null = null;
let openai: OpenAI;

async function startGateway(): Promise<void> {
  const database = await openDatabase({ url: `file:${join(folder, 'gateway.db')}`, migrationsFolder });
  const app = createApp({
    db: database.db,
    exclusiveDatabase: true,
    daemons: { urls: [daemon.url], token: DAEMON_TOKEN, fetch: (url, init) => fetch(url, init) },
    price: PRICE,
    factory: { storage: diskStorage(join(folder, 'files')), ...TRAINING },
    datanets: noDatanets(),
    log: { info() {}, warn() {}, error() {} },
    openMetrics: false,
    version: '0',
  });
  credential ??= (await app.services.keys.create({ name: 'admin', scopes: ['admin'] })).credential;
  await app.services.factory.start({ exclusive: true });
  openai = new OpenAI({
    apiKey: credential,
    baseURL: 'http://gateway.test/v1',
    maxRetries: 0,
    fetch: async (url, init) => app.fetch(new Request(url as string, init as RequestInit)),
  });
  running = { app, database };
}

/** As a process that ends: loops stop where they are, nothing more is written. */
async function stopGateway(): Promise<void> {
  await running?.app.services.factory.stop();
  running?.database.close();
  running = null;
}

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mf-restart-'));
  daemon = await startScriptedDaemon();
  training = scriptTraining(daemon);
  credential = undefined;
  await startGateway();
});
afterEach(async () => {
  await stopGateway();
  training.stop();
  await daemon.stop().catch(() => {});
  await rm(folder, { recursive: true, force: true });
});

async function createJob(): Promise<string> {
  const file = await openai.files.create({
    file: await toFile(Buffer.from(chatLines(12)), 'train.jsonl'),
    purpose: 'fine-tune',
  });
  return (await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file.id })).id;
}

async function until(id: string, ...statuses: string[]): Promise<OpenAI.FineTuning.FineTuningJob> {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const job = await openai.fineTuning.jobs.retrieve(id);
    if (statuses.includes(job.status)) return job;
    if (Date.now() > deadline) throw new Error(`the job stays ${job.status}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Started once, every step once and in order, the end once. */
async function expectWholeStory(id: string, steps: number): Promise<void> {
  const { data } = await openai.fineTuning.jobs.listEvents(id, { limit: 1000 });
  const messages = data.map(({ message }) => message).reverse();
  expect(messages.filter((message) => message === 'Fine-tuning job started')).toHaveLength(1);
  const told = messages.map((message) => /^Step (\d+)\//.exec(message)?.[1]).filter(Boolean);
  expect(told.map(Number)).toEqual(Array.from({ length: steps }, (_, index) => index + 1));
  expect(messages.slice(-2)).toEqual([
    expect.stringMatching(/^New fine-tuned model created: /),
    'The job has successfully completed',
  ]);
}

test('the gateway is restarted again and again while a job trains: the job does not notice', async () => {
  Object.assign(training, { steps: 60, stepMs: 10 });
  const id = await createJob();
  for (let i = 0; i < 6; i++) {
    await new Promise((resolve) => setTimeout(resolve, 60));
    await stopGateway();
    await startGateway();
  }
  const job = await until(id, 'succeeded');
  expect(job.result_files).toHaveLength(1);
  await expectWholeStory(id, 60);
  const [checkpoint, ...more] = (await openai.fineTuning.jobs.checkpoints.list(id)).data;
  expect(checkpoint?.step_number).toBe(30);
  expect(more).toEqual([]);
}, 30_000);

test('the daemon is away when the job is made, while it trains, and when it ends: the state stays true', async () => {
  Object.assign(training, { steps: 20, stepMs: 10 });
  const id = await createJob();
  await daemon.stop();
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(['validating_files', 'queued', 'running']).toContain((await openai.fineTuning.jobs.retrieve(id)).status);
  await daemon.restart();
  await until(id, 'running');
  await daemon.stop();
  // The run goes on to its end meanwhile; the gateway cannot know.
  await new Promise((resolve) => setTimeout(resolve, 400));
  expect((await openai.fineTuning.jobs.retrieve(id)).status).toBe('running');
  await daemon.restart();
  await until(id, 'succeeded');
  await expectWholeStory(id, 20);
}, 30_000);

test('a cancellation asked for while the daemon is away holds, also across a restart of the gateway', async () => {
  Object.assign(training, { steps: 10_000, stepMs: 10 });
  const id = await createJob();
  await until(id, 'running');
  await daemon.stop();
  const job = await openai.fineTuning.jobs.cancel(id);
  // Not told as done, since it is not; and what was asked is not taken back by the way.
  expect(job.status).toBe('running');
  await expect(openai.fineTuning.jobs.resume(id)).rejects.toMatchObject({ status: 400, code: 'invalid_job_state' });
  await stopGateway();
  await startGateway();
  await daemon.restart();
  await until(id, 'cancelled');
  expect(training.runs.get(id)?.run.status).toBe('cancelled');
}, 30_000);

test('a gateway that ended between bringing a run to the daemon and noting so still cancels it there', async () => {
  Object.assign(training, { steps: 10_000, stepMs: 10 });
  const id = await createJob();
  await until(id, 'running');
  const { database } = running as NonNullable<typeof running>;
  await running?.app.services.factory.stop();
  await database.db.$client.execute({
    sql: "UPDATE fine_tuning_jobs SET status = 'queued', wanted = 'cancel', run_created_at = NULL, last_event = 0 WHERE id = ?",
    args: [id],
  });
  await stopGateway();
  await startGateway();
  await until(id, 'cancelled');
  expect(training.runs.get(id)?.run.status).toBe('cancelled');
}, 30_000);

test('a job that was never brought to the daemon is cancelled without it', async () => {
  const id = await createJob();
  await daemon.stop();
  const file = await openai.files.list();
  expect(file.data).toHaveLength(1);
  const job = await openai.fineTuning.jobs.retrieve(id);
  if (job.status === 'validating_files') expect((await openai.fineTuning.jobs.cancel(id)).status).toBe('cancelled');
  else await until(id, 'queued', 'running', 'succeeded');
});

test('a daemon that lost its data sets is given them again; one that lost the run trains anew', async () => {
  Object.assign(training, { steps: 8, stepMs: null });
  const id = await createJob();
  await until(id, 'queued');
  while (!training.runs.has(id)) await new Promise((resolve) => setTimeout(resolve, 5));
  training.runs.clear();
  training.datasets.clear();
  training.stepMs = 5;
  training.hangUp();
  await until(id, 'succeeded');
  expect(training.datasets.size).toBe(1);
  await expectWholeStory(id, 8);
}, 30_000);

test('event streams that break are taken up where they broke', async () => {
  Object.assign(training, { steps: 40, stepMs: 10 });
  const id = await createJob();
  await until(id, 'running');
  for (let i = 0; i < 4; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    training.hangUp();
  }
  await until(id, 'succeeded');
  await expectWholeStory(id, 40);
}, 30_000);

test('drafts and files that no row knows are gone after a start; files with rows stay', async () => {
  const id = await createJob();
  await until(id, 'succeeded');
  await stopGateway();
  await writeFile(join(folder, 'files', 'file-half.part'), 'x');
  await writeFile(join(folder, 'files', 'file-orphan'), 'x');
  const before = (await readdir(join(folder, 'files'))).length;
  await startGateway();
  const after = await readdir(join(folder, 'files'));
  expect(after).toHaveLength(before - 2);
  const { data } = await openai.files.list();
  expect(data.map((file) => file.id).sort()).toEqual(after.sort());
});
