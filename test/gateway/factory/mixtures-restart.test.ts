/** A mixture is the same data whenever it is sent: after the gateway stopped in the middle, and when the daemon has lost it. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { ScriptedDaemon } from '../../support/scripted-daemon.ts';
import { chatExamples, DatanetFixture } from '../datanets/fixture.ts';
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
  rig = await makeRestartable('builder');
  ({ folder, daemon, training } = rig);
  await startGateway();
});
afterEach(() => rig?.close());

async function mixtureJob(seed: number): Promise<string> {
  const fixture = new DatanetFixture(gateway.database.db, Date.now, rig.key);
  const datanet = await fixture.make({ user: rig.owner });
  await datanet.publish(chatExamples(400, 'shared'));
  const file = await toFile(Buffer.from(chatLines(300, 'own')), 'own.jsonl');
  const { id } = await openai.files.create({ file, purpose: 'fine-tune' });
  return create(seed, [`file-${datanet.id}-v1`, id]);
}

async function create(seed: number, files: string[]): Promise<string> {
  const mixture = files.map((file, index) => ({ file, weight: index + 0.5 }));
  const body = { model: 'tiny-base', training_file: files[0] as string, seed, modelfactory: { mixture } };
  return (await openai.fineTuning.jobs.create(body)).id;
}

async function until(id: string): Promise<OpenAI.FineTuning.FineTuningJob> {
  for (;;) {
    const job = await openai.fineTuning.jobs.retrieve(id);
    if (['succeeded', 'failed', 'cancelled'].includes(job.status)) return job;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

type Sources = { modelfactory: { sources: { file: string; digest: string }[] } };
const sourcesOf = (job: unknown) => (job as Sources).modelfactory.sources;

test('stopped while the daemon was reading it, sent again by the next process: the same bytes as undisturbed', async () => {
  const plain = daemon.extra;
  let reading = () => {};
  const begun = new Promise<void>((resolve) => {
    reading = resolve;
  });
  daemon.extra = async (request, response, url) => {
    if (url.pathname !== '/datasets') return (await plain?.(request, response, url)) ?? false;
    request.once('data', () => reading());
    // Answers never: whoever sends it must end first.
    await new Promise((resolve) => request.once('close', resolve));
    return true;
  };
  const id = await mixtureJob(77);
  await begun;
  await stopGateway();
  // What was being read out of is gone when the next process begins.
  daemon.extra = plain as NonNullable<typeof plain>;
  await startGateway();
  expect((await readdir(join(folder, 'files'))).filter((name) => name.endsWith('.part'))).toEqual([]);
  const job = await until(id);
  expect(job.status).toBe('succeeded');
  const again = await until(
    await create(
      77,
      sourcesOf(job).map(({ file }) => file),
    ),
  );
  const datasetOf = (one: string) => training.runs.get(one)?.run.request.dataset;
  expect(datasetOf(again.id)).toBe(datasetOf(id));
  expect(sourcesOf(again)).toEqual(sourcesOf(job));
});

test('a daemon that has lost run and data is given the same again', async () => {
  training.stepMs = null;
  const id = await mixtureJob(5);
  await expect.poll(() => training.runs.has(id)).toBe(true);
  const before = training.runs.get(id)?.run.request;
  await stopGateway();
  training.runs.clear();
  training.datasets.clear();
  training.stepMs = 2;
  await startGateway();
  expect((await until(id)).status).toBe('succeeded');
  expect(training.runs.get(id)?.run.request).toEqual(before);
  expect([...training.datasets.keys()]).toEqual([before?.dataset]);
});
