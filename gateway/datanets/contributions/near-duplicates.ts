/** Which rows nearly repeat one that is there: rows that share a band are compared, the newest few of each band. */
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

/** For each row of the batch, what it is most like; null: nothing that is like enough. */
export async function likenesses(client: Client, batch: readonly Prepared[]): Promise<(Likeness | null)[]> {
  const bands = [...new Set(batch.flatMap((row) => row.bands))];
  const found = await client.execute({
    sql: CANDIDATES,
    args: [JSON.stringify(bands), limits.nearDuplicateCandidatesMax],
  });
  const stored = new Map<number, number[]>();
  for (const row of found.rows) stored.set(Number(row.band), String(row.candidates).split(',').map(Number));
  const signatures = await signaturesOf(client, [...new Set([...stored.values()].flat())]);
  // Earlier rows of this batch, by band, newest last.
  const earlier = new Map<number, number[]>();
  return batch.map((row, index) => {
    let best: Likeness | null = null;
    const compare = (signature: Uint8Array | undefined, at: { seq: number | null; index: number | null }) => {
      if (signature === undefined) return;
      const similarity = similarityOf(row.signature, signature);
      if (similarity >= NEAR_DUPLICATE && (best === null || similarity > best.similarity)) best = { ...at, similarity };
    };
    const seen = new Set<number>();
    for (const band of row.bands) {
      for (const seq of stored.get(band) ?? []) {
        if (seen.has(seq)) continue;
        seen.add(seq);
        compare(signatures.get(seq), { seq, index: null });
      }
      const here = earlier.get(band);
      if (here === undefined) earlier.set(band, [index]);
      else {
        for (const other of here.slice(-limits.nearDuplicateCandidatesMax)) {
          if (seen.has(-1 - other)) continue;
          seen.add(-1 - other);
          compare((batch[other] as Prepared).signature, { seq: null, index: other });
        }
        here.push(index);
      }
    }
    return best;
  });
}

async function signaturesOf(client: Client, seqs: number[]): Promise<Map<number, Uint8Array>> {
  if (seqs.length === 0) return new Map();
  const { rows } = await client.execute({
    sql: 'SELECT row, signature FROM datanet_signatures WHERE row IN (SELECT value FROM json_each(?))',
    args: [JSON.stringify(seqs)],
  });
  return new Map(rows.map((row) => [Number(row.row), new Uint8Array(row.signature as ArrayBuffer)]));
}
