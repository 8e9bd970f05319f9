/** POST /v1/files: form → draft on disk → checks → name and row. Whatever fails leaves nothing behind. */
import { z } from '@hono/zod-openapi';
import type { Principal } from '../../auth/scopes.ts';
import type { FileRow } from '../../db/schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { randomId } from '../../http/ids.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import { checkDataset } from '../datasets/dataset.ts';
import { COLUMN_ROLES, type Columns, FORMATS } from '../datasets/formats.ts';
import { jsonLines } from '../datasets/json-records.ts';
import { containerOf } from '../datasets/source.ts';
import type { Factory } from '../factory.ts';
import { readForm } from './multipart.ts';
import type { Draft } from './storage.ts';

export const PURPOSES = ['assistants', 'batch', 'fine-tune', 'vision', 'user_data', 'evals'] as const;

export const columnsSchema = z
  .partialRecord(z.enum(COLUMN_ROLES), z.string().min(1).max(256))
  .openapi('DatasetColumns') as unknown as z.ZodType<Columns>;

const fields = z.object({
  purpose: z.enum(PURPOSES),
  anchor: z.literal('created_at').optional(),
  seconds: z.int().min(limits.fileExpirySecondsMin).max(limits.fileExpirySecondsMax).optional(),
  format: z.enum(FORMATS).optional(),
  columns: columnsSchema.optional(),
});

/** As the OpenAPI description shows the form. */
export const uploadForm = z
  .object({
    file: z.string().openapi({ format: 'binary' }),
    purpose: z.enum(PURPOSES),
    'expires_after[anchor]': z.literal('created_at').optional(),
    'expires_after[seconds]': z
      .number()
      .int()
      .min(limits.fileExpirySecondsMin)
      .max(limits.fileExpirySecondsMax)
      .optional(),
    format: z
      .enum(FORMATS)
      .optional()
      .openapi({ description: 'Extension: what the records of a data set mean, where their fields do not tell.' }),
    columns: z.string().optional().openapi({
      description:
        'Extension: JSON object of what → name of the column that holds it, such as {"prompt":"mr","completion":"ref"}.',
    }),
  })
  .openapi('CreateFileRequest');

const KNOWN = new Set(['purpose', 'expires_after[anchor]', 'expires_after[seconds]', 'format', 'columns']);

function numberOf(text: string | undefined): unknown {
  return text !== undefined && /^\d{1,12}$/.test(text) ? Number(text) : text;
}

function fieldsOf(form: Map<string, string>): z.output<typeof fields> {
  const unknown = [...form.keys()].find((name) => !KNOWN.has(name));
  if (unknown !== undefined)
    throw badRequest(unknown.slice(0, 64), 'unknown_parameter', `Unknown parameter: '${unknown.slice(0, 64)}'.`);
  const raw = form.get('columns');
  let columns: unknown;
  if (raw !== undefined) {
    try {
      columns = JSON.parse(raw);
    } catch {
      throw badRequest('columns', 'invalid_json', "Invalid 'columns': it must be a JSON object.");
    }
  }
  const given = parseWith(fields, {
    purpose: form.get('purpose'),
    anchor: form.get('expires_after[anchor]'),
    seconds: numberOf(form.get('expires_after[seconds]')),
    format: form.get('format'),
    columns,
  });
  if ((given.anchor === undefined) !== (given.seconds === undefined)) {
    const param = given.anchor === undefined ? 'expires_after[anchor]' : 'expires_after[seconds]';
    throw badRequest(param, 'missing_required_parameter', `Missing required parameter: '${param}'.`);
  }
  if (given.purpose !== 'fine-tune' && (given.format !== undefined || given.columns !== undefined))
    throw badRequest('format', 'invalid_value', "'format' and 'columns' are for files of the purpose fine-tune.");
  return given;
}

/** Without folders and control characters; at most as long as allowed. */
function cleanName(given: string): string {
  const base = given.split(/[\\/]/).at(-1) ?? '';
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is to be removed.
  const name = base.replace(/[\u0000-\u001f\u007f]/g, '').slice(0, limits.fileNameCharactersMax);
  return name === '' || name === '.' || name === '..' ? 'file' : name;
}

/** What a file for training must be before it is taken: OpenAI checks the form of lines at once, their meaning when a job begins. */
async function checkTraining(draft: Draft, name: string, given: z.output<typeof fields>): Promise<void> {
  const container = containerOf(name);
  if (container === null) {
    const message = `Invalid file format for Fine-Tuning API. Must be .jsonl (or, as an extension, .json, .csv, .tsv or .parquet), but the file is "${name.slice(0, 64)}".`;
    throw badRequest('file', 'invalid_file_format', message);
  }
  if (draft.bytes === 0) throw badRequest('file', 'empty_file', 'The file is empty.');
  const source = draft.source();
  if (container === 'jsonl') {
    for await (const records of jsonLines(source)) {
      for (const record of records) if ('rule' in record) throw badRequest('file', null, record.message);
    }
    return;
  }
  const file = { source, container, format: given.format ?? null, columns: given.columns ?? null };
  const { report } = await checkDataset(file);
  const unreadable = report.problems.find(({ rule }) =>
    ['unreadable', 'not_utf8', 'bad_header', 'empty'].includes(rule),
  );
  if (unreadable !== undefined) throw badRequest('file', null, unreadable.message);
}

/** @param recheck throws if the caller may no longer do this: hours can pass while a file comes in. */
export async function upload(
  factory: Factory,
  principal: Principal,
  request: Request,
  recheck: () => Promise<void>,
): Promise<FileRow> {
  const id = `file-${randomId()}`;
  let draft: Draft | null = null;
  try {
    const form = await readForm(request, async () => {
      draft = await factory.storage.draft(id, Number(request.headers.get('content-length') ?? 0));
      return draft;
    });
    const given = fieldsOf(form.fields);
    // Assigned inside a callback, which the type checker does not follow.
    const written = draft as Draft | null;
    if (written === null || form.filename === null)
      throw badRequest('file', 'missing_required_parameter', "Missing required parameter: 'file'.");
    const filename = cleanName(form.filename);
    const sha256 = await written.seal();
    if (given.purpose === 'fine-tune') await checkTraining(written, filename, given);
    const createdAt = factory.now();
    const seconds = given.seconds ?? (given.purpose === 'batch' ? limits.batchFileExpirySeconds : null);
    await written.keep();
    const row = {
      id,
      keyId: principal.keyId,
      owner: principal.ownerId,
      filename,
      purpose: given.purpose,
      bytes: written.bytes,
      sha256,
      format: given.format ?? null,
      columns: (given.columns as Record<string, string> | undefined) ?? null,
      createdAt,
      expiresAt: seconds === null ? null : createdAt + seconds * 1000,
    };
    await recheck();
    const quota = { count: limits.filesPerKeyMax, bytes: limits.fileBytesPerKeyMax };
    if (!(await factory.files.insertWithin(row, quota))) {
      const message = `This key's files would be more than ${quota.count} or larger than ${quota.bytes} bytes in all. Delete files that are no longer needed.`;
      throw new ApiError(400, 'invalid_request_error', 'file_quota_exceeded', message, { param: 'file' });
    }
    return (await factory.files.get(id)) as FileRow;
  } catch (error) {
    await (draft as Draft | null)?.drop();
    throw error;
  }
}
