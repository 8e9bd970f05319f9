/** What a contribution holds, as examples in order: records of a data file, or chunks of a document. */
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { ContributionOptions, ContributionProblem } from '../../db/datanet-schema.ts';
import { csvRecords } from '../../factory/datasets/csv-records.ts';
import { type DatasetFile, read } from '../../factory/datasets/dataset.ts';
import type { Columns, Format } from '../../factory/datasets/formats.ts';
import { jsonDocument } from '../../factory/datasets/json-records.ts';
import { parquetRecords } from '../../factory/datasets/parquet-records.ts';
import { Problems } from '../../factory/datasets/problems.ts';
import { type ByteSource, type Container, containerOf, type RawRecord } from '../../factory/datasets/source.ts';
import { diskSource } from '../../factory/files/storage.ts';
import { limits } from '../../limits.ts';
import { type Chunk, DocumentError, documentKindOf, readDocument } from '../documents/read.ts';
import { checkStop, type FileSource, IngestFailure } from './messages.ts';

export interface Numbered {
  /** Line, element, row or chunk, from 1. */
  line: number;
  example: TrainingExample;
}

/** Tells how far it is, and collects what is wrong. */
export interface Reading {
  /** Records that were none. */
  bad(): number;
  /** What was wrong with them, at most a hundred. */
  problems(): ContributionProblem[];
  done(): number;
  total: number | null;
  unit: string;
  batches: AsyncGenerator<Numbered[]>;
}

export const CHUNK_CHARACTERS = 1200;

export function tooManyRows(): IngestFailure {
  const message = `The contribution has more than ${limits.contributionRowsMax} rows, the most that one may have. Split it. Nothing of it was kept.`;
  return new IngestFailure('too_many_rows', message);
}

/** @throws IngestFailure when it is neither data nor a document. */
export async function openRecords(
  source: FileSource,
  options: ContributionOptions,
  signal: AbortSignal,
): Promise<Reading> {
  const container = containerOf(source.filename);
  if (container !== null) return dataReading(source, container, options, signal);
  if (documentKindOf(source.filename) !== null) return documentReading(source, options, signal);
  throw new IngestFailure(
    'invalid_file_format',
    `"${source.filename}" is neither data nor a document that can be read.`,
  );
}

async function dataReading(
  file: FileSource,
  container: Container,
  options: ContributionOptions,
  signal: AbortSignal,
): Promise<Reading> {
  const disk = diskSource(file.path, file.bytes);
  if (await hasTooMany(disk, container, signal)) throw tooManyRows();
  let bytes = 0;
  const counted: ByteSource = {
    ...disk,
    async *stream() {
      for await (const chunk of disk.stream()) {
        bytes += chunk.byteLength;
        yield chunk;
      }
    },
  };
  const dataset: DatasetFile = {
    source: counted,
    container,
    format: (options.format as Format | undefined) ?? null,
    columns: (options.columns as Columns | undefined) ?? null,
  };
  const reading = { format: null, problems: new Problems(), bad: 0 };
  let rows = 0;
  return {
    bad: () => reading.bad,
    problems: () =>
      reading.problems
        .list()
        .filter(({ severity }) => severity === 'error')
        .map(({ line, field, rule, message }) => ({ line, field, rule, message })),
    done: () => (container === 'parquet' ? rows : bytes),
    total: container === 'parquet' ? null : file.bytes,
    unit: container === 'parquet' ? 'rows' : 'bytes',
    batches: (async function* () {
      for await (const batch of read(dataset, reading)) {
        rows += batch.length;
        if (rows + reading.bad > limits.contributionRowsMax) throw tooManyRows();
        yield batch;
      }
      // Records that were all bad came in no batch.
      if (rows + reading.bad > limits.contributionRowsMax) throw tooManyRows();
    })(),
  };
}

const LF = 0x0a;
const BRACE = 0x7b;

/**
 * Whether there are more records than one contribution may have, before a row is stored. Line feeds (or braces, of a JSON array) are a bound
 * that costs next to nothing; only where it is passed are records counted.
 */
async function hasTooMany(source: ByteSource, container: Container, signal: AbortSignal): Promise<boolean> {
  const most = limits.contributionRowsMax;
  if (container !== 'parquet') {
    const mark = container === 'json' ? BRACE : LF;
    let marks = 0;
    let blank = 0;
    let begun = false;
    for await (const chunk of source.stream()) {
      checkStop(signal);
      for (let at = chunk.indexOf(mark); at !== -1; at = chunk.indexOf(mark, at + 1)) {
        marks += 1;
        // Empty lines are no records.
        if (at > 0 ? chunk[at - 1] === LF : begun) blank += 1;
      }
      begun = chunk[chunk.byteLength - 1] === LF;
    }
    if (marks <= most) return false;
    if (container === 'jsonl') return marks - blank > most;
  }
  let records = 0;
  for await (const batch of rawRecords(source, container)) {
    checkStop(signal);
    records += batch.length;
    if (records > most) return true;
  }
  return false;
}

function rawRecords(source: ByteSource, container: Container): AsyncGenerator<RawRecord[]> {
  if (container === 'parquet') return parquetRecords(source);
  return container === 'csv' || container === 'tsv' ? csvRecords(source, container) : jsonDocument(source);
}

function documentReading(file: FileSource, options: ContributionOptions, signal: AbortSignal): Reading {
  let chunks = 0;
  return {
    bad: () => 0,
    problems: () => [],
    done: () => chunks,
    total: null,
    unit: 'chunks',
    batches: (async function* () {
      const read = chunksOf(
        file.path,
        file.filename,
        options.chunkCharacters ?? null,
        limits.documentChunksMax,
        signal,
      );
      for await (const { text } of read) {
        chunks += 1;
        yield [{ line: chunks, example: { kind: 'completion', prompt: '', completion: text } }];
      }
    })(),
  };
}

/** @throws IngestFailure when the document cannot be read, or has more chunks than are taken. */
export async function* chunksOf(
  path: string,
  filename: string,
  chunkCharacters: number | null,
  chunksMax: number,
  signal: AbortSignal,
): AsyncGenerator<Chunk> {
  const kind = documentKindOf(filename);
  if (kind === null) throw new IngestFailure('invalid_file_format', `"${filename}" is no document that can be read.`);
  let chunks = 0;
  try {
    const options = { chunkCharacters: chunkCharacters ?? CHUNK_CHARACTERS, signal };
    for await (const chunk of readDocument(path, kind, options)) {
      checkStop(signal);
      chunks += 1;
      if (chunks > chunksMax) {
        const message = `The document has more than ${chunksMax} parts, the most that are taken. Split it. Nothing of it was kept.`;
        throw new IngestFailure('too_many_chunks', message);
      }
      yield chunk;
    }
  } catch (error) {
    checkStop(signal);
    if (error instanceof DocumentError) throw new IngestFailure(`document_${error.code}`, error.message);
    throw error;
  }
}
