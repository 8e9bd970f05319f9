/**
 * Rows into the database and out of it again, some hundred in one transaction: while it lasts nobody else can write. A row is stored with all
 * that belongs to it (full text, bands, signature) or not at all, but for the moment between two transactions; what a crash leaves there is
 * removed with the rest of its contribution.
 */
import type { Client, InStatement, InValue } from '@libsql/client';
import type { ContributionRow, RowReason } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import { removeBands, type Signed } from '../erasures/bands.ts';
import { Pieces } from '../pieces.ts';
import type { Likeness } from './near-duplicates.ts';
import type { Context, Prepared } from './prepare.ts';

/** The word that a Datanet's rows have in common in the full text. */
export function netWord(datanetSeq: number): string {
  return `dn${datanetSeq}`;
}

/** Hashes that are in the Datanet already, whatever became of their rows: who came first keeps the credit. */
export async function knownHashes(client: Client, datanetId: string, hashes: string[]): Promise<Set<string>> {
  const { rows } = await client.execute({
    sql: 'SELECT content_hash FROM datanet_rows WHERE datanet_id = ? AND content_hash IN (SELECT value FROM json_each(?))',
    args: [datanetId, JSON.stringify(hashes)],
  });
  return new Set(rows.map((row) => String(row.content_hash)));
}

const COLUMNS = `datanet_id, contribution_id, contributor, content, size, content_hash, generated_by, score, reasons, language,
  near_duplicate_of, state, entry, leaf_hash, created_at`;
const TUPLE = `(${COLUMNS.split(',')
  .map(() => '?')
  .join(', ')})`;

/** @returns the row numbers of those that were stored; null: another contribution was faster with the same content. */
export async function storeRows(
  client: Client,
  context: Context,
  batch: readonly Prepared[],
  alike: readonly (Likeness | null)[],
): Promise<(number | null)[]> {
  if (batch.length === 0) return [];
  const { datanet, contribution, generatedBy } = context;
  const args: InValue[] = [];
  batch.forEach((row, index) => {
    const likeness = alike[index] ?? null;
    const { score, reasons } = judged(row, likeness);
    args.push(datanet.id, contribution.id, contribution.contributor, row.content, row.content.length, row.hash);
    args.push(generatedBy, score, JSON.stringify(reasons), row.language, likeness?.seq ?? null, 'pending');
    args.push(row.entry, row.leafHash, contribution.createdAt);
  });
  const inserted = await client.execute({
    sql: `INSERT INTO datanet_rows (${COLUMNS}) VALUES ${batch.map(() => TUPLE).join(', ')}
      ON CONFLICT (datanet_id, content_hash) DO NOTHING RETURNING seq, content_hash`,
    args,
  });
  const seqs = new Map(inserted.rows.map((row) => [String(row.content_hash), Number(row.seq)]));
  const numbers = batch.map((row) => seqs.get(row.hash) ?? null);
  await client.batch(belongings(datanet.seq, batch, alike, numbers), 'write');
  return numbers;
}

function judged(row: Prepared, likeness: Likeness | null): { score: number; reasons: RowReason[] } {
  if (likeness === null) return row;
  const points = Math.min(row.score, limits.nearDuplicatePoints);
  const percent = Math.round(likeness.similarity * 100);
  const message = `It is nearly the same as another row of this Datanet (about ${percent} % alike).`;
  return { score: row.score - points, reasons: [...row.reasons, { rule: 'near_duplicate', points, message }] };
}

function belongings(
  datanetSeq: number,
  batch: readonly Prepared[],
  alike: readonly (Likeness | null)[],
  numbers: readonly (number | null)[],
): InStatement[] {
  const net = netWord(datanetSeq);
  const texts: InValue[] = [];
  const signatures: InValue[] = [];
  const repeats: [number, number][] = [];
  batch.forEach((row, index) => {
    const seq = numbers[index] ?? null;
    if (seq === null) return;
    texts.push(seq, net, row.words);
    signatures.push(seq, row.signature);
    const original = alike[index]?.index;
    const repeated = original == null ? null : (numbers[original] ?? null);
    if (repeated !== null) repeats.push([seq, repeated]);
  });
  if (signatures.length === 0) return [];
  const rows = signatures.length / 2;
  const tuples = (tuple: string) => Array.from({ length: rows }, () => tuple).join(', ');
  const statements: InStatement[] = [
    { sql: `INSERT INTO datanet_rows_text (rowid, net, body) VALUES ${tuples('(?, ?, ?)')}`, args: texts },
    { sql: `INSERT INTO datanet_signatures (row, signature) VALUES ${tuples('(?, ?)')}`, args: signatures },
  ];
  if (repeats.length > 0)
    statements.push({
      sql: `UPDATE datanet_rows SET near_duplicate_of = j.value ->> 1 FROM json_each(?) j WHERE seq = j.value ->> 0`,
      args: [JSON.stringify(repeats)],
    });
  return statements;
}

/** @returns false if the contribution is not being read any more: somebody took it back. */
export async function tellProgress(
  client: Client,
  contributionId: string,
  told: { rows: number; refused: number; progress: NonNullable<ContributionRow['progress']> },
): Promise<boolean> {
  const { rowsAffected } = await client.execute({
    sql: `UPDATE contributions SET rows = ?, refused = ?, progress = ? WHERE id = ? AND state = 'processing'
      AND coalesce(progress ->> 'unit', '') <> 'removal'`,
    args: [told.rows, told.refused, JSON.stringify(told.progress), contributionId],
  });
  return rowsAffected > 0;
}

/** Takes out all rows of a contribution that are in no version, with all that belongs to them; a version that comes in between keeps its rows. */
export async function removeRows(client: Client, contributionId: string, datanetSeq: number): Promise<void> {
  while (await removeSome(client, contributionId, datanetSeq));
}

/** @returns whether there was something to remove. */
async function removeSome(client: Client, contributionId: string, datanetSeq: number): Promise<boolean> {
  const seqs: number[] = [];
  const signed: Signed[] = [];
  const pieces = new Pieces(limits.versionRowsAtOnce);
  for (let done = false; !done; ) {
    await pieces.next(async (most) => {
      const { rows } = await client.execute({
        sql: `SELECT r.seq AS seq, s.signature AS signature FROM datanet_rows r LEFT JOIN datanet_signatures s ON s.row = r.seq
          WHERE r.contribution_id = ? AND r.seq > ? AND r.added_in IS NULL ORDER BY r.seq LIMIT ?`,
        args: [contributionId, seqs.at(-1) ?? 0, most],
      });
      for (const row of rows) {
        const seq = Number(row.seq);
        seqs.push(seq);
        if (row.signature !== null) signed.push({ seq, signature: new Uint8Array(row.signature as ArrayBuffer) });
      }
      done = rows.length < most || seqs.length >= limits.eraseRowsAtOnce;
    });
  }
  if (seqs.length === 0) return false;
  await removeBands(client, datanetSeq, signed, 'r.added_in IS NULL');
  const listed = `seq IN (SELECT value FROM json_each(?)) AND added_in IS NULL`;
  const found = `(SELECT seq FROM datanet_rows WHERE ${listed})`;
  await pieces.over(seqs, (piece) => {
    const args = [JSON.stringify(piece)];
    return client.batch(
      [
        { sql: `DELETE FROM datanet_rows_text WHERE rowid IN ${found}`, args },
        { sql: `DELETE FROM datanet_signatures WHERE row IN ${found}`, args },
        { sql: `DELETE FROM datanet_rows WHERE ${listed}`, args },
      ],
      'write',
    );
  });
  return true;
}
