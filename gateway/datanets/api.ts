/** /api/datanets: create, list, one, change. */
import { z } from '@hono/zod-openapi';
import { and, eq } from 'drizzle-orm';
import type { Context } from 'hono';
import type { Principal } from '../auth/scopes.ts';
import { DATANET_KINDS, type DatanetRow } from '../db/datanet-schema.ts';
import { memberships } from '../db/people-schema.ts';
import { ApiError, badRequest } from '../errors.ts';
import { readJsonObject } from '../http/body.ts';
import { randomId } from '../http/ids.ts';
import { displayName, nameKey } from '../http/names.ts';
import { pageOf } from '../http/pages.ts';
import { parseWith } from '../http/validate.ts';
import { limits } from '../limits.ts';
import type { AppEnv, Services } from '../services.ts';
import type { DatanetPatch } from './datanet-rows.ts';
import { nameTaken } from './names.ts';
import { datanetAndBody, datanetOf, forbidden, noSuchDatanet, userOf } from './of.ts';
import { matchOf, phrasesOf } from './search/query.ts';
import { spdxExpression } from './spdx.ts';
import { summaryOf, viewOf } from './view.ts';

const wellFormed = (text: string) => !/\p{Surrogate}/u.test(text) && !text.includes('\u0000');
const bytesWithin = (most: number) => (text: string) => Buffer.byteLength(text) <= most;
const UNREADABLE = 'it must be text without NUL and without halves of characters';

const summary = z.string().trim().max(limits.datanetSummaryCharactersMax).refine(wellFormed, UNREADABLE);
const description = z
  .string()
  .refine(bytesWithin(limits.datanetDescriptionBytesMax), `at most ${limits.datanetDescriptionBytesMax} bytes`)
  .refine(wellFormed, UNREADABLE);
const terms = z
  .string()
  .refine(bytesWithin(limits.datanetTermsBytesMax), `at most ${limits.datanetTermsBytesMax} bytes`)
  .refine(wellFormed, UNREADABLE);
const TAG = /^[\p{L}\p{N}][\p{L}\p{M}\p{N} ._+#-]*$/u;
const tags = z
  .array(
    z
      .string()
      .max(4 * limits.datanetTagCharactersMax)
      .transform(tagOf)
      .refine(
        (tag) => TAG.test(tag) && tag.length <= limits.datanetTagCharactersMax,
        `a tag is 1 to ${limits.datanetTagCharactersMax} letters, digits, spaces or . _ + # -, beginning with a letter or digit`,
      ),
  )
  .max(limits.datanetTagsMax)
  .transform((list) => [...new Set(list)]);
const languages = z
  .array(
    z
      .string()
      .max(35)
      .transform(languageOf)
      .refine((code) => code !== '', 'it must be a BCP 47 code such as en or pt-BR'),
  )
  .max(limits.datanetLanguagesMax)
  .transform((list) => [...new Set(list)]);
const visibility = z.enum(['public', 'permissioned']);

function tagOf(text: string): string {
  return text.normalize('NFKC').toLowerCase().trim().replaceAll(/\s+/gu, ' ');
}

function languageOf(text: string): string {
  try {
    return Intl.getCanonicalLocales(text)[0] ?? '';
  } catch {
    return '';
  }
}

export const datanetCreateRequest = z
  .strictObject({
    name: z.string().min(1).max(320).openapi({
      description:
        'Distinct among the owner’s Datanets and among all published ones, by how it looks; fixed, and public, from the first version on.',
    }),
    summary: summary.default(''),
    description: description.default(''),
    tags: tags.default([]),
    kind: z.enum(DATANET_KINDS),
    licence: z.string().min(1).max(limits.datanetLicenceCharactersMax),
    terms: terms.default(''),
    visibility: visibility.default('permissioned'),
    languages: languages.default([]),
    organization_id: z.string().min(1).max(64).nullish(),
  })
  .openapi('DatanetCreateRequest');

export const datanetPatchRequest = z
  .strictObject({
    name: z.string().min(1).max(320).optional(),
    summary: summary.optional(),
    description: description.optional(),
    tags: tags.optional(),
    licence: z.string().min(1).max(limits.datanetLicenceCharactersMax).optional(),
    terms: terms.optional(),
    visibility: visibility.optional(),
    languages: languages.optional(),
  })
  .openapi('DatanetPatchRequest');

export const datanetsQuery = z.object({
  q: z.string().min(1).max(limits.datanetQueryCharactersMax).optional(),
  tag: z.string().min(1).max(160).optional(),
  licence: z.string().min(1).max(limits.datanetLicenceCharactersMax).optional(),
  visibility: visibility.optional(),
  kind: z.enum(DATANET_KINDS).optional(),
  state: z.enum(['active', 'revoked']).optional(),
  owner: z.string().min(1).max(64).optional(),
  mine: z.enum(['true', 'false']).optional(),
  limit: z.coerce.number().int().min(1).max(limits.datanetsListMax).default(20),
  after: z.string().max(64).optional(),
});

/** @throws ApiError 404 for organisations that one does not belong to, 403 unless one is an owner. */
async function checkOrganization(services: Services, userId: string, organizationId: string): Promise<void> {
  const [row] = await services.datanets.db
    .select({ role: memberships.role })
    .from(memberships)
    .where(and(eq(memberships.organizationId, organizationId), eq(memberships.userId, userId)));
  if (row === undefined) {
    const message = `There is no organisation ${organizationId.slice(0, 64)} that you belong to.`;
    throw new ApiError(404, 'invalid_request_error', 'organization_not_found', message, { param: 'organization_id' });
  }
  if (row.role !== 'owner')
    throw forbidden('not_an_owner', 'Only an owner of the organisation may create Datanets that belong to it.');
}

export async function createDatanet(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanets } = services;
  const principal = c.get('principal');
  const userId = userOf(principal);
  const body = parseWith(datanetCreateRequest, await readJsonObject(c.req.raw));
  const name = displayName(body.name);
  const licence = spdxExpression(body.licence);
  const organizationId = body.organization_id ?? null;
  if (organizationId !== null) await checkOrganization(services, userId, organizationId);
  const now = services.now();
  const row = {
    id: `dn_${randomId()}`,
    ownerUser: organizationId === null ? userId : null,
    ownerOrganization: organizationId,
    name,
    nameKey: nameKey(name),
    summary: body.summary,
    description: body.description,
    tags: body.tags,
    kind: body.kind,
    licence,
    terms: body.terms,
    visibility: body.visibility,
    state: 'active' as const,
    languages: body.languages,
    createdBy: userId,
    createdAt: now,
    updatedAt: now,
  };
  const outcome = await datanets.records.insert(row, limits.datanetsPerOwnerMax);
  if (outcome === 'name_taken') throw nameTaken(name);
  if (outcome === 'too_many') {
    const message = `An owner may have ${limits.datanetsPerOwnerMax} Datanets; this one would be one more.`;
    throw new ApiError(400, 'invalid_request_error', 'datanet_limit_exceeded', message);
  }
  audited(c, row.id);
  return c.json(await shown(services, principal, row.id), 201);
}

/** The audit log names what was acted upon. */
export function audited(c: Context<AppEnv>, object: string, detail?: Record<string, unknown>): void {
  (c.set as (name: string, value: unknown) => void)('audit', { object, ...(detail === undefined ? {} : { detail }) });
}

async function shown(services: Services, principal: Principal, id: string) {
  const { datanets } = services;
  const row = await datanets.records.get(id);
  if (row === null) throw noSuchDatanet(id);
  const standing = await datanets.access.standing(principal, row);
  return viewOf(row, await datanets.records.ownerNames([row]), standing);
}

export async function listDatanets(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(datanetsQuery, c.req.query());
  const principal = c.get('principal');
  const { records, access } = services.datanets;
  let after: DatanetRow | null = null;
  if (query.after !== undefined) {
    after = await records.get(query.after);
    if (after === null || !(await access.standing(principal, after)).sees)
      throw badRequest('after', 'invalid_value', `Invalid 'after': there is no Datanet ${query.after}.`);
  }
  const { rows, hasMore } = await records.list(
    principal,
    {
      match: query.q === undefined ? null : matchOf(phrasesOf(query.q)),
      tag: query.tag === undefined ? null : tagOf(query.tag),
      licence: query.licence ?? null,
      visibility: query.visibility ?? null,
      kind: query.kind ?? null,
      state: query.state ?? null,
      owner: query.owner ?? null,
      mine: query.mine === 'true',
    },
    { limit: query.limit, after },
  );
  const names = await records.ownerNames(rows);
  return c.json(
    pageOf(
      rows.map((row) => summaryOf(row, names)),
      hasMore,
    ),
  );
}

export async function getDatanet(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet, standing } = await datanetOf(services, c, 'sees');
  return c.json(viewOf(datanet, await services.datanets.records.ownerNames([datanet]), standing));
}

export async function patchDatanet(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet, principal, body } = await datanetAndBody(services, c, 'governs', datanetPatchRequest);
  const { name: givenName, licence, ...rest } = body;
  const patch: DatanetPatch = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined));
  if (licence !== undefined) patch.licence = spdxExpression(licence);
  if (givenName !== undefined) {
    const name = displayName(givenName);
    if (name !== datanet.name) {
      if (datanet.version > 0) throw nameFixed();
      patch.name = name;
      patch.nameKey = nameKey(name);
    }
  }
  audited(c, datanet.id, { fields: Object.keys(patch) });
  if (Object.keys(patch).length > 0 && (await services.datanets.records.patch(datanet.id, patch)) === null) {
    // Published, or the name taken, since it was read.
    const now = await services.datanets.records.get(datanet.id);
    throw (now?.version ?? 0) > 0 ? nameFixed() : nameTaken(patch.name ?? '');
  }
  // Another licence, or another visibility: who waits to train on it may not be allowed to any more.
  await services.factory.askAgain({ datanetId: datanet.id });
  return c.json(await shown(services, principal, datanet.id));
}

function nameFixed(): ApiError {
  const message =
    'The name of a Datanet is fixed once a version of it is published: receipts and fingerprints name it.';
  return new ApiError(409, 'invalid_request_error', 'name_fixed', message, { param: 'name' });
}

/** The key that rows and checkpoints of versions are signed with, for whoever verifies them. */
export function datanetVkey(services: Services, c: Context<AppEnv>): Response {
  return c.text(`${services.datanets.key.vkey}\n`);
}
