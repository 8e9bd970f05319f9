/**
 * What jobs were made of, on record for good, and the marks of what became of it: rows withdrawn, Datanets revoked. Marks stand at the job,
 * and so at every adapter that came out of it, checkpoints included.
 */
import { and, asc, eq, inArray, sql } from 'drizzle-orm';
import {
  type AdapterMarkRow,
  adapterMarks,
  type DatanetRow,
  datanetVersions,
  type JobSourceRow,
  jobSources,
  type VersionRow,
} from '../../db/datanet-schema.ts';
import type { Database } from '../../db/open.ts';
import { jobs } from '../../db/schema.ts';
import { usedPlaces } from './selection.ts';

/** Jobs that an adapter came of or may yet come of. */
const MADE_SOMETHING = `(j.status IN ('queued', 'running', 'paused', 'succeeded')
  OR EXISTS (SELECT 1 FROM fine_tuning_checkpoints c WHERE c.job_id = j.id))`;

export class JobSources {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  /** Training before validation, in the order of the mixture. */
  async ofJob(jobId: string): Promise<JobSourceRow[]> {
    return (await this.ofJobs([jobId])).get(jobId) ?? [];
  }

  async ofJobs(ids: string[]): Promise<Map<string, JobSourceRow[]>> {
    const rows =
      ids.length === 0
        ? []
        : await this.#db
            .select()
            .from(jobSources)
            .where(inArray(jobSources.jobId, ids))
            .orderBy(asc(jobSources.jobId), asc(jobSources.role), asc(jobSources.position));
    return grouped(rows, ({ jobId }) => jobId);
  }

  async marksOfJobs(ids: string[]): Promise<Map<string, AdapterMarkRow[]>> {
    const rows =
      ids.length === 0
        ? []
        : await this.#db
            .select()
            .from(adapterMarks)
            .where(inArray(adapterMarks.jobId, ids))
            .orderBy(asc(adapterMarks.seq));
    return grouped(rows, ({ jobId }) => jobId);
  }

  async marksOf(adapter: string): Promise<AdapterMarkRow[]> {
    return this.#db.select().from(adapterMarks).where(eq(adapterMarks.adapter, adapter)).orderBy(asc(adapterMarks.seq));
  }

  /** How many marks each adapter has; those without are not there. */
  async markCounts(): Promise<Map<string, number>> {
    const rows = await this.#db
      .select({ adapter: adapterMarks.adapter, marks: sql<number>`count(*)` })
      .from(adapterMarks)
      .groupBy(adapterMarks.adapter);
    return new Map(rows.map(({ adapter, marks }) => [adapter, Number(marks)]));
  }

  /**
   * Revoked or active again; what was trained on a Datanet is marked in the same transaction as it is revoked.
   * @returns false: it was so already
   */
  async setState(datanetId: string, to: DatanetRow['state']): Promise<boolean> {
    const now = this.#now();
    const [changed] = await this.#db.$client.batch(
      [
        {
          sql: 'UPDATE datanets SET state = :to, updated_at = :now WHERE id = :datanet AND state <> :to',
          args: { to, now, datanet: datanetId },
        },
        ...(to === 'active'
          ? []
          : [
              {
                sql: `INSERT OR IGNORE INTO adapter_marks (adapter, job_id, datanet_id, version, kind, rows, created_at)
                  SELECT j.adapter, j.id, s.datanet_id, max(s.version), 'revocation', 0, :now
                  FROM job_sources s JOIN fine_tuning_jobs j ON j.id = s.job_id
                  WHERE s.datanet_id = :datanet AND s.role = 'training' AND ${MADE_SOMETHING}
                    AND EXISTS (SELECT 1 FROM datanets d WHERE d.id = :datanet AND d.state = 'revoked' AND d.updated_at = :now)
                  GROUP BY j.id`,
                args: { now, datanet: datanetId },
              },
            ]),
      ],
      'write',
    );
    return changed?.rowsAffected === 1;
  }

  /** Adapters that bear a mark of the Datanet's revocation. */
  async revocationMarks(datanetId: string): Promise<number> {
    const { rows } = await this.#db.$client.execute({
      sql: `SELECT count(DISTINCT m.adapter) AS count FROM job_sources s JOIN adapter_marks m ON m.job_id = s.job_id
        WHERE s.datanet_id = ? AND m.datanet_id = s.datanet_id AND m.kind = 'revocation'`,
      args: [datanetId],
    });
    return Number(rows[0]?.count ?? 0);
  }

  /**
   * Rows (`seq`) leave the Datanet with this version: the adapters that were trained on any of them are marked, with how many. May be called
   * twice for the same version.
   */
  async withdrawn(
    datanet: Pick<DatanetRow, 'id'>,
    version: Pick<VersionRow, 'number' | 'createdAt'>,
    rows: number[],
  ): Promise<void> {
    const used = await this.#used(datanet.id, version.number);
    const placesIn = new Map<number, number[]>();
    for (const { job, sources } of used) {
      const gone = new Set<number>();
      for (const { version: number, examples, position, size } of sources) {
        let places = placesIn.get(number);
        if (places === undefined) {
          places = await this.#places(datanet.id, number, rows);
          placesIn.set(number, places);
        }
        const chosen = usedPlaces(size, examples, job.seed, position);
        const among = chosen === null ? null : new Set(chosen);
        for (const [index, place] of places.entries()) {
          if (place !== -1 && (among === null || among.has(place))) gone.add(rows[index] as number);
        }
      }
      if (gone.size === 0) continue;
      await this.#db
        .insert(adapterMarks)
        .values({
          adapter: job.adapter,
          jobId: job.id,
          datanetId: datanet.id,
          version: Math.max(...sources.map((source) => source.version)),
          kind: 'withdrawal',
          rows: gone.size,
          createdAt: version.createdAt,
        })
        .onConflictDoNothing();
    }
  }

  /** Jobs that were trained on versions before this one. */
  async #used(datanetId: string, before: number) {
    const rows = await this.#db
      .select({
        id: jobs.id,
        adapter: jobs.adapter,
        seed: jobs.seed,
        position: jobSources.position,
        version: jobSources.version,
        examples: jobSources.examples,
        size: datanetVersions.rows,
      })
      .from(jobSources)
      .innerJoin(jobs, eq(jobs.id, jobSources.jobId))
      .innerJoin(
        datanetVersions,
        and(eq(datanetVersions.datanetId, jobSources.datanetId), eq(datanetVersions.number, jobSources.version)),
      )
      .where(
        and(
          eq(jobSources.datanetId, datanetId),
          eq(jobSources.role, 'training'),
          sql`${jobSources.version} < ${before}`,
          sql`${jobSources.examples} IS NOT NULL`,
          sql.raw(MADE_SOMETHING.replaceAll('j.', 'fine_tuning_jobs.')),
        ),
      );
    const byJob = grouped(rows, ({ id }) => id);
    return [...byJob.values()].map((sources) => ({
      job: sources[0] as (typeof rows)[number],
      sources: sources.map(({ position, version, examples, size }) => ({
        position,
        version: version as number,
        examples: examples as number,
        size,
      })),
    }));
  }

  /** Places of rows in a version, from 0; −1: it is not in it. */
  async #places(datanetId: string, number: number, rows: number[]): Promise<number[]> {
    const found = await this.#db.$client.execute({
      sql: `SELECT seq, place FROM (SELECT seq, row_number() OVER (ORDER BY seq) - 1 AS place FROM datanet_rows INDEXED BY datanet_rows_tree
          WHERE datanet_id = :datanet AND added_in IS NOT NULL AND added_in <= :number AND (removed_in IS NULL OR removed_in > :number))
        WHERE seq IN (SELECT value FROM json_each(:rows))`,
      args: { datanet: datanetId, number, rows: JSON.stringify(rows) },
    });
    const places = new Map(found.rows.map((row) => [Number(row.seq), Number(row.place)]));
    return rows.map((seq) => places.get(seq) ?? -1);
  }
}

function grouped<T>(rows: readonly T[], keyOf: (row: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const row of rows) {
    const key = keyOf(row);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [row]);
    else group.push(row);
  }
  return groups;
}
