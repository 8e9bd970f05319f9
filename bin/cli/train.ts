/** `modelfactory train FILE`: upload, inspect, estimate, create the job, and watch it. */
import { CliError, type GatewayClient } from './client.ts';
import { uploadFile } from './files.ts';
import { duration, type Job, watchJob } from './jobs.ts';
import type { Output } from './output.ts';

export interface TrainOptions {
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

/** The part of a job that says how to train. */
function settingsOf(options: TrainOptions, kind: string): object {
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

/** @returns the exit code. */
export async function train(
  client: GatewayClient,
  path: string,
  options: TrainOptions,
  output: Output,
): Promise<number> {
  const { out, note } = output;
  const fields = {
    purpose: 'fine-tune',
    ...(options.format !== undefined && { format: options.format }),
    ...(options.columns !== undefined && { columns: columnsOf(options.columns) }),
  };
  const model = options.base ?? (await baseId(client));
  const training_file = await uploadFile(client, path, fields);
  const uploaded = [training_file];
  const removeUploads = async () => {
    for (const id of uploaded) await client.call('DELETE', `/v1/files/${id}`);
  };
  const inspect = async (settings: object) =>
    (await client.call('POST', '/api/datasets/inspect', { file: training_file, model, ...settings })) as Inspection;
  const first = await inspect({ estimate: false });
  if (!first.report.ok) {
    tellProblems(first, note);
    await removeUploads();
    throw new CliError(`${path} has ${first.report.errors} error(s), so nothing was started.`);
  }
  const settings = settingsOf(options, first.report.kind);
  const validation_file =
    options.validation === undefined ? undefined : await uploadFile(client, options.validation, fields);
  if (validation_file !== undefined) uploaded.push(validation_file);
  const inspection = await inspect({ ...settings, ...(validation_file && { validation_file }) }).catch(
    async (error) => {
      await removeUploads();
      throw error;
    },
  );
  tellProblems(inspection, note);
  const { statistics, estimate, recipe } = inspection;
  if (statistics !== null)
    note(
      `${statistics.examples} examples, ${statistics.tokens} tokens, the longest ${statistics.longest}, ${statistics.truncated} too long.`,
    );
  if (estimate !== null && recipe !== null) {
    const cost = `${(estimate.cost_micros / 1e6).toFixed(4)} ${estimate.currency}`;
    const memory = `${(estimate.memory_bytes / 1e9).toFixed(1)} of ${(estimate.memory_available_bytes / 1e9).toFixed(1)} GB`;
    note(
      `${recipe.n_epochs} epoch(s), batch ${recipe.batch_size}, rank ${recipe.rank}: ${estimate.steps} steps, about ${duration(estimate.seconds)}, memory ${memory}, cost ${cost}.`,
    );
    if (!estimate.fits) {
      await removeUploads();
      throw new CliError('The memory does not suffice. Lower --batch or --context.');
    }
  }
  if (options.dryRun) {
    if (options.json) out(JSON.stringify(inspection, null, 2));
    await removeUploads();
    return 0;
  }
  const job = (await client.call('POST', '/v1/fine_tuning/jobs', {
    model,
    training_file,
    ...(validation_file && { validation_file }),
    ...(options.name !== undefined && { suffix: options.name }),
    ...settings,
  })) as Job;
  if (options.watch) {
    note(`Job ${job.id}. Ctrl-C stops the watching, not the job.`);
    return await watchJob(client, job.id, output);
  }
  out(options.json ? JSON.stringify(job, null, 2) : job.id);
  note(`Watch it with: modelfactory jobs watch ${job.id}`);
  return 0;
}
