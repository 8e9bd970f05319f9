/** /api/adapters/{name}/export and …/card: what was trained here can be taken elsewhere. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { adapterName } from '../../daemon/protocol.ts';
import { canAccess, canUseModel } from '../auth/scopes.ts';
import type { DaemonClient } from '../daemons/client.ts';
import { ApiError, badRequest, modelNotFound } from '../errors.ts';
import { parseWith } from '../http/validate.ts';
import type { AppEnv, Services } from '../services.ts';

export const exportQuery = z
  .strictObject({
    format: z.enum(['peft', 'gguf', 'merged']),
    /** Of the weights: for merged f16, q8_0, q4_0, …; for gguf f32, f16 or bf16. */
    type: z
      .string()
      .regex(/^[a-z0-9_]{1,16}$/)
      .optional(),
  })
  .openapi('AdapterExportQuery');

export const adapterCard = z
  .looseObject({ name: z.string(), digest: z.string(), text: z.string(), files: z.record(z.string(), z.string()) })
  .openapi('AdapterCard');

/** Headers of the daemon's answer that are the client's too. */
const PASSED = ['content-type', 'content-length', 'content-disposition', 'cache-control'];

/**
 * Weights that were trained here leave with their owner or an admin; whom an owner lets use a model, may not take it away.
 * Adapters that were added are for keys with the scope `adapters`. Every other name does not exist. @throws ApiError
 */
async function allowed(services: Services, c: Context<AppEnv>): Promise<{ name: string; holder: DaemonClient }> {
  const principal = c.get('principal');
  const name = c.req.param('name') ?? '';
  if (!adapterName.safeParse(name).success)
    throw badRequest('name', 'invalid_value', "Invalid 'name': use letters, digits, . _ : @ -; at most 128.");
  if (!canUseModel(principal, name)) throw modelNotFound(name);
  const [holder] = await services.pool.holders(name);
  if (holder === undefined) throw modelNotFound(name);
  if (principal.scopes.has('admin')) return { name, holder };
  const owner = await services.factory.owners.ownerOf(name);
  if (owner === null && !canAccess(principal, 'adapters')) {
    throw new ApiError(
      403,
      'permission_error',
      'insufficient_scope',
      'Taking out an adapter that was added to this server needs the scope `adapters`.',
    );
  }
  if (owner !== null && owner !== principal.ownerId) throw modelNotFound(name);
  return { name, holder };
}

/** The daemon's stream, piped through: nothing is kept here, and a client who leaves ends it there. */
export async function exportAdapter(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { format, type } = parseWith(exportQuery, c.req.query());
  const { name, holder } = await allowed(services, c);
  const answer = await holder.exportAdapter(name, { format, ...(type && { type }) }, c.req.raw.signal);
  const headers = new Headers();
  for (const header of PASSED) {
    const value = answer.headers.get(header);
    if (value !== null) headers.set(header, value);
  }
  return new Response(answer.body, { headers });
}

export async function getAdapterCard(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { name, holder } = await allowed(services, c);
  return c.json(await holder.adapterCard(name));
}
