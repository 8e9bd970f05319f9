/** /api/datanets/{id}/access-requests: ask for access, see who asked, approve, reject, revoke. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { type AccessRow, accessRequests, type DatanetRow } from '../../db/datanet-schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { pageOf } from '../../http/pages.ts';
import { integer, parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { datanetOf, userOf } from '../of.ts';
import type { Standing } from '../standing.ts';
import { checkTerms } from './licence-api.ts';
import { called } from './refusals.ts';

const STATES = accessRequests.state.enumValues;

/** Controls but for new lines and tabs, what turns the direction of writing, halves of characters: others read these words and decide by them. */
const UNSEEN = /[\p{Cs}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|(?![\n\r\t])\p{Cc}/u;
const words = (min: number, max: number) =>
  z
    .string()
    .trim()
    .min(min)
    .max(max)
    .refine((text) => !UNSEEN.test(text), 'it has control characters, or such as turn the direction of writing');
const reason = words(1, limits.accessReasonCharactersMax);

export const accessRequest = z
  .strictObject({
    purpose: words(limits.accessPurposeCharactersMin, limits.accessPurposeCharactersMax),
    organization_id: z.string().min(1).max(128).nullish().openapi({
      description: 'For all members of an organisation that the caller belongs to.',
    }),
    licence_accepted: z.string().min(1).max(256).openapi({
      description: "The Datanet's licence as it is now: whoever asks agrees to it.",
    }),
    terms_sha256: z.string().max(64).optional().openapi({
      description: 'Where the Datanet has terms of its own: their hash as GET …/licence-acceptance tells it.',
    }),
  })
  .openapi('DatanetAccessRequestCreate');

export const approval = z
  .strictObject({
    /** Seconds since 1970. */
    expires_at: integer(0, 1e11).nullish(),
    reason: reason.nullish(),
  })
  .openapi('DatanetAccessApproval');
export const refusal = z.strictObject({ reason }).openapi('DatanetAccessRefusal');

export const accessQuery = z.strictObject({
  state: z.enum(STATES).optional(),
  requested_by: z.string().max(128).optional(),
  organization_id: z.string().max(128).optional(),
  after: z.string().max(128).optional(),
  limit: z.coerce.number().int().min(1).max(limits.pageMax).default(limits.pageDefault),
});

export const accessView = z
  .object({
    id: z.string(),
    object: z.literal('datanet.access_request'),
    datanet: z.string(),
    requested_by: z.string(),
    organization_id: z.string().nullable(),
    purpose: z.string(),
    state: z.enum(STATES),
    active: z.boolean().openapi({ description: 'Approved, and neither expired nor revoked.' }),
    decided_by: z.string().nullable(),
    decided_at: z.number().nullable(),
    reason: z.string().nullable(),
    expires_at: z.number().nullable(),
    created_at: z.number(),
  })
  .openapi('DatanetAccessRequest');

const seconds = (milliseconds: number | null) => (milliseconds === null ? null : Math.floor(milliseconds / 1000));

export function viewOfAccess(row: AccessRow, now: number): z.output<typeof accessView> {
  return {
    id: row.id,
    object: 'datanet.access_request',
    datanet: row.datanetId,
    requested_by: row.requestedBy,
    organization_id: row.organizationId,
    purpose: row.purpose,
    state: row.state,
    active: row.state === 'approved' && (row.expiresAt === null || row.expiresAt > now),
    decided_by: row.decidedBy,
    decided_at: seconds(row.decidedAt),
    reason: row.reason,
    expires_at: seconds(row.expiresAt),
    created_at: seconds(row.createdAt) as number,
  };
}

const conflict = (code: string, message: string) => new ApiError(409, 'invalid_request_error', code, message);

/** What there is nothing to ask for. */
function refuseNeedless(datanet: DatanetRow, standing: Standing): void {
  if (datanet.state === 'revoked')
    throw conflict('datanet_revoked', `Whoever governs ${called(datanet)} has revoked it; no access is given to it.`);
  if (datanet.visibility === 'public') {
    const message = `${called(datanet)} is public: accept its licence with POST /api/datanets/${datanet.id}/licence-acceptance, and train.`;
    throw conflict('access_open', message.replace(/^the/, 'The'));
  }
  if (standing.reads) throw conflict('already_granted', `You have access to ${called(datanet)} already.`);
}

export async function createAccessRequest(services: Services, c: Context<AppEnv>): Promise<Response> {
  const userId = userOf(c.get('principal'));
  const body = parseWith(accessRequest, await readJsonObject(c.req.raw));
  const { access } = services.factory;
  const { datanet, standing } = await datanetOf(services, c, 'sees');
  refuseNeedless(datanet, standing);
  const organizationId = body.organization_id ?? null;
  if (organizationId !== null && (await access.requests.membership(userId, organizationId)) === null)
    throw badRequest(
      'organization_id',
      'organization_not_found',
      `There is no organisation ${organizationId} that you belong to.`,
    );
  const given = { licence: body.licence_accepted, terms_sha256: body.terms_sha256 };
  const termsHash = checkTerms(datanet, given, 'licence_accepted');
  const row = await access.requests.insert(
    { datanetId: datanet.id, userId, organizationId, purpose: body.purpose },
    { datanetId: datanet.id, userId, licence: datanet.licence, termsHash },
  );
  if (row === null) {
    const waiting = { requestedBy: userId, organizationId, state: 'pending' as const, after: null, limit: 1 };
    const asked = await access.requests.list(datanet.id, {
      ...waiting,
      requestedBy: organizationId === null ? userId : null,
    });
    if (asked.rows.some((one) => one.organizationId === organizationId))
      throw conflict('already_requested', `A request for access to ${called(datanet)} is waiting for a decision.`);
    const message = `You have ${limits.accessRequestsPendingMax} requests waiting; the next can be made when some are decided.`;
    throw new ApiError(429, 'rate_limit_error', 'too_many_requests_waiting', message);
  }
  c.set('audit', { detail: { request: row.id, organization: organizationId } });
  return c.json(viewOfAccess(row, services.now()), 201);
}

function noSuchRequest(id: string): ApiError {
  const message = `There is no access request ${id.slice(0, 128)} that you may see.`;
  return new ApiError(404, 'invalid_request_error', 'access_request_not_found', message, { param: 'acc' });
}

async function requestOf(
  services: Services,
  c: Context<AppEnv>,
  datanet: DatanetRow,
  standing: Standing,
): Promise<AccessRow> {
  const id = c.req.param('acc') ?? '';
  const row = await services.factory.access.requests.find(datanet.id, id);
  if (row === null || !(standing.governs || row.requestedBy === c.get('principal').userId)) throw noSuchRequest(id);
  return row;
}

/** Whoever governs sees all of them, others their own. */
export async function listAccessRequests(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(accessQuery, c.req.query());
  const { datanet, standing } = await datanetOf(services, c, 'sees');
  const { userId } = c.get('principal');
  const { requests } = services.factory.access;
  // The operator's keys that do not administer have asked for nothing.
  const requestedBy = standing.governs ? (query.requested_by ?? null) : (userId ?? '');
  const mine = standing.governs || query.requested_by === undefined || query.requested_by === userId;
  const after = query.after === undefined ? null : await requests.find(datanet.id, query.after);
  if (query.after !== undefined && (after === null || !(standing.governs || after.requestedBy === userId)))
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no request ${query.after}.`);
  const { rows, hasMore } = mine
    ? await requests.list(datanet.id, {
        requestedBy,
        state: query.state ?? null,
        organizationId: query.organization_id ?? null,
        after,
        limit: query.limit,
      })
    : { rows: [], hasMore: false };
  const now = services.now();
  return c.json(
    pageOf(
      rows.map((row) => viewOfAccess(row, now)),
      hasMore,
    ),
  );
}

export async function getAccessRequest(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet, standing } = await datanetOf(services, c, 'sees');
  return c.json(viewOfAccess(await requestOf(services, c, datanet, standing), services.now()));
}

export const DECISIONS = {
  approve: { from: 'pending', to: 'approved' },
  reject: { from: 'pending', to: 'rejected' },
  revoke: { from: 'approved', to: 'revoked' },
} as const;
export type DecisionName = keyof typeof DECISIONS;

/**
 * Whoever decides second at the same moment is told so: the decision changes the request only from the state that it is from. Training
 * that has not begun is asked again at once whether it may.
 */
export async function decideAccess(services: Services, c: Context<AppEnv>, name: DecisionName): Promise<Response> {
  const body = await readJsonObject(c.req.raw);
  const given: { expires_at?: number | null | undefined; reason?: string | null | undefined } =
    name === 'approve' ? parseWith(approval, body) : parseWith(refusal, body);
  const { datanet, standing } = await datanetOf(services, c, 'governs');
  const row = await requestOf(services, c, datanet, standing);
  const expiresAt = given.expires_at == null ? null : given.expires_at * 1000;
  if (expiresAt !== null && expiresAt <= services.now())
    throw badRequest('expires_at', 'invalid_value', "Invalid 'expires_at': it lies in the past.");
  const { from, to } = DECISIONS[name];
  const decided = await services.factory.access.requests.decide(row.id, {
    from,
    to,
    by: c.get('principal').ownerId,
    reason: given.reason ?? null,
    ...(name === 'approve' ? { expiresAt } : {}),
  });
  const now = (await services.factory.access.requests.find(datanet.id, row.id)) as AccessRow;
  if (!decided) {
    const message =
      name === 'revoke' && now.state === 'pending'
        ? `The request ${row.id} is not approved, so there is nothing to revoke; reject it instead.`
        : `The request ${row.id} was decided already: it is ${now.state}.`;
    throw conflict('already_decided', message);
  }
  c.set('audit', { detail: { request: row.id, for: row.organizationId ?? row.requestedBy } });
  if (name === 'revoke') await services.factory.askAgain({ datanetId: datanet.id });
  return c.json(viewOfAccess(now, services.now()));
}
