/** What a data set is read from: bytes in order, or a window of them. Made by the file store; a test makes one of a string. */
export interface ByteSource {
  bytes: number;
  stream(): AsyncIterable<Uint8Array>;
  slice(start: number, end: number): Promise<ArrayBuffer>;
}

export function sourceOf(bytes: Uint8Array, chunkBytes: number = 64 * 1024): ByteSource {
  return {
    bytes: bytes.byteLength,
    async *stream() {
      for (let at = 0; at < bytes.byteLength; at += chunkBytes) yield bytes.subarray(at, at + chunkBytes);
    },
    async slice(start, end) {
      return new Uint8Array(bytes.subarray(start, end)).buffer;
    },
  };
}

/** One record of a file, or why it is none. `line` counts from 1: a line of text, an element of a JSON array, a row of a Parquet file. */
export type RawRecord = { line: number; value: unknown } | { line: number; rule: string; message: string };

/** How the records lie in the file, and what `line` numbers. */
export const CONTAINERS = ['jsonl', 'json', 'csv', 'tsv', 'parquet'] as const;
export type Container = (typeof CONTAINERS)[number];

export function containerOf(filename: string): Container | null {
  const extension = /\.([A-Za-z0-9]+)$/.exec(filename)?.[1]?.toLowerCase();
  if (extension === 'ndjson') return 'jsonl';
  return CONTAINERS.find((container) => container === extension) ?? null;
}
