/** /api/evaluations: base and fine-tuned models on the same file, with graders; the report is kept, promotions are decided by it. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import {
  costMicrosOf,
  type EvaluationEvent,
  type EvaluationReport,
  type EvaluationRequestInput,
} from '../../../daemon/protocol.ts';
import type { DaemonClient } from '../../daemons/client.ts';
import { EvaluationClient } from '../../daemons/evaluation.ts';
import type { ResolvedModel } from '../../daemons/pool.ts';
import { TrainingClient } from '../../daemons/training.ts';
import type { EvaluationRow, FileRow } from '../../db/schema.ts';
import { ApiError, badRequest, clientGone, engineFailed, fromDaemon, toApiError } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { randomId } from '../../http/ids.ts';
import { integer, parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import { reserve } from '../../openai/reserve.ts';
import { resolveFor, writeRecord } from '../../openai/run.ts';
import { sseResponse } from '../../openai/sse.ts';
import type { AppEnv, Services } from '../../services.ts';
import { checkDataset, examplesOf } from '../datasets/dataset.ts';
import { datasetOf } from '../datasets/of-file.ts';
import { noSuchFile } from '../files/api.ts';
import { graderObject, readGrader } from './grader.ts';

export const evaluationBody = z
  .strictObject({
    /** Id of an uploaded file with examples; or of a job, whose validation file is taken. */
    file: z.string().min(1).max(128).optional(),
    job: z.string().min(1).max(128).optional(),
    models: z.array(z.string().min(1).max(256)).min(1).max(8),
    graders: z.array(graderObject).max(16).default([]),
    /** A seeded sample of so many examples. */
    examples: integer(1, limits.tokensMax).nullish(),
    seed: integer(0, 0xffff_ffff).default(0),
    /** Let the models answer, and compare the answers; false: loss, perplexity and token accuracy only. */
    generate: z.boolean().default(true),
    max_tokens: integer(1, 4096).default(256),
    /** Progress as server-sent events, the report last. */
    stream: z.boolean().default(false),
  })
  .openapi('EvaluationRequest');

export const evaluationView = z
  .object({
    object: z.literal('evaluation'),
    id: z.string(),
    created_at: z.number().int(),
    file: z.string(),
    models: z.array(z.string()),
    report: z.looseObject({ scores: z.array(z.looseObject({})) }),
  })
  .openapi('Evaluation');

export const evaluationsQuery = z.object({
  limit: z.coerce.number().int().min(1).max(limits.evaluationsListMax).default(20),
  after: z.string().max(64).optional(),
});

function view(row: EvaluationRow, baseId: string | null) {
  const models = row.report.scores.map(({ model }) => model ?? baseId ?? 'base');
  // Who asked is known by the key; hashes and prices are between gateway and daemon.
  const { callerHash: _, price: _price, ...request } = row.report.request;
  return {
    object: 'evaluation' as const,
    id: row.id,
    created_at: Math.floor(row.createdAt / 1000),
    file: row.file,
    models,
    report: { ...row.report, request },
  };
}

async function baseIdOf(services: Services, digest: string): Promise<string | null> {
  const models = await services.pool.models().catch(() => []);
  return models.find(({ adapter, base }) => adapter === null && base.digest === digest)?.id ?? null;
}

export async function getEvaluation(services: Services, c: Context<AppEnv>): Promise<Response> {
  const id = c.req.param('id') ?? '';
  const row = await services.evaluations.find(c.get('principal'), id);
  if (row === null) throw noSuchEvaluation(id);
  return c.json(view(row, await baseIdOf(services, row.report.baseDigest)));
}

export async function listEvaluations(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(evaluationsQuery, c.req.query());
  const principal = c.get('principal');
  const after = query.after === undefined ? null : await services.evaluations.find(principal, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no evaluation ${query.after}.`);
  const { rows, hasMore } = await services.evaluations.list(principal, { limit: query.limit, after });
  const data = await Promise.all(rows.map(async (row) => view(row, await baseIdOf(services, row.report.baseDigest))));
  return c.json({ object: 'list', data, has_more: hasMore });
}

function noSuchEvaluation(id: string): ApiError {
  const message = `There is no evaluation ${id.slice(0, 64)}.`;
  return new ApiError(404, 'invalid_request_error', 'evaluation_not_found', message, { param: 'id' });
}

export async function createEvaluation(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(evaluationBody, await readJsonObject(c.req.raw));
  const principal = c.get('principal');
  const file = await fileOf(services, c, body);
  const models = await Promise.all(body.models.map((id) => resolveFor(services, principal, id)));
  for (const [index, model] of models.entries()) {
    if (models.findIndex(({ id }) => id === model.id) < index)
      throw badRequest(`models[${index}]`, 'invalid_value', `Invalid 'models[${index}]': ${model.id} is named twice.`);
  }
  const graders = await Promise.all(
    body.graders.map(async (grader, index) => {
      const read = readGrader(grader, `graders[${index}]`);
      if (read.type !== 'score_model') return { read, judge: null };
      const judge = await resolveFor(services, principal, read.model);
      return { read: { ...read, model: judge.id }, judge };
    }),
  );
  const judges = graders.map(({ judge }) => judge).filter((judge) => judge !== null);
  const id = `eval-${randomId()}`;
  const client = placeFor(services, [...models, ...judges], id);
  const signal = c.req.raw.signal;
  const dataset = datasetOf(services.factory.storage, file);
  const { report } = await services.factory.turns.take(signal, () => checkDataset(dataset, { signal }));
  if (!report.ok) {
    const [first] = report.problems;
    const where = first?.line == null ? '' : `line ${first.line}: `;
    throw badRequest(
      'file',
      'invalid_file',
      `The file ${file.id} cannot be evaluated on: ${where}${first?.message ?? 'it has no examples'}`,
    );
  }
  const stored = await new TrainingClient(client).dataset(examplesOf(dataset), signal);

  const examples = Math.min(body.examples ?? stored.examples, stored.examples);
  const answers = body.generate ? examples * models.length : 0;
  const costly = graders.filter(({ read }) => read.type === 'score_model').length;
  const contextTokens = models[0]?.base.contextTokens ?? 0;
  // Of prompts the longest is taken; a judge reads a context at most.
  const mostPrompt = answers * (Math.min(stored.longest, contextTokens) + costly * contextTokens);
  const mostCompletion = answers * (body.max_tokens + costly * limits.judgeTokensMax);
  const admission = services.limiter.admit(principal, 0);
  Object.assign(c.get('headers'), admission.headers);
  try {
    const amountMicros = costMicrosOf(services.price, mostPrompt, mostCompletion);
    await reserve(services, { requestId: id, principal, amountMicros });
  } catch (error) {
    admission.release(0);
    throw error;
  }
  const request: EvaluationRequestInput = {
    id,
    dataset: stored.digest,
    models: models.map(({ adapter }) => adapter),
    ...(body.examples == null ? {} : { examplesMax: body.examples }),
    seed: body.seed,
    generate: body.generate,
    maxTokens: body.max_tokens,
    graders: graders.map(({ read }) => read),
    callerHash: principal.callerHash,
    price: services.price,
  };
  const run = new Run(services, {
    id,
    file: file.id,
    model: models
      .map((model) => model.id)
      .join(',')
      .slice(0, 256),
    principal,
    release: admission.release,
  });
  if (!body.stream) {
    const row = await run.follow(client, request, signal, () => {});
    return c.json(view(row, await baseIdOf(services, row.report.baseDigest)));
  }
  const record = c.get('record');
  const headers = c.get('headers');
  record.deferred = true;
  record.status = 200;
  headers['openai-processing-ms'] = String(Math.round(services.now() - record.startedAt));
  const gone = new AbortController();
  return sseResponse({
    signal,
    headers,
    direct: services.direct(c.env),
    onGone: () => gone.abort(),
    run: async (write) => {
      const row = await run.follow(client, request, gone.signal, (event) =>
        write(`data: ${JSON.stringify(progressView(event))}\n\n`),
      );
      const evaluation = view(row, await baseIdOf(services, row.report.baseDigest));
      write(`data: ${JSON.stringify({ type: 'report', evaluation })}\n\ndata: [DONE]\n\n`);
    },
    onEnd: (error) => {
      if (error !== undefined) {
        const told = toApiError(error);
        record.code = told.code;
        record.cause = told.cause ?? (told.code === 'internal_error' ? error : undefined);
      }
      writeRecord(services, record);
    },
  });
}

type Progressed = Extract<EvaluationEvent, { type: 'progress' }>;

function progressView(event: Progressed) {
  const { type, phase, done, total, model, perSecond, secondsLeft, costMicros } = event;
  return { type, phase, done, total, model, per_second: perSecond, seconds_left: secondsLeft, cost_micros: costMicros };
}

interface RunOptions {
  id: string;
  file: string;
  model: string;
  principal: Parameters<Services['evaluations']['add']>[0];
  release: (tokens: number) => void;
}

/** One evaluation from its start to its row, with its money. */
class Run {
  readonly #services: Services;
  readonly #options: RunOptions;

  constructor(services: Services, options: RunOptions) {
    this.#services = services;
    this.#options = options;
  }

  /** @throws ApiError; what was computed until then is paid. */
  async follow(
    client: DaemonClient,
    request: EvaluationRequestInput,
    signal: AbortSignal,
    onProgress: (event: Progressed) => void,
  ): Promise<EvaluationRow> {
    let costMicros = 0;
    let report: EvaluationReport | null = null;
    try {
      for await (const event of new EvaluationClient(client).evaluate(request, signal)) {
        if (event.type === 'error') throw fromDaemon(event.error, limits.retryAfterSeconds);
        if (event.type === 'report') report = event.report;
        else {
          costMicros = event.costMicros;
          onProgress(event);
        }
      }
      if (report === null) throw engineFailed(new Error('the evaluation ended without its report'));
      return await this.#services.evaluations.add(this.#options.principal, this.#options.file, report);
    } catch (error) {
      throw signal.aborted ? clientGone() : error;
    } finally {
      await this.#settle(report?.costMicros ?? costMicros, report);
    }
  }

  async #settle(costMicros: number, report: EvaluationReport | null): Promise<void> {
    const { id, model, release } = this.#options;
    const usage = report?.usage ?? { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
    release(usage.promptTokens + usage.completionTokens);
    try {
      await this.#services.ledger.post(id, { costMicros, usage, model });
    } catch (error) {
      this.#services.log.error(
        { evaluation: id, costMicros, err: error },
        'the cost of an evaluation could not be posted',
      );
    }
  }
}

async function fileOf(services: Services, c: Context<AppEnv>, body: z.output<typeof evaluationBody>): Promise<FileRow> {
  const principal = c.get('principal');
  if ((body.file === undefined) === (body.job === undefined))
    throw badRequest('file', 'missing_required_parameter', "Give either 'file', or 'job' to take its validation file.");
  let id = body.file;
  if (body.job !== undefined) {
    const job = await services.factory.jobs.find(principal, body.job);
    if (job === null)
      throw badRequest('job', 'job_not_found', `There is no fine-tuning job ${body.job.slice(0, 128)}.`);
    if (job.validationFile === null)
      throw badRequest('job', 'invalid_value', `The job ${job.id} has no validation file; give a 'file'.`);
    id = job.validationFile;
  }
  const row = await services.factory.files.find(principal, id as string);
  if (row === null) throw noSuchFile(id as string, 'file', 400);
  return row;
}

/** A daemon that has all of them. */
function placeFor(services: Services, models: ResolvedModel[], spread: string): DaemonClient {
  const [first = [], ...rest] = models.map((model) => services.pool.route(model, spread));
  const client = first.find((candidate) => rest.every((others) => others.includes(candidate)));
  if (client !== undefined) return client;
  throw badRequest(
    'models',
    'models_apart',
    'These models are not all on one machine, so they cannot be evaluated together.',
  );
}
