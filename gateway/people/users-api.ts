/** /api/users: invite, list, look at, change and disable users. Whoever manages people hands out no more than they may do themselves. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { limitFields, limitsIn, viewOfLimits } from '../auth/limit-fields.ts';
import { isAdmin, type Principal, ROLE_SCOPES } from '../auth/scopes.ts';
import { ROLES, type Role, type UserRow } from '../db/schema.ts';
import { ApiError, badRequest } from '../errors.ts';
import { readJsonObject } from '../http/body.ts';
import { displayName } from '../http/names.ts';
import { pageOf, pageQuery } from '../http/pages.ts';
import { parseWith } from '../http/validate.ts';
import type { AppEnv, Services } from '../services.ts';
import { EMAIL_CHARACTERS_MAX, email } from './email.ts';
import { userChanged } from './people.ts';
import { invitationView, userView, viewOfInvitation, viewOfUser } from './views.ts';

/** displayName() says what a name may be; this only bounds what is looked at. */
const givenName = z.string().min(1).max(1024);

export const userCreateRequest = z
  .strictObject({
    email: z.string().min(3).max(EMAIL_CHARACTERS_MAX),
    name: givenName,
    role: z.enum(ROLES).default('consumer'),
    ...limitFields,
  })
  .openapi('UserCreateRequest');
export const userPatchRequest = z
  .strictObject({
    name: givenName.optional(),
    role: z.enum(ROLES).optional(),
    /** `active` lets a disabled user in again. */
    state: z.enum(['active', 'disabled']).optional(),
    ...limitFields,
  })
  .openapi('UserPatchRequest');
export const usersQuery = z.object({
  ...pageQuery,
  role: z.enum(ROLES).optional(),
  state: z.enum(['invited', 'active', 'disabled']).optional(),
  q: z.string().min(1).max(128).optional(),
});
export const invitedUser = userView.extend({ invitation: invitationView });
export const changedUser = userView.extend({ warning: z.string().optional() });

const NO_ADMIN_LEFT =
  'No user is an active administrator any more. Only keys of the operator (admin.key) can manage people now.';

const LINK_ENDED =
  'The link by which this user was to set a password has ended, since it was made for another role. Make a new one with `modelfactory users invite`.';

async function userOf(services: Services, c: Context<AppEnv>): Promise<UserRow> {
  const row = await services.people.users.find(c.req.param('id') ?? '');
  if (row === null)
    throw new ApiError(404, 'invalid_request_error', 'user_not_found', 'There is no user with this id.', {
      param: 'id',
    });
  return row;
}

/** @throws ApiError 403 for a role that may do what the caller may not: neither can it be given nor can those who have it be changed. */
function checkRole(principal: Principal, role: Role): void {
  if (principal.scopes.has('admin')) return;
  const scope = [...ROLE_SCOPES[role]].find((one) => !principal.scopes.has(one));
  if (scope === undefined) return;
  const message = `This key lacks the scope \`${scope}\`, so it cannot manage users of the role ${role}.`;
  throw new ApiError(403, 'permission_error', 'insufficient_scope', message);
}

/** Limits are of no use where whoever is limited can lift them. @throws ApiError 403 */
function checkLimits(principal: Principal, given: object): void {
  if (isAdmin(principal) || Object.keys(given).length === 0) return;
  throw new ApiError(403, 'permission_error', 'insufficient_scope', 'Only administrators set the limits of users.');
}

export async function createUser(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(userCreateRequest, await readJsonObject(c.req.raw));
  const principal = c.get('principal');
  checkRole(principal, body.role);
  const given = limitsIn(body);
  checkLimits(principal, given);
  const { users, invitations } = services.people;
  const row = await users.create({
    email: email(body.email),
    name: displayName(body.name),
    role: body.role,
    limits: given,
  });
  const invitation = await invitations.create(row, principal.ownerId);
  if (invitation === null) throw userChanged();
  c.set('audit', { object: row.id, detail: { email: row.email, role: row.role } });
  c.header('cache-control', 'no-store');
  return c.json({ ...viewOfUser(row), invitation: viewOfInvitation(invitation) }, 201);
}

export async function listUsers(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(usersQuery, c.req.query());
  const { users } = services.people;
  const after = query.after === undefined ? null : await users.find(query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no user ${query.after}.`);
  const { rows, hasMore } = await users.list(query, { limit: query.limit, after });
  return c.json(pageOf(rows.map(viewOfUser), hasMore));
}

export async function getUser(services: Services, c: Context<AppEnv>): Promise<Response> {
  return c.json(viewOfUser(await userOf(services, c)));
}

export async function patchUser(services: Services, c: Context<AppEnv>): Promise<Response> {
  // The body first: it may take long, and whom it changes is judged by what they are then.
  const body = parseWith(userPatchRequest, await readJsonObject(c.req.raw));
  const row = await userOf(services, c);
  const principal = c.get('principal');
  const given = limitsIn(body);
  checkRole(principal, row.role);
  checkLimits(principal, given);
  if (body.role !== undefined) checkRole(principal, body.role);
  if (body.state === 'active' && row.state === 'invited')
    throw badRequest(
      'state',
      'invalid_value',
      "Invalid 'state': an invited user becomes active by setting a password.",
    );
  const changed = await services.people.changeUser(row, {
    ...(body.name === undefined ? {} : { name: displayName(body.name) }),
    ...(body.role === undefined ? {} : { role: body.role }),
    ...(body.state === undefined ? {} : { state: body.state }),
    ...given,
  });
  const { name: _, ...decisive } = body;
  const limitsBefore = Object.entries(viewOfLimits(row)).filter(([name]) => name in body);
  c.set('audit', {
    detail: { ...decisive, before: { role: row.role, state: row.state, ...Object.fromEntries(limitsBefore) } },
  });
  return answer(services, c, row, changed);
}

export async function disableUser(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await userOf(services, c);
  checkRole(c.get('principal'), row.role);
  const changed = await services.people.changeUser(row, { state: 'disabled' });
  return answer(services, c, row, changed);
}

/** The last administrator may go, since the operator's keys remain; but nobody should have to find that out later. */
async function answer(services: Services, c: Context<AppEnv>, before: UserRow, after: UserRow): Promise<Response> {
  // What the user has waiting to be trained does not begin if they may not train any more.
  await services.factory.askAgain({ owner: after.id });
  const isAdmin = (row: UserRow) => row.role === 'admin' && row.state === 'active';
  const lost = isAdmin(before) && !isAdmin(after) && !(await services.people.users.otherAdmins(after.id));
  const linkEnded = before.state === 'invited' && after.state === 'invited' && before.role !== after.role;
  const warning = lost ? NO_ADMIN_LEFT : linkEnded ? LINK_ENDED : null;
  return c.json({ ...viewOfUser(after), ...(warning === null ? {} : { warning }) });
}

/** A link by which the user sets a password: the first, or another. What holds now goes on to hold until it is used. */
export async function inviteUser(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await userOf(services, c);
  const principal = c.get('principal');
  checkRole(principal, row.role);
  if (row.state === 'disabled') {
    const message = 'This user is disabled. Make the user active first.';
    throw new ApiError(409, 'invalid_request_error', 'user_disabled', message);
  }
  c.header('cache-control', 'no-store');
  const invitation = await services.people.invitations.create(row, principal.ownerId);
  if (invitation === null) throw userChanged();
  return c.json(viewOfInvitation(invitation), 201);
}

export async function endUserSessions(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await userOf(services, c);
  checkRole(c.get('principal'), row.role);
  return c.json({ object: 'sessions.ended', ended: await services.people.sessions.endAll(row.id) });
}
