/** /api/datanets/{id}/versions and …/withdrawals: publish, list, look into, prove, compare, take rows out. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { DATANET_ROW_PROOF } from '../../../daemon/evidence.ts';
import { canAccess } from '../../auth/scopes.ts';
import type { DatanetRow, DataRow, VersionRow } from '../../db/datanet-schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { pageOf } from '../../http/pages.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { audited } from '../api.ts';
import { datanetAndBody, datanetOf, forbidden, noSuchDatanet, standingIn } from '../of.ts';
import { noSuchRow, noSuchVersion, seqOf, viewOfRow } from '../rows/api.ts';
import { viewOfVersion } from './view.ts';

/** Words for people: no control characters but line breaks and tabs, no halves of characters. */
const words = (most: number) =>
  z
    .string()
    .trim()
    .max(most)
    .refine((text) => !/[^\P{Cc}\n\t]|\p{Surrogate}/u.test(text), 'it must be text without control characters');

export const publishRequest = z
  .strictObject({ notes: words(limits.versionNotesCharactersMax).default('') })
  .openapi('DatanetPublishRequest');

export const versionsQuery = z.object({
  limit: z.coerce.number().int().min(1).max(100).default(20),
  /** Number of a version. */
  after: z.coerce.number().int().min(1).max(1_000_000_000).optional(),
});

export const versionRowsQuery = z.object({
  limit: z.coerce.number().int().min(1).max(100).default(20),
  after: z.string().max(64).optional(),
});

export const differenceQuery = z.object({
  /** Which rows the list holds. */
  rows: z.enum(['added', 'removed']).default('added'),
  limit: z.coerce.number().int().min(1).max(100).default(20),
  after: z.string().max(64).optional(),
});

export const differenceView = z
  .object({
    object: z.literal('datanet.difference'),
    datanet: z.string(),
    from: z.number().int(),
    to: z.number().int(),
    /** Rows of `to` that are not in `from`. */
    added: z.number().int(),
    removed: z.number().int(),
    unchanged: z.number().int(),
    licence_changed: z.boolean(),
    terms_changed: z.boolean(),
    rows: z.enum(['added', 'removed']),
    data: z.array(z.looseObject({ id: z.string() })),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  })
  .openapi('DatanetDifference');

export const rowProof = z
  .object({
    type: z.literal(DATANET_ROW_PROOF),
    /** The leaf: canonical JSON of the row's record and its signature. */
    entry: z.string(),
    leafIndex: z.number().int(),
    inclusionProof: z.array(z.string()),
    checkpoint: z.string(),
    vkey: z.string(),
    /** Canonical JSON of the row, for those who may read it. */
    content: z.string().optional(),
  })
  .openapi('DatanetRowProof');

export const withdrawalRequest = z
  .strictObject({
    rows: z
      .array(z.string().regex(/^row_[1-9]\d{0,15}$/, 'it must be the id of a row (row_…)'))
      .min(1)
      .max(limits.withdrawalRowsMax)
      .optional(),
    /** All rows of this contribution. */
    contribution: z.string().min(1).max(64).optional(),
    reason: words(limits.withdrawalReasonCharactersMax).min(1),
    /** Take the contents away too, from all versions. What stays is hashes. */
    erase: z.boolean().default(false),
  })
  .refine((body) => (body.rows === undefined) !== (body.contribution === undefined), {
    message: 'give either `rows` or `contribution`',
    path: ['rows'],
  })
  .openapi('DatanetWithdrawalRequest');

export const withdrawalView = z
  .object({
    object: z.literal('datanet.withdrawal'),
    datanet: z.string(),
    /** Rows that were named, and are withdrawn now. */
    rows: z.number().int(),
    erased: z.boolean(),
    /** The version without them; null: none of them was in the newest version. */
    version: z.number().int().nullable(),
  })
  .openapi('DatanetWithdrawal');

function numberOf(c: Context<AppEnv>, name: string): number {
  const text = c.req.param(name) ?? '';
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  const message = `Invalid '${name}': the number of a version is a whole number from 1.`;
  throw new ApiError(404, 'invalid_request_error', 'version_not_found', message, { param: name });
}

/** @throws ApiError 404 */
export async function versionOf(
  services: Services,
  c: Context<AppEnv>,
  datanet: DatanetRow,
  name = 'version',
): Promise<VersionRow> {
  const number = numberOf(c, name);
  const version = await services.datanets.versions.get(datanet.id, number);
  if (version === null) throw noSuchVersion(datanet, number);
  return version;
}

function seqAfter(after: string | undefined): number {
  if (after === undefined) return 0;
  const seq = seqOf(after);
  if (seq === null) throw badRequest('after', 'invalid_value', "Invalid 'after': it must be the id of a row (row_…).");
  return seq;
}

function pageOfRows(rows: DataRow[], limit: number) {
  return pageOf(rows.slice(0, limit).map(viewOfRow), rows.length > limit);
}

export async function publishVersion(services: Services, c: Context<AppEnv>): Promise<Response> {
  const found = await datanetAndBody(services, c, 'governs', publishRequest);
  const { datanet, principal } = found;
  audited(c, datanet.id);
  const by = principal.userId ?? principal.keyId;
  // It may have taken long, and whoever ceased to govern meanwhile publishes nothing.
  const ask = async () => {
    await services.people.recheck(principal);
    await standingIn(services, principal, datanet.id, 'governs');
  };
  const version = await services.datanets.versions.publish(datanet, by, found.body.notes, ask);
  audited(c, datanet.id, { version: version.number, rows: version.rows, added: version.added });
  return c.json(viewOfVersion(version, 'whole'), 201);
}

export async function listVersions(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet } = await datanetOf(services, c, 'sees');
  const { limit, after } = parseWith(versionsQuery, c.req.query());
  const found = await services.datanets.versions.list(datanet.id, after ?? null, limit + 1);
  const shown = found.slice(0, limit);
  const id = (version: VersionRow | undefined) => (version === undefined ? null : String(version.number));
  return c.json({
    object: 'list',
    data: shown.map((version) => viewOfVersion(version, 'listed')),
    first_id: id(shown[0]),
    last_id: id(shown.at(-1)),
    has_more: found.length > limit,
  });
}

export async function getVersion(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet } = await datanetOf(services, c, 'sees');
  return c.json(viewOfVersion(await versionOf(services, c, datanet), 'whole'));
}

export async function listVersionRows(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet } = await datanetOf(services, c, 'reads');
  const { number } = await versionOf(services, c, datanet);
  const { limit, after } = parseWith(versionRowsQuery, c.req.query());
  const rows = await services.datanets.versions.rows(datanet.id, number, seqAfter(after), limit + 1);
  return c.json(pageOfRows(rows, limit));
}

/** A leaf holds no content, so whoever sees the Datanet may have its proof; the content goes with it to those who may read. */
export async function getRowProof(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet, standing } = await datanetOf(services, c, 'sees');
  const { number } = await versionOf(services, c, datanet);
  const id = c.req.param('row') ?? '';
  const seq = seqOf(id);
  const options = { content: standing.reads };
  const proof = seq === null ? null : await services.datanets.versions.proof(datanet.id, number, seq, options);
  if (proof === null) throw noSuchRow(id);
  return c.json(proof);
}

export async function getDifference(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet } = await datanetOf(services, c, 'reads');
  const from = await versionOf(services, c, datanet, 'version');
  const to = await versionOf(services, c, datanet, 'other');
  const { rows: which, limit, after } = parseWith(differenceQuery, c.req.query());
  const { versions } = services.datanets;
  const { added, removed } = await versions.countDifference(datanet.id, from.number, to.number);
  const [inside, outside] = which === 'added' ? [to.number, from.number] : [from.number, to.number];
  const rows = await versions.differingRows(datanet.id, inside, outside, seqAfter(after), limit + 1);
  return c.json({
    ...pageOfRows(rows, limit),
    object: 'datanet.difference',
    datanet: datanet.id,
    from: from.number,
    to: to.number,
    added,
    removed,
    unchanged: to.rows - added,
    licence_changed: from.licence !== to.licence,
    terms_changed: from.terms !== to.terms,
    rows: which,
  });
}

/**
 * Rows leave by the will of whoever contributed them, or of whoever governs the Datanet. Contributors keep that right when they may not
 * see the Datanet any more.
 */
export async function withdrawRows(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanets } = services;
  const principal = c.get('principal');
  const id = c.req.param('id') ?? '';
  // First of all, for what is wrong with it must not tell whether the Datanet is there.
  const body = parseWith(withdrawalRequest, await readJsonObject(c.req.raw));
  const datanet = id.startsWith('dn_') && id.length <= 64 ? await datanets.records.get(id) : null;
  if (datanet === null) throw noSuchDatanet(id);
  const standing = await datanets.access.standing(principal, datanet);
  const named =
    body.contribution === undefined
      ? (body.rows ?? []).map((row) => seqOf(row) as number)
      : { contribution: body.contribution };
  const owners = await datanets.versions.contributorsOf(datanet.id, named);
  const others = owners.filter(({ contributor }) => contributor !== principal.userId);
  if (!standing.governs && (others.length > 0 || owners.length === 0)) {
    const own = owners.length > others.length;
    if (!standing.sees && !own) throw noSuchDatanet(id);
    // What somebody may not read, they need not learn of.
    if (!standing.reads || owners.length === 0 || others.some(({ unpublished }) => unpublished))
      throw nothingNamed(body);
    throw forbidden('not_your_rows', 'Only whoever contributed a row, or governs the Datanet, may withdraw it.');
  }
  if (others.length > 0 && !canAccess(principal, 'govern')) {
    const message =
      'This key lacks the scope `govern`, so it takes out only what its own user contributed, not the rows of others.';
    throw forbidden('insufficient_scope', message);
  }
  const rows = owners.flatMap((one) => one.rows);
  if (rows.length === 0 || (Array.isArray(named) && rows.length < new Set(named).size)) throw nothingNamed(body);
  audited(c, datanet.id, { rows: rows.length, erase: body.erase });
  const by = principal.userId ?? principal.keyId;
  const ask = async () => {
    await services.people.recheck(principal);
    // Rows of their own they may take out whatever became of their standing.
    if (others.length > 0) await standingIn(services, principal, datanet.id, 'governs');
  };
  const version = await datanets.versions.withdraw(datanet, rows, by, body.reason, { erase: body.erase, ask });
  const number = version?.number ?? null;
  audited(c, datanet.id, { rows: rows.length, erase: body.erase, version: number });
  return c.json({
    object: 'datanet.withdrawal',
    datanet: datanet.id,
    rows: rows.length,
    erased: body.erase,
    version: number,
  });
}

function nothingNamed(body: z.output<typeof withdrawalRequest>): ApiError {
  if (body.contribution === undefined)
    return noSuchRow(body.rows?.length === 1 ? (body.rows[0] ?? '') : 'of these', 'rows');
  const message = `There is no contribution ${body.contribution.slice(0, 64)} with rows in this Datanet.`;
  return new ApiError(404, 'invalid_request_error', 'contribution_not_found', message, { param: 'contribution' });
}
