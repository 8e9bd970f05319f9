/** What the product says a job will take before it is started, against what it took: through the whole product, as a user sees it. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import OpenAI, { toFile } from 'openai';
import { type OurServer, sleep, startOurs } from '../processes.ts';
import { number, spread } from '../report.ts';
import { summarize } from '../stats.ts';
import { dataFolder, readPairs, shuffled } from './data.ts';
import type { Bench, PartResult } from './setup.ts';

interface Case {
  name: string;
  file: 'chat' | 'preference';
  validated: boolean;
  epochs: number;
  batch: number;
}

const CASES: readonly Case[] = [
  { name: 'supervised, batch 4, 2 epochs', file: 'chat', validated: false, epochs: 2, batch: 4 },
  { name: 'supervised, batch 16, 3 epochs', file: 'chat', validated: false, epochs: 3, batch: 16 },
  { name: 'supervised with validation, batch 8', file: 'chat', validated: true, epochs: 2, batch: 8 },
  { name: 'dpo, batch 4, 2 epochs', file: 'preference', validated: false, epochs: 2, batch: 4 },
];
const VALIDATION_EXAMPLES = 16;
const POLL_MS = 100;

interface Run {
  round: number;
  name: string;
  estimatedSeconds: number;
  seconds: number;
  estimatedBytes: number;
  bytes: number;
}

/** Peak resident bytes of the process, read from the system; NaN where it does not tell. */
function residentBytes(pid: number): number {
  try {
    return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? Number.NaN) * 1024;
  } catch {
    return Number.NaN;
  }
}

function daemonPid(server: OurServer): number {
  const state = JSON.parse(readFileSync(path.join(server.dataFolder, 'supervisor.json'), 'utf8')) as {
    processes: Record<string, { pid: number | null }>;
  };
  return state.processes.daemon?.pid ?? Number.NaN;
}

async function measure(server: OurServer, files: Record<string, string>, wanted: Case, round: number): Promise<Run> {
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: server.adminKey });
  const headers = { authorization: `Bearer ${server.adminKey}`, 'content-type': 'application/json' };
  const hyperparameters = { n_epochs: wanted.epochs, batch_size: wanted.batch };
  const request = {
    model: (await client.models.list()).data[0]?.id ?? '',
    training_file: files[wanted.file] as string,
    ...(wanted.validated ? { validation_file: files.validation as string } : {}),
    seed: round,
    method:
      wanted.file === 'chat'
        ? ({ type: 'supervised', supervised: { hyperparameters } } as const)
        : ({ type: 'dpo', dpo: { hyperparameters } } as const),
  };
  let job = await client.fineTuning.jobs.create(request);
  const told = () =>
    (job as unknown as { modelfactory?: { estimate?: { seconds: number; memory_bytes: number } } }).modelfactory;
  const pid = daemonPid(server);
  let peak = 0;
  let startedAt = 0;
  for (;;) {
    job = await client.fineTuning.jobs.retrieve(job.id);
    if (job.status === 'running') {
      startedAt ||= performance.now();
      peak = Math.max(peak, residentBytes(pid));
    }
    if (['succeeded', 'failed', 'cancelled'].includes(job.status)) break;
    await sleep(POLL_MS);
  }
  const seconds = (performance.now() - startedAt) / 1000;
  if (job.status !== 'succeeded') throw new Error(`the job ended as ${job.status}: ${job.error?.message ?? ''}`);
  const estimate = told()?.estimate;
  if (estimate === undefined) throw new Error('the job tells no estimate');
  await fetch(`${server.url}/v1/models/${encodeURIComponent(job.fine_tuned_model ?? '')}`, {
    method: 'DELETE',
    headers,
  });
  return {
    round,
    name: wanted.name,
    estimatedSeconds: estimate.seconds,
    seconds,
    estimatedBytes: estimate.memory_bytes,
    bytes: peak,
  };
}

async function upload(bench: Bench, server: OurServer): Promise<Record<string, string>> {
  const { options } = bench;
  const pairs = shuffled(readPairs(path.join(dataFolder(options.dataFolder), 'e2e-devset.csv')), options.seed).slice(
    0,
    options.estimate.examples + VALIDATION_EXAMPLES,
  );
  const user = (meaning: string) => ({ role: 'user', content: `Describe the restaurant: ${meaning}` });
  const chat = pairs.map(({ meaning, reference }) => ({
    messages: [user(meaning), { role: 'assistant', content: reference }],
  }));
  const preference = pairs.map(({ meaning, reference }, i) => ({
    input: { messages: [user(meaning)] },
    preferred_output: [{ role: 'assistant', content: reference }],
    non_preferred_output: [{ role: 'assistant', content: pairs[(i + 1) % pairs.length]?.reference }],
  }));
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: server.adminKey });
  const put = async (name: string, records: unknown[]) => {
    const text = records.map((record) => JSON.stringify(record)).join('\n');
    return (await client.files.create({ file: await toFile(Buffer.from(text), `${name}.jsonl`), purpose: 'fine-tune' }))
      .id;
  };
  return {
    chat: await put('chat', chat.slice(0, options.estimate.examples)),
    validation: await put('validation', chat.slice(options.estimate.examples)),
    preference: await put('preference', preference.slice(0, options.estimate.examples)),
  };
}

export async function estimate(bench: Bench): Promise<PartResult> {
  const { options, log } = bench;
  const runs: Run[] = [];
  const server = await startOurs({ modelPath: options.modelPath });
  try {
    const files = await upload(bench, server);
    for (let round = 1; round <= options.estimate.rounds; round++) {
      for (const wanted of CASES) {
        const run = await measure(server, files, wanted, round);
        runs.push(run);
        log(
          `estimate, round ${round}, ${run.name}: ${number(run.estimatedSeconds)} s told, ${number(run.seconds)} s taken; ${number(run.estimatedBytes / 1e6)} MB told, ${number(run.bytes / 1e6)} MB held`,
        );
      }
    }
  } finally {
    await server.stop();
  }
  return resultOf(runs, options.estimate.rounds);
}

/** Pure: runs → table and checks. */
function resultOf(runs: Run[], rounds: number): PartResult {
  const ratio = (pick: (run: Run) => number, own: Run[]) => summarize(own.map(pick).filter(Number.isFinite));
  const time = (run: Run) => run.estimatedSeconds / run.seconds;
  const memory = (run: Run) => run.estimatedBytes / run.bytes;
  const rows = CASES.map(({ name }) => {
    const own = runs.filter((run) => run.name === name);
    return [
      name,
      spread(summarize(own.map((run) => run.estimatedSeconds))),
      spread(summarize(own.map((run) => run.seconds))),
      spread(ratio(time, own)),
      spread(ratio(memory, own)),
    ];
  });
  // The farthest of the medians from 1, on either side.
  const medians = (pick: (run: Run) => number) =>
    CASES.map(
      ({ name }) =>
        ratio(
          pick,
          runs.filter((run) => run.name === name),
        ).median,
    );
  const bounds = (what: string, values: number[]): PartResult['checks'] => [
    { name: `${what} told ÷ real, lowest case`, value: Math.min(...values), target: { op: '>=', value: 0.75 } },
    { name: `${what} told ÷ real, highest case`, value: Math.max(...values), target: { op: '<=', value: 1.25 } },
  ];
  return {
    tables: [
      {
        title: `Estimates before training, ${rounds} rounds: median (min–max)`,
        columns: ['job', 'told, s', 'taken, s', 'time: told ÷ real', 'memory: told ÷ real'],
        rows,
      },
    ],
    checks: [...bounds('time', medians(time)), ...bounds('memory', medians(memory))],
    notes: [
      'Estimates are those of the job before it is queued; taken: from the first moment it is seen running until it has ended, publishing included. Memory: of the whole daemon (which serves too), its highest resident size while training.',
    ],
    data: runs,
    charts: {},
  };
}
