/** /api/organizations: make, list, rename; who belongs to them. For whoever is no member an organisation does not exist. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { canAccess, type Principal } from '../../auth/scopes.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { displayName } from '../../http/names.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import type { Member, OrganizationWithRole, Viewer } from './organizations.ts';

const role = z.enum(['owner', 'member']);
/** Checked further by displayName. */
const name = z.string().max(limits.nameCharactersGivenMax);
const cursor = z.string().min(1).max(128).optional();
const pageSize = z.coerce.number().int().min(1).max(limits.pageMax).default(limits.pageDefault);

export const organizationRequest = z.strictObject({ name }).openapi('OrganizationRequest');
export const memberRequest = z.strictObject({ role: role.default('member') }).openapi('OrganizationMemberRequest');
export const organizationsQuery = z.object({
  limit: pageSize,
  after: cursor,
  /** Part of the name. */
  name: name.optional(),
  /** Only those in which the caller has this role. */
  role: role.optional(),
});
export const membersQuery = z.object({ limit: pageSize, after: cursor, role: role.optional() });

export const organizationView = z
  .object({
    id: z.string(),
    object: z.literal('organization'),
    name: z.string(),
    /** The caller's; null: not a member (an administrator). */
    role: role.nullable(),
    created_by: z.string(),
    created_at: z.number().int(),
  })
  .openapi('Organization');
export const organizationDetail = organizationView.extend({ members: z.number().int() }).openapi('OrganizationDetail');
export const memberView = z
  .object({
    object: z.literal('organization.member'),
    organization: z.string(),
    user: z.string(),
    name: z.string(),
    /** For administrators, and of oneself. */
    email: z.string().optional(),
    role,
    /** False: the user was invited and has not come yet, or is disabled. */
    active: z.boolean(),
    created_at: z.number().int(),
  })
  .openapi('OrganizationMember');

function view({ organization, role: own }: OrganizationWithRole): z.output<typeof organizationView> {
  return {
    id: organization.id,
    object: 'organization',
    name: organization.name,
    role: own,
    created_by: organization.createdBy,
    created_at: Math.floor(organization.createdAt / 1000),
  };
}

function viewOfMember({ membership, user }: Member, viewer: Viewer): z.output<typeof memberView> {
  // Anybody can make an organisation and put anybody in it, by an id that every Datanet shows: that must not tell addresses.
  const seesEmail = viewer.all || viewer.userId === user.id;
  return {
    object: 'organization.member',
    organization: membership.organizationId,
    user: user.id,
    name: user.name,
    ...(seesEmail ? { email: user.email } : {}),
    role: membership.role,
    active: user.state === 'active',
    created_at: Math.floor(membership.createdAt / 1000),
  };
}

function viewerOf(principal: Principal): Viewer {
  return { userId: principal.userId, all: canAccess(principal, 'people') };
}

function noSuchOrganization(id: string): ApiError {
  const message = `There is no organisation ${id.slice(0, 128)}.`;
  return new ApiError(404, 'invalid_request_error', 'organization_not_found', message, { param: 'id' });
}

function noSuchMember(who: string): ApiError {
  const message = `${who.slice(0, 128)} does not belong to this organisation.`;
  return new ApiError(404, 'invalid_request_error', 'member_not_found', message, { param: 'user' });
}

function conflict(code: string, message: string, param: string | null = null): ApiError {
  return new ApiError(409, 'invalid_request_error', code, message, { param });
}

function notOwner(): ApiError {
  return new ApiError(403, 'permission_error', 'not_owner', 'Only an owner of the organisation may do this.');
}

const nameTaken = () =>
  conflict('name_taken', 'Another organisation has this name, or one that looks like it.', 'name');
const lastOwner = () =>
  conflict(
    'last_owner',
    'An organisation keeps at least one owner who can act. Make another active member its owner first.',
    'user',
  );

interface Seen extends OrganizationWithRole {
  viewer: Viewer;
  /** Who changes it: the user; null: somebody who may change all. */
  actor: string | null;
  manages: boolean;
}

/** @throws ApiError 404 */
async function seen(services: Services, c: Context<AppEnv>): Promise<Seen> {
  const viewer = viewerOf(c.get('principal'));
  const id = c.req.param('id') ?? '';
  const found = await services.organizations.find(viewer, id);
  if (found === null) throw noSuchOrganization(id);
  return { ...found, viewer, actor: viewer.all ? null : viewer.userId, manages: viewer.all || found.role === 'owner' };
}

/** @throws ApiError 404, 403 */
async function managed(services: Services, c: Context<AppEnv>): Promise<Seen> {
  const found = await seen(services, c);
  if (!found.manages) throw notOwner();
  return found;
}

export async function createOrganization(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { userId } = c.get('principal');
  if (userId === null) {
    const message =
      "The operator's key belongs to nobody, so it cannot own an organisation. Make a user with `modelfactory users add` and use a key of theirs.";
    throw new ApiError(403, 'permission_error', 'user_required', message);
  }
  const body = parseWith(organizationRequest, await readJsonObject(c.req.raw));
  const made = await services.organizations.create(userId, displayName(body.name));
  if (made === 'name_taken') throw nameTaken();
  if (made === 'too_many')
    throw conflict('too_many_organizations', `One user makes at most ${limits.organizationsPerUserMax} organisations.`);
  c.set('audit', { object: made.id, detail: { name: made.name } });
  return c.json({ ...view({ organization: made, role: 'owner' }), members: 1 }, 201);
}

export async function listOrganizations(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(organizationsQuery, c.req.query());
  const viewer = viewerOf(c.get('principal'));
  const after = query.after === undefined ? null : await services.organizations.find(viewer, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no organisation ${query.after}.`);
  const found = await services.organizations.list(viewer, { ...query, after: after?.organization ?? null });
  return c.json({
    object: 'list',
    data: found.rows.map(view),
    first_id: found.rows[0]?.organization.id ?? null,
    last_id: found.rows.at(-1)?.organization.id ?? null,
    has_more: found.hasMore,
  });
}

export async function getOrganization(services: Services, c: Context<AppEnv>): Promise<Response> {
  const found = await seen(services, c);
  return c.json({ ...view(found), members: await services.organizations.memberCount(found.organization.id) });
}

export async function renameOrganization(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { organization, actor } = await managed(services, c);
  const wanted = displayName(parseWith(organizationRequest, await readJsonObject(c.req.raw)).name);
  c.set('audit', { object: organization.id, detail: { before: organization.name, name: wanted } });
  if (!(await services.organizations.rename(organization.id, wanted, actor))) {
    // Asked again: it may be that the caller has just ceased to own it.
    await managed(services, c);
    throw nameTaken();
  }
  return getOrganization(services, c);
}

export async function listMembers(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { organization, viewer } = await seen(services, c);
  const query = parseWith(membersQuery, c.req.query());
  const after = query.after === undefined ? null : await services.organizations.member(organization.id, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': there is no member ${query.after}.`);
  const found = await services.organizations.members(organization.id, {
    ...query,
    after: after?.membership ?? null,
  });
  return c.json({
    object: 'list',
    data: found.rows.map((row) => viewOfMember(row, viewer)),
    first_id: found.rows[0]?.user.id ?? null,
    last_id: found.rows.at(-1)?.user.id ?? null,
    has_more: found.hasMore,
  });
}

/** The member that the address names: by id, by e-mail (owners and administrators), or `me`. @throws ApiError 404 */
async function namedMember(services: Services, c: Context<AppEnv>, { organization, viewer, manages }: Seen) {
  const who = c.req.param('user') ?? '';
  const userId =
    who === 'me'
      ? viewer.userId
      : who.includes('@') && !manages
        ? null
        : await services.organizations.user(who, { disabledToo: true });
  const member = userId === null ? null : await services.organizations.member(organization.id, userId);
  if (member === null) throw noSuchMember(who);
  return member;
}

export async function getMember(services: Services, c: Context<AppEnv>): Promise<Response> {
  const found = await seen(services, c);
  return c.json(viewOfMember(await namedMember(services, c, found), found.viewer));
}

export async function putMember(services: Services, c: Context<AppEnv>): Promise<Response> {
  const found = await managed(services, c);
  const { id } = found.organization;
  const body = parseWith(memberRequest, await readJsonObject(c.req.raw));
  const who = c.req.param('user') ?? '';
  const userId = who === 'me' ? found.viewer.userId : await services.organizations.user(who, { disabledToo: false });
  const known = userId === null ? null : await services.organizations.member(id, userId);
  if (userId === null) {
    const message = `There is no user ${who.slice(0, 128)}. Only people who have been made users here can be added.`;
    throw new ApiError(404, 'invalid_request_error', 'user_not_found', message, { param: 'user' });
  }
  c.set('audit', { object: id, detail: { user: userId, role: body.role, before: known?.membership.role ?? null } });
  if (!(await services.organizations.put(id, userId, body.role, found.actor))) {
    await managed(services, c);
    if (known !== null) throw lastOwner();
    const most = `An organisation has at most ${limits.membersPerOrganizationMax} members.`;
    throw conflict('too_many_members', most);
  }
  await services.factory.askAgain({ owner: userId });
  const member = await services.organizations.member(id, userId);
  if (member === null) throw noSuchMember(who);
  return c.json(viewOfMember(member, found.viewer), known === null ? 201 : 200);
}

export async function removeMember(services: Services, c: Context<AppEnv>): Promise<Response> {
  const principal = c.get('principal');
  const found = await seen(services, c);
  const member = await namedMember(services, c, found);
  const userId = member.user.id;
  if (userId !== principal.userId) {
    if (!found.manages) throw notOwner();
    // To leave takes no more than to look; to put somebody else out is to govern.
    if (!canAccess(principal, 'govern') && !found.viewer.all)
      throw new ApiError(403, 'permission_error', 'insufficient_scope', 'This key lacks the scope `govern`.');
  }
  const { id } = found.organization;
  c.set('audit', { object: id, detail: { user: userId, role: member.membership.role } });
  if (!(await services.organizations.remove(id, userId, found.actor))) {
    // Somebody was quicker: with this member, or with the caller.
    if ((await services.organizations.member(id, userId)) === null) throw noSuchMember(userId);
    if (userId !== principal.userId) await managed(services, c);
    throw lastOwner();
  }
  // What the organisation was granted, they have no longer.
  await services.factory.askAgain({ owner: userId });
  return c.json({ object: 'organization.member', organization: id, user: userId, deleted: true });
}
