/** The rows of fine-tuning jobs, their events and checkpoints. Everything that may be told twice is stored once. */
import { and, asc, desc, eq, gt, inArray, isNull, lt, type SQL, sql } from 'drizzle-orm';
import type { Principal } from '../../auth/scopes.ts';
import { jobSources } from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import {
  checkpointPermissions,
  type JobCheckpointRow,
  type JobEventRow,
  type JobRow,
  jobCheckpoints,
  jobEvents,
  jobs,
} from '../../db/schema.ts';
import { randomId } from '../../http/ids.ts';
import type { Page } from '../files/file-rows.ts';

export const ACTIVE = ['validating_files', 'queued', 'running', 'paused'] as const satisfies JobRow['status'][];
export const isOver = (status: JobRow['status']) => !(ACTIVE as readonly string[]).includes(status);

export interface NewEvent {
  /** What makes it the same event when it is told again. */
  dedupe: string;
  level: JobEventRow['level'];
  type: JobEventRow['type'];
  message: string;
  data?: Record<string, unknown> | null;
  createdAt?: number;
}

export interface NewCheckpoint {
  step: number;
  adapter: string;
  digest: string;
  metrics: Record<string, number>;
  createdAt: number;
}

export interface Change {
  set?: Partial<Omit<JobRow, 'seq' | 'id' | 'keyId' | 'owner'>>;
  events?: NewEvent[];
  checkpoints?: NewCheckpoint[];
  /** What the job is made of; told again with what became known of it. */
  sources?: NewSource[];
}

export type NewSource = Omit<typeof jobSources.$inferInsert, 'jobId'>;

export class JobRows {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  #visible(principal: Principal): SQL | undefined {
    return principal.scopes.has('admin') ? undefined : eq(jobs.owner, principal.ownerId);
  }

  /**
   * False if the key has as many jobs under way as it may. One batch is one transaction, so two requests cannot both be the last: what is
   * one too many is taken out again before anybody sees it.
   */
  async insert(
    row: Omit<typeof jobs.$inferInsert, 'seq' | 'owner'> & { owner: string },
    activeMax: number,
  ): Promise<boolean> {
    const active = sql`(select count(*) from ${jobs} where ${and(eq(jobs.owner, row.owner), inArray(jobs.status, [...ACTIVE]))})`;
    const [, removed] = await this.#db.batch([
      this.#db.insert(jobs).values(row),
      this.#db.delete(jobs).where(and(eq(jobs.id, row.id), sql`${active} > ${activeMax}`)),
    ]);
    return removed.rowsAffected === 0;
  }

  async get(id: string): Promise<JobRow | null> {
    const [row] = await this.#db.select().from(jobs).where(eq(jobs.id, id));
    return row ?? null;
  }

  async find(principal: Principal, id: string): Promise<JobRow | null> {
    const [row] = await this.#db
      .select()
      .from(jobs)
      .where(and(eq(jobs.id, id), this.#visible(principal)));
    return row ?? null;
  }

  async list(
    principal: Principal,
    query: { limit: number; after: JobRow | null; metadata: Record<string, string> | 'none' | null },
  ): Promise<Page<JobRow>> {
    const { limit, after, metadata } = query;
    const wanted =
      metadata === null
        ? []
        : metadata === 'none'
          ? [isNull(jobs.metadata)]
          : Object.entries(metadata).map(
              ([key, value]) =>
                sql`exists (select 1 from json_each(${jobs.metadata}) as pair where pair.key = ${key} and pair.value = ${value})`,
            );
    const rows = await this.#db
      .select()
      .from(jobs)
      .where(and(this.#visible(principal), after === null ? undefined : lt(jobs.seq, after.seq), ...wanted))
      .orderBy(desc(jobs.seq))
      .limit(limit + 1);
    return { rows: rows.slice(0, limit), hasMore: rows.length > limit };
  }

  /** Ids of all jobs that are not over, oldest first. */
  async active(): Promise<string[]> {
    const rows = await this.#db
      .select({ id: jobs.id })
      .from(jobs)
      .where(inArray(jobs.status, [...ACTIVE]))
      .orderBy(asc(jobs.seq));
    return rows.map(({ id }) => id);
  }

  /** Jobs that wait for their turn; of one owner, or trained on one Datanet, where that is said. */
  async queued(about: { datanetId?: string; owner?: string }): Promise<JobRow[]> {
    const { datanetId, owner } = about;
    return this.#db
      .select()
      .from(jobs)
      .where(
        and(
          eq(jobs.status, 'queued'),
          owner === undefined ? undefined : eq(jobs.owner, owner),
          datanetId === undefined
            ? undefined
            : sql`exists (select 1 from ${jobSources} where ${jobSources.jobId} = ${jobs.id} and ${jobSources.datanetId} = ${datanetId})`,
        ),
      )
      .orderBy(asc(jobs.seq));
  }

  /** Whether the run was seen to begin. */
  async hasBegun(id: string): Promise<boolean> {
    const [row] = await this.#db
      .select({ seq: jobEvents.seq })
      .from(jobEvents)
      .where(and(eq(jobEvents.jobId, id), eq(jobEvents.dedupe, 'started')));
    return row !== undefined;
  }

  /** All of the change, or nothing of it: one batch is one transaction. */
  async change(id: string, change: Change): Promise<void> {
    const now = this.#now();
    const statements = [
      ...(change.events ?? []).map((event) =>
        this.#db
          .insert(jobEvents)
          .values({
            id: `ftevent-${randomId().slice(0, 24)}`,
            jobId: id,
            dedupe: event.dedupe,
            level: event.level,
            type: event.type,
            message: event.message,
            data: event.data ?? null,
            createdAt: event.createdAt ?? now,
          })
          .onConflictDoNothing(),
      ),
      ...(change.checkpoints ?? []).map((checkpoint) =>
        this.#db
          .insert(jobCheckpoints)
          .values({ ...checkpoint, id: `ftckpt_${randomId().slice(0, 24)}`, jobId: id })
          .onConflictDoNothing(),
      ),
      ...(change.sources ?? []).map((source) =>
        this.#db
          .insert(jobSources)
          .values({ ...source, jobId: id })
          .onConflictDoUpdate({
            target: [jobSources.jobId, jobSources.role, jobSources.position],
            set: { examples: source.examples ?? null, digest: source.digest ?? null },
          }),
      ),
      ...(change.set === undefined || Object.keys(change.set).length === 0
        ? []
        : [this.#db.update(jobs).set(change.set).where(eq(jobs.id, id))]),
    ];
    const [first, ...rest] = statements;
    if (first !== undefined) await this.#db.batch([first, ...rest]);
  }

  async event(jobId: string, id: string): Promise<JobEventRow | null> {
    const [row] = await this.#db
      .select()
      .from(jobEvents)
      .where(and(eq(jobEvents.jobId, jobId), eq(jobEvents.id, id)));
    return row ?? null;
  }

  /** Newest first. */
  async events(jobId: string, query: { limit: number; after: JobEventRow | null }): Promise<Page<JobEventRow>> {
    const { limit, after } = query;
    const rows = await this.#db
      .select()
      .from(jobEvents)
      .where(and(eq(jobEvents.jobId, jobId), after === null ? undefined : lt(jobEvents.seq, after.seq)))
      .orderBy(desc(jobEvents.seq))
      .limit(limit + 1);
    return { rows: rows.slice(0, limit), hasMore: rows.length > limit };
  }

  /** Oldest first, those after `seq`. */
  eventsSince(jobId: string, seq: number, limit: number): Promise<JobEventRow[]> {
    return this.#db
      .select()
      .from(jobEvents)
      .where(and(eq(jobEvents.jobId, jobId), gt(jobEvents.seq, seq)))
      .orderBy(asc(jobEvents.seq))
      .limit(limit);
  }

  async checkpoint(jobId: string, id: string): Promise<JobCheckpointRow | null> {
    const [row] = await this.#db
      .select()
      .from(jobCheckpoints)
      .where(and(eq(jobCheckpoints.jobId, jobId), eq(jobCheckpoints.id, id)));
    return row ?? null;
  }

  /** Newest first. */
  async checkpoints(
    jobId: string,
    query: { limit: number; after: JobCheckpointRow | null },
  ): Promise<Page<JobCheckpointRow>> {
    const { limit, after } = query;
    const rows = await this.#db
      .select()
      .from(jobCheckpoints)
      .where(and(eq(jobCheckpoints.jobId, jobId), after === null ? undefined : lt(jobCheckpoints.step, after.step)))
      .orderBy(desc(jobCheckpoints.step))
      .limit(limit + 1);
    return { rows: rows.slice(0, limit), hasMore: rows.length > limit };
  }

  async checkpointNamed(adapter: string): Promise<JobCheckpointRow | null> {
    const [row] = await this.#db.select().from(jobCheckpoints).where(eq(jobCheckpoints.adapter, adapter));
    return row ?? null;
  }

  /** Whose job makes an adapter of this name; null: none does. */
  async ownerOf(adapter: string): Promise<string | null> {
    const [row] = await this.#db.select({ owner: jobs.owner }).from(jobs).where(eq(jobs.adapter, adapter));
    return row?.owner ?? null;
  }

  /** The job that makes an adapter of this name. */
  async making(adapter: string): Promise<string | null> {
    const [row] = await this.#db.select({ id: jobs.id }).from(jobs).where(eq(jobs.adapter, adapter));
    return row?.id ?? null;
  }

  async permit(checkpoint: string, projectIds: string[]): Promise<void> {
    for (const projectId of projectIds) {
      await this.#db
        .insert(checkpointPermissions)
        .values({ id: `cp_${randomId().slice(0, 24)}`, checkpoint, projectId, createdAt: this.#now() })
        .onConflictDoNothing();
    }
  }

  permissions(checkpoint: string) {
    return this.#db
      .select()
      .from(checkpointPermissions)
      .where(eq(checkpointPermissions.checkpoint, checkpoint))
      .orderBy(asc(checkpointPermissions.seq));
  }

  async revoke(checkpoint: string, id: string): Promise<boolean> {
    const removed = await this.#db
      .delete(checkpointPermissions)
      .where(and(eq(checkpointPermissions.checkpoint, checkpoint), eq(checkpointPermissions.id, id)));
    return removed.rowsAffected > 0;
  }

  /** @param projects key and user that ask; one of them is enough. */
  async isPermitted(checkpoint: string, projects: string[]): Promise<boolean> {
    const [row] = await this.#db
      .select({ id: checkpointPermissions.id })
      .from(checkpointPermissions)
      .where(and(eq(checkpointPermissions.checkpoint, checkpoint), inArray(checkpointPermissions.projectId, projects)))
      .limit(1);
    return row !== undefined;
  }
}
