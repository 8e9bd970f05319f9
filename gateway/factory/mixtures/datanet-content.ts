/** The rows of a version as the lines of a file for fine-tuning, in the order of its tree: what could be uploaded to /v1/files again. */
import type { Client } from '@libsql/client';
import { jsonLine } from '../../datanets/exports/records.ts';
import { contentPages } from '../../datanets/versions/version-rows.ts';
import type { DatanetFile } from './datanet-file.ts';

/** Rows that were withdrawn and erased since are not there any more. */
export async function* datanetLines(
  client: Client,
  file: DatanetFile,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  for await (const rows of contentPages(client, file.datanet.id, file.version.number, { signal })) {
    const lines = rows.map((row) => jsonLine(row, { provenance: false })).join('');
    if (lines !== '') yield Buffer.from(lines);
  }
}
