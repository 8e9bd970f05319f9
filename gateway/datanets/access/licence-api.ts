/** /api/datanets/{id}/licence-acceptance: what there is to agree to, whether the caller has, and agreeing, on record for good. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { DatanetRow } from '../../db/datanet-schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { parseWith } from '../../http/validate.ts';
import type { AppEnv, Services } from '../../services.ts';
import { datanetOf, userOf } from '../of.ts';
import { termsHash } from './terms.ts';

export const acceptance = z
  .strictObject({
    licence: z.string().min(1).max(256),
    terms_sha256: z.string().max(64).openapi({
      description: 'The hash that GET tells: SHA-256 of the canonical JSON (RFC 8785) of {licence, terms}.',
    }),
  })
  .openapi('DatanetLicenceAcceptanceCreate');

export const acceptanceView = z
  .object({
    object: z.literal('datanet.licence_acceptance'),
    datanet: z.string(),
    licence: z.string(),
    terms: z.string(),
    terms_sha256: z.string(),
    accepted: z.boolean().openapi({ description: 'The caller agreed to them as they are now.' }),
    accepted_at: z.number().nullable(),
    required: z.boolean().openapi({ description: 'False for those who have made the terms.' }),
  })
  .openapi('DatanetLicenceAcceptance');

/**
 * That what somebody agrees to is what holds now. `terms_sha256` may be left out where there are no terms besides the licence.
 * @returns the hash of licence and terms; @throws ApiError 409 when it is something else
 */
export function checkTerms(
  datanet: DatanetRow,
  given: { licence: string; terms_sha256: string | undefined },
  param: string,
): string {
  const hash = termsHash(datanet);
  const where = `GET /api/datanets/${datanet.id}/licence-acceptance shows what there is to agree to.`;
  if (given.licence !== datanet.licence) {
    const message = `The licence is ${datanet.licence}, not ${given.licence.slice(0, 64)}. ${where}`;
    throw new ApiError(409, 'invalid_request_error', 'licence_changed', message, { param });
  }
  if (given.terms_sha256 === undefined && datanet.terms !== '') {
    const message = `This Datanet has terms besides its licence: read them, and send their hash as terms_sha256. ${where}`;
    throw badRequest('terms_sha256', 'missing_required_parameter', message);
  }
  if (given.terms_sha256 !== undefined && given.terms_sha256 !== hash) {
    const message = `The terms are not those that terms_sha256 stands for. ${where}`;
    throw new ApiError(409, 'invalid_request_error', 'licence_changed', message, { param: 'terms_sha256' });
  }
  return hash;
}

async function view(
  services: Services,
  c: Context<AppEnv>,
  datanet: DatanetRow,
): Promise<z.output<typeof acceptanceView>> {
  const hash = termsHash(datanet);
  const { userId } = c.get('principal');
  const { membership } = await services.factory.access.facts(c.get('principal'), datanet);
  const at =
    userId === null
      ? null
      : await services.factory.access.requests.acceptedAt({ datanetId: datanet.id, userId, termsHash: hash });
  return {
    object: 'datanet.licence_acceptance',
    datanet: datanet.id,
    licence: datanet.licence,
    terms: datanet.terms,
    terms_sha256: hash,
    accepted: at !== null,
    accepted_at: at === null ? null : Math.floor(at / 1000),
    required: membership !== 'owner' && (userId === null || datanet.ownerUser !== userId),
  };
}

export async function getLicenceAcceptance(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet } = await datanetOf(services, c, 'sees');
  return c.json(await view(services, c, datanet));
}

export async function acceptLicence(services: Services, c: Context<AppEnv>): Promise<Response> {
  const userId = userOf(c.get('principal'));
  const body = parseWith(acceptance, await readJsonObject(c.req.raw));
  const { datanet } = await datanetOf(services, c, 'sees');
  const hash = checkTerms(datanet, body, 'licence');
  await services.factory.access.requests.accept({
    datanetId: datanet.id,
    userId,
    licence: datanet.licence,
    termsHash: hash,
  });
  c.set('audit', { detail: { licence: datanet.licence, terms_sha256: hash } });
  return c.json(await view(services, c, datanet));
}
