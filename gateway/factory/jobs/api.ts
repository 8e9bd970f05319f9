/** /v1/fine_tuning/jobs: create, list, retrieve, cancel, pause, resume, checkpoints. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { BaseModel } from '../../../daemon/protocol.ts';
import { canUseModel } from '../../auth/scopes.ts';
import type { JobMethod, JobRow } from '../../db/schema.ts';
import { ApiError, badRequest, modelNotFound } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { randomId } from '../../http/ids.ts';
import { pageOf } from '../../http/pages.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { noSuchFile } from '../files/api.ts';
import { type DatanetFile, parseDatanetFileId } from '../mixtures/datanet-file.ts';
import { type MixturePart, partsOf } from '../mixtures/sources.ts';
import { type CheckpointState, checkpointStates } from './checkpoint-state.ts';
import { isOver, type NewSource } from './job-rows.ts';
import { createdEvent } from './mirror.ts';
import { fineTunedModelName, isFineTunedName } from './model-name.ts';
import { type JobRequest, jobRequest } from './request.ts';
import { viewOfCheckpoint, viewOfJob } from './view.ts';

const page = (fallback: number) => ({
  after: z.string().max(128).optional(),
  limit: z.coerce.number().int().min(1).max(limits.jobsListMax).default(fallback),
});
export const jobsQuery = z.looseObject(page(20));
export const checkpointsQuery = z.object(page(10));

/** Names of OpenAI's fine-tunable models: a script written for them trains the base model that is here. */
const OPENAI_BASES = /^(gpt-|davinci-|babbage-|o\d)/;

export function noSuchJob(id: string): ApiError {
  const message = `Could not find fine tune: ${id.slice(0, 128)}`;
  return new ApiError(404, 'invalid_request_error', 'fine_tune_not_found', message, { param: 'fine_tuning_job_id' });
}

export async function jobOf(services: Services, c: Context<AppEnv>): Promise<JobRow> {
  const id = c.req.param('id') ?? '';
  const job = await services.factory.jobs.find(c.get('principal'), id);
  if (job === null) throw noSuchJob(id);
  return job;
}

/** @throws ApiError when the method is not one of ours. */
export function methodOf(body: Pick<JobRequest, 'method' | 'hyperparameters'>): JobMethod {
  const { method } = body;
  if (method?.type === 'reinforcement' || method?.reinforcement !== undefined) {
    const message =
      'Reinforcement fine-tuning is not supported. Use the method supervised, or dpo with preference data.';
    throw badRequest('method.type', 'unsupported_method', message);
  }
  const type = method?.type ?? 'supervised';
  const other = type === 'dpo' ? 'supervised' : 'dpo';
  if (method?.[other] != null)
    throw badRequest(`method.${other}`, 'invalid_value', `Invalid 'method.${other}': the method's type is ${type}.`);
  const auto = { n_epochs: 'auto', batch_size: 'auto', learning_rate_multiplier: 'auto' } as const;
  const hyperparameters = method?.[type]?.hyperparameters ?? body.hyperparameters ?? auto;
  return { type, hyperparameters };
}

/** The base model a request means, and whether it stands in for one of OpenAI's. */
export async function baseOf(
  services: Services,
  c: Context<AppEnv>,
  name: string,
): Promise<{ base: BaseModel; substitute: boolean }> {
  const models = await services.pool.models();
  const bases = models.filter(({ adapter }) => adapter === null);
  const found = bases.find(({ id }) => id === name);
  if (found !== undefined) {
    if (!canUseModel(c.get('principal'), found.id)) throw modelNotFound(name);
    return { base: found.base, substitute: false };
  }
  if (isFineTunedName(name) || models.some(({ id }) => id === name)) {
    const message = `\`${name.slice(0, 128)}\` is an adapter; only base models can be fine-tuned: ${bases.map(({ id }) => id).join(', ')}.`;
    throw badRequest('model', 'model_not_available', message);
  }
  const first = bases[0];
  if (OPENAI_BASES.test(name) && first !== undefined && canUseModel(c.get('principal'), first.id))
    return { base: first.base, substitute: true };
  const message = `The model \`${name.slice(0, 128)}\` is not available for fine-tuning; there are: ${bases.map(({ id }) => id).join(', ')}.`;
  throw badRequest('model', 'model_not_available', message);
}

/** Jobs as their owners see them, each with what it is made of. */
async function views(services: Services, jobs: JobRow[]) {
  const ids = jobs.map(({ id }) => id);
  const { sources } = services.factory;
  const [of, marks] = await Promise.all([sources.ofJobs(ids), sources.marksOfJobs(ids)]);
  return jobs.map((job) => viewOfJob(job, of.get(job.id) ?? [], marks.get(job.id) ?? []));
}

async function answer(services: Services, c: Context<AppEnv>, job: JobRow): Promise<Response> {
  return c.json((await views(services, [job]))[0]);
}

/**
 * A file of one's own, or a version of a Datanet that one may train on now.
 * @throws ApiError 400 as for every file that is not there, where one does not even see the Datanet; 403 with the reason
 */
async function checkFile(
  services: Services,
  c: Context<AppEnv>,
  id: string,
  param: string,
): Promise<DatanetFile | null> {
  if (parseDatanetFileId(id) !== null) {
    const found = await services.factory.rights.datanetFile(c.get('principal'), id);
    if (found === 'hidden') throw noSuchFile(id, param, 400);
    if ('code' in found) throw new ApiError(403, 'permission_error', found.code, found.message, { param });
    return found;
  }
  const row = await services.factory.files.find(c.get('principal'), id);
  if (row === null) throw noSuchFile(id, param, 400);
  if (row.purpose !== 'fine-tune') {
    const message = `The file ${id} has the purpose ${row.purpose}; upload it with the purpose fine-tune.`;
    throw badRequest(param, 'invalid_file_purpose', message);
  }
  return null;
}

/** The files that a request means, in order, each with the name of its parameter. */
function filesAsked(body: JobRequest): { id: string; param: string }[] {
  const mixture = body.modelfactory?.mixture;
  const given = body.training_file ?? null;
  if (mixture === undefined) {
    if (given === null)
      throw badRequest('training_file', 'missing_required_parameter', "Missing required parameter: 'training_file'.");
    return [{ id: given, param: 'training_file' }];
  }
  const files = mixture.map(({ file }, index) => ({ id: file, param: `modelfactory.mixture[${index}].file` }));
  if (given !== null && given !== files[0]?.id) {
    const message = 'With modelfactory.mixture, the training_file is the first file of the mixture, or left out.';
    throw badRequest('training_file', 'invalid_value', message);
  }
  const twice = files.find(({ id }, index) => files.findIndex((other) => other.id === id) !== index);
  if (twice !== undefined)
    throw badRequest(twice.param, 'invalid_value', `The file ${twice.id} is in the mixture twice; add up its weights.`);
  return files;
}

function asSource(role: 'training' | 'validation', position: number, part: MixturePart, datanet: DatanetFile | null) {
  return {
    role,
    position,
    fileId: part.file,
    datanetId: datanet?.datanet.id ?? null,
    version: datanet?.version.number ?? null,
    root: datanet?.version.root ?? null,
    weight: part.weight,
  };
}

export async function createJob(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { factory } = services;
  const principal = c.get('principal');
  const body = parseWith(jobRequest, await readJsonObject(c.req.raw));
  if ((body.integrations ?? []).length > 0) {
    const message = 'Integrations are not supported. The events of the job hold all metrics, also as a stream.';
    throw badRequest('integrations', 'unsupported_integration', message);
  }
  const method = methodOf(body);
  const files = filesAsked(body);
  const found: (DatanetFile | null)[] = [];
  for (const { id, param } of files) found.push(await checkFile(services, c, id, param));
  const trainingFile = (files[0] as { id: string }).id;
  const extension = body.modelfactory ?? {};
  const parts = partsOf({ trainingFile, extension });
  const sources: NewSource[] = parts.map((part, position) =>
    asSource('training', position, part, found[position] ?? null),
  );
  const validationFile = body.validation_file ?? null;
  if (validationFile !== null) {
    const datanet = await checkFile(services, c, validationFile, 'validation_file');
    if (files.some(({ id }) => id === validationFile))
      throw badRequest('validation_file', 'invalid_value', 'The validation file must not be the training file.');
    sources.push(asSource('validation', 0, { file: validationFile, weight: 1 }, datanet));
  }
  if (body.modelfactory?.early_stopping !== undefined && validationFile === null) {
    const message = 'Early stopping watches the validation loss, so it needs a validation_file.';
    throw badRequest('modelfactory.early_stopping', 'missing_required_parameter', message);
  }
  const { base, substitute } = await baseOf(services, c, body.model);
  const id = `ftjob-${randomId().slice(0, 24)}`;
  const suffix = body.suffix ?? null;
  const now = services.now();
  const inserted = await factory.jobs.insert(
    {
      id,
      keyId: principal.keyId,
      owner: principal.ownerId,
      callerHash: principal.callerHash,
      status: 'validating_files',
      model: base.id,
      adapter: fineTunedModelName(base.id, factory.organization, suffix, randomId().slice(0, 8)),
      trainingFile,
      validationFile,
      suffix,
      seed: body.seed ?? randomSeed(),
      method,
      extension,
      metadata: body.metadata ?? null,
      createdAt: now,
    },
    limits.jobsPerKeyMax,
  );
  if (!inserted) {
    const message = `This key already has ${limits.jobsPerKeyMax} fine-tuning jobs waiting or running. Wait for one to end, or cancel one.`;
    throw new ApiError(429, 'rate_limit_error', 'job_limit_exceeded', message, {
      headers: { 'x-should-retry': 'false' },
    });
  }
  const message = `There is no ${body.model.slice(0, 64)} here; ${base.id} is trained instead`;
  await factory.jobs.change(id, {
    sources,
    events: [
      createdEvent(id),
      ...(substitute ? [{ dedupe: 'substitute', level: 'warn', type: 'message', message } as const] : []),
    ],
  });
  factory.runner.drive(id);
  return answer(services, c, (await factory.jobs.get(id)) as JobRow);
}

function randomSeed(): number {
  return (crypto.getRandomValues(new Uint32Array(1))[0] as number) >>> 1;
}

/** `metadata[k]=v`, or `metadata=null` for jobs without. */
function metadataFilter(query: Record<string, string>): Record<string, string> | 'none' | null {
  if (query.metadata === 'null') return 'none';
  const pairs = Object.entries(query)
    .map(([name, value]) => [/^metadata\[(.{1,64})\]$/.exec(name)?.[1], value])
    .filter((pair): pair is [string, string] => pair[0] !== undefined);
  if (pairs.length > limits.metadataPairsMax)
    throw badRequest(
      'metadata',
      'object_above_max_properties',
      `Invalid 'metadata': at most ${limits.metadataPairsMax} pairs.`,
    );
  return pairs.length === 0 ? null : Object.fromEntries(pairs);
}

export async function listJobs(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(jobsQuery, c.req.query());
  const principal = c.get('principal');
  const after = query.after === undefined ? null : await services.factory.jobs.find(principal, query.after);
  if (query.after !== undefined && after === null) throw noSuchJob(query.after);
  const metadata = metadataFilter(c.req.query());
  const { rows, hasMore } = await services.factory.jobs.list(principal, { limit: query.limit, after, metadata });
  return c.json({ object: 'list', data: await views(services, rows), has_more: hasMore });
}

export async function getJob(services: Services, c: Context<AppEnv>): Promise<Response> {
  return answer(services, c, await jobOf(services, c));
}

const WANTED = { cancel: 'cancel', pause: 'pause', resume: 'run' } as const;
type Action = keyof typeof WANTED;
const REACHED: Record<Action, JobRow['status'][]> = {
  cancel: ['cancelled', 'succeeded', 'failed'],
  pause: ['paused', 'cancelled', 'succeeded', 'failed'],
  resume: ['queued', 'running', 'cancelled', 'succeeded', 'failed'],
};

function refusalOf(job: JobRow, action: Action): string | null {
  if (isOver(job.status)) return `Job has already ended with the status ${job.status}: ${job.id}`;
  if (action !== 'cancel' && job.wanted === 'cancel') return `Job is being cancelled: ${job.id}`;
  if (action === 'pause' && job.status === 'validating_files')
    return 'The files of the job are still being validated; pause it once it is queued or running.';
  if (action === 'pause' && job.status === 'paused') return `Job is already paused: ${job.id}`;
  if (action === 'resume' && job.status !== 'paused' && job.wanted !== 'pause') return `Job is not paused: ${job.id}`;
  return null;
}

/**
 * What is asked is written down first, so it holds whatever happens to either process; then the daemon is given a moment to do it. The answer
 * is the job as it is by then.
 */
export async function actOnJob(services: Services, c: Context<AppEnv>, action: Action): Promise<Response> {
  const { jobs, runner } = services.factory;
  let job = await jobOf(services, c);
  const refusal = refusalOf(job, action);
  if (refusal !== null) throw badRequest(null, 'invalid_job_state', refusal);
  await jobs.change(job.id, { set: { wanted: WANTED[action] } });
  runner.drive(job.id);
  const deadline = Date.now() + limits.jobActionMs;
  while (!REACHED[action].includes(job.status) && Date.now() < deadline && !c.req.raw.signal.aborted) {
    await runner.changed(job.id, Math.min(limits.jobsPollMs, Math.max(1, deadline - Date.now())), c.req.raw.signal);
    job = (await jobs.get(job.id)) ?? job;
  }
  return answer(services, c, job);
}

export async function listCheckpoints(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(checkpointsQuery, c.req.query());
  const job = await jobOf(services, c);
  const { jobs } = services.factory;
  const after = query.after === undefined ? null : await jobs.checkpoint(job.id, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': the job has no checkpoint ${query.after}.`);
  const { rows, hasMore } = await jobs.checkpoints(job.id, { limit: query.limit, after });
  const states = await checkpointStates(services.pool, rows);
  return c.json(
    pageOf(
      rows.map((row, index) => viewOfCheckpoint(row, states[index] as CheckpointState)),
      hasMore,
    ),
  );
}
