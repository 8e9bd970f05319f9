/**
 * Decodes one Parquet file in a thread of its own: the library believes what a file says of its sizes, so a damaged or malicious one can
 * loop or eat memory. Whoever started the thread ends it when it takes too long. It asks for bytes and is asked for rows by message.
 */
import { parentPort } from 'node:worker_threads';
import { type FileMetaData, parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { limits } from '../../limits.ts';

/** To the thread: bytes it asked for, or a request for the next rows (the first tells the file's size). */
export type ToParquet =
  | { type: 'open'; bytes: number }
  | { type: 'next' }
  | { type: 'bytes'; ask: number; buffer: ArrayBuffer | null };
export type FromParquet =
  | { type: 'ask'; ask: number; start: number; end: number }
  | { type: 'rows'; rows: unknown[] }
  | { type: 'end' }
  | { type: 'refused'; rule: string; message: string };

/** Parquet's integers may be bigint, its dates Date, its bytes Uint8Array; JSON knows none of them. */
function plain(value: unknown, depthLeft: number): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (typeof value !== 'object' || value === null) return value;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? null : value.toISOString();
  if (depthLeft === 0 || ArrayBuffer.isView(value)) return null;
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

const port = parentPort;
if (port === null) throw new Error('parquet-worker.ts runs as a worker thread');
const say = (message: FromParquet) => port.postMessage(message);
const asked = new Map<number, { resolve: (buffer: ArrayBuffer) => void; reject: (error: Error) => void }>();
let asks = 0;
let file: { byteLength: number; slice(start: number, end?: number): Promise<ArrayBuffer> };
let metadata: FileMetaData;
let row = 0;

async function next(): Promise<void> {
  if (row >= Number(metadata.num_rows)) return say({ type: 'end' });
  const rowEnd = Math.min(Number(metadata.num_rows), row + limits.parquetRowsAtOnce);
  const objects = await parquetReadObjects({ file, metadata, compressors, rowStart: row, rowEnd });
  if (objects.length === 0) throw new Error('rows are missing');
  row += objects.length;
  say({ type: 'rows', rows: objects.map((object) => plain(object, limits.datasetDepthMax)) });
}

async function open(bytes: number): Promise<void> {
  file = {
    byteLength: bytes,
    slice: (start, end = bytes) =>
      new Promise((resolve, reject) => {
        asks += 1;
        asked.set(asks, { resolve, reject });
        say({ type: 'ask', ask: asks, start, end });
      }),
  };
  metadata = await parquetMetadataAsync(file);
  const refusal = refusalOf(metadata);
  if (refusal !== null) say({ type: 'refused', rule: 'too_large', message: refusal });
  else await next();
}

const unreadable = () => {
  const message =
    row === 0
      ? 'The file cannot be read as Parquet; it is damaged, encrypted or something else.'
      : `Parquet rows after row ${row} cannot be read; the file is damaged.`;
  say({ type: 'refused', rule: 'unreadable', message });
};

port.on('message', (message: ToParquet) => {
  if (message.type === 'open') open(message.bytes).catch(unreadable);
  else if (message.type === 'next') next().catch(unreadable);
  else {
    const waiting = asked.get(message.ask);
    asked.delete(message.ask);
    if (message.buffer === null) waiting?.reject(new Error('no such bytes'));
    else waiting?.resolve(message.buffer);
  }
});
