/** `modelfactory train`: a file (upload, inspect, estimate), versions of Datanets, or a mixture; create the job, and watch it. */
import type { Command } from 'commander';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, collect, number, positive, subcommand } from './command.ts';
import { findVersion } from './datanets/names.ts';
import { uploadFile } from './files.ts';
import { type Job, watchJob } from './jobs.ts';
import { duration } from './live.ts';
import { count, type Output } from './output.ts';

export interface TrainOptions {
  datanet?: string[];
  fileWeight?: number;
  base?: string;
  name?: string;
  validation?: string;
  method?: 'supervised' | 'dpo';
  epochs?: number;
  batch?: number;
  rank?: number;
  alpha?: number;
  lr?: number;
  context?: number;
  seed?: number;
  format?: string;
  columns?: string;
  watch?: boolean;
  dryRun?: boolean;
  json?: boolean;
}

interface Source {
  file: string;
  weight: number;
}

/** The request for a job, but for model and name. */
interface Made {
  job: object;
  inspection?: Inspection;
}

interface Inspection {
  report: {
    ok: boolean;
    kind: string;
    errors: number;
    warnings: number;
    problems: { line: number | null; severity: string; message: string }[];
  };
  statistics: Record<string, number> | null;
  recipe: Record<string, unknown> | null;
  estimate: {
    steps: number;
    trained_tokens: number;
    seconds: number;
    memory_bytes: number;
    memory_available_bytes: number;
    fits: boolean;
    cost_micros: number;
    currency: string;
  } | null;
}

/** `prompt=mr,completion=ref` → {"prompt":"mr","completion":"ref"} */
export function columnsOf(text: string): string {
  const pairs = text.split(',').map((pair) => {
    const at = pair.indexOf('=');
    if (at < 1) throw new CliError(`--columns is "${text}"; give pairs such as prompt=question,completion=answer.`);
    return [pair.slice(0, at).trim(), pair.slice(at + 1).trim()];
  });
  return JSON.stringify(Object.fromEntries(pairs));
}

/** The part of a job that says how to train, and on what mixture. */
function settingsOf(options: TrainOptions, kind: string, mixture?: Source[]): object {
  const hyperparameters = {
    ...(options.epochs !== undefined && { n_epochs: options.epochs }),
    ...(options.batch !== undefined && { batch_size: options.batch }),
  };
  const type = options.method ?? (kind === 'preference' ? 'dpo' : 'supervised');
  const modelfactory = {
    ...(options.rank !== undefined && { rank: options.rank }),
    ...(options.alpha !== undefined && { alpha: options.alpha }),
    ...(options.lr !== undefined && { learning_rate: options.lr }),
    ...(options.context !== undefined && { context_tokens: options.context }),
    ...(mixture !== undefined && { mixture }),
  };
  return {
    method: { type, [type]: { hyperparameters } },
    ...(options.seed !== undefined && { seed: options.seed }),
    ...(Object.keys(modelfactory).length > 0 && { modelfactory }),
  };
}

async function baseId(client: GatewayClient): Promise<string> {
  const { data } = (await client.call('GET', '/api/models')) as { data: { id: string; kind: string }[] };
  const base = data.find(({ kind }) => kind === 'base');
  if (base === undefined) throw new CliError('The server serves no base model that this key may use.');
  return base.id;
}

function tellProblems({ report }: Inspection, note: Output['note']): void {
  for (const { line, severity, message } of report.problems.slice(0, 20))
    note(`${severity}: ${line === null ? '' : `line ${line}: `}${message}`);
  const more = report.errors + report.warnings - Math.min(20, report.problems.length);
  if (more > 0) note(`… and ${more} more.`);
}

/** What was uploaded for a job that did not come about goes again. */
class Uploads {
  readonly #client: GatewayClient;
  readonly #fields: Record<string, string>;
  readonly #ids: string[] = [];

  constructor(client: GatewayClient, options: TrainOptions) {
    this.#client = client;
    this.#fields = {
      purpose: 'fine-tune',
      ...(options.format !== undefined && { format: options.format }),
      ...(options.columns !== undefined && { columns: columnsOf(options.columns) }),
    };
  }

  async add(path: string): Promise<string> {
    const id = await uploadFile(this.#client, path, this.#fields);
    this.#ids.push(id);
    return id;
  }

  async remove(): Promise<void> {
    for (const id of this.#ids.splice(0)) await this.#client.call('DELETE', `/v1/files/${id}`);
  }
}

/** Uploads a file. @throws CliError for one with errors; what is wrong is told before. */
async function checkedFile(
  client: GatewayClient,
  uploads: Uploads,
  path: string,
  model: string,
  { note }: Output,
): Promise<{ id: string; kind: string }> {
  const id = await uploads.add(path);
  const body = { file: id, model, estimate: false };
  const inspection = (await client.call('POST', '/api/datasets/inspect', body)) as Inspection;
  const { report } = inspection;
  if (report.ok) return { id, kind: report.kind };
  tellProblems(inspection, note);
  throw new CliError(`${path} has ${count(report.errors, 'error')}, so nothing was started.`);
}

/** What it will take, for people. @throws CliError where the memory does not suffice. */
function tellInspection(inspection: Inspection, { note }: Output): void {
  tellProblems(inspection, note);
  const { statistics, estimate, recipe } = inspection;
  if (statistics !== null)
    note(
      `${count(statistics.examples ?? 0, 'example')}, ${statistics.tokens} tokens, the longest ${statistics.longest}, ${statistics.truncated} too long.`,
    );
  if (estimate === null || recipe === null) return;
  const cost = `${(estimate.cost_micros / 1e6).toFixed(4)} ${estimate.currency}`;
  const memory = `${(estimate.memory_bytes / 1e9).toFixed(1)} of ${(estimate.memory_available_bytes / 1e9).toFixed(1)} GB`;
  note(
    `${count(Number(recipe.n_epochs), 'epoch')}, batch ${recipe.batch_size}, rank ${recipe.rank}: ${count(estimate.steps, 'step')}, about ${duration(estimate.seconds)}, memory ${memory}, cost ${cost}.`,
  );
  if (!estimate.fits) throw new CliError('The memory does not suffice. Lower --batch or --context.');
}

/** One file or version alone, with its estimate. */
async function fromOne(
  client: GatewayClient,
  uploads: Uploads,
  source: { id: string; kind: string },
  model: string,
  options: TrainOptions,
  output: Output,
): Promise<Made> {
  const settings = settingsOf(options, source.kind);
  const validation_file = options.validation === undefined ? undefined : await uploads.add(options.validation);
  const validation = validation_file === undefined ? {} : { validation_file };
  const body = { file: source.id, model, ...settings, ...validation };
  const inspection = (await client.call('POST', '/api/datasets/inspect', body)) as Inspection;
  tellInspection(inspection, output);
  return { job: { training_file: source.id, ...validation, ...settings }, inspection };
}

/** Versions of Datanets, and a file if one is named. What is mixed is not estimated before the job is made. */
async function fromDatanets(
  client: GatewayClient,
  uploads: Uploads,
  path: string | undefined,
  model: string,
  options: TrainOptions,
  output: Output,
): Promise<Made> {
  const mixture: Source[] = [];
  let kind = '';
  for (const named of options.datanet ?? []) {
    const { datanet, version, weight } = await findVersion(client, named);
    // The server says the same when the job is made, but a file would have been sent by then.
    if (datanet.access.training !== 'allowed')
      throw new CliError(`You may not train on "${datanet.name}" now. ${datanet.access.message}`);
    mixture.push({ file: `file-${datanet.id}-v${version}`, weight });
    kind = datanet.kind;
    output.note(`"${datanet.name}" version ${version}, ${datanet.licence}, weight ${weight}.`);
  }
  if (path !== undefined) {
    const weight = options.fileWeight ?? 1;
    mixture.push({ file: (await checkedFile(client, uploads, path, model, output)).id, weight });
    output.note(`${path}, weight ${weight}.`);
  }
  const [only, ...others] = mixture;
  if (others.length === 0)
    return await fromOne(client, uploads, { id: only?.file as string, kind }, model, options, output);
  if (options.dryRun) throw new CliError('--dry-run looks at one file or version alone, not at a mixture.');
  const validation_file = options.validation === undefined ? undefined : await uploads.add(options.validation);
  const validation = validation_file === undefined ? {} : { validation_file };
  return { job: { ...validation, ...settingsOf(options, kind, mixture) } };
}

/** @returns the exit code. */
export async function train(
  client: GatewayClient,
  path: string | undefined,
  options: TrainOptions,
  output: Output,
): Promise<number> {
  const { out, note } = output;
  const ofDatanets = (options.datanet ?? []).length > 0;
  if (path === undefined && !ofDatanets) throw new CliError('Name a file to train on, or a Datanet with --datanet.');
  const model = options.base ?? (await baseId(client));
  const uploads = new Uploads(client, options);
  let job: Job;
  try {
    const made = ofDatanets
      ? await fromDatanets(client, uploads, path, model, options, output)
      : await fromOne(
          client,
          uploads,
          await checkedFile(client, uploads, path as string, model, output),
          model,
          options,
          output,
        );
    if (options.dryRun) {
      if (options.json) out(JSON.stringify(made.inspection, null, 2));
      await uploads.remove();
      return 0;
    }
    const name = options.name === undefined ? {} : { suffix: options.name };
    job = (await client.call('POST', '/v1/fine_tuning/jobs', { model, ...name, ...made.job })) as Job;
  } catch (error) {
    await uploads.remove();
    throw error;
  }
  if (options.watch) {
    note(`Job ${job.id}. Ctrl-C stops the watching, not the job.`);
    return await watchJob(client, job.id, output);
  }
  out(options.json ? JSON.stringify(job, null, 2) : job.id);
  note(`Watch it with: npx modelfactory jobs watch ${job.id}`);
  return 0;
}

export function trainCommands(program: Command, { client, output, setCode }: Context): void {
  subcommand(program, 'train', 'fine-tune a base model on a file (.jsonl .json .csv .tsv .parquet), Datanets, or both')
    .argument('[file]')
    .option('--datanet <version>', 'NAME_OR_ID[@VERSION][:WEIGHT]; may be given several times', collect)
    .option('--file-weight <n>', 'of the file, beside Datanets; an epoch takes from each by weight', number)
    .option('--base <model>', 'base model; default: the one that is served')
    .option('--name <name>', 'stands in the name of the model: ft:BASE:…:NAME:ID')
    .option('--validation <file>', 'examples to measure by, not to learn from')
    .option('--method <method>', 'supervised or dpo; default: as the data is')
    .option('--epochs <n>', 'times over the data', positive)
    .option('--batch <n>', 'examples a step', positive)
    .option('--rank <n>', 'rank of the adapter', positive)
    .option('--alpha <n>', 'scale of the adapter; default: twice the rank', number)
    .option('--lr <n>', 'learning rate, e.g. 2e-4', number)
    .option('--context <n>', 'longer examples are cut to so many tokens', positive)
    .option('--seed <n>', 'the same seed, the same model', number)
    .option('--format <format>', 'chat, completion, preference, alpaca, sharegpt or table')
    .option('--columns <pairs>', 'which column holds what, e.g. prompt=question,completion=answer')
    .option('--watch', 'follow the job to its end')
    .option('--dry-run', 'check and estimate only')
    .action(async (file: string | undefined, options: TrainOptions) =>
      setCode(await train(client(), file, options, output)),
    );
}
