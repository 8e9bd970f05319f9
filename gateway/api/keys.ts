/**
 * /api/keys: make, list, change and revoke API keys. A key can never hand out more than it may do itself. Users see and manage their own keys,
 * the operator's keys those that belong to no user, admins all; for everybody else a key does not exist.
 */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { limitFields, limitsIn, viewOfLimits } from '../auth/limit-fields.ts';
import { effectiveScopes, isAdmin, type Principal, ROLE_SCOPES, SCOPES, type Scope } from '../auth/scopes.ts';
import type { KeyRow } from '../db/schema.ts';
import { ApiError, badRequest } from '../errors.ts';
import { readJsonObject } from '../http/body.ts';
import { integer, parseWith } from '../http/validate.ts';
import { limits } from '../limits.ts';
import type { AppEnv, Services } from '../services.ts';

const keyLimits = {
  ...limitFields,
  models: z.array(z.string().min(1).max(256)).max(limits.allowListMax).nullish(),
  /** Seconds since 1970. */
  expires_at: integer(0, 1e11).nullish(),
};
const keyName = z.string().min(1).max(limits.keyNameCharactersMax);

export const keyCreateRequest = z
  .strictObject({
    name: keyName,
    scopes: z.array(z.enum(SCOPES)).min(1).max(SCOPES.length).default(['inference']),
    /** Whose key it will be; by default the caller's own. For others, or null for the operator: admins only. */
    user_id: z.string().min(1).max(128).nullish(),
    ...keyLimits,
  })
  .openapi('KeyCreateRequest');
export const keyPatchRequest = z.strictObject({ name: keyName.optional(), ...keyLimits }).openapi('KeyPatchRequest');

export const keyView = z
  .object({
    id: z.string(),
    object: z.literal('api_key'),
    user_id: z.string().nullable(),
    name: z.string(),
    hint: z.string(),
    scopes: z.array(z.string()),
    models: z.array(z.string()).nullable(),
    requests_per_minute: z.number().nullable(),
    tokens_per_minute: z.number().nullable(),
    concurrency: z.number().nullable(),
    budget_micros: z.number().nullable(),
    spent_micros: z.number(),
    reserved_micros: z.number(),
    created_at: z.number(),
    expires_at: z.number().nullable(),
    revoked_at: z.number().nullable(),
  })
  .openapi('ApiKey');

const seconds = (milliseconds: number | null) => (milliseconds === null ? null : Math.floor(milliseconds / 1000));

function view(row: KeyRow): z.output<typeof keyView> {
  return {
    id: row.id,
    object: 'api_key',
    user_id: row.userId,
    name: row.name,
    hint: row.hint,
    scopes: row.scopes,
    models: row.models,
    ...viewOfLimits(row),
    spent_micros: row.spentMicros,
    reserved_micros: row.reservedMicros,
    created_at: Math.floor(row.createdAt / 1000),
    expires_at: seconds(row.expiresAt),
    revoked_at: seconds(row.revokedAt),
  };
}

function limitsOf(body: z.output<typeof keyPatchRequest>) {
  return {
    ...limitsIn(body),
    ...(body.models === undefined ? {} : { models: body.models }),
    ...(body.expires_at === undefined ? {} : { expiresAt: body.expires_at === null ? null : body.expires_at * 1000 }),
  };
}

function forbidden(message: string): ApiError {
  return new ApiError(403, 'permission_error', 'insufficient_scope', message);
}

const RATES = ['requestsPerMinute', 'tokensPerMinute', 'concurrency'] as const;
const RATE_DEFAULTS = {
  requestsPerMinute: limits.requestsPerMinuteDefault,
  tokensPerMinute: limits.tokensPerMinuteDefault,
  concurrency: limits.concurrencyDefault,
};

type Grant = { scopes: readonly string[]; models: readonly string[] | null; expiresAt: number | null } & {
  [rate in (typeof RATES)[number]]: number | null;
};

/**
 * Nobody hands out more than their own: scopes, models, rates and life time, and no money at all if theirs is limited. Admins have all scopes
 * and, where their key names no rates, all rates; what their key is limited in, they hand on with the limit.
 * @param grant what is not named is not touched.
 */
function checkGrant(principal: Principal, grant: Partial<Grant>): void {
  const admin = isAdmin(principal);
  const scope = admin ? undefined : grant.scopes?.find((one) => !principal.scopes.has(one));
  if (scope !== undefined)
    throw forbidden(`This key lacks the scope \`${scope}\`, so it cannot manage a key that has it.`);
  if (principal.budgetMicros !== null && Object.keys(grant).length > 0)
    throw forbidden('A key with a budget cannot manage other keys.');
  if (
    principal.models !== null &&
    grant.models !== undefined &&
    (grant.models === null || grant.models.some((model) => !principal.models?.has(model)))
  ) {
    throw forbidden('This key cannot grant models beyond its own allow-list.');
  }
  const { expiresAt } = grant;
  if (
    principal.expiresAt !== null &&
    expiresAt !== undefined &&
    (expiresAt === null || expiresAt > principal.expiresAt)
  ) {
    throw forbidden('This key cannot grant a longer life than its own.');
  }
  for (const rate of RATES) {
    const given = grant[rate];
    if (given === undefined || (admin && principal[rate] >= RATE_DEFAULTS[rate])) continue;
    if ((given ?? RATE_DEFAULTS[rate]) > principal[rate])
      throw forbidden('This key cannot grant higher rate limits than its own; name them in the request.');
  }
}

/** Whose the new key is. @throws ApiError 403 for another's, 400 for a user that cannot have it. */
async function holderOf(
  services: Services,
  principal: Principal,
  body: z.output<typeof keyCreateRequest>,
): Promise<string | null> {
  const given = body.user_id;
  if (given === undefined || given === principal.userId) return principal.userId;
  if (!isAdmin(principal)) throw forbidden('Only admins make keys for others.');
  if (given === null) return null;
  const user = await services.people.users.find(given);
  if (user === null || user.state === 'disabled')
    throw badRequest('user_id', 'invalid_value', `Invalid 'user_id': there is no user ${given} who could use a key.`);
  const scope = body.scopes.find((one) => !ROLE_SCOPES[user.role].has(one));
  if (scope !== undefined)
    throw badRequest('scopes', 'invalid_value', `Invalid 'scopes': the role ${user.role} does not have \`${scope}\`.`);
  return user.id;
}

export async function createKey(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(keyCreateRequest, await readJsonObject(c.req.raw));
  const extra = limitsOf(body);
  if (typeof extra.expiresAt === 'number' && extra.expiresAt <= services.now())
    throw badRequest('expires_at', 'invalid_value', "Invalid 'expires_at': it lies in the past.");
  const principal = c.get('principal');
  const userId = await holderOf(services, principal, body);
  checkGrant(principal, {
    scopes: body.scopes,
    models: extra.models ?? null,
    expiresAt: extra.expiresAt ?? null,
    requestsPerMinute: extra.requestsPerMinute ?? null,
    tokensPerMinute: extra.tokensPerMinute ?? null,
    concurrency: extra.concurrency ?? null,
  });
  const made = await services.keys.create(
    { name: body.name, userId, scopes: body.scopes as Scope[], ...extra },
    // The account's own key counts too, and is one.
    { makerId: principal.keyId, keysMax: limits.keysPerUserMax + 1 },
  );
  if (made === null) {
    // Revoked at this very moment, or too many.
    await services.people.recheck(principal, 'keys');
    const message = `A user may have ${limits.keysPerUserMax} keys. Revoke some that are no longer needed.`;
    throw badRequest(null, 'key_quota_exceeded', message);
  }
  const { row, credential } = made;
  c.set('audit', { object: row.id, detail: { scopes: row.scopes, user_id: row.userId } });
  // The only time the credential is ever shown; no cache may show it again.
  c.header('cache-control', 'no-store');
  return c.json({ ...view(row), key: credential }, 201);
}

export const keysQuery = z.object({
  /** For admins: whose; `operator`: those of no user. */
  user_id: z.string().min(1).max(128).optional(),
  limit: z.coerce.number().int().min(1).max(limits.keysListMax).default(limits.keysListMax),
  after: z.string().max(128).optional(),
});

export async function listKeys(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(keysQuery, c.req.query());
  const principal = c.get('principal');
  const own = principal.userId;
  const asked = query.user_id === 'operator' ? null : query.user_id;
  const after = query.after === undefined ? null : await visible(services, principal, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no key ${query.after}.`);
  // Whoever asks for another's keys gets what there is for them: none.
  const nobody = !isAdmin(principal) && asked !== undefined && asked !== own;
  const { rows, hasMore } = nobody
    ? { rows: [], hasMore: false }
    : await services.keys.list({ userId: isAdmin(principal) ? asked : own, limit: query.limit, after });
  return c.json({
    object: 'list',
    data: rows.map(view),
    first_id: rows[0]?.id ?? null,
    last_id: rows.at(-1)?.id ?? null,
    has_more: hasMore,
  });
}

async function visible(services: Services, principal: Principal, id: string): Promise<KeyRow | null> {
  const row = await services.keys.findListed(id);
  return row !== null && (isAdmin(principal) || row.userId === principal.userId) ? row : null;
}

/** A key as far as its scopes count: what the role of its user took away is no reason to keep the user from it. */
function counted(principal: Principal, row: KeyRow): KeyRow {
  return { ...row, scopes: [...effectiveScopes(row.scopes, row.userId === null ? null : principal.role)] };
}

async function manageable(services: Services, c: Context<AppEnv>): Promise<KeyRow> {
  const principal = c.get('principal');
  const row = await visible(services, principal, c.req.param('id') ?? '');
  if (row === null)
    throw new ApiError(404, 'invalid_request_error', 'key_not_found', 'There is no key with this id.', { param: 'id' });
  const scope = isAdmin(principal)
    ? undefined
    : counted(principal, row).scopes.find((one) => !principal.scopes.has(one));
  if (scope !== undefined)
    throw forbidden(`This key lacks the scope \`${scope}\`, so it cannot manage a key that has it.`);
  return row;
}

export async function patchKey(services: Services, c: Context<AppEnv>): Promise<Response> {
  // The body first: it may take long, and both keys are judged by what they are then.
  const body = parseWith(keyPatchRequest, await readJsonObject(c.req.raw));
  const row = await manageable(services, c);
  const extra = limitsOf(body);
  const principal = c.get('principal');
  // To touch a key that may do more is more than one's own, too; admins touch all.
  checkGrant(principal, isAdmin(principal) ? extra : { ...counted(principal, row), ...extra });
  const changed = await services.keys.patch(row.id, {
    ...(body.name === undefined ? {} : { name: body.name }),
    ...extra,
  });
  c.set('audit', { detail: { changed: Object.keys(body) } });
  return c.json(view(changed ?? row));
}

export async function revokeKey(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await manageable(services, c);
  const revoked = await services.keys.revoke(row.id);
  return c.json(view(revoked ?? row));
}
