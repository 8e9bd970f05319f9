/** Either process may stop at any moment: jobs go on where the rows say, nothing is told twice, nothing is lost. */
import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { until } from '../../support/eventually.ts';
import { PATIENCE_MS } from '../../support/patience.ts';
import type { ScriptedDaemon } from '../../support/scripted-daemon.ts';
import { type Gateway, makeRestartable, type Restartable } from './restartable.ts';
import { chatLines } from './rig.ts';
import type { ScriptedTraining } from './scripted-training.ts';

let rig: Restartable;
let gateway: Gateway;
let folder: string;
let daemon: ScriptedDaemon;
let training: ScriptedTraining;
let openai: OpenAI;

async function startGateway(): Promise<void> {
  gateway = await rig.start();
  ({ openai } = gateway);
}
const stopGateway = () => gateway.stop();

beforeEach(async () => {
  rig = await makeRestartable();
  ({ folder, daemon, training } = rig);
  await startGateway();
});
afterEach(() => rig?.close());

async function createJob(): Promise<string> {
  const file = await openai.files.create({
    file: await toFile(Buffer.from(chatLines(12)), 'train.jsonl'),
    purpose: 'fine-tune',
  });
  return (await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file.id })).id;
}

async function untilStatus(id: string, ...statuses: string[]): Promise<OpenAI.FineTuning.FineTuningJob> {
  const deadline = Date.now() + PATIENCE_MS;
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
  // However slow the gateway is, the run is not over before it.
  Object.assign(training, { steps: 60, stepMs: 10, holdAt: 59 });
  const id = await createJob();
  for (let i = 0; i < 6; i++) {
    await new Promise((resolve) => setTimeout(resolve, 60));
    await stopGateway();
    await startGateway();
  }
  training.holdAt = null;
  const job = await untilStatus(id, 'succeeded');
  expect(job.result_files).toHaveLength(1);
  await expectWholeStory(id, 60);
  const [checkpoint, ...more] = (await openai.fineTuning.jobs.checkpoints.list(id)).data;
  expect(checkpoint?.step_number).toBe(30);
  expect(more).toEqual([]);
});

test('the daemon is away when the job is made, while it trains, and when it ends: the state stays true', async () => {
  Object.assign(training, { steps: 20, stepMs: 10, holdAt: 3 });
  const id = await createJob();
  await daemon.stop();
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(['validating_files', 'queued', 'running']).toContain((await openai.fineTuning.jobs.retrieve(id)).status);
  await daemon.restart();
  await untilStatus(id, 'running');
  await daemon.stop();
  // The run goes on to its end meanwhile; the gateway cannot know.
  training.holdAt = null;
  await until(() => training.runs.get(id)?.run.status === 'succeeded');
  expect((await openai.fineTuning.jobs.retrieve(id)).status).toBe('running');
  await daemon.restart();
  await untilStatus(id, 'succeeded');
  await expectWholeStory(id, 20);
});

test('a cancellation asked for while the daemon is away holds, also across a restart of the gateway', async () => {
  Object.assign(training, { steps: 10_000, stepMs: 10 });
  const id = await createJob();
  await untilStatus(id, 'running');
  await daemon.stop();
  const job = await openai.fineTuning.jobs.cancel(id);
  // Not told as done, since it is not; and what was asked is not taken back by the way.
  expect(job.status).toBe('running');
  await expect(openai.fineTuning.jobs.resume(id)).rejects.toMatchObject({ status: 400, code: 'invalid_job_state' });
  await stopGateway();
  await startGateway();
  await daemon.restart();
  await untilStatus(id, 'cancelled');
  expect(training.runs.get(id)?.run.status).toBe('cancelled');
});

test('a gateway that ended between bringing a run to the daemon and noting so still cancels it there', async () => {
  Object.assign(training, { steps: 10_000, stepMs: 10 });
  const id = await createJob();
  await untilStatus(id, 'running');
  await gateway.app.services.factory.stop();
  await gateway.database.db.$client.execute({
    sql: "UPDATE fine_tuning_jobs SET status = 'queued', wanted = 'cancel', run_created_at = NULL, last_event = 0 WHERE id = ?",
    args: [id],
  });
  await stopGateway();
  await startGateway();
  await untilStatus(id, 'cancelled');
  expect(training.runs.get(id)?.run.status).toBe('cancelled');
});

test('a job that was never brought to the daemon is cancelled without it', async () => {
  const id = await createJob();
  await daemon.stop();
  const file = await openai.files.list();
  expect(file.data).toHaveLength(1);
  const job = await openai.fineTuning.jobs.retrieve(id);
  if (job.status === 'validating_files') expect((await openai.fineTuning.jobs.cancel(id)).status).toBe('cancelled');
  else await untilStatus(id, 'queued', 'running', 'succeeded');
});

test('a daemon that lost its data sets is given them again; one that lost the run trains anew', async () => {
  Object.assign(training, { steps: 8, stepMs: null });
  const id = await createJob();
  await untilStatus(id, 'queued');
  await until(() => training.runs.has(id));
  training.runs.clear();
  training.datasets.clear();
  training.stepMs = 5;
  training.hangUp();
  await untilStatus(id, 'succeeded');
  expect(training.datasets.size).toBe(1);
  await expectWholeStory(id, 8);
});

test('event streams that break are taken up where they broke', async () => {
  Object.assign(training, { steps: 40, stepMs: 10, holdAt: 39 });
  const id = await createJob();
  await untilStatus(id, 'running');
  for (let i = 0; i < 4; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    training.hangUp();
  }
  training.holdAt = null;
  await untilStatus(id, 'succeeded');
  await expectWholeStory(id, 40);
});

test('drafts and files that no row knows are gone after a start; files with rows stay', async () => {
  const id = await createJob();
  await untilStatus(id, 'succeeded');
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
