/**
 * Full-text search over the rows of one Datanet. A word that every row has matches all of them, so the work is bounded: the newest matches are
 * looked at until enough of them may be read by whoever asks, and those are ranked among each other.
 */
import type { Client } from '@libsql/client';
import type { DataRow } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import { mayRead, type Reader } from '../rows/data-rows.ts';
import { textOf } from '../validation/text.ts';
import { matchOf } from './query.ts';
import { bm25, count, indexed, type Snippet, snippetOf, wordsOf } from './words.ts';

export interface Hit {
  seq: number;
  /** Greater is better; only to be compared within one answer. */
  score: number;
  snippet: Snippet;
}

export interface Hits {
  hits: Hit[];
  /** There are more matches than were ranked. */
  bounded: boolean;
}

type Facts = Pick<DataRow, 'seq' | 'contributor' | 'state' | 'addedIn' | 'removedIn'>;

export class Search {
  readonly #client: Client;

  constructor(client: Client) {
    this.#client = client;
  }

  async find(
    datanet: { id: string; seq: number },
    reader: Reader,
    phrases: readonly string[],
    limit: number,
  ): Promise<Hits> {
    const match = matchOf(phrases.map((phrase) => indexed(phrase, datanet.seq)));
    const candidates: number[] = [];
    let after = Number.MAX_SAFE_INTEGER;
    let examined = 0;
    let bounded = false;
    while (candidates.length < limits.searchRankedMax) {
      const rows = await this.#newest(datanet, match, after);
      for (const row of rows) if (mayFind(reader, row)) candidates.push(row.seq);
      examined += rows.length;
      if (rows.length < limits.searchRankedMax) break;
      after = (rows.at(-1) as Facts).seq;
      if (examined >= limits.searchExaminedMax) {
        bounded = true;
        break;
      }
    }
    bounded ||= candidates.length >= limits.searchRankedMax;
    const hits = await this.#ranked(candidates.slice(0, limits.searchRankedMax), wordsOf(phrases), limit);
    return { hits, bounded };
  }

  async #newest(datanet: { id: string; seq: number }, match: string, after: number): Promise<Facts[]> {
    const { rows } = await this.#client.execute({
      sql: `SELECT r.seq AS seq, r.contributor AS contributor, r.state AS state, r.added_in AS added_in, r.removed_in AS removed_in
        FROM (SELECT rowid FROM datanet_rows_text WHERE datanet_rows_text MATCH ?1 AND rowid < ?2 ORDER BY rowid DESC LIMIT ?3) found
        CROSS JOIN datanet_rows r ON r.seq = found.rowid AND r.datanet_id = ?4`,
      args: [`body : (${match})`, after, limits.searchRankedMax, datanet.id],
    });
    return rows.map((row) => ({
      seq: Number(row.seq),
      contributor: String(row.contributor),
      state: row.state as DataRow['state'],
      addedIn: row.added_in === null ? null : Number(row.added_in),
      removedIn: row.removed_in === null ? null : Number(row.removed_in),
    }));
  }

  /** By BM25 among the candidates; those past the most characters that are read for it keep their order, behind the others. */
  async #ranked(seqs: readonly number[], words: ReadonlySet<string>, limit: number): Promise<Hit[]> {
    if (seqs.length === 0) return [];
    const { rows } = await this.#client.execute({
      sql: `SELECT seq, content FROM (SELECT seq, content, sum(size) OVER (ORDER BY seq DESC) AS characters FROM datanet_rows
          WHERE seq IN (SELECT value FROM json_each(?))) WHERE characters - length(content) < ? ORDER BY seq DESC`,
      args: [JSON.stringify(seqs), limits.searchRankedCharactersMax],
    });
    const texts = rows.map((row) => (row.content === null ? '' : textOf(JSON.parse(String(row.content)))));
    const scores = bm25(texts.map((text) => count(text, words)));
    const order = rows.map((_, index) => index).sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
    const hits = order.slice(0, limit).map((index) => ({
      seq: Number(rows[index]?.seq),
      score: scores[index] as number,
      snippet: snippetOf(texts[index] as string, words),
    }));
    return hits;
  }
}

/** Readers search what the newest version holds: a row that was withdrawn stays in the versions of before, but nobody is led to it. */
function mayFind(reader: Reader, row: Facts): boolean {
  if (!mayRead(reader, row)) return false;
  if (reader.governs || row.contributor === reader.userId) return true;
  return row.removedIn === null || row.removedIn > reader.version;
}
