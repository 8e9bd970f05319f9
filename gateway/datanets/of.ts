/** The Datanet that a request names, with what its caller may do: what they may not see is not there, what they may not do says why. */
import type { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { Principal } from '../auth/scopes.ts';
import type { DatanetRow } from '../db/datanet-schema.ts';
import { ApiError } from '../errors.ts';
import { readJsonObject } from '../http/body.ts';
import { parseWith } from '../http/validate.ts';
import type { AppEnv, Services } from '../services.ts';
import type { Standing } from './standing.ts';

export type Need = 'sees' | 'reads' | 'contributes' | 'governs';

export interface Found {
  datanet: DatanetRow;
  standing: Standing;
  principal: Principal;
}

export function noSuchDatanet(id: string): ApiError {
  const message = `There is no Datanet ${id.slice(0, 64)}.`;
  return new ApiError(404, 'invalid_request_error', 'datanet_not_found', message, { param: 'id' });
}

export function forbidden(code: string, message: string): ApiError {
  return new ApiError(403, 'permission_error', code, message);
}

/** Only people contribute, own and accept. @returns the user's id. @throws ApiError 403 for the operator's keys. */
export function userOf(principal: Principal): string {
  if (principal.userId !== null) return principal.userId;
  throw forbidden(
    'user_required',
    'This key belongs to no user, so it cannot own, contribute or agree to anything. Make a user with `modelfactory users add` and use a personal key.',
  );
}

/** @throws ApiError 404 where the caller does not see it, 403 where they lack `need`. */
export async function datanetOf(services: Services, c: Context<AppEnv>, need: Need): Promise<Found> {
  return standingIn(services, c.get('principal'), c.req.param('id') ?? '', need);
}

/**
 * As datanetOf, with the body of the request. Asked before it is read, so that a stranger learns nothing by what is sent, and again when it
 * is there: a body may take two minutes to come, and whoever ceased to govern meanwhile decides nothing.
 */
export async function datanetAndBody<T extends z.ZodType>(
  services: Services,
  c: Context<AppEnv>,
  need: Need,
  schema: T,
): Promise<Found & { body: z.output<T> }> {
  await datanetOf(services, c, need);
  const body = parseWith(schema, await readJsonObject(c.req.raw));
  return { ...(await datanetOf(services, c, need)), body };
}

/** Asked again, it tells what holds now. */
export async function standingIn(services: Services, principal: Principal, id: string, need: Need): Promise<Found> {
  const { datanets } = services;
  const datanet = id.startsWith('dn_') && id.length <= 64 ? await datanets.records.get(id) : null;
  if (datanet === null) throw noSuchDatanet(id);
  const standing = await datanets.access.standing(principal, datanet);
  if (!standing.sees) throw noSuchDatanet(id);
  if (need === 'contributes') userOf(principal);
  if (!standing[need]) throw refusal(datanet, standing, need);
  return { datanet, standing, principal };
}

function refusal(datanet: DatanetRow, standing: Standing, need: Need): ApiError {
  if (need === 'governs')
    return forbidden(
      'not_governing',
      'Only the owner of this Datanet, or an owner of the organisation it belongs to, may do this.',
    );
  if (need === 'contributes' && datanet.state === 'revoked')
    return forbidden('datanet_revoked', 'This Datanet is revoked; it takes no contributions.');
  void standing;
  return forbidden(
    'access_required',
    `This Datanet is permissioned. Ask for access: POST /api/datanets/${datanet.id}/access-requests with a purpose.`,
  );
}
