/** An uploaded file as a data set. */
import type { FileRow } from '../../db/schema.ts';
import type { FileStorage } from '../files/storage.ts';
import type { DatasetFile } from './dataset.ts';
import type { Columns, Format } from './formats.ts';
import { containerOf } from './source.ts';

export function datasetOf(
  storage: FileStorage,
  row: FileRow,
  override: { format?: Format | undefined; columns?: Columns | undefined } = {},
): DatasetFile {
  return {
    source: storage.source(row.id, row.bytes),
    container: containerOf(row.filename) ?? 'jsonl',
    format: override.format ?? (row.format as Format | null),
    columns: override.columns ?? row.columns,
  };
}
