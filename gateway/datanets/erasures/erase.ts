/** Takes the contents of withdrawn rows away for good: the text itself, its place in the search, and what duplicates are found by. */
import type { Client, InStatement } from '@libsql/client';
import { limits } from '../../limits.ts';
import { Pieces } from '../pieces.ts';
import { removeBands, type Signed } from './bands.ts';

/**
 * What stays is the leaf: a hash, whose, when. Rows that are not withdrawn are left alone. May be done twice. The database overwrites what it
 * deletes; what the full-text index still holds of it goes with the cleaning that ASK_CLEANING asks for.
 * @param net number (`seq`) of the Datanet.
 */
export async function eraseContents(client: Client, net: number, seqs: readonly number[]): Promise<void> {
  for (let at = 0; at < seqs.length; at += limits.eraseRowsAtOnce)
    await erase(client, net, seqs.slice(at, at + limits.eraseRowsAtOnce));
}

async function erase(client: Client, net: number, seqs: readonly number[]): Promise<void> {
  const signed: Signed[] = [];
  await new Pieces(limits.versionRowsAtOnce).over(seqs, async (piece) => {
    const { rows } = await client.execute({
      sql: 'SELECT row, signature FROM datanet_signatures WHERE row IN (SELECT value FROM json_each(?))',
      args: [JSON.stringify(piece)],
    });
    for (const row of rows)
      signed.push({ seq: Number(row.row), signature: new Uint8Array(row.signature as ArrayBuffer) });
  });
  await removeBands(client, net, signed, "r.state = 'withdrawn'");
  const withdrawn = `(SELECT r.seq FROM json_each(?) j JOIN datanet_rows r ON r.seq = j.value WHERE r.state = 'withdrawn')`;
  await new Pieces(limits.versionRowsAtOnce).over(seqs, (piece) => {
    const rows = JSON.stringify(piece);
    const statements: InStatement[] = [
      { sql: `DELETE FROM datanet_signatures WHERE row IN ${withdrawn}`, args: [rows] },
      { sql: `DELETE FROM datanet_rows_text WHERE rowid IN ${withdrawn}`, args: [rows] },
      // What was found fault with may quote the text.
      {
        sql: `UPDATE datanet_rows SET content = NULL, reasons = '[]' WHERE content IS NOT NULL AND seq IN ${withdrawn}`,
        args: [rows],
      },
    ];
    return client.batch(statements, 'write');
  });
}

/** Words that were taken out are still in the segments of the full-text index, marked, until it is cleaned (clean.ts). */
export const ASK_CLEANING =
  'INSERT INTO erasures (id, asked, done) VALUES (1, 1, 0) ON CONFLICT (id) DO UPDATE SET asked = asked + 1';
