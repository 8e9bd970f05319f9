/** What a Datanet holds, in numbers, of the rows that whoever asks may see. All of it comes from one covering index: no content is read. */
import type { Client } from '@libsql/client';
import { LRUCache } from 'lru-cache';
import type { DatanetRow } from '../../db/datanet-schema.ts';

export interface Statistics {
  rows: number;
  states: Record<string, number>;
  /** Rows by score: ten bins of ten points, the last with 100. */
  scores: number[];
  languages: Record<string, number>;
  near_duplicates: number;
  generated: number;
  /** Characters of a row as JSON. */
  characters: { total: number; mean: number; least: number; most: number };
  contributors: number;
  contributions: number;
}

const LANGUAGES_MAX = 50;
const KEPT_MAX = 500;
/** Counting that takes longer is not done again for a while: it holds up whoever else this process serves. */
const DEAR_MS = 15;
/** A while, for each millisecond that it took. */
const KEPT_MS_FACTOR = 100;

export class StatisticsCounter {
  readonly #client: Client;
  readonly #kept = new LRUCache<string, Statistics>({ max: KEPT_MAX });

  constructor(client: Client) {
    this.#client = client;
  }

  /** @param published only rows of the newest version */
  async of(datanet: DatanetRow, published: boolean): Promise<Statistics> {
    const key = `${datanet.id} ${published} ${datanet.version}`;
    const kept = this.#kept.get(key);
    if (kept !== undefined) return kept;
    const started = performance.now();
    const statistics = await statisticsOf(this.#client, datanet, published);
    const tookMs = performance.now() - started;
    if (tookMs > DEAR_MS) this.#kept.set(key, statistics, { ttl: KEPT_MS_FACTOR * tookMs });
    return statistics;
  }
}

async function statisticsOf(client: Client, datanet: DatanetRow, published: boolean): Promise<Statistics> {
  const which = published
    ? `AND state IN ('approved', 'withdrawn') AND added_in <= ?2 AND (removed_in IS NULL OR removed_in > ?2)`
    : '';
  const from = `FROM datanet_rows INDEXED BY datanet_rows_state WHERE datanet_id = ?1 ${which}`;
  const args = published ? [datanet.id, datanet.version] : [datanet.id];
  const [groups, people] = await client.batch(
    [
      {
        sql: `SELECT state, min(score / 10, 9) AS bin, language, near_duplicate_of IS NOT NULL AS near, generated_by IS NOT NULL AS generated,
          count(*) AS rows, sum(size) AS total, min(size) AS least, max(size) AS most ${from} GROUP BY 1, 2, 3, 4, 5`,
        args,
      },
      // What was contributed since is nobody's to know but theirs who govern: a version tells of its own.
      published
        ? {
            sql: `SELECT statistics ->> 'contributors' AS contributors, statistics ->> 'contributions' AS contributions
              FROM datanet_versions WHERE datanet_id = ? AND number = ?`,
            args,
          }
        : {
            sql: `SELECT count(DISTINCT contributor) AS contributors, count(*) AS contributions FROM contributions
              WHERE datanet_id = ? AND state = 'ready' AND rows > 0`,
            args,
          },
    ],
    'read',
  );
  const sum: Statistics = {
    rows: 0,
    states: { pending: 0, approved: 0, rejected: 0, withdrawn: 0 },
    scores: Array.from({ length: 10 }, () => 0),
    languages: {},
    near_duplicates: 0,
    generated: 0,
    characters: { total: 0, mean: 0, least: 0, most: 0 },
    contributors: Number(people?.rows[0]?.contributors ?? 0),
    contributions: Number(people?.rows[0]?.contributions ?? 0),
  };
  const languages = new Map<string, number>();
  let least = Number.POSITIVE_INFINITY;
  for (const group of groups?.rows ?? []) {
    const rows = Number(group.rows);
    sum.rows += rows;
    sum.states[String(group.state)] = (sum.states[String(group.state)] ?? 0) + rows;
    sum.scores[Number(group.bin)] = (sum.scores[Number(group.bin)] ?? 0) + rows;
    const language = group.language === null ? 'unknown' : String(group.language);
    languages.set(language, (languages.get(language) ?? 0) + rows);
    if (Number(group.near) === 1) sum.near_duplicates += rows;
    if (Number(group.generated) === 1) sum.generated += rows;
    sum.characters.total += Number(group.total);
    least = Math.min(least, Number(group.least));
    sum.characters.most = Math.max(sum.characters.most, Number(group.most));
  }
  if (sum.rows > 0) {
    sum.characters.least = least;
    sum.characters.mean = Math.round(sum.characters.total / sum.rows);
  }
  sum.languages = Object.fromEntries([...languages].sort((a, b) => b[1] - a[1]).slice(0, LANGUAGES_MAX));
  return sum;
}
