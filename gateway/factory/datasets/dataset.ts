/** A file as a data set: its examples in order, and a report of all that is wrong with it. */
import { canonicalJson } from '../../../daemon/evidence.ts';
import type { TrainingExample } from '../../../daemon/protocol.ts';
import { hash53 } from '../../hash53.ts';
import { limits } from '../../limits.ts';
import { csvRecords } from './csv-records.ts';
import { type Columns, detectFormat, exampleOf, type Format, formatOfColumns, renamed } from './formats.ts';
import { jsonDocument, jsonLines } from './json-records.ts';
import { parquetRecords } from './parquet-records.ts';
import { LineProblems, type Problem, Problems } from './problems.ts';
import type { ByteSource, Container, RawRecord } from './source.ts';

export interface DatasetFile {
  source: ByteSource;
  container: Container;
  /** null: told by the first record. */
  format: Format | null;
  columns: Columns | null;
}

export interface DatasetReport {
  ok: boolean;
  container: Container;
  format: Format | null;
  kind: TrainingExample['kind'] | null;
  bytes: number;
  /** Records that are good. */
  examples: number;
  /** Records that are not. */
  bad: number;
  duplicates: number;
  errors: number;
  warnings: number;
  /** First hundred, errors before warnings. */
  problems: Problem[];
  /** How often each rule was broken. */
  rules: Record<string, number>;
}

export interface Checked {
  report: DatasetReport;
  /** Hashes of the examples, for comparing two files. */
  hashes: Set<number>;
}

function recordsOf(file: DatasetFile): AsyncGenerator<RawRecord[]> {
  switch (file.container) {
    case 'jsonl':
      return jsonLines(file.source);
    case 'json':
      return jsonDocument(file.source);
    case 'csv':
    case 'tsv':
      return csvRecords(file.source, file.container);
    case 'parquet':
      return parquetRecords(file.source);
  }
}

export interface Reading {
  format: Format | null;
  problems: Problems;
  bad: number;
}

/** Examples in the order of the file; what is wrong goes to `reading`. */
export async function* read(
  file: DatasetFile,
  reading: Reading,
): AsyncGenerator<{ line: number; example: TrainingExample }[]> {
  const fixed = file.columns === null ? file.format : formatOfColumns(file.columns, file.format);
  let count = 0;
  for await (const records of recordsOf(file)) {
    const examples: { line: number; example: TrainingExample }[] = [];
    for (const record of records) {
      const at = new LineProblems(reading.problems, record.line);
      const example = 'rule' in record ? refused(record, at) : understood(file, fixed, record.value, reading, at);
      if (example === null) reading.bad += 1;
      else examples.push({ line: record.line, example });
    }
    count += records.length;
    if (examples.length > 0) yield examples;
    if (count > limits.datasetExamplesMax) {
      const message = `The file has more than ${limits.datasetExamplesMax} examples; split it.`;
      reading.problems.add({ line: null, field: null, rule: 'too_many_examples', severity: 'error', message });
      return;
    }
  }
}

function refused(record: { rule: string; message: string }, at: LineProblems): null {
  at.error(null, record.rule, record.message);
  return null;
}

function understood(
  file: DatasetFile,
  fixed: Format | null,
  value: unknown,
  reading: Reading,
  at: LineProblems,
): TrainingExample | null {
  const given = value as Record<string, unknown>;
  if (file.columns !== null) {
    const missing = Object.values(file.columns).find((name) => name !== undefined && !(name in given));
    if (missing !== undefined) {
      const there = Object.keys(given).slice(0, 12).join(', ').slice(0, 200);
      at.error(missing, 'missing_column', `There is no column \`${missing}\`; there are: ${there}.`);
      return null;
    }
  }
  const row = file.columns === null ? given : renamed(given, file.columns, fixed);
  const format = fixed ?? detectFormat(row);
  if (format === null) {
    const keys = Object.keys(given).slice(0, 12).join(', ').slice(0, 200);
    const advice =
      'Use messages (chat), prompt and completion, or input, preferred_output and non_preferred_output; or say which columns hold what.';
    at.error(
      null,
      'unknown_format',
      `Could not tell the format of an example with the fields: ${keys || '(none)'}. ${advice}`,
    );
    return null;
  }
  if (reading.format === null) reading.format = format;
  else if (reading.format !== format) {
    const message = `All examples must have the same format: this one is ${format}, the first one is ${reading.format}.`;
    at.error(null, 'mixed_formats', message);
    return null;
  }
  return exampleOf(row, format, at);
}

/**
 * Reads the whole file and tells all that is wrong with it. `against`: hashes of the training file, when this is its validation file.
 * `canonical`: hashes of canonical JSON, to be compared with rows of Datanets.
 */
export async function checkDataset(
  file: DatasetFile,
  options: { against?: Set<number>; signal?: AbortSignal; canonical?: boolean } = {},
): Promise<Checked> {
  const reading: Reading = { format: null, problems: new Problems(), bad: 0 };
  const { problems } = reading;
  const hashes = new Set<number>();
  let examples = 0;
  let duplicates = 0;
  let overlaps = 0;
  let kind: TrainingExample['kind'] | null = null;
  for await (const batch of read(file, reading)) {
    options.signal?.throwIfAborted();
    for (const { line, example } of batch) {
      examples += 1;
      kind ??= example.kind;
      const hash = hash53(options.canonical === true ? (canonicalJson(example) as string) : JSON.stringify(example));
      if (hashes.has(hash)) {
        duplicates += 1;
        const message = 'The example is the same as an earlier one.';
        problems.add({ line, field: null, rule: 'duplicate', severity: 'warning', message });
      } else hashes.add(hash);
      if (options.against?.has(hash)) {
        overlaps += 1;
        const message = 'The example is in the training file too, so it validates nothing.';
        problems.add({ line, field: null, rule: 'overlap', severity: 'warning', message });
      }
    }
  }
  const whole = (rule: string, message: string) =>
    problems.add({ line: null, field: null, rule, severity: 'error', message });
  if (file.source.bytes === 0 || (examples === 0 && reading.bad === 0)) whole('empty', 'The file is empty.');
  if (overlaps > 0 && overlaps === examples)
    whole('overlap', 'Every example of the validation file is in the training file; use other examples to validate.');
  return {
    hashes,
    report: {
      ok: problems.errors === 0,
      container: file.container,
      format: reading.format,
      kind,
      bytes: file.source.bytes,
      examples,
      bad: reading.bad,
      duplicates,
      errors: problems.errors,
      warnings: problems.warnings,
      problems: problems.list(),
      rules: problems.counts(),
    },
  };
}

const encoder = new TextEncoder();

/** The examples as the daemon takes them: NDJSON, in order, without those that are wrong (a data set is checked before). */
export async function* examplesOf(file: DatasetFile): AsyncGenerator<Uint8Array> {
  const reading: Reading = { format: null, problems: new Problems(), bad: 0 };
  for await (const batch of read(file, reading)) {
    yield encoder.encode(batch.map(({ example }) => `${JSON.stringify(example)}\n`).join(''));
  }
}
