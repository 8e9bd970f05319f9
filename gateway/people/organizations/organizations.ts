/**
 * Organisations and who belongs to them. Every condition stands in the statement that writes, so that of two changes at once neither can
 * leave an organisation without an owner, nor be made by somebody who has just ceased to be one.
 */
import { and, count, desc, eq, lt, or, type SQL, sql } from 'drizzle-orm';
import type { Database } from '../../db/open.ts';
import {
  type MembershipRow,
  memberships,
  type OrganizationRow,
  organizations,
  type UserRow,
  users,
} from '../../db/people-schema.ts';
import { randomId } from '../../http/ids.ts';
import { nameKey } from '../../http/names.ts';
import { limits } from '../../limits.ts';
import { emailOf } from '../email.ts';

export type MemberRole = MembershipRow['role'];

/** Who asks: a user, and whether all organisations are theirs to see and change. `userId` null: the operator. */
export interface Viewer {
  userId: string | null;
  all: boolean;
}

export interface OrganizationWithRole {
  organization: OrganizationRow;
  /** The viewer's; null: they are not a member. */
  role: MemberRole | null;
}

export interface Member {
  membership: MembershipRow;
  user: Pick<UserRow, 'id' | 'name' | 'email' | 'state'>;
}

export interface Page<T> {
  rows: T[];
  hasMore: boolean;
}

/** Somebody who owns the organisation besides the member whose row is being changed, and can act. */
const ANOTHER_OWNER = `EXISTS (SELECT 1 FROM memberships o JOIN users u ON u.id = o.user_id
  WHERE o.organization_id = memberships.organization_id AND o.role = 'owner' AND o.user_id <> memberships.user_id AND u.state = 'active')`;

/** ?4: the user who changes, null: whoever may change all organisations. */
const ACTOR_OWNS = `(?4 IS NULL OR EXISTS (SELECT 1 FROM memberships a WHERE a.organization_id = ?1 AND a.user_id = ?4 AND a.role = 'owner'))`;

export class Organizations {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  /** null: no member. A user who is disabled is still one; what disabled users may do is decided where they log in. */
  async membership(userId: string, organizationId: string): Promise<MemberRole | null> {
    const [row] = await this.#db
      .select({ role: memberships.role })
      .from(memberships)
      .where(and(eq(memberships.organizationId, organizationId), eq(memberships.userId, userId)));
    return row?.role ?? null;
  }

  /** What a user belongs to. */
  async of(userId: string): Promise<MembershipRow[]> {
    return this.#db.select().from(memberships).where(eq(memberships.userId, userId));
  }

  /** null: for this viewer there is none. */
  async find(viewer: Viewer, id: string): Promise<OrganizationWithRole | null> {
    const [row] = await this.#select(viewer)
      .where(and(eq(organizations.id, id), visible(viewer)))
      .limit(1);
    return row ?? null;
  }

  /** Newest first. */
  async list(
    viewer: Viewer,
    query: { limit: number; after: OrganizationRow | null; name?: string | undefined; role?: MemberRole | undefined },
  ): Promise<Page<OrganizationWithRole>> {
    const rows = await this.#select(viewer)
      .where(
        and(
          visible(viewer),
          query.after === null ? undefined : lt(organizations.seq, query.after.seq),
          query.name === undefined ? undefined : sql`instr(${organizations.nameKey}, ${nameKey(query.name)}) > 0`,
          query.role === undefined ? undefined : eq(memberships.role, query.role),
        ),
      )
      .orderBy(desc(organizations.seq))
      .limit(query.limit + 1);
    return page(rows, query.limit);
  }

  #select(viewer: Viewer) {
    return this.#db
      .select({ organization: organizations, role: memberships.role })
      .from(organizations)
      .leftJoin(
        memberships,
        and(eq(memberships.organizationId, organizations.id), eq(memberships.userId, viewer.userId ?? '')),
      )
      .$dynamic();
  }

  async memberCount(id: string): Promise<number> {
    const [row] = await this.#db.select({ n: count() }).from(memberships).where(eq(memberships.organizationId, id));
    return row?.n ?? 0;
  }

  /** Its maker is its first owner. */
  async create(userId: string, name: string): Promise<OrganizationRow | 'name_taken' | 'too_many'> {
    const id = `org_${randomId()}`;
    const now = this.#now();
    // One transaction: no organisation is ever without an owner.
    const [made] = await this.#db.$client.batch(
      [
        {
          sql: `INSERT INTO organizations (id, name, name_key, created_by, created_at)
                SELECT ?1, ?2, ?3, ?4, ?5 WHERE (SELECT count(*) FROM organizations WHERE created_by = ?4) < ?6
                ON CONFLICT (name_key) DO NOTHING`,
          args: [id, name, nameKey(name), userId, now, limits.organizationsPerUserMax],
        },
        {
          sql: `INSERT INTO memberships (organization_id, user_id, role, created_at)
                SELECT id, ?2, 'owner', ?3 FROM organizations WHERE id = ?1`,
          args: [id, userId, now],
        },
      ],
      'write',
    );
    if (made !== undefined && made.rowsAffected > 0) return (await this.#get(id)) as OrganizationRow;
    return (await this.#nameTaken(name)) ? 'name_taken' : 'too_many';
  }

  async #get(id: string): Promise<OrganizationRow | null> {
    const [row] = await this.#db.select().from(organizations).where(eq(organizations.id, id));
    return row ?? null;
  }

  async #nameTaken(name: string): Promise<boolean> {
    const rows = await this.#db
      .select({ id: organizations.id })
      .from(organizations)
      .where(eq(organizations.nameKey, nameKey(name)));
    return rows.length > 0;
  }

  /** False: another one has the name, or the actor does not own it any more. @param actor null: whoever may change all. */
  async rename(id: string, name: string, actor: string | null): Promise<boolean> {
    const done = await this.#db.$client.execute({
      sql: `UPDATE OR IGNORE organizations SET name = ?2, name_key = ?3 WHERE id = ?1 AND ${ACTOR_OWNS}`,
      args: [id, name, nameKey(name), actor],
    });
    return done.rowsAffected > 0;
  }

  /** Newest first; `after`: a member's row. */
  async members(
    id: string,
    query: { limit: number; after: MembershipRow | null; role?: MemberRole | undefined },
  ): Promise<Page<Member>> {
    const { after } = query;
    const beyond =
      after === null
        ? undefined
        : or(
            lt(memberships.createdAt, after.createdAt),
            and(eq(memberships.createdAt, after.createdAt), lt(memberships.userId, after.userId)),
          );
    const rows = await this.#selectMembers()
      .where(
        and(
          eq(memberships.organizationId, id),
          beyond,
          query.role === undefined ? undefined : eq(memberships.role, query.role),
        ),
      )
      .orderBy(desc(memberships.createdAt), desc(memberships.userId))
      .limit(query.limit + 1);
    return page(rows, query.limit);
  }

  async member(id: string, userId: string): Promise<Member | null> {
    const [row] = await this.#selectMembers().where(
      and(eq(memberships.organizationId, id), eq(memberships.userId, userId)),
    );
    return row ?? null;
  }

  #selectMembers() {
    const user = { id: users.id, name: users.name, email: users.email, state: users.state };
    return this.#db
      .select({ membership: memberships, user })
      .from(memberships)
      .innerJoin(users, eq(users.id, memberships.userId))
      .$dynamic();
  }

  /** By id, or by e-mail address if it holds an @. Disabled users are found only by `disabledToo`. */
  async user(idOrEmail: string, options: { disabledToo: boolean }): Promise<string | null> {
    const which = idOrEmail.includes('@') ? eq(users.email, emailOf(idOrEmail) ?? '') : eq(users.id, idOrEmail);
    const [row] = await this.#db.select({ id: users.id, state: users.state }).from(users).where(which);
    return row === undefined || (row.state === 'disabled' && !options.disabledToo) ? null : row.id;
  }

  /**
   * Adds a member, or changes a member's role. False: the actor does not own it any more, its last owner would become a member, or it is
   * full. @param actor null: whoever may change all.
   */
  async put(id: string, userId: string, role: MemberRole, actor: string | null): Promise<boolean> {
    const done = await this.#db.$client.execute({
      sql: `INSERT INTO memberships (organization_id, user_id, role, created_at)
            SELECT ?1, ?2, ?3, ?5 WHERE ${ACTOR_OWNS} AND (
              EXISTS (SELECT 1 FROM memberships m WHERE m.organization_id = ?1 AND m.user_id = ?2)
              OR (SELECT count(*) FROM memberships m WHERE m.organization_id = ?1) < ?6)
            ON CONFLICT (organization_id, user_id) DO UPDATE SET role = excluded.role
            WHERE excluded.role = 'owner' OR memberships.role = 'member' OR ${ANOTHER_OWNER}`,
      args: [id, userId, role, actor, this.#now(), limits.membersPerOrganizationMax],
    });
    return done.rowsAffected > 0;
  }

  /** False: no such member, the actor may not (any more), or it would be left without an owner. Whoever wants to may leave. */
  async remove(id: string, userId: string, actor: string | null): Promise<boolean> {
    const done = await this.#db.$client.execute({
      sql: `DELETE FROM memberships WHERE organization_id = ?1 AND user_id = ?2
            AND (?4 IS NULL OR user_id = ?4 OR ${ACTOR_OWNS}) AND (role = ?3 OR ${ANOTHER_OWNER})`,
      args: [id, userId, 'member', actor],
    });
    return done.rowsAffected > 0;
  }
}

function visible(viewer: Viewer): SQL | undefined {
  return viewer.all ? undefined : eq(memberships.userId, viewer.userId ?? '');
}

function page<T>(rows: T[], limit: number): Page<T> {
  return { rows: rows.slice(0, limit), hasMore: rows.length > limit };
}
