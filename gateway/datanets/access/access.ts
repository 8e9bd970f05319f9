/**
 * The facts that decide where a caller stands towards a Datanet, read over indexes in a query or two: membership of the organisation that owns
 * it, a grant that holds now, the licence accepted as it is now. standing.ts makes the decision; nothing is cached, so what was revoked a
 * moment ago is refused now.
 */
import { eq } from 'drizzle-orm';
import { LRUCache } from 'lru-cache';
import type { Principal } from '../../auth/scopes.ts';
import { type DatanetRow, datanets } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import type { UserRow } from '../../db/people-schema.ts';
import { type Standing, type StandingFacts, standingOf } from '../standing.ts';
import { AccessRows } from './access-rows.ts';
import { termsHash } from './terms.ts';

/** All that a decision needs to know of whoever asks: a principal of a request, or the owner of a job as they are now. */
export type Caller = Pick<Principal, 'userId' | 'scopes'>;
/** All that it needs to know of the Datanet. */
export type Governed = Pick<
  DatanetRow,
  'id' | 'ownerUser' | 'ownerOrganization' | 'visibility' | 'state' | 'version' | 'licence' | 'terms'
>;

/** Holds now. */
const HOLDS = "state = 'approved' AND (expires_at IS NULL OR expires_at > ?)";
/**
 * A grant is for a person, or for all who belong to an organisation *now*: who leaves it has it no longer, whoever asked for it.
 * Each part looks up one index.
 */
const GRANTED = `EXISTS (SELECT 1 FROM access_requests WHERE requested_by = ? AND datanet_id = ? AND organization_id IS NULL AND ${HOLDS})`;
const GRANTED_TO_ORGANIZATION = `SELECT 1 FROM memberships m JOIN access_requests a ON a.organization_id = m.organization_id AND a.datanet_id = ?
  WHERE m.user_id = ? AND ${HOLDS.replaceAll(/state|expires_at/g, 'a.$&')} LIMIT 1`;
const ACCEPTED = 'EXISTS (SELECT 1 FROM licence_acceptances WHERE datanet_id = ? AND user_id = ? AND terms_hash = ?)';
const MEMBERSHIP = '(SELECT role FROM memberships WHERE organization_id = ? AND user_id = ?)';

const TERMS_MAX = 10_000;

export class Access {
  readonly #db: Database;
  readonly #now: () => number;
  readonly requests: AccessRows;
  /** Hashes of terms, by their text: pure, so they may be kept. */
  readonly #terms = new LRUCache<string, string>({
    max: TERMS_MAX,
    maxSize: 16_000_000,
    sizeCalculation: (_, key) => key.length + 64,
  });

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
    this.requests = new AccessRows(db, now);
  }

  /**
   * Asks for no more than the decision can turn on: half of what a look at the database costs is to understand the question. Who owns it
   * in person is asked nothing, and nobody needs a grant for what is public.
   */
  async facts(caller: Caller, datanet: Governed): Promise<StandingFacts> {
    const { userId } = caller;
    const nothing = { datanet, membership: null, granted: false, accepted: false };
    // The operator's keys are nobody's: no memberships, no grants, and nobody who could agree to anything.
    if (userId === null || userId === datanet.ownerUser) return nothing;
    const { id, ownerOrganization } = datanet;
    const parts = [ACCEPTED];
    const args: (string | number)[] = [id, userId, this.#termsHash(datanet)];
    if (ownerOrganization !== null) {
      parts.push(MEMBERSHIP);
      args.push(ownerOrganization, userId);
    }
    const now = this.#now();
    const closed = datanet.visibility === 'permissioned';
    if (closed) {
      parts.push(GRANTED);
      args.push(userId, id, now);
    }
    const { $client } = this.#db;
    const { rows } = await $client.execute({ sql: `SELECT ${parts.join(', ')}`, args });
    const row = rows[0] as unknown as (string | number | null)[];
    const membership = ownerOrganization === null ? null : (row[1] as 'owner' | 'member' | null);
    let granted = closed && row[parts.length - 1] === 1;
    // Whoever belongs to its owner needs no grant.
    if (closed && !granted && membership === null) {
      const found = await $client.execute({ sql: GRANTED_TO_ORGANIZATION, args: [id, userId, now] });
      granted = found.rows.length > 0;
    }
    return { datanet, membership, granted, accepted: row[0] === 1 };
  }

  async standing(caller: Caller, datanet: Governed): Promise<Standing> {
    return standingOf(caller, await this.facts(caller, datanet));
  }

  /** What a user may do now is decided by these. */
  async user(id: string): Promise<Pick<UserRow, 'role' | 'state'> | null> {
    const { rows } = await this.#db.$client.execute({ sql: 'SELECT role, state FROM users WHERE id = ?', args: [id] });
    return (rows[0] as unknown as Pick<UserRow, 'role' | 'state'> | undefined) ?? null;
  }

  /** By id; who is not there any more is not in it. */
  async userNames(ids: string[]): Promise<Map<string, string>> {
    const { rows } = await this.#db.$client.execute({
      sql: 'SELECT id, name FROM users WHERE id IN (SELECT value FROM json_each(?))',
      args: [JSON.stringify(ids)],
    });
    return new Map(rows.map((row) => [String(row.id), String(row.name)]));
  }

  async datanet(id: string): Promise<DatanetRow | null> {
    const [row] = await this.#db.select().from(datanets).where(eq(datanets.id, id));
    return row ?? null;
  }

  #termsHash(datanet: Governed): string {
    const text = `${datanet.licence}\n${datanet.terms}`;
    const known = this.#terms.get(text);
    if (known !== undefined) return known;
    const hash = termsHash(datanet);
    this.#terms.set(text, hash);
    return hash;
  }
}
