/**
 * Where a caller stands towards a Datanet: the one place that decides who may see, contribute to, govern and train on it.
 * Pure: facts in, answer out. What somebody may not see does not exist for them (404); what they see but may not do is a 403 with a reason.
 */
import { isAdmin, type Principal } from '../auth/scopes.ts';
import type { DatanetRow } from '../db/datanet-schema.ts';

export interface StandingFacts {
  datanet: Pick<DatanetRow, 'ownerUser' | 'ownerOrganization' | 'visibility' | 'state' | 'version'>;
  /** The caller's role in the organisation that owns it; null: none, or a person owns it. */
  membership: 'owner' | 'member' | null;
  /** An approved request of the caller's, or of an organisation of theirs, that has neither expired nor been revoked. */
  granted: boolean;
  /** The caller agreed to the licence and terms as they are now. */
  accepted: boolean;
}

export type TrainRefusal = 'not_visible' | 'no_version' | 'revoked' | 'access_required' | 'licence_not_accepted';

export interface Standing {
  /** Name, summary, description, licence, statistics: what a listing shows. */
  sees: boolean;
  /** Its rows. */
  reads: boolean;
  contributes: boolean;
  /** Edit, review, publish, decide about access, revoke. */
  governs: boolean;
  /** Its owner in person: the only one who may approve rows of their own. */
  owns: boolean;
  /** null: may train on it now. */
  training: TrainRefusal | null;
}

export function standingOf(principal: Pick<Principal, 'userId' | 'scopes'>, facts: StandingFacts): Standing {
  const { datanet, membership, granted, accepted } = facts;
  const { userId } = principal;
  const owns = userId !== null && datanet.ownerUser === userId;
  const governs = owns || membership === 'owner' || isAdmin(principal);
  const belongs = governs || membership !== null;
  const published = datanet.version > 0;
  // What was never published is its owner's affair alone.
  const sees = belongs || published;
  const reads = belongs || (published && (datanet.visibility === 'public' || granted));
  const contributes = userId !== null && datanet.state === 'active' && (belongs || reads);
  return { sees, reads, contributes, governs, owns, training: trainRefusal() };

  function trainRefusal(): TrainRefusal | null {
    if (!sees) return 'not_visible';
    if (!published) return 'no_version';
    if (datanet.state === 'revoked') return 'revoked';
    if (!reads) return 'access_required';
    // Whoever owns it has made the terms.
    if (!accepted && !owns && membership !== 'owner') return 'licence_not_accepted';
    return null;
  }
}
