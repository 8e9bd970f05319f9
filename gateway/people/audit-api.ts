/** GET /api/audit: who did what, newest first. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { badRequest } from '../errors.ts';
import { pageOf, pageQuery } from '../http/pages.ts';
import { parseWith } from '../http/validate.ts';
import type { AppEnv, Services } from '../services.ts';
import { actId, viewOfAct } from './views.ts';

const time = z.coerce.number().int().min(0).max(1e11);

export const auditQuery = z.object({
  ...pageQuery,
  action: z.string().min(1).max(64).optional(),
  user: z.string().min(1).max(128).optional(),
  key: z.string().min(1).max(128).optional(),
  object: z.string().min(1).max(256).optional(),
  /** Seconds since 1970, both included. */
  since: time.optional(),
  until: time.optional(),
});

export async function listActs(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { limit, after, since, until, ...filter } = parseWith(auditQuery, c.req.query());
  const seq = after === undefined ? null : Number(/^act_(\d{1,15})$/.exec(after)?.[1]);
  if (Number.isNaN(seq))
    throw badRequest('after', 'invalid_value', `Invalid 'after': expected an id such as ${actId(1)}.`);
  const times = {
    since: since === undefined ? undefined : since * 1000,
    until: until === undefined ? undefined : until * 1000 + 999,
  };
  const { rows, hasMore } = await services.people.audit.list({ ...filter, ...times }, { limit, after: seq });
  return c.json(pageOf(rows.map(viewOfAct), hasMore));
}
