/** Refusals in words: what happened, why, and what to do about it. */
import type { DatanetRow } from '../../db/datanet-schema.ts';
import type { TrainRefusal } from '../standing.ts';

/** Name and id, so that a message can be acted on. */
export function called(datanet: Pick<DatanetRow, 'id' | 'name'>): string {
  return `the Datanet “${datanet.name}” (${datanet.id})`;
}

/** Why somebody may not train on a Datanet; not for those who may not even see it. */
export function trainRefusalWords(
  refusal: Exclude<TrainRefusal, 'not_visible'>,
  datanet: Pick<DatanetRow, 'id' | 'name' | 'licence' | 'terms'>,
): { code: string; message: string } {
  const it = called(datanet);
  const path = `/api/datanets/${datanet.id}`;
  switch (refusal) {
    case 'no_version':
      return { code: 'no_version', message: `There is no published version of ${it} yet.` };
    case 'revoked':
      return {
        code: 'datanet_revoked',
        message: `Whoever governs ${it} has revoked it: nothing new is trained on it.`,
      };
    case 'access_required':
      return {
        code: 'access_required',
        message: `You have no access to ${it}, or no longer. Ask for it with POST ${path}/access-requests.`,
      };
    case 'licence_not_accepted': {
      const terms = datanet.terms === '' ? '' : ' and terms';
      return {
        code: 'licence_not_accepted',
        message: `The licence (${datanet.licence})${terms} of ${it} must be accepted as it is now before training on it: GET and POST ${path}/licence-acceptance.`,
      };
    }
  }
}
