/** /api/session: log in with a password, look who one is, log out; and the links by which passwords are set. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { ROLES } from '../db/schema.ts';
import { ApiError } from '../errors.ts';
import { readJsonObject } from '../http/body.ts';
import { parseWith } from '../http/validate.ts';
import { limits } from '../limits.ts';
import type { AppEnv, Services } from '../services.ts';
import { checkOrigin, clearCookie } from './client.ts';
import { csrfTokenOf } from './sessions.ts';
import { userView, viewOfUser } from './views.ts';

/** More than any password has, before normalisation; the rules say what is too long. */
const password = z
  .string()
  .min(1)
  .max(4 * limits.passwordCharactersMax);

export const logInRequest = z.strictObject({ email: z.string().min(1).max(1024), password }).openapi('LogInRequest');
export const acceptRequest = z
  .strictObject({ token: z.string().min(1).max(128), password })
  .openapi('InvitationAcceptRequest');
export const loggedOut = z
  .object({
    object: z.literal('session'),
    id: z.string(),
    ended: z.literal(true),
    /** Where the browser goes to be logged out at the OpenID provider too; null: it was not logged in there, or there is no such place. */
    provider_logout_url: z.string().nullable(),
  })
  .openapi('LoggedOut');
export const whoView = z
  .object({
    object: z.literal('session'),
    /** null: a key spoke. */
    id: z.string().nullable(),
    /** null: a key of the operator's. */
    user: userView.nullable(),
    role: z.enum(ROLES).nullable(),
    scopes: z.array(z.string()),
    /** What unsafe requests of this session send as x-csrf-token. */
    csrf_token: z.string().nullable(),
  })
  .openapi('Who');

export async function logIn(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { people } = services;
  checkOrigin(c, people.publicUrl);
  const body = parseWith(logInRequest, await readJsonObject(c.req.raw));
  const user = await people.checkLogIn(c, body.email, body.password);
  const { session, csrfToken } = await people.logIn(c, user, 'password');
  c.set('audit', { object: user.id, detail: { session: session.id } });
  c.header('cache-control', 'no-store');
  return c.json(
    {
      object: 'session',
      id: session.id,
      user: viewOfUser((await people.users.find(user.id)) ?? user),
      role: user.role,
      scopes: scopesOf(await people.sessions.fresh(session.id)),
      csrf_token: csrfToken,
    } satisfies z.output<typeof whoView>,
    201,
  );
}

export async function whoAmI(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { people } = services;
  const principal = c.get('principal');
  const user = principal.userId === null ? null : await people.users.find(principal.userId);
  const { cookie } = people.clientOf(c);
  c.header('cache-control', 'no-store');
  return c.json({
    object: 'session',
    id: principal.sessionId,
    user: user === null ? null : viewOfUser(user),
    role: principal.role,
    scopes: scopesOf(principal),
    csrf_token: principal.sessionId === null || cookie === null ? null : csrfTokenOf(cookie),
  } satisfies z.output<typeof whoView>);
}

function scopesOf(principal: { scopes: ReadonlySet<string> } | null): string[] {
  return [...(principal?.scopes ?? [])].sort();
}

export async function logOut(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { people } = services;
  const { sessionId, userId } = c.get('principal');
  if (sessionId === null || userId === null) {
    const message = 'A key spoke, not a session: there is nothing to log out of. DELETE /api/keys/{id} revokes keys.';
    throw new ApiError(400, 'invalid_request_error', 'not_a_session', message);
  }
  const method = await people.sessions.methodOf(sessionId);
  await people.sessions.end(userId, sessionId);
  c.set('audit', { object: sessionId });
  c.header('set-cookie', clearCookie(people.clientOf(c).secure));
  return c.json({
    object: 'session',
    id: sessionId,
    ended: true,
    // For whoever logged in there: the next log-in would ask for nothing otherwise.
    provider_logout_url: method === 'oidc' ? await services.oidc.logOutUrl() : null,
  } satisfies z.output<typeof loggedOut>);
}

export async function acceptInvitation(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { people } = services;
  checkOrigin(c, people.publicUrl);
  const body = parseWith(acceptRequest, await readJsonObject(c.req.raw));
  const user = await people.redeem(c, body.token, body.password);
  return c.json(viewOfUser(user));
}
