/**
 * The rows of access requests and of accepted licences, and whether a Datanet is revoked. Every decision is one conditional statement: of
 * two at the same time one finds the state it expects, the other changes nothing.
 */
import { and, desc, eq, lt, type SQL } from 'drizzle-orm';
import { type AccessRow, accessRequests, licenceAcceptances } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import { randomId } from '../../http/ids.ts';
import { limits } from '../../limits.ts';

export interface NewRequest {
  datanetId: string;
  userId: string;
  organizationId: string | null;
  purpose: string;
}

export interface Acceptance {
  datanetId: string;
  userId: string;
  licence: string;
  termsHash: string;
}

export interface Decision {
  from: AccessRow['state'];
  to: AccessRow['state'];
  by: string;
  reason: string | null;
  /** Where it says nothing, what was set before stays. */
  expiresAt?: number | null;
}

export class AccessRows {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  /**
   * The request and the acceptance that comes with it, both or none of them.
   * @returns null: the same is waiting already, or the person has as many waiting as they may.
   */
  async insert(request: NewRequest, acceptance: Acceptance): Promise<AccessRow | null> {
    const id = `acc_${randomId()}`;
    const now = this.#now();
    const [inserted] = await this.#db.$client.batch(
      [
        {
          sql: `INSERT INTO access_requests (id, datanet_id, requested_by, organization_id, purpose, state, created_at)
            SELECT :id, :datanet, :user, :organization, :purpose, 'pending', :now
            WHERE NOT EXISTS (SELECT 1 FROM access_requests WHERE datanet_id = :datanet AND state = 'pending'
                AND (organization_id = :organization OR (:organization IS NULL AND organization_id IS NULL AND requested_by = :user)))
              AND (SELECT count(*) FROM access_requests WHERE requested_by = :user AND state = 'pending') < :most`,
          args: {
            id,
            datanet: request.datanetId,
            user: request.userId,
            organization: request.organizationId,
            purpose: request.purpose,
            now,
            most: limits.accessRequestsPendingMax,
          },
        },
        {
          sql: `INSERT OR IGNORE INTO licence_acceptances (datanet_id, user_id, terms_hash, licence, accepted_at)
            SELECT :datanet, :user, :terms, :licence, :now WHERE EXISTS (SELECT 1 FROM access_requests WHERE id = :id)`,
          args: {
            id,
            datanet: acceptance.datanetId,
            user: acceptance.userId,
            terms: acceptance.termsHash,
            licence: acceptance.licence,
            now,
          },
        },
      ],
      'write',
    );
    return inserted?.rowsAffected === 1 ? this.find(request.datanetId, id) : null;
  }

  async find(datanetId: string, id: string): Promise<AccessRow | null> {
    const [row] = await this.#db
      .select()
      .from(accessRequests)
      .where(and(eq(accessRequests.id, id), eq(accessRequests.datanetId, datanetId)));
    return row ?? null;
  }

  /** Newest first; `requestedBy` null: everybody's. */
  async list(
    datanetId: string,
    query: {
      requestedBy: string | null;
      state: AccessRow['state'] | null;
      organizationId: string | null;
      after: AccessRow | null;
      limit: number;
    },
  ): Promise<{ rows: AccessRow[]; hasMore: boolean }> {
    const { requestedBy, state, organizationId, after, limit } = query;
    const conditions: (SQL | undefined)[] = [
      eq(accessRequests.datanetId, datanetId),
      requestedBy === null ? undefined : eq(accessRequests.requestedBy, requestedBy),
      state === null ? undefined : eq(accessRequests.state, state),
      organizationId === null ? undefined : eq(accessRequests.organizationId, organizationId),
      after === null ? undefined : lt(accessRequests.seq, after.seq),
    ];
    const rows = await this.#db
      .select()
      .from(accessRequests)
      .where(and(...conditions))
      .orderBy(desc(accessRequests.seq))
      .limit(limit + 1);
    return { rows: rows.slice(0, limit), hasMore: rows.length > limit };
  }

  /** False: the request was not in the state that the decision is from. */
  async decide(id: string, decision: Decision): Promise<boolean> {
    const { from, to, by, reason, expiresAt } = decision;
    const changed = await this.#db
      .update(accessRequests)
      .set({
        state: to,
        decidedBy: by,
        decidedAt: this.#now(),
        reason,
        ...(expiresAt === undefined ? {} : { expiresAt }),
      })
      .where(and(eq(accessRequests.id, id), eq(accessRequests.state, from)));
    return changed.rowsAffected === 1;
  }

  /** Once; again is the same acceptance. @returns when it was accepted first */
  async accept(acceptance: Acceptance): Promise<number> {
    await this.#db
      .insert(licenceAcceptances)
      .values({ ...acceptance, acceptedAt: this.#now() })
      .onConflictDoNothing();
    return (await this.acceptedAt(acceptance)) as number;
  }

  async acceptedAt(of: Pick<Acceptance, 'datanetId' | 'userId' | 'termsHash'>): Promise<number | null> {
    const [row] = await this.#db
      .select({ acceptedAt: licenceAcceptances.acceptedAt })
      .from(licenceAcceptances)
      .where(
        and(
          eq(licenceAcceptances.datanetId, of.datanetId),
          eq(licenceAcceptances.userId, of.userId),
          eq(licenceAcceptances.termsHash, of.termsHash),
        ),
      );
    return row?.acceptedAt ?? null;
  }

  async membership(userId: string, organizationId: string): Promise<'owner' | 'member' | null> {
    const { rows } = await this.#db.$client.execute({
      sql: 'SELECT role FROM memberships WHERE organization_id = ? AND user_id = ?',
      args: [organizationId, userId],
    });
    return (rows[0]?.role as 'owner' | 'member' | undefined) ?? null;
  }
}
