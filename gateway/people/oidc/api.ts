/** /api/session/oidc: to the provider and back; and which identities are linked to one's account. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { ApiError, toApiError } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { attemptCookie, attemptCookieOf } from './attempt.ts';
import { failurePage, wantsPage } from './failure-page.ts';
import type { Identity } from './provider.ts';
import { returnTo } from './return-to.ts';

const path = z.string().max(2 * limits.oidcReturnToCharactersMax);
export const startQuery = z.object({ return_to: path.optional() });
export const linkRequest = z.strictObject({ return_to: path.optional() }).openapi('IdentityLinkRequest');
export const linkStarted = z.object({ object: z.literal('identity.link'), url: z.string() }).openapi('IdentityLink');
/** Long, since codes and states are the provider's and ours; providers add parameters of their own. */
const parameter = z.string().max(4096).optional();
export const callbackQuery = z.object({
  state: parameter,
  code: parameter,
  error: parameter,
  iss: parameter,
});
export const unlinkQuery = z.object({ issuer: z.string().min(1).max(2048), subject: z.string().min(1).max(255) });
export const identityView = z
  .object({
    object: z.literal('identity'),
    issuer: z.string(),
    subject: z.string(),
    created_at: z.number().int(),
  })
  .openapi('Identity');

const NOT_KEPT = { 'cache-control': 'no-store', 'referrer-policy': 'no-referrer' };

/** GET: starting changes nothing here, so another site that starts it gains nothing. */
export async function startOidc(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(startQuery, c.req.query());
  const { url, cookie } = await services.oidc.start(returnTo(query.return_to), null);
  return new Response(null, {
    status: 302,
    headers: {
      ...NOT_KEPT,
      location: url,
      'set-cookie': attemptCookie(cookie, services.people.clientOf(c).secure),
    },
  });
}

/** POST with the session's token: were it a GET, another site could have its own identity linked to a visitor's account. */
export async function startLink(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { userId, sessionId } = c.get('principal');
  const body = parseWith(linkRequest, await readJsonObject(c.req.raw));
  if (userId === null || sessionId === null) {
    const message = 'A key spoke, not a session. Log in in a browser to link a log-in to your account.';
    throw new ApiError(400, 'invalid_request_error', 'not_a_session', message);
  }
  const { url, cookie } = await services.oidc.start(returnTo(body.return_to), { userId, sessionId });
  c.header('set-cookie', attemptCookie(cookie, services.people.clientOf(c).secure));
  c.header('cache-control', 'no-store');
  c.set('audit', { object: userId });
  return c.json({ object: 'identity.link', url } satisfies z.output<typeof linkStarted>);
}

export async function finishOidc(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { secure } = services.people.clientOf(c);
  const gone = attemptCookie('', secure);
  try {
    const query = parseWith(callbackQuery, c.req.query());
    const { attempt, identity } = await services.oidc.finish(query, attemptCookieOf(c.req.header('cookie'), secure));
    await c.get('openAudit')?.();
    if (attempt.link === null) await logIn(services, c, identity);
    else await link(services, c, identity, attempt.link);
    c.header('set-cookie', gone, { append: true });
    for (const [name, value] of Object.entries(NOT_KEPT)) c.header(name, value);
    return c.redirect(attempt.returnTo, 303);
  } catch (error) {
    // Whatever went wrong, the attempt is over.
    const { status, type, code, message, param, cause, headers: told } = toApiError(error);
    const headers = { ...told, ...NOT_KEPT, 'set-cookie': gone };
    const failed = new ApiError(status, type, code, message, { param, headers, cause });
    if (!wantsPage(c.req.header('accept'))) throw failed;
    // A person looks at this: the log and the metrics learn of it as of any failure, the browser gets a page.
    const record = c.get('record');
    record.code = code;
    if (cause !== undefined) record.cause = cause;
    return failurePage(failed, record.requestId);
  }
}

async function logIn(services: Services, c: Context<AppEnv>, identity: Identity): Promise<void> {
  const { people, oidc } = services;
  const { issuer, subject } = identity;
  c.set('audit', { detail: { issuer, subject } });
  const { user, how } = await oidc.identities.admit(identity, oidc.provider.settings.role);
  if (how !== 'linked') people.forget();
  const { session } = await people.logIn(c, user, 'oidc');
  c.set('audit', { object: user.id, detail: { issuer, subject, how, session: session.id } });
}

async function link(
  services: Services,
  c: Context<AppEnv>,
  identity: Identity,
  wanted: { userId: string; sessionId: string },
): Promise<void> {
  const { people, oidc } = services;
  const { issuer, subject } = identity;
  c.set('audit', { object: wanted.userId, detail: { issuer, subject, how: 'link' } });
  const { cookie } = people.clientOf(c);
  const principal = cookie === null ? null : await people.sessions.authenticate(cookie);
  // The same session that asked for it, straight from the database: it may have ended while the browser was away.
  const fresh = principal?.sessionId === wanted.sessionId ? await people.sessions.fresh(wanted.sessionId) : null;
  if (fresh === null || fresh.userId !== wanted.userId) {
    const message = 'The session that asked to link this log-in has ended. Log in and try again.';
    throw new ApiError(401, 'invalid_request_error', 'session_ended', message);
  }
  await oidc.identities.link(identity, wanted.userId);
}

function userOf(c: Context<AppEnv>): string {
  const { userId } = c.get('principal');
  if (userId !== null) return userId;
  const message = "The operator's key belongs to nobody, so no log-in is linked to it.";
  throw new ApiError(403, 'permission_error', 'user_required', message);
}

export async function listIdentities(services: Services, c: Context<AppEnv>): Promise<Response> {
  const rows = await services.oidc.identities.of(userOf(c));
  return c.json({
    object: 'list',
    data: rows.map(
      ({ issuer, subject, createdAt }): z.output<typeof identityView> => ({
        object: 'identity',
        issuer,
        subject,
        created_at: Math.floor(createdAt / 1000),
      }),
    ),
    has_more: false,
  });
}

export async function unlinkIdentity(services: Services, c: Context<AppEnv>): Promise<Response> {
  const userId = userOf(c);
  const { issuer, subject } = parseWith(unlinkQuery, c.req.query());
  c.set('audit', { object: userId, detail: { issuer, subject } });
  await services.oidc.identities.unlink(userId, issuer, subject);
  return c.json({ object: 'identity', issuer, subject, deleted: true });
}
