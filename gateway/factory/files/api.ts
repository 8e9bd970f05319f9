/** /v1/files: upload, list, get, content, delete. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { attachment } from '../../datanets/exports/filename.ts';
import type { FileRow } from '../../db/schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { pageOf } from '../../http/pages.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { datanetLines } from '../mixtures/datanet-content.ts';
import { type DatanetFile, datanetFileBytes, datanetFileName, parseDatanetFileId } from '../mixtures/datanet-file.ts';
import type { Refused } from '../mixtures/rights.ts';
import { upload } from './upload.ts';

/** What the files of Datanets are for; they are listed only where it is asked for. */
const DATANET_PURPOSE = 'datanet';

/** Refusals that the caller can do nothing about. */
const FOR_GOOD = new Set(['rows_withdrawn', 'datanet_revoked']);

export const fileView = z
  .object({
    id: z.string(),
    object: z.literal('file'),
    bytes: z.number().int(),
    created_at: z.number().int(),
    expires_at: z.number().int().optional(),
    filename: z.string(),
    purpose: z.string(),
    status: z.enum(['uploaded', 'processed', 'error']).openapi({
      description:
        'Of a version of a Datanet: processed, the caller may train on it now; uploaded, something is to be done before; error, nobody may any more.',
    }),
    status_details: z.string().optional().openapi({ description: 'Why it is not processed.' }),
  })
  .openapi('OpenAIFile');

export const fileQuery = z.object({
  purpose: z.string().max(64).optional().openapi({
    description: '`datanet`: instead of uploads, the versions of Datanets that the caller may train on now.',
  }),
  limit: z.coerce.number().int().min(1).max(limits.filesListMax).default(limits.filesListMax),
  order: z.enum(['asc', 'desc']).default('desc'),
  after: z.string().max(128).optional(),
});

export function viewOfFile(row: FileRow): z.output<typeof fileView> {
  return {
    id: row.id,
    object: 'file',
    bytes: row.bytes,
    created_at: Math.floor(row.createdAt / 1000),
    ...(row.expiresAt === null ? {} : { expires_at: Math.floor(row.expiresAt / 1000) }),
    filename: row.filename,
    purpose: row.purpose,
    // A file is not told of before it is whole and checked.
    status: 'processed',
  };
}

export function noSuchFile(id: string, param: string | null = 'id', status = 404): ApiError {
  return new ApiError(status, 'invalid_request_error', 'file_not_found', `No such File object: ${id.slice(0, 128)}`, {
    param,
  });
}

/** @param refused why a job would refuse it now */
export function viewOfDatanetFile(file: DatanetFile, refused: Refused | null = null): z.output<typeof fileView> {
  return {
    id: file.id,
    object: 'file',
    // Characters of its rows: the content is made when it is asked for, and about as long.
    bytes: datanetFileBytes(file),
    created_at: Math.floor(file.version.createdAt / 1000),
    filename: datanetFileName(file),
    purpose: DATANET_PURPOSE,
    status: refused === null ? 'processed' : FOR_GOOD.has(refused.code) ? 'error' : 'uploaded',
    ...(refused === null ? {} : { status_details: refused.message }),
  };
}

/** A version that the caller may read. @throws ApiError 404 as for every file that is not one's own */
async function datanetFileOf(services: Services, c: Context<AppEnv>): Promise<DatanetFile | null> {
  const id = c.req.param('id') ?? '';
  if (parseDatanetFileId(id) === null) return null;
  const file = await services.factory.datanetFiles.readable(c.get('principal'), id);
  if (file === null) throw noSuchFile(id);
  return file;
}

async function fileOf(services: Services, c: Context<AppEnv>): Promise<FileRow> {
  const id = c.req.param('id') ?? '';
  const row = await services.factory.files.find(c.get('principal'), id);
  if (row === null) throw noSuchFile(id);
  return row;
}

export async function createFile(services: Services, c: Context<AppEnv>): Promise<Response> {
  const principal = c.get('principal');
  const recheck = () => services.people.recheck(principal, 'fine_tuning');
  return c.json(viewOfFile(await upload(services.factory, principal, c.req.raw, recheck)));
}

export async function listFiles(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(fileQuery, c.req.query());
  if (query.purpose === DATANET_PURPOSE) return listDatanetFiles(services, c, query);
  const principal = c.get('principal');
  const after = query.after === undefined ? null : await services.factory.files.find(principal, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no file ${query.after}.`);
  const { rows, hasMore } = await services.factory.files.list(principal, { ...query, after });
  return c.json(filePage(rows.map(viewOfFile), hasMore));
}

/** OpenAI's schema of files knows no null here. */
function filePage(data: z.output<typeof fileView>[], hasMore: boolean) {
  const page = pageOf(data, hasMore);
  return { ...page, first_id: page.first_id ?? '', last_id: page.last_id ?? '' };
}

async function listDatanetFiles(
  services: Services,
  c: Context<AppEnv>,
  query: z.output<typeof fileQuery>,
): Promise<Response> {
  if (query.order === 'asc')
    throw badRequest(
      'order',
      'invalid_value',
      "Versions of Datanets are listed with the newest first: order is 'desc'.",
    );
  const { datanetFiles } = services.factory;
  const principal = c.get('principal');
  const after = query.after === undefined ? null : await datanetFiles.readable(principal, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no file ${query.after}.`);
  const { files, hasMore } = await datanetFiles.trainable(principal, {
    after,
    limit: Math.min(query.limit, limits.datanetFilesListMax),
  });
  return c.json(
    filePage(
      files.map((file) => viewOfDatanetFile(file)),
      hasMore,
    ),
  );
}

export async function getFile(services: Services, c: Context<AppEnv>): Promise<Response> {
  const version = await datanetFileOf(services, c);
  if (version !== null) {
    const found = await services.factory.rights.datanetFile(c.get('principal'), version.id);
    if (found === 'hidden') throw noSuchFile(version.id);
    return c.json(viewOfDatanetFile(version, 'code' in found ? found : null));
  }
  return c.json(viewOfFile(await fileOf(services, c)));
}

export async function fileContent(services: Services, c: Context<AppEnv>): Promise<Response> {
  const version = await datanetFileOf(services, c);
  if (version !== null) return datanetContent(services, c, version);
  const row = await fileOf(services, c);
  return new Response(services.factory.storage.read(row.id), {
    headers: {
      'content-type': 'application/octet-stream',
      'content-length': String(row.bytes),
      'content-disposition': `attachment; filename*=UTF-8''${encodeURIComponent(row.filename)}`,
    },
  });
}

function datanetContent(services: Services, c: Context<AppEnv>, file: DatanetFile): Response {
  const lines = datanetLines(services.factory.client, file, c.req.raw.signal);
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await lines.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel: async () => void (await lines.return(undefined)),
  });
  return new Response(body, {
    headers: {
      'content-type': 'application/octet-stream',
      'content-disposition': attachment(file.datanet.name, `-v${file.version.number}.jsonl`),
    },
  });
}

export async function deleteFile(services: Services, c: Context<AppEnv>): Promise<Response> {
  const version = await datanetFileOf(services, c);
  if (version !== null) {
    const message = `${version.id} is a published version of a Datanet: it cannot be deleted. Rows are withdrawn from newer versions, and a Datanet can be revoked.`;
    throw new ApiError(403, 'permission_error', 'file_not_deletable', message, { param: 'id' });
  }
  const { id } = await fileOf(services, c);
  // The row first: a file without a row is swept, a row without a file would be a lie.
  await services.factory.files.remove(id);
  await services.factory.storage.remove(id);
  return c.json({ id, object: 'file', deleted: true });
}
