/**
 * Takes rows out of the index that near duplicates are found by. Bands lie all over it: row by row, every deletion would touch pages of its own.
 * So those of many rows are sorted and go a range of the index at a time.
 */
import type { Client } from '@libsql/client';
import { limits } from '../../limits.ts';
import { Pieces } from '../pieces.ts';
import { bandsOf } from '../validation/minhash.ts';

export interface Signed {
  seq: number;
  signature: Uint8Array;
}

/**
 * @param net number (`seq`) of the Datanet, which the bands are made with.
 * @param only condition on `datanet_rows r`: others keep their bands.
 */
export async function removeBands(client: Client, net: number, rows: readonly Signed[], only: string): Promise<void> {
  const bands: [band: number, row: number][] = [];
  for (const { seq, signature } of rows) for (const band of bandsOf(signature, net)) bands.push([band, seq]);
  bands.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  await new Pieces(limits.bandsAtOnce).over(bands, (piece) =>
    client.execute({
      sql: `DELETE FROM datanet_bands WHERE (band, row) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))
        AND EXISTS (SELECT 1 FROM datanet_rows r WHERE r.seq = datanet_bands.row AND ${only})`,
      args: [JSON.stringify(piece)],
    }),
  );
}
