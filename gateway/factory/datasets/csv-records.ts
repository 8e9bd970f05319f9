/**
 * Records of .csv and .tsv by their header (RFC 4180: quotes doubled inside quotes, line breaks inside quotes, CRLF or LF), a chunk at a
 * time. UTF-8 with or without byte order mark, or UTF-16 with one (Excel's "Unicode text"). Of `.csv` the header tells the delimiter: comma,
 * semicolon or tab.
 */
import { limits } from '../../limits.ts';
import type { ByteSource, RawRecord } from './source.ts';
import { encodingOf, withoutBom } from './text-lines.ts';

interface Row {
  line: number;
  cells: string[];
}

/** Pushed text, it gives the rows completed by it. */
export class CsvParser {
  readonly delimiter: string;
  #line = 1;
  #rowLine = 1;
  #cells: string[] = [];
  #cell = '';
  #cellCharacters = 0;
  #quoted = false;
  /** Inside quotes a quote was seen: the end of the quoted text, or the first of two. */
  #maybeEnd = false;
  #begun = false;
  /** A row that became too long: its rest is passed over. */
  #overflow = false;

  constructor(delimiter: string) {
    this.delimiter = delimiter;
  }

  /** Inside a quoted cell; at the end of a file: one that was never closed. */
  get open(): boolean {
    return this.#quoted && !this.#maybeEnd;
  }

  /** Where the row under way begins. */
  get line(): number {
    return this.#rowLine;
  }

  /** Where reading stands. */
  get textLine(): number {
    return this.#line;
  }

  push(text: string): (Row | { line: number; tooLong: true })[] {
    const rows: (Row | { line: number; tooLong: true })[] = [];
    for (let at = 0; at < text.length; at++) {
      const character = text[at] as string;
      if (character === '\n') this.#line += 1;
      if (this.#quoted) {
        if (this.#maybeEnd) {
          this.#maybeEnd = false;
          if (character === '"') {
            this.#append('"');
            continue;
          }
          this.#quoted = false;
        } else {
          if (character === '"') this.#maybeEnd = true;
          else this.#append(character);
          continue;
        }
      }
      if (character === this.delimiter) this.#endCell();
      else if (character === '\n') this.#endRow(rows);
      else if (character === '"' && !this.#begun) {
        this.#quoted = true;
        this.#begun = true;
      } else {
        this.#begun = true;
        this.#append(character);
      }
    }
    return rows;
  }

  end(): (Row | { line: number; tooLong: true })[] {
    const rows: (Row | { line: number; tooLong: true })[] = [];
    if (this.#begun || this.#cells.length > 0 || this.#overflow) this.#endRow(rows);
    return rows;
  }

  #append(character: string): void {
    this.#cellCharacters += 1;
    if (this.#cellCharacters > limits.datasetLineBytesMax || this.#overflow) {
      this.#overflow = true;
      this.#cell = '';
    } else this.#cell += character;
  }

  #endCell(): void {
    if (this.#cells.length < limits.datasetColumnsMax) this.#cells.push(this.#cell);
    this.#cell = '';
    this.#begun = false;
  }

  #endRow(rows: (Row | { line: number; tooLong: true })[]): void {
    const line = this.#rowLine;
    this.#rowLine = this.#line;
    if (!this.#quoted && this.#cell.endsWith('\r')) this.#cell = this.#cell.slice(0, -1);
    const blank = this.#cells.length === 0 && this.#cell.trim() === '';
    if (this.#overflow) rows.push({ line, tooLong: true });
    else if (!blank) {
      this.#endCell();
      rows.push({ line, cells: this.#cells });
    }
    this.#cells = [];
    this.#cell = '';
    this.#cellCharacters = 0;
    this.#begun = false;
    this.#quoted = false;
    this.#overflow = false;
  }
}

/** Names the columns of a record whose cell has an apostrophe in front that is not of the text, so that no spreadsheet runs it (as our exports do). */
const GUARDED = '_guarded';

function unguarded(record: Record<string, string>): Record<string, string> {
  const { [GUARDED]: columns, ...rest } = record;
  if (columns === undefined) return record;
  for (const name of columns.split(' ')) {
    if (rest[name]?.startsWith("'") === true) rest[name] = rest[name].slice(1);
  }
  return rest;
}

function delimiterOf(header: string): string {
  const counts = [',', ';', '\t'].map((delimiter) => {
    const outside = header.replace(/"[^"]*"/g, '');
    return { delimiter, count: outside.split(delimiter).length };
  });
  return counts.reduce((best, one) => (one.count > best.count ? one : best)).delimiter;
}

export async function* csvRecords(source: ByteSource, kind: 'csv' | 'tsv'): AsyncGenerator<RawRecord[]> {
  const head = new Uint8Array(await source.slice(0, Math.min(64 * 1024, source.bytes)));
  const encoding = encodingOf(head);
  const lossy = new TextDecoder(encoding).decode(head);
  const parser = new CsvParser(kind === 'tsv' ? '\t' : delimiterOf(lossy.split('\n')[0] ?? ''));
  const decoder = new TextDecoder(encoding, { fatal: true });
  let header: string[] | null = null;
  let failed = false;
  let last: Uint8Array = new Uint8Array(0);

  const take = (rows: ReturnType<CsvParser['push']>): RawRecord[] => {
    const records: RawRecord[] = [];
    for (const row of rows) {
      if (failed) break;
      if ('tooLong' in row) {
        const message = `The row at line ${row.line} is longer than ${limits.datasetLineBytesMax} characters.`;
        records.push({ line: row.line, rule: 'line_too_long', message });
      } else if (header === null) {
        header = row.cells.map((cell) => cell.trim());
        const twice = header.find((name, index) => header?.indexOf(name) !== index);
        if (twice !== undefined || header.some((name) => name === '')) {
          const message =
            twice === undefined || twice === ''
              ? 'A column of the header has no name; give every column one.'
              : `The header names the column "${twice.slice(0, 64)}" twice.`;
          records.push({ line: row.line, rule: 'bad_header', message });
          failed = true;
        }
      } else if (row.cells.length !== header.length) {
        const message = `The row at line ${row.line} has ${row.cells.length} columns, but the header has ${header.length}; check its quotes.`;
        records.push({ line: row.line, rule: 'column_count', message });
      } else {
        const names = header;
        records.push({
          line: row.line,
          value: unguarded(Object.fromEntries(row.cells.map((cell, index) => [names[index] as string, cell]))),
        });
      }
    }
    return records;
  };

  try {
    const bytes = encoding === 'utf-8' ? withoutBom(source.stream()) : source.stream();
    for await (const chunk of bytes) {
      last = chunk;
      const records = take(parser.push(decoder.decode(chunk, { stream: true })));
      if (records.length > 0) yield records;
      if (failed) return;
    }
    const rest = take(parser.push(decoder.decode()));
    if (failed) {
      yield rest;
      return;
    }
    const open = parser.open;
    const openLine = parser.line;
    if (open)
      rest.push({
        line: openLine,
        rule: 'incomplete',
        message: `A quote opened in the row at line ${openLine} is never closed.`,
      });
    else rest.push(...take(parser.end()));
    if (rest.length > 0) yield rest;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    // The line is counted up to what cannot be decoded; a character cut at the chunk's start is no fault.
    const text = new TextDecoder(encoding).decode(last);
    const at = Math.max(0, text.indexOf('\ufffd', 1));
    const line = parser.textLine + text.slice(0, at).split('\n').length - 1;
    const message = `Line ${line} is not valid ${encoding.toUpperCase()}; save the file as UTF-8.`;
    yield [{ line, rule: 'not_utf8', message }];
  }
}
