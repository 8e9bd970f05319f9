/**
 * Which rows nearly repeat one that is there: rows that share a band are compared, the newest few of each band.
 *
 * Bands lie all over their index: to write those of a few hundred rows touches nearly every page of it, again and again. So they are kept here
 * until there are many, and then go in sorted order, a range of the index in each transaction.
 */
import type { Client } from '@libsql/client';
import { limits } from '../../limits.ts';
import { NEAR_DUPLICATE, similarityOf } from '../validation/minhash.ts';
import type { Prepared } from './prepare.ts';

/** The row that is repeated: one that is stored (`seq`), or an earlier one of the same batch (`index`). */
export interface Likeness {
  seq: number | null;
  index: number | null;
  /** 0 to 1. */
  similarity: number;
}

const CANDIDATES = `SELECT j.value AS band,
    (SELECT group_concat(row) FROM (SELECT row FROM datanet_bands WHERE band = j.value ORDER BY row DESC LIMIT ?2)) AS candidates
  FROM json_each(?1) j WHERE EXISTS (SELECT 1 FROM datanet_bands WHERE band = j.value)`;

/** Of one contribution that is being read; nothing else may be read into its Datanet meanwhile. */
export class Neighbours {
  readonly #client: Client;
  /** Of rows whose bands are not written yet. */
  readonly #signatures = new Map<number, Uint8Array>();
  /** Rows by band, newest last, no more than are compared. */
  readonly #bands = new Map<number, number[]>();
  #waiting: [band: number, row: number][] = [];

  constructor(client: Client) {
    this.#client = client;
  }

  /** For each row of the batch, what it is most like; null: nothing that is like enough. */
  async of(batch: readonly Prepared[]): Promise<(Likeness | null)[]> {
    if (batch.length === 0) return [];
    const stored = await this.#stored([...new Set(batch.flatMap((row) => row.bands))]);
    // Earlier rows of this batch, by band, newest last.
    const earlier = new Map<number, number[]>();
    return batch.map((row, index) => {
      let best: Likeness | null = null;
      const compare = (signature: Uint8Array | undefined, at: { seq: number | null; index: number | null }) => {
        if (signature === undefined) return;
        const similarity = similarityOf(row.signature, signature);
        if (similarity >= NEAR_DUPLICATE && (best === null || similarity > best.similarity))
          best = { ...at, similarity };
      };
      const seen = new Set<number>();
      const others = new Set<number>();
      for (const band of row.bands) {
        for (const { seq, signature } of stored.get(band) ?? []) {
          if (seen.has(seq)) continue;
          seen.add(seq);
          compare(signature, { seq, index: null });
        }
        const here = earlier.get(band);
        if (here === undefined) earlier.set(band, [index]);
        else {
          for (const other of here.slice(-limits.nearDuplicateCandidatesMax)) {
            if (others.has(other)) continue;
            others.add(other);
            compare(batch[other]?.signature, { seq: null, index: other });
          }
          here.push(index);
        }
      }
      return best;
    });
  }

  /** The batch is stored, under these numbers. */
  async add(batch: readonly Prepared[], numbers: readonly (number | null)[]): Promise<void> {
    batch.forEach((row, index) => {
      const seq = numbers[index] ?? null;
      if (seq === null) return;
      this.#signatures.set(seq, row.signature);
      for (const band of row.bands) {
        this.#waiting.push([band, seq]);
        const rows = this.#bands.get(band);
        if (rows === undefined) this.#bands.set(band, [seq]);
        else {
          rows.push(seq);
          if (rows.length > limits.nearDuplicateCandidatesMax) rows.shift();
        }
      }
    });
    if (this.#signatures.size >= limits.bandRowsKept) await this.flush();
  }

  async flush(): Promise<void> {
    const bands = this.#waiting.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    for (let at = 0; at < bands.length; at += limits.bandsAtOnce) {
      await this.#client.execute({
        sql: 'INSERT OR IGNORE INTO datanet_bands (band, row) SELECT value ->> 0, value ->> 1 FROM json_each(?)',
        args: [JSON.stringify(bands.slice(at, at + limits.bandsAtOnce))],
      });
      // Others want to write too.
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#waiting = [];
    this.#signatures.clear();
    this.#bands.clear();
  }

  async #stored(bands: readonly number[]): Promise<Map<number, { seq: number; signature: Uint8Array }[]>> {
    const found = await this.#client.execute({
      sql: CANDIDATES,
      args: [JSON.stringify(bands), limits.nearDuplicateCandidatesMax],
    });
    const rows = new Map<number, number[]>();
    for (const row of found.rows) rows.set(Number(row.band), String(row.candidates).split(',').map(Number));
    const signatures = await this.#signaturesOf([...new Set([...rows.values()].flat())]);
    for (const band of bands) {
      const kept = this.#bands.get(band);
      if (kept !== undefined)
        rows.set(band, [...kept, ...(rows.get(band) ?? [])].slice(0, limits.nearDuplicateCandidatesMax));
    }
    const stored = new Map<number, { seq: number; signature: Uint8Array }[]>();
    for (const [band, seqs] of rows) {
      const list = seqs.flatMap((seq) => {
        const signature = this.#signatures.get(seq) ?? signatures.get(seq);
        return signature === undefined ? [] : [{ seq, signature }];
      });
      stored.set(band, list);
    }
    return stored;
  }

  async #signaturesOf(seqs: number[]): Promise<Map<number, Uint8Array>> {
    if (seqs.length === 0) return new Map();
    const { rows } = await this.#client.execute({
      sql: 'SELECT row, signature FROM datanet_signatures WHERE row IN (SELECT value FROM json_each(?))',
      args: [JSON.stringify(seqs)],
    });
    return new Map(rows.map((row) => [Number(row.row), new Uint8Array(row.signature as ArrayBuffer)]));
  }
}
