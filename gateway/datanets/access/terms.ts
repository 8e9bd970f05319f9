/** What somebody agrees to who agrees to a Datanet's licence: the SPDX expression and the owner's terms, bound together by one hash. */
import { createHash } from 'node:crypto';
import { canonicalJson } from '../../../daemon/evidence.ts';
import type { DatanetRow } from '../../db/datanet-schema.ts';

/** SHA-256, lower-case hex, of the canonical JSON of `{licence, terms}`: a change of either asks everybody again. */
export function termsHash(datanet: Pick<DatanetRow, 'licence' | 'terms'>): string {
  const { licence, terms } = datanet;
  return createHash('sha256')
    .update(canonicalJson({ licence, terms }) as string)
    .digest('hex');
}
