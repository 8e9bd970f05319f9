/** /api/account: one's own profile, password and sessions. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { SCOPES } from '../auth/scopes.ts';
import type { UserRow } from '../db/schema.ts';
import { ApiError } from '../errors.ts';
import { readJsonObject } from '../http/body.ts';
import { displayName } from '../http/names.ts';
import { pageOf } from '../http/pages.ts';
import { parseWith } from '../http/validate.ts';
import { limits } from '../limits.ts';
import type { AppEnv, Services } from '../services.ts';
import { userView, viewOfSession, viewOfUser } from './views.ts';

const password = z
  .string()
  .min(1)
  .max(4 * limits.passwordCharactersMax);
export const accountPatchRequest = z.strictObject({ name: z.string().min(1).max(1024) }).openapi('AccountPatchRequest');
export const passwordRequest = z
  .strictObject({ current_password: password, new_password: password })
  .openapi('PasswordChangeRequest');
export const accountView = userView.extend({ scopes: z.array(z.enum(SCOPES)) }).openapi('Account');

/** @throws ApiError 403: a key of the operator's has no account. */
async function me(services: Services, c: Context<AppEnv>): Promise<UserRow> {
  const { userId } = c.get('principal');
  const row = userId === null ? null : await services.people.users.find(userId);
  if (row === null) throw userRequired();
  return row;
}

export function userRequired(): ApiError {
  const message =
    'This is a key of the operator, which belongs to no user. Make a user with `modelfactory users add`, and use a session or a personal key.';
  return new ApiError(403, 'permission_error', 'user_required', message);
}

function view(c: Context<AppEnv>, row: UserRow) {
  const { scopes } = c.get('principal');
  return { ...viewOfUser(row), scopes: SCOPES.filter((scope) => scopes.has(scope)) };
}

export async function getAccount(services: Services, c: Context<AppEnv>): Promise<Response> {
  return c.json(view(c, await me(services, c)));
}

export async function patchAccount(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await me(services, c);
  const body = parseWith(accountPatchRequest, await readJsonObject(c.req.raw));
  const changed = await services.people.changeUser(row, { name: displayName(body.name) });
  c.set('audit', { object: row.id });
  return c.json(view(c, changed));
}

export async function changePassword(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await me(services, c);
  const body = parseWith(passwordRequest, await readJsonObject(c.req.raw));
  c.set('audit', { object: row.id });
  const ended = await services.people.changePassword(c, row, body.current_password, body.new_password);
  return c.json({ object: 'password.changed', sessions_ended: ended });
}

export async function listSessions(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await me(services, c);
  const current = c.get('principal').sessionId;
  const rows = await services.people.sessions.list(row.id);
  return c.json(
    pageOf(
      rows.map((session) => viewOfSession(session, current)),
      false,
    ),
  );
}

export async function endSession(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await me(services, c);
  const id = c.req.param('id') ?? '';
  if (!(await services.people.sessions.end(row.id, id))) {
    const message = 'You have no session with this id.';
    throw new ApiError(404, 'invalid_request_error', 'session_not_found', message, { param: 'id' });
  }
  return c.json({ object: 'session', id, ended: true });
}

/** All but the one that asks; with a key, all. */
export async function endOtherSessions(services: Services, c: Context<AppEnv>): Promise<Response> {
  const row = await me(services, c);
  c.set('audit', { object: row.id });
  const ended = await services.people.sessions.endAll(row.id, c.get('principal').sessionId);
  return c.json({ object: 'sessions.ended', ended });
}
