/**
 * Rows as CSV (RFC 4180: CRLF, quotes doubled). Spreadsheets take a cell that begins with = + - @ for a formula, whoever wrote it, quotes or no quotes.
 * Such a cell gets an apostrophe in front, which makes it text there (owasp.org/www-community/attacks/CSV_Injection), and the column `_guarded`
 * names the columns of the record where that was done: nothing else tells such an apostrophe from one of the text. Our own import takes it off again.
 */
import type { DatanetKind } from '../../db/datanet-schema.ts';
import type { ContentRow } from '../versions/version-rows.ts';
import { provenanceOf, recordOfRow } from './records.ts';

const COLUMNS: Record<DatanetKind, readonly string[]> = {
  chat: ['messages', 'tools', 'parallel_tool_calls'],
  completion: ['prompt', 'completion'],
  preference: ['input', 'preferred_output', 'non_preferred_output'],
};
const PROVENANCE = ['_row', '_contributor', '_licence', '_content_sha256'] as const;
export const GUARDED = '_guarded';

/** Also behind white space, which some programs drop, and the full-width forms, which some read as the others. */
const FORMULA = /^[\s\p{C}]*[=+\-@＝＋－＠]|^[\t\r\n]/u;

export function isFormula(cell: string): boolean {
  return FORMULA.test(cell);
}

function quoted(cell: string): string {
  return /[",\r\n]|^\s|\s$/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

function columnsOf(kind: DatanetKind, options: { provenance: boolean }): string[] {
  return [...COLUMNS[kind], ...(options.provenance ? PROVENANCE : [])];
}

export function csvHeader(kind: DatanetKind, options: { provenance: boolean }): string {
  return `${[...columnsOf(kind, options), GUARDED].join(',')}\r\n`;
}

/** Lists and objects are JSON in their cell; what a record lacks is empty. '' for an erased row. */
export function csvLine(kind: DatanetKind, row: ContentRow, options: { provenance: boolean }): string {
  const record = recordOfRow(row);
  if (record === null) return '';
  const values: Record<string, unknown> = { ...record, ...provenanceOf(row) };
  const guarded: string[] = [];
  const cells = columnsOf(kind, options).map((column) => {
    const value = values[column];
    const cell = value === undefined ? '' : typeof value === 'string' ? value : JSON.stringify(value);
    if (!isFormula(cell)) return quoted(cell);
    guarded.push(column);
    return quoted(`'${cell}`);
  });
  return `${[...cells, guarded.join(' ')].join(',')}\r\n`;
}
