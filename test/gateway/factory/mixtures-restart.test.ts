/** A mixture is the same data whenever it is sent: after the gateway stopped in the middle, and when the daemon has lost it. */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import OpenAI, { toFile } from 'openai';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type App, createApp } from '../../../gateway/app.ts';
import { ROLE_SCOPES } from '../../../gateway/auth/scopes.ts';
import { type OpenedDatabase, openDatabase } from '../../../gateway/db/open.ts';
import { diskStorage } from '../../../gateway/factory/files/storage.ts';
import { DAEMON_TOKEN, type ScriptedDaemon, startScriptedDaemon } from '../../support/scripted-daemon.ts';
import { chatExamples, DatanetFixture } from '../datanets/fixture.ts';
import { noDatanets, PRICE, TRAINING } from '../rig.ts';
import { chatLines } from './rig.ts';
import { type ScriptedTraining, scriptTraining } from './scripted-training.ts';

const migrationsFolder = fileURLToPath(new URL('../../../migrations/gateway', import.meta.url));
let folder: string;
let daemon: ScriptedDaemon;
let training: ScriptedTraining;
let credential: string | undefined;
let owner = '';
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
  if (credential === undefined) {
    const user = await app.services.people.users.create({
      email: 'owner@users.test',
      name: 'Owner',
      role: 'builder',
      state: 'active',
    });
    owner = user.id;
    const scopes = [...ROLE_SCOPES.builder];
    credential = (await app.services.keys.create({ name: 'personal', userId: user.id, scopes })).credential;
  }
  await app.services.factory.start({ exclusive: true });
  openai = new OpenAI({
    apiKey: credential,
    baseURL: 'http://gateway.test/v1',
    maxRetries: 0,
    fetch: async (url, init) => app.fetch(new Request(url as string, init as RequestInit)),
  });
  running = { app, database };
}

async function stopGateway(): Promise<void> {
  await running?.app.services.factory.stop();
  running?.database.close();
  running = null;
}

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mf-mixture-'));
  daemon = await startScriptedDaemon();
  training = scriptTraining(daemon);
  credential = undefined;
  await startGateway();
});
afterEach(async () => {
  training.stop();
  await stopGateway();
  await daemon.stop();
  await rm(folder, { recursive: true, force: true });
});

async function mixtureJob(seed: number): Promise<string> {
  const { db } = (running as { database: OpenedDatabase }).database;
  const datanet = await new DatanetFixture(db).make({ user: owner });
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
}, 20_000);

test('a daemon that has lost run and data is given the same again', async () => {
  training.stepMs = null;
  const id = await mixtureJob(5);
  await expect.poll(() => training.runs.has(id), { timeout: 10_000 }).toBe(true);
  const before = training.runs.get(id)?.run.request;
  await stopGateway();
  training.runs.clear();
  training.datasets.clear();
  training.stepMs = 2;
  await startGateway();
  expect((await until(id)).status).toBe('succeeded');
  expect(training.runs.get(id)?.run.request).toEqual(before);
  expect([...training.datasets.keys()]).toEqual([before?.dataset]);
}, 20_000);
