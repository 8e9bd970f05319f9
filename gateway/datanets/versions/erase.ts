/** Takes the contents of withdrawn rows away for good: the text itself, its place in the search, and what duplicates are found by. */
import type { Client, InStatement } from '@libsql/client';
import { limits } from '../../limits.ts';
import { bandsOf } from '../validation/minhash.ts';

/**
 * What stays is the leaf: a hash, whose, when. Rows that are not withdrawn are left alone. May be done twice.
 * @param net number (`seq`) of the Datanet, which the bands are made with.
 */
export async function eraseContents(client: Client, net: number, seqs: readonly number[]): Promise<void> {
  for (let at = 0; at < seqs.length; at += limits.eraseRowsAtOnce) {
    const rows = JSON.stringify(seqs.slice(at, at + limits.eraseRowsAtOnce));
    const signatures = await client.execute({
      sql: `SELECT s.row, s.signature FROM json_each(?) j JOIN datanet_signatures s ON s.row = j.value
        JOIN datanet_rows r ON r.seq = s.row WHERE r.state = 'withdrawn'`,
      args: [rows],
    });
    const bands = signatures.rows.flatMap((row) =>
      bandsOf(new Uint8Array(row.signature as ArrayBuffer), net).map((band) => [band, Number(row.row)]),
    );
    const withdrawn = `(SELECT r.seq FROM json_each(?) j JOIN datanet_rows r ON r.seq = j.value WHERE r.state = 'withdrawn')`;
    const statements: InStatement[] = [
      {
        sql: `DELETE FROM datanet_bands WHERE (band, row) IN
          (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))`,
        args: [JSON.stringify(bands)],
      },
      { sql: `DELETE FROM datanet_signatures WHERE row IN ${withdrawn}`, args: [rows] },
      { sql: `DELETE FROM datanet_rows_text WHERE rowid IN ${withdrawn}`, args: [rows] },
      // What was found fault with may quote the text.
      {
        sql: `UPDATE datanet_rows SET content = NULL, reasons = '[]' WHERE content IS NOT NULL AND seq IN ${withdrawn}`,
        args: [rows],
      },
    ];
    await client.batch(statements, 'write');
    await pause();
  }
}

/** Lets others have the thread between two portions: a local database answers without ever giving it up. */
export function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
