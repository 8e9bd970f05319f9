/** Contributions: send, list, one, take back. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { ContributionRow } from '../../db/datanet-schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { pageOf } from '../../http/pages.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { audited } from '../api.ts';
import { datanetOf, type Found, forbidden } from '../of.ts';
import { isBeingRemoved } from './contribution-rows.ts';
import { receive } from './upload.ts';

export const contributionView = z
  .object({
    id: z.string(),
    object: z.literal('datanet.contribution'),
    datanet: z.string(),
    contributor: z.string(),
    filename: z.string(),
    bytes: z.number().int(),
    sha256: z.string(),
    licence: z.string(),
    options: z.looseObject({}),
    state: z.enum(['processing', 'ready', 'failed']),
    rows: z.number().int(),
    refused: z.number().int(),
    progress: z.object({ done: z.number(), total: z.number().nullable(), unit: z.string() }).nullable(),
    problems: z.array(
      z.object({ line: z.number().nullable(), field: z.string().nullable(), rule: z.string(), message: z.string() }),
    ),
    error: z.object({ code: z.string(), message: z.string() }).nullable(),
    created_at: z.number().int(),
    finished_at: z.number().int().nullable(),
  })
  .openapi('Contribution');

export const contributionsQuery = z.object({
  contributor: z.string().min(1).max(64).optional(),
  state: z.enum(['processing', 'ready', 'failed']).optional(),
  limit: z.coerce.number().int().min(1).max(limits.contributionsListMax).default(20),
  after: z.string().max(64).optional(),
});

export function viewOfContribution(row: ContributionRow): z.output<typeof contributionView> {
  const { questions, chunkCharacters, ...rest } = row.options;
  return {
    id: row.id,
    object: 'datanet.contribution',
    datanet: row.datanetId,
    contributor: row.contributor,
    filename: row.filename,
    bytes: row.bytes,
    sha256: row.sha256,
    licence: row.licence,
    options: {
      ...rest,
      ...(questions === undefined ? {} : { questions: { model: questions.model, per_chunk: questions.perChunk } }),
      ...(chunkCharacters === undefined ? {} : { chunk_characters: chunkCharacters }),
    },
    state: row.state,
    rows: row.rows,
    refused: row.refused,
    progress: row.progress,
    problems: row.problems ?? [],
    error: row.error,
    created_at: Math.floor(row.createdAt / 1000),
    finished_at: row.finishedAt === null ? null : Math.floor(row.finishedAt / 1000),
  };
}

function noSuchContribution(id: string): ApiError {
  const message = `There is no contribution ${id.slice(0, 64)} to this Datanet.`;
  return new ApiError(404, 'invalid_request_error', 'contribution_not_found', message, { param: 'contribution' });
}

/** Governors see all contributions, everybody else their own. */
async function contributionOf(services: Services, found: Found, id: string): Promise<ContributionRow> {
  const row = await services.datanets.contributions.rows.get(id);
  const { datanet, standing, principal } = found;
  const visible =
    row !== null && row.datanetId === datanet.id && (standing.governs || row.contributor === principal.userId);
  if (!visible) throw noSuchContribution(id);
  return row;
}

export async function createContribution(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await receive(services, c);
  audited(c, row.datanetId, { contribution: row.id, bytes: row.bytes });
  services.datanets.contributions.drive(row.id);
  return c.json(viewOfContribution(row), 202);
}

export async function listContributions(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(contributionsQuery, c.req.query());
  const found = await datanetOf(services, c, 'sees');
  const { datanet, standing, principal } = found;
  const { rows } = services.datanets.contributions;
  const after = query.after === undefined ? null : await rows.get(query.after);
  if (query.after !== undefined && after?.datanetId !== datanet.id)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no contribution ${query.after}.`);
  const asked = query.contributor === 'me' ? (principal.userId ?? '') : (query.contributor ?? null);
  const mine = principal.userId ?? '';
  if (!standing.governs && asked !== null && asked !== mine)
    throw forbidden('not_governing', 'Only those who govern this Datanet see what others contributed to it.');
  const page = await rows.list(
    datanet.id,
    { contributor: standing.governs ? asked : mine, state: query.state ?? null },
    { limit: query.limit, after },
  );
  return c.json(pageOf(page.rows.map(viewOfContribution), page.hasMore));
}

export async function getContribution(services: Services, c: Context<AppEnv>): Promise<Response> {
  const found = await datanetOf(services, c, 'sees');
  return c.json(viewOfContribution(await contributionOf(services, found, c.req.param('contribution') ?? '')));
}

/** Its contributor takes it back while nothing of it is in a version. */
export async function deleteContribution(services: Services, c: Context<AppEnv>): Promise<Response> {
  const found = await datanetOf(services, c, 'sees');
  const row = await contributionOf(services, found, c.req.param('contribution') ?? '');
  audited(c, row.datanetId, { contribution: row.id });
  if (row.contributor !== found.principal.userId)
    throw forbidden(
      'not_yours',
      'Only its contributor may take a contribution back; those who govern the Datanet reject rows.',
    );
  if (!isBeingRemoved(row) && !(await services.datanets.contributions.takeBack(row))) {
    const message = 'Rows of this contribution are in a published version. Ask for their withdrawal instead.';
    throw new ApiError(409, 'invalid_request_error', 'contribution_published', message);
  }
  return c.json({ id: row.id, object: 'datanet.contribution', deleted: true });
}
