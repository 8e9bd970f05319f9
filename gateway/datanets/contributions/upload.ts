/** POST /api/datanets/{id}/contributions: a file (multipart) or rows (JSON) → file on disk → row → read in the background. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { ContributionOptions, ContributionRow, DatanetRow } from '../../db/datanet-schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { FORMATS } from '../../factory/datasets/formats.ts';
import { containerOf } from '../../factory/datasets/source.ts';
import { readForm } from '../../factory/files/multipart.ts';
import type { Draft } from '../../factory/files/storage.ts';
import { columnsSchema } from '../../factory/files/upload.ts';
import { readJsonObject } from '../../http/body.ts';
import { randomId } from '../../http/ids.ts';
import { integer, parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import { resolveFor } from '../../openai/run.ts';
import type { AppEnv, Services } from '../../services.ts';
import { documentKindOf } from '../documents/read.ts';
import { datanetOf, standingIn, userOf } from '../of.ts';
import { fileIdOf } from './contribution-rows.ts';
import { shownFilename } from './filename.ts';
import type { Contributions } from './runner.ts';

const DAY_MS = 24 * 3_600_000;

const options = {
  /** What the records mean, where their fields do not tell. */
  format: z.enum(FORMATS).optional(),
  columns: columnsSchema.optional(),
};
const questions = z.strictObject({
  model: z.string().min(1).max(256),
  per_chunk: integer(1, limits.questionsPerChunkMax).default(2),
});
const licence = z.string().min(1).max(limits.datanetLicenceCharactersMax);

export const contributionRequest = z
  .strictObject({
    rows: z.array(z.record(z.string(), z.unknown())).min(1),
    licence: licence.openapi({ description: 'The licence of the Datanet, which you thereby agree to.' }),
    ...options,
  })
  .openapi('ContributionRequest');

const formFields = z.object({
  licence,
  ...options,
  questions: questions.optional(),
  chunk_characters: integer(limits.chunkCharactersMin, limits.chunkCharactersMax).optional(),
});

/** As the OpenAPI description shows the form. */
export const contributionForm = z
  .object({
    file: z.string().openapi({ format: 'binary', description: '.jsonl .json .csv .tsv .parquet .md .txt .pdf .docx' }),
    licence: z.string().openapi({ description: 'The licence of the Datanet, which you thereby agree to.' }),
    format: z.enum(FORMATS).optional(),
    columns: z.string().optional().openapi({ description: 'JSON object of what → name of the column that holds it.' }),
    questions: z.string().optional().openapi({
      description: 'JSON {"model": …, "per_chunk": 2}: documents become question–answer pairs that this model writes.',
    }),
    chunk_characters: z.number().int().optional(),
  })
  .openapi('ContributionForm');

function fieldsOf(form: ReadonlyMap<string, string>): z.output<typeof formFields> {
  const unknown = [...form.keys()].find((name) => !(name in formFields.shape));
  if (unknown !== undefined)
    throw badRequest(unknown.slice(0, 64), 'unknown_parameter', `Unknown parameter: '${unknown.slice(0, 64)}'.`);
  const json = (name: string) => {
    const text = form.get(name);
    if (text === undefined) return undefined;
    try {
      return JSON.parse(text) as unknown;
    } catch {
      throw badRequest(name, 'invalid_json', `Invalid '${name}': it must be a JSON object.`);
    }
  };
  const characters = form.get('chunk_characters');
  return parseWith(formFields, {
    licence: form.get('licence'),
    format: form.get('format'),
    columns: json('columns'),
    questions: json('questions'),
    chunk_characters: characters !== undefined && /^\d{1,9}$/.test(characters) ? Number(characters) : characters,
  });
}

function checkLicence(given: string, datanet: DatanetRow): void {
  if (given.trim() === datanet.licence) return;
  const message = `Invalid 'licence': what is contributed to this Datanet is under ${datanet.licence}. Send that expression, if you agree to it.`;
  throw badRequest('licence', 'licence_mismatch', message);
}

/** @throws ApiError 400 for what such a Datanet cannot take. */
function optionsOf(filename: string, datanet: DatanetRow, given: z.output<typeof formFields>): ContributionOptions {
  const document = documentKindOf(filename);
  const data = containerOf(filename);
  if (document === null && data === null) {
    const message = `"${filename.slice(-64)}" is neither data (.jsonl .json .csv .tsv .parquet) nor a document (.md .txt .pdf .docx).`;
    throw badRequest('file', 'invalid_file_format', message);
  }
  if (document === null) {
    if (given.questions !== undefined || given.chunk_characters !== undefined)
      throw badRequest('questions', 'invalid_value', "'questions' and 'chunk_characters' are for documents.");
    return {
      ...(given.format === undefined ? {} : { format: given.format }),
      ...(given.columns === undefined ? {} : { columns: given.columns as Record<string, string> }),
    };
  }
  if (given.format !== undefined || given.columns !== undefined)
    throw badRequest('format', 'invalid_value', "'format' and 'columns' are for data, not for documents.");
  if (datanet.kind === 'preference')
    throw badRequest(
      'file',
      'document_not_taken',
      'Rows of a preference Datanet cannot be made of documents; send data.',
    );
  if (datanet.kind === 'chat' && given.questions === undefined) {
    const message =
      'A chat Datanet takes documents only as questions and answers: name a model that writes them, questions = {"model": …}.';
    throw badRequest('questions', 'missing_required_parameter', message);
  }
  if (datanet.kind === 'completion' && given.questions !== undefined)
    throw badRequest(
      'questions',
      'invalid_value',
      'Questions and answers are rows of chat Datanets; this one takes plain text.',
    );
  return {
    ...(given.questions === undefined
      ? {}
      : { questions: { model: given.questions.model, perChunk: given.questions.per_chunk } }),
    ...(given.chunk_characters === undefined ? {} : { chunkCharacters: given.chunk_characters }),
  };
}

/** Before anything is sent: whoever has no room left need not send it. @returns how many the user may have on their way. */
async function checkQuota(
  contributions: Contributions,
  userId: string,
  now: number,
  bytesExpected: number,
): Promise<number> {
  const used = await contributions.rows.used(userId, now - DAY_MS);
  if (used.underWay >= limits.contributionsUnderWayMax) throw tooManyUnderWay();
  if (used.bytes + bytesExpected > contributions.bytesPerDay) throw tooManyBytes(contributions.bytesPerDay);
  return limits.contributionsUnderWayMax - used.underWay;
}

function tooManyUnderWay(): ApiError {
  const message = `You already have ${limits.contributionsUnderWayMax} contributions that are being read. Wait for one to end.`;
  const headers = { 'retry-after': String(limits.retryAfterSeconds) };
  return new ApiError(429, 'rate_limit_error', 'contribution_limit_exceeded', message, { headers });
}

function tooManyBytes(most: number): ApiError {
  const message = `You may contribute ${most} bytes in 24 hours; this would be more.`;
  const headers = { 'x-should-retry': 'false' };
  return new ApiError(429, 'rate_limit_error', 'contribution_quota_exceeded', message, { headers });
}

interface Received {
  draft: Draft;
  filename: string;
  fields: z.output<typeof formFields>;
}

async function receiveForm(
  contributions: Contributions,
  fileId: string,
  request: Request,
  keep: (draft: Draft) => void,
): Promise<Received> {
  let draft: Draft | null = null;
  const form = await readForm(request, async () => {
    draft = await contributions.storage.draft(fileId, Number(request.headers.get('content-length') ?? 0));
    keep(draft);
    return draft;
  });
  const fields = fieldsOf(form.fields);
  // Assigned inside a callback, which the type checker does not follow.
  const written = draft as Draft | null;
  if (written === null || form.filename === null)
    throw badRequest('file', 'missing_required_parameter', "Missing required parameter: 'file'.");
  if (written.bytes === 0) throw badRequest('file', 'empty_file', 'The file is empty.');
  return { draft: written, filename: shownFilename(form.filename), fields };
}

/** Rows go the way of files, so that they are as safe from a crash and are told of in the same words. */
async function receiveRows(
  contributions: Contributions,
  fileId: string,
  request: Request,
  keep: (draft: Draft) => void,
): Promise<Received> {
  const { rows, ...fields } = parseWith(contributionRequest, await readJsonObject(request));
  const bytes = new TextEncoder().encode(rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  const draft = await contributions.storage.draft(fileId, bytes.byteLength);
  keep(draft);
  await draft.write(bytes);
  return { draft, filename: 'rows.jsonl', fields };
}

export async function receive(services: Services, c: Context<AppEnv>): Promise<ContributionRow> {
  const { contributions } = services.datanets;
  const { datanet, principal } = await datanetOf(services, c, 'contributes');
  const userId = userOf(principal);
  const request = c.req.raw;
  const declared = Number(request.headers.get('content-length') ?? 0);
  const room = await checkQuota(contributions, userId, services.now(), declared);
  const received = contributions.receiving.begin(userId, room);
  if (received === null) throw tooManyUnderWay();
  const id = `con_${randomId()}`;
  let draft: Draft | null = null;
  try {
    const keep = (made: Draft) => {
      draft = made;
    };
    const isForm = /^multipart\/form-data\b/i.test(request.headers.get('content-type') ?? '');
    const upload = await (isForm ? receiveForm : receiveRows)(contributions, fileIdOf(id), request, keep);
    checkLicence(upload.fields.licence, datanet);
    const options = optionsOf(upload.filename, datanet, upload.fields);
    if (options.questions !== undefined) await resolveFor(services, principal, options.questions.model);
    const sha256 = await upload.draft.seal();
    await upload.draft.keep();
    // It may have taken long: what held when it began need not hold now.
    await services.people.recheck(principal);
    const now = await standingIn(services, principal, datanet.id, 'contributes');
    checkLicence(upload.fields.licence, now.datanet);
    const createdAt = services.now();
    const row = {
      id,
      datanetId: datanet.id,
      contributor: userId,
      keyId: principal.keyId,
      filename: upload.filename,
      bytes: upload.draft.bytes,
      sha256,
      options,
      licence: now.datanet.licence,
      createdAt,
    };
    const quota = {
      underWay: limits.contributionsUnderWayMax,
      bytes: contributions.bytesPerDay,
      since: createdAt - DAY_MS,
    };
    const outcome = await contributions.rows.insert(row, quota);
    if (outcome === 'under_way') throw tooManyUnderWay();
    if (outcome === 'bytes') throw tooManyBytes(contributions.bytesPerDay);
    return (await contributions.rows.get(id)) as ContributionRow;
  } catch (error) {
    await (draft as Draft | null)?.drop();
    throw error;
  } finally {
    received();
  }
}
