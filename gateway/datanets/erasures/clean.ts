/**
 * Cleans the database of what was erased. The full-text index only marks rows that are taken out (it does not know their words any more); their
 * words leave it when its segments are merged into new ones (sqlite.org/fts5.html, sections 6.7 and 6.8). What was deleted is overwritten
 * (`secure_delete`), and at the end the log of the database is written back and cut to nothing, for it holds pages as they were before.
 */
import type { Client } from '@libsql/client';
import { limits } from '../../limits.ts';
import { Pieces } from '../pieces.ts';

export async function cleanWords(client: Client): Promise<void> {
  for (const table of ['datanet_rows_text', 'datanets_text']) await mergeAll(client, table);
}

/** All segments into one, some pages at a time; what comes in meanwhile holds nothing that was erased. */
async function mergeAll(client: Client, table: string): Promise<void> {
  const merge = async (pages: number) => {
    const [before, , after] = await client.batch(
      [
        'SELECT total_changes() AS changes',
        { sql: `INSERT INTO ${table} (${table}, rank) VALUES ('merge', ?)`, args: [pages] },
        'SELECT total_changes() AS changes',
      ],
      'write',
    );
    return Number(after?.rows[0]?.changes) - Number(before?.rows[0]?.changes);
  };
  const pieces = new Pieces(limits.mergePagesAtOnce, { first: limits.mergePagesFirst, least: 4 });
  // Below zero: all segments come onto one level first, also where there is but one.
  for (let first = true, done = false; !done; first = false) {
    await pieces.next(async (pages) => {
      // One change is that of the command itself.
      done = (await merge(first ? -pages : pages)) < 2 && !first;
    });
  }
}

/** @returns whether the log is empty now: it is not while somebody reads from it. */
export async function truncateLog(client: Client): Promise<boolean> {
  const { rows } = await client.execute('PRAGMA wal_checkpoint(TRUNCATE)');
  return Number(rows[0]?.busy ?? 0) === 0;
}
