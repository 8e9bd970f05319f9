/** POST /api/datanets/{id}/review: rows by name, or all pending ones that a filter chooses. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { badRequest } from '../../errors.ts';
import { integer } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { audited } from '../api.ts';
import { datanetAndBody, forbidden } from '../of.ts';
import { noSuchRow, seqOf } from '../rows/api.ts';

const filter = z.strictObject({
  state: z.literal('pending').default('pending'),
  contribution: z.string().min(1).max(64).optional(),
  contributor: z.string().min(1).max(64).optional(),
  min_score: integer(0, 100).optional(),
  max_score: integer(0, 100).optional(),
  near_duplicates: z.boolean().optional(),
});

export const reviewRequest = z
  .strictObject({
    action: z.enum(['approve', 'reject']),
    rows: z.array(z.string().max(64)).min(1).max(limits.reviewRowsMax).optional(),
    filter: filter.optional(),
    /** Of a rejection, for the contributor to read. */
    reason: z.string().trim().min(1).max(limits.reviewReasonCharactersMax).optional(),
  })
  .openapi('ReviewRequest');

export const reviewAnswer = z
  .object({
    object: z.literal('datanet.review'),
    action: z.enum(['approve', 'reject']),
    /** Rows that this review decided. */
    changed: z.number().int(),
    /** Named rows that were decided before, or by somebody else at the same time. */
    already_decided: z.number().int(),
    /** Rows of the reviewer's own that the filter chose: left as they are. */
    own: z.number().int(),
    not_found: z.number().int(),
  })
  .openapi('Review');

export async function reviewRows(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanet, standing, principal, body } = await datanetAndBody(services, c, 'governs', reviewRequest);
  if ((body.rows === undefined) === (body.filter === undefined))
    throw badRequest(
      'rows',
      'invalid_value',
      'Name `rows`, or say with `filter` which of the pending ones; one of the two.',
    );
  if (body.action === 'reject' && body.reason === undefined)
    throw badRequest(
      'reason',
      'missing_required_parameter',
      "Missing required parameter: 'reason'. Its contributor reads why a row is rejected.",
    );
  const { reviews } = services.datanets;
  const { userId } = principal;
  // To reject what one contributed harms nobody; to approve it takes another pair of eyes, or the owner in person.
  const except = body.action === 'approve' && !standing.owns ? userId : null;
  const chosen =
    body.rows === undefined
      ? filterOf(body.filter as z.output<typeof filter>)
      : [...new Set(body.rows)].map((id, index) => {
          const seq = seqOf(id);
          if (seq === null) throw noSuchRow(id, `rows[${index}]`);
          return seq;
        });
  if (except !== null && Array.isArray(chosen)) {
    const own = await reviews.ownAmong(datanet.id, chosen, except);
    if (own > 0) {
      const message = `${own} of these rows are your own contribution; somebody else who governs this Datanet has to approve them.`;
      throw forbidden('own_rows', message);
    }
  }
  const outcome = await reviews.review({
    datanetId: datanet.id,
    action: body.action,
    chosen,
    reviewer: userId ?? principal.keyId,
    reason: body.reason ?? null,
    except,
  });
  audited(c, datanet.id, { action: body.action, ...outcome });
  return c.json({ object: 'datanet.review', action: body.action, ...outcome });
}

function filterOf(given: z.output<typeof filter>) {
  return {
    contribution: given.contribution ?? null,
    contributor: given.contributor ?? null,
    minScore: given.min_score ?? null,
    maxScore: given.max_score ?? null,
    nearDuplicates: given.near_duplicates ?? null,
  };
}
