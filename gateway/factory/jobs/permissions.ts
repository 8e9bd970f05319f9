/** Who besides the owner may use a checkpoint: /v1/fine_tuning/checkpoints/{checkpoint}/permissions. A project is the id of an API key or a user here. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { ApiError, badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { pageOf } from '../../http/pages.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { viewOfPermission } from './view.ts';

export const permissionsRequest = z
  .strictObject({ project_ids: z.array(z.string().min(1).max(128)).min(1).max(limits.permissionsMax) })
  .openapi('CreateFineTuningCheckpointPermissionRequest');

export const permissionsQuery = z.object({
  project_id: z.string().max(128).optional(),
  after: z.string().max(128).optional(),
  limit: z.coerce.number().int().min(1).max(limits.jobsListMax).default(10),
  order: z.enum(['ascending', 'descending']).default('descending'),
});

/** A checkpoint, or the model at the end. */
async function checkpointOf(services: Services, c: Context<AppEnv>): Promise<string> {
  const name = c.req.param('checkpoint') ?? '';
  const { jobs } = services.factory;
  if ((await jobs.checkpointNamed(name)) === null && (await jobs.ownerOf(name)) === null) {
    const message = `There is no checkpoint ${name.slice(0, 128)}.`;
    throw new ApiError(404, 'invalid_request_error', 'checkpoint_not_found', message, { param: 'checkpoint' });
  }
  return name;
}

type Row = Awaited<ReturnType<Services['factory']['jobs']['permissions']>>[number];

function answer(c: Context<AppEnv>, rows: Row[], hasMore: boolean): Response {
  return c.json(pageOf(rows.map(viewOfPermission), hasMore));
}

export async function createPermissions(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { project_ids } = parseWith(permissionsRequest, await readJsonObject(c.req.raw));
  const checkpoint = await checkpointOf(services, c);
  for (const [index, id] of project_ids.entries()) {
    if ((await services.keys.findListed(id)) === null && (await services.people.users.find(id)) === null)
      throw badRequest(
        `project_ids[${index}]`,
        'invalid_value',
        `There is no API key or user ${id}; a project is the id of a key (key_…) or a user (user_…) here.`,
      );
  }
  const { jobs } = services.factory;
  await jobs.permit(checkpoint, project_ids);
  const rows = (await jobs.permissions(checkpoint)).filter(({ projectId }) => project_ids.includes(projectId));
  return answer(c, rows, false);
}

export async function listPermissions(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(permissionsQuery, c.req.query());
  const checkpoint = await checkpointOf(services, c);
  let rows = await services.factory.jobs.permissions(checkpoint);
  if (query.project_id !== undefined) rows = rows.filter(({ projectId }) => projectId === query.project_id);
  if (query.order === 'descending') rows.reverse();
  if (query.after !== undefined) {
    const at = rows.findIndex(({ id }) => id === query.after);
    if (at === -1)
      throw badRequest('after', 'invalid_value', `Invalid 'after': there is no permission ${query.after}.`);
    rows = rows.slice(at + 1);
  }
  return answer(c, rows.slice(0, query.limit), rows.length > query.limit);
}

export async function deletePermission(services: Services, c: Context<AppEnv>): Promise<Response> {
  const checkpoint = await checkpointOf(services, c);
  const id = c.req.param('id') ?? '';
  if (!(await services.factory.jobs.revoke(checkpoint, id))) {
    const message = `There is no permission ${id.slice(0, 128)} of this checkpoint.`;
    throw new ApiError(404, 'invalid_request_error', 'permission_not_found', message, { param: 'permission_id' });
  }
  return c.json({ object: 'checkpoint.permission', id, deleted: true });
}
