/** Several gateways on one database: a job is moved by one of them, all can be asked, and when that one dies another goes on. */
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { JobLeases } from '../../../gateway/factory/jobs/leases.ts';
import { until } from '../../support/eventually.ts';
import { type Gateway, makeRestartable, type Restartable } from './restartable.ts';
import { chatLines } from './rig.ts';

let rig: Restartable;
let first: Gateway;
let second: Gateway;
/** Event streams of runs that were opened at the daemon, and data sets that were sent there. */
let follows = 0;
let sent = 0;
beforeEach(async () => {
  rig = await makeRestartable();
  const train = rig.daemon.extra;
  [follows, sent] = [0, 0];
  rig.daemon.extra = async (request, response, url) => {
    if (/^\/training\/runs\/[^/]+\/events$/.test(url.pathname)) follows += 1;
    if (url.pathname === '/datasets') sent += 1;
    return (await train?.(request, response, url)) ?? false;
  };
  first = await rig.start({ exclusive: false });
  second = await rig.start({ exclusive: false });
});
afterEach(() => rig?.close());

async function createJob(openai: OpenAI): Promise<string> {
  const file = await toFile(Buffer.from(chatLines(12)), 'train.jsonl');
  const { id } = await openai.files.create({ file, purpose: 'fine-tune' });
  return (await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: id })).id;
}
const statusAt = async ({ openai }: Gateway, id: string) => (await openai.fineTuning.jobs.retrieve(id)).status;
const leases = async () =>
  (await second.database.db.$client.execute('SELECT holder FROM fine_tuning_leases')).rows.length;

test('a job is followed once, whoever made it; the other tells of it, too; its lease goes with it', async () => {
  Object.assign(rig.training, { steps: 30, stepMs: 10 });
  const ids = await Promise.all([createJob(first.openai), createJob(second.openai)]);
  for (const id of ids) {
    await until(async () => (await statusAt(first, id)) === 'succeeded');
    expect(await statusAt(second, id)).toBe('succeeded');
    expect(rig.training.puts.get(id)).toBe(1);
    const { data } = await second.openai.fineTuning.jobs.listEvents(id, { limit: 100 });
    expect(data.filter(({ message }) => message.startsWith('Step '))).toHaveLength(30);
  }
  expect(sent).toBe(2);
  expect(follows).toBe(2);
  await until(async () => (await leases()) === 0);
});

test('what is asked of the gateway that does not move the job is done by the one that does', async () => {
  Object.assign(rig.training, { steps: 10_000, stepMs: 10 });
  const id = await createJob(first.openai);
  await until(async () => (await statusAt(first, id)) === 'running');
  expect((await second.openai.fineTuning.jobs.pause(id)).status).toBe('paused');
  expect(['queued', 'running']).toContain((await second.openai.fineTuning.jobs.resume(id)).status);
  expect((await second.openai.fineTuning.jobs.cancel(id)).status).toBe('cancelled');
  expect(rig.training.puts.get(id)).toBeGreaterThan(0);
});

test('a gateway that dies without a word: another goes on from what is stored, and nothing is told twice', async () => {
  Object.assign(rig.training, { steps: 40, stepMs: 5, holdAt: 20 });
  const id = await createJob(first.openai);
  await until(() => rig.training.runs.get(id)?.run.step === 20);
  expect(follows).toBe(1);
  // As a process that is killed: it can neither give its lease back nor renew it.
  first.database.close();
  rig.training.holdAt = null;
  await until(async () => (await statusAt(second, id)) === 'succeeded');
  const { data } = await second.openai.fineTuning.jobs.listEvents(id, { limit: 100 });
  const steps = data.map(({ message }) => /^Step (\d+)\//.exec(message)?.[1]).filter(Boolean);
  expect(steps.map(Number).reverse()).toEqual(Array.from({ length: 40 }, (_, index) => index + 1));
  expect(data.filter(({ message }) => message === 'The job has successfully completed')).toHaveLength(1);
});

test('one that stops in order gives its jobs back at once', async () => {
  Object.assign(rig.training, { steps: 10, stepMs: 5, holdAt: 5 });
  const id = await createJob(first.openai);
  await until(() => rig.training.runs.get(id)?.run.step === 5);
  await first.stop();
  rig.training.holdAt = null;
  await until(async () => (await statusAt(second, id)) === 'succeeded');
});

test('of any number that want a lease at the same time, one has it; it is had again when it has run out', async () => {
  const client = second.database.db.$client;
  const many = Array.from({ length: 8 }, () => new JobLeases(client, 60_000));
  const held = await Promise.all(many.map((one) => one.hold('ftjob-x')));
  expect(held.filter(Boolean)).toHaveLength(1);
  const holder = many[held.indexOf(true)] as JobLeases;
  // The seven others have called.
  expect(await holder.renew()).toEqual(['ftjob-x']);
  expect(await holder.renew()).toEqual([]);
  const heir = many[held.indexOf(false)] as JobLeases;
  expect(await heir.hold('ftjob-x')).toBe(false);
  await client.execute("UPDATE fine_tuning_leases SET until = 0 WHERE job_id = 'ftjob-x'");
  expect(await heir.hold('ftjob-x')).toBe(true);
  expect(await holder.renew()).toEqual(['ftjob-x']);
  expect(await holder.hold('ftjob-x')).toBe(false);
  // What is not one's own is not given back.
  await holder.release('ftjob-x');
  expect(await holder.hold('ftjob-x')).toBe(false);
  await heir.release('ftjob-x');
  expect(await holder.hold('ftjob-x')).toBe(true);
});
