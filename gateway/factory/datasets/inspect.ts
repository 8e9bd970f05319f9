/** POST /api/datasets/inspect: what is wrong with a file, its statistics with the real tokenizer, and what training on it would take. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { Dataset } from '../../../daemon/protocol.ts';
import { TrainingClient } from '../../daemons/training.ts';
import { badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { integer, parseWith } from '../../http/validate.ts';
import type { AppEnv, Services } from '../../services.ts';
import { noSuchFile } from '../files/api.ts';
import { columnsSchema } from '../files/upload.ts';
import { baseOf, methodOf } from '../jobs/api.ts';
import { extensionOf, hyperparametersOf, resolveRecipe } from '../jobs/recipe.ts';
import { jobRequest } from '../jobs/request.ts';
import { estimateView, methodProblem, problemSummary } from '../jobs/validate.ts';
import { type DatanetFile, datanetFileBytes, parseDatanetFileId } from '../mixtures/datanet-file.ts';
import { Straight } from '../mixtures/epoch.ts';
import { examplesIn } from '../mixtures/sources.ts';
import { checkDataset, type DatasetReport, examplesOf } from './dataset.ts';
import { FORMATS } from './formats.ts';
import { datasetOf } from './of-file.ts';

const jobFields = jobRequest.shape;

export const inspectRequest = z
  .strictObject({
    file: z.string().min(1).max(128),
    format: z.enum(FORMATS).optional(),
    columns: columnsSchema.optional(),
    /** For the estimate; all as in a job, all optional. */
    validation_file: jobFields.validation_file,
    model: jobFields.model.optional(),
    method: jobFields.method,
    hyperparameters: jobFields.hyperparameters,
    modelfactory: jobFields.modelfactory,
    seed: integer(0, 2_147_483_647).nullish(),
    /** The estimate times a few steps on the machine; false: report and statistics only. */
    estimate: z.boolean().default(true),
  })
  .openapi('DatasetInspectRequest');

export const inspectAnswer = z
  .looseObject({
    object: z.literal('dataset.inspection'),
    file: z.string(),
    report: z.looseObject({ ok: z.boolean() }),
    statistics: z.looseObject({}).nullable(),
    recipe: z.looseObject({}).nullable(),
    estimate: z.looseObject({}).nullable(),
  })
  .openapi('DatasetInspection');

export async function inspectDataset(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { factory } = services;
  const body = parseWith(inspectRequest, await readJsonObject(c.req.raw));
  if (body.modelfactory?.mixture !== undefined) {
    const message = 'Files are inspected one by one; leave the mixture out.';
    throw badRequest('modelfactory.mixture', 'unsupported_parameter', message);
  }
  const method = methodOf(body);
  const signal = c.req.raw.signal;
  const { report, lines } = await factory.turns.take(signal, () =>
    checked(services, c, body.file, 'file', { format: body.format, columns: body.columns }),
  );
  const head = { object: 'dataset.inspection' as const, file: body.file, report };
  if (!report.ok) return c.json({ ...head, statistics: null, recipe: null, estimate: null });
  const bases = (await services.pool.models()).filter(({ adapter }) => adapter === null);
  const { base } = await baseOf(services, c, body.model ?? (bases[0]?.id as string));
  const client = new TrainingClient(await services.pool.placement(base.id, base.id));
  const dataset = await client.dataset(lines(), signal);
  const statistics = {
    digest: dataset.digest,
    kind: dataset.kind,
    examples: dataset.examples,
    tokens: dataset.tokens,
    trained_tokens: dataset.trainedTokens,
    truncated: dataset.truncated,
    duplicates: dataset.duplicates,
    longest: dataset.longest,
    histogram: dataset.histogram,
    problems: dataset.problems,
  };
  const chosen = method.type === 'supervised' && report.kind === 'preference' && body.method == null;
  const fitting = chosen ? { ...method, type: 'dpo' as const } : method;
  if (!body.estimate || dataset.problems.length > 0 || methodProblem(report.kind, fitting.type) !== null)
    return c.json({ ...head, statistics, recipe: null, estimate: null });
  const validation =
    body.validation_file == null ? null : await validationOf(services, c, client, body.validation_file);
  const recipe = resolveRecipe({
    method: fitting,
    extension: body.modelfactory ?? {},
    seed: body.seed ?? 0,
    examples: dataset.examples,
    contextTokens: base.contextTokens,
    validation: validation?.examples ?? null,
  });
  const request = { dataset: dataset.digest, recipe, ...(validation !== null && { validation: validation.digest }) };
  const estimate = await client.estimate(request, signal);
  return c.json({
    ...head,
    statistics,
    recipe: { method: fitting.type, ...hyperparametersOf(fitting, recipe), ...extensionOf(recipe) },
    estimate: estimateView(factory, estimate),
  });
}

/** Measuring by these examples takes time too. @throws ApiError where a job would fail on them. */
async function validationOf(
  services: Services,
  c: Context<AppEnv>,
  client: TrainingClient,
  id: string,
): Promise<Dataset> {
  const { report, lines } = await checked(services, c, id, 'validation_file');
  if (!report.ok) throw badRequest('validation_file', 'invalid_validation_file', problemSummary(report));
  return await client.dataset(lines(), c.req.raw.signal);
}

/** A file of one's own, or a version of a Datanet that one may read: its rows were validated when they were contributed. */
async function checked(
  services: Services,
  c: Context<AppEnv>,
  id: string,
  param: string,
  override: Parameters<typeof datasetOf>[2] = {},
): Promise<{ report: DatasetReport; lines: () => AsyncGenerator<Uint8Array> }> {
  const { factory } = services;
  const principal = c.get('principal');
  const signal = c.req.raw.signal;
  const version = parseDatanetFileId(id) === null ? null : await factory.datanetFiles.readable(principal, id);
  if (version !== null) {
    const source = { fileId: id, file: null, datanet: version };
    const lines = () => new Straight(examplesIn(factory, source, signal)).lines();
    return { report: reportOfVersion(version), lines };
  }
  const row = await factory.files.find(principal, id);
  if (row === null) throw noSuchFile(id, param, 400);
  const file = datasetOf(factory.storage, row, override);
  const { report } = await checkDataset(file, { signal });
  return { report, lines: () => examplesOf(file) };
}

function reportOfVersion(file: DatanetFile): DatasetReport {
  const { kind } = file.datanet;
  return {
    ok: true,
    container: 'jsonl',
    format: kind,
    kind,
    bytes: datanetFileBytes(file),
    examples: file.version.rows,
    bad: 0,
    duplicates: 0,
    errors: 0,
    warnings: 0,
    problems: [],
    rules: {},
  };
}
