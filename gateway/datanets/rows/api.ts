/** Rows of a Datanet: list, one, statistics. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { DatanetRow, DataRow } from '../../db/datanet-schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { pageOf } from '../../http/pages.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { datanetOf, type Found, standingIn } from '../of.ts';
import { mayRead, type Reader, ROW_STATES } from './data-rows.ts';

export const rowView = z
  .object({
    id: z.string(),
    object: z.literal('datanet.row'),
    datanet: z.string(),
    contribution: z.string(),
    contributor: z.string(),
    /** The example as it is trained on; null: withdrawn and erased. */
    content: z.looseObject({ kind: z.string() }).nullable(),
    content_hash: z.string(),
    size: z.number().int(),
    generated_by: z.string().nullable(),
    score: z.number().int(),
    reasons: z.array(z.object({ rule: z.string(), points: z.number(), message: z.string() })),
    language: z.string().nullable(),
    near_duplicate_of: z.string().nullable(),
    state: z.enum(ROW_STATES),
    reviewer: z.string().nullable(),
    reviewed_at: z.number().int().nullable(),
    state_reason: z.string().nullable(),
    added_in: z.number().int().nullable(),
    removed_in: z.number().int().nullable(),
    created_at: z.number().int(),
  })
  .openapi('DatanetDataRow');

const flag = z.enum(['true', 'false']);

export const rowsQuery = z.object({
  state: z.enum(ROW_STATES).optional(),
  contribution: z.string().min(1).max(64).optional(),
  /** Id of a user, or `me`. */
  contributor: z.string().min(1).max(64).optional(),
  min_score: z.coerce.number().int().min(0).max(100).optional(),
  near_duplicates: flag.optional(),
  version: z.coerce.number().int().min(1).max(1_000_000_000).optional(),
  limit: z.coerce.number().int().min(1).max(limits.datanetRowsListMax).default(20),
  after: z.string().max(64).optional(),
});

export function rowIdOf(seq: number): string {
  return `row_${seq}`;
}

/** null: no id of a row. */
export function seqOf(id: string): number | null {
  const digits = /^row_([1-9]\d{0,15})$/.exec(id)?.[1];
  const seq = Number(digits);
  return digits !== undefined && Number.isSafeInteger(seq) ? seq : null;
}

export function noSuchRow(id: string, param = 'row'): ApiError {
  const message = `There is no row ${id.slice(0, 64)} in this Datanet.`;
  return new ApiError(404, 'invalid_request_error', 'row_not_found', message, { param });
}

const seconds = (ms: number | null) => (ms === null ? null : Math.floor(ms / 1000));

export function viewOfRow(row: DataRow): z.output<typeof rowView> {
  return {
    id: rowIdOf(row.seq),
    object: 'datanet.row',
    datanet: row.datanetId,
    contribution: row.contributionId,
    contributor: row.contributor,
    content: row.content === null ? null : JSON.parse(row.content),
    content_hash: row.contentHash,
    size: row.size,
    generated_by: row.generatedBy,
    score: row.score,
    reasons: row.reasons,
    language: row.language,
    near_duplicate_of: row.nearDuplicateOf === null ? null : rowIdOf(row.nearDuplicateOf),
    state: row.state,
    reviewer: row.reviewer,
    reviewed_at: seconds(row.reviewedAt),
    state_reason: row.stateReason,
    added_in: row.addedIn,
    removed_in: row.removedIn,
    created_at: Math.floor(row.createdAt / 1000),
  };
}

export function readerOf(found: Found): Reader {
  const { datanet, standing, principal } = found;
  return { governs: standing.governs, reads: standing.reads, userId: principal.userId, version: datanet.version };
}

export async function listRows(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(rowsQuery, c.req.query());
  const found = await datanetOf(services, c, query.contributor === 'me' ? 'sees' : 'reads');
  const { datanet, principal } = found;
  const after = query.after === undefined ? null : seqOf(query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', "Invalid 'after': it must be the id of a row (row_…).");
  if (query.version !== undefined && query.version > datanet.version) throw noSuchVersion(datanet, query.version);
  const { rows, hasMore } = await services.datanets.rows.list(
    datanet.id,
    readerOf(found),
    {
      state: query.state ?? null,
      contribution: query.contribution ?? null,
      contributor: query.contributor === 'me' ? (principal.userId ?? '') : (query.contributor ?? null),
      minScore: query.min_score ?? null,
      nearDuplicates: query.near_duplicates === undefined ? null : query.near_duplicates === 'true',
      version: query.version ?? null,
    },
    { limit: query.limit, after },
  );
  return c.json(pageOf(rows.map(viewOfRow), hasMore));
}

export function noSuchVersion(datanet: DatanetRow, version: number): ApiError {
  const message = `This Datanet has no version ${version}; its newest is ${datanet.version}.`;
  return new ApiError(404, 'invalid_request_error', 'version_not_found', message, { param: 'version' });
}

export async function getRow(services: Services, c: Context<AppEnv>): Promise<Response> {
  // One's own row may be looked at by whoever may not read the rest any more.
  const found = await standingIn(services, c.get('principal'), c.req.param('id') ?? '', 'sees');
  const id = c.req.param('row') ?? '';
  const seq = seqOf(id);
  const row = seq === null ? null : await services.datanets.rows.get(found.datanet.id, seq);
  if (row === null || !mayRead(readerOf(found), row)) throw noSuchRow(id);
  return c.json(viewOfRow(row));
}

export const statisticsQuery = z.object({});

export const statisticsView = z
  .looseObject({
    object: z.literal('datanet.statistics'),
    datanet: z.string(),
    /** published: the newest version; all: all rows. */
    scope: z.enum(['published', 'all']),
    rows: z.number().int(),
    states: z.record(z.string(), z.number()),
    scores: z.array(z.number()),
    languages: z.record(z.string(), z.number()),
    near_duplicates: z.number().int(),
    generated: z.number().int(),
    characters: z.object({ total: z.number(), mean: z.number(), least: z.number(), most: z.number() }),
    contributors: z.number().int(),
    contributions: z.number().int(),
  })
  .openapi('DatanetStatistics');

/** A listing shows them too, so whoever sees the Datanet may know them; what is not published is for those who govern it. */
export async function getStatistics(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet, standing } = await datanetOf(services, c, 'sees');
  const scope = standing.governs ? 'all' : 'published';
  const statistics = await services.datanets.statistics.of(datanet, scope === 'published');
  return c.json({ object: 'datanet.statistics', datanet: datanet.id, scope, ...statistics });
}
