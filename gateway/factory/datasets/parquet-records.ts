/** Records of a .parquet file, some rows at a time. The library trusts sizes that a file states, so those are looked at first. */
import { type FileMetaData, parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { limits } from '../../limits.ts';
import type { ByteSource, RawRecord } from './source.ts';

/** Parquet's integers may be bigint, its dates Date, its bytes Uint8Array; JSON knows none of them. */
function plain(value: unknown, depthLeft: number): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (typeof value !== 'object' || value === null) return value;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? null : value.toISOString();
  if (depthLeft === 0) return null;
  if (ArrayBuffer.isView(value)) return null;
  if (Array.isArray(value)) return value.map((child) => plain(child, depthLeft - 1));
  return Object.fromEntries(Object.entries(value).map(([name, child]) => [name, plain(child, depthLeft - 1)]));
}

function refusalOf(metadata: FileMetaData): string | null {
  if (metadata.num_rows > BigInt(limits.datasetExamplesMax))
    return `The file has ${metadata.num_rows} rows; at most ${limits.datasetExamplesMax} are taken.`;
  for (const group of metadata.row_groups) {
    const decoded = group.columns.reduce((sum, column) => sum + (column.meta_data?.total_uncompressed_size ?? 0n), 0n);
    if (decoded > BigInt(limits.parquetGroupBytesMax) || decoded < 0n)
      return `A row group of the file is ${decoded} bytes large; write it again with row groups of at most ${limits.parquetGroupBytesMax} bytes.`;
  }
  return null;
}

export async function* parquetRecords(source: ByteSource): AsyncGenerator<RawRecord[]> {
  const file = {
    byteLength: source.bytes,
    slice: (start: number, end?: number) => source.slice(start, end ?? source.bytes),
  };
  let row = 0;
  try {
    if (source.bytes < 12) throw new Error('too short');
    const metadata = await parquetMetadataAsync(file);
    const refusal = refusalOf(metadata);
    if (refusal !== null) {
      yield [{ line: 1, rule: 'too_large', message: refusal }];
      return;
    }
    const rows = Number(metadata.num_rows);
    while (row < rows) {
      const rowEnd = Math.min(rows, row + limits.parquetRowsAtOnce);
      const objects = await parquetReadObjects({ file, metadata, compressors, rowStart: row, rowEnd });
      if (objects.length === 0) throw new Error('rows are missing');
      const first = row;
      row += objects.length;
      yield objects.map((value, index) => ({
        line: first + index + 1,
        value: plain(value, limits.datasetDepthMax),
      }));
    }
  } catch {
    yield [
      {
        line: row + 1,
        rule: 'unreadable',
        message:
          row === 0
            ? 'The file cannot be read as Parquet; it is damaged, encrypted or something else.'
            : `Parquet rows after row ${row} cannot be read; the file is damaged.`,
      },
    ];
  }
}
