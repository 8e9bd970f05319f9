/** /api/datanets/{id}/revoke and /reactivate: a revoked Datanet trains nothing new; what was trained on it is marked and stays on record. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { DatanetRow } from '../../db/datanet-schema.ts';
import { ApiError } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { datanetOf } from '../of.ts';
import { called } from './refusals.ts';

export const revocation = z
  .strictObject({ reason: z.string().trim().min(1).max(limits.accessReasonCharactersMax) })
  .openapi('DatanetRevocation');

export const revocationView = z
  .object({
    id: z.string(),
    object: z.literal('datanet.revocation'),
    state: z.enum(['active', 'revoked']),
    adapters_marked: z.number().openapi({ description: 'Adapters trained on it that bear a mark of its revocation.' }),
  })
  .openapi('DatanetRevocationAnswer');

export async function setRevoked(services: Services, c: Context<AppEnv>, revoked: boolean): Promise<Response> {
  const { reason } = parseWith(revocation, await readJsonObject(c.req.raw));
  const { datanet } = await datanetOf(services, c, 'governs');
  const to: DatanetRow['state'] = revoked ? 'revoked' : 'active';
  if (!(await services.factory.sources.setState(datanet.id, to))) {
    const message = `${called(datanet)} is ${to} already.`.replace(/^the/, 'The');
    throw new ApiError(409, 'invalid_request_error', 'already_decided', message);
  }
  c.set('audit', { detail: { reason } });
  // What has not begun yet does not begin.
  await services.factory.askAgain({ datanetId: datanet.id });
  const marked = await services.factory.sources.revocationMarks(datanet.id);
  return c.json({ id: datanet.id, object: 'datanet.revocation', state: to, adapters_marked: marked });
}
