/** Tables and numbers for a terminal. */

export interface Output {
  /** Results. */
  out: (line: string) => void;
  /** What goes with them, for a person. */
  note: (line: string) => void;
}

export const terminal: Output = {
  out: (line) => process.stdout.write(`${line}\n`),
  note: (line) => process.stderr.write(`${line}\n`),
};

/** Of the terminal that results go to; where they go elsewhere a table may be as wide as it wants. */
function terminalWidth(): number {
  return process.stdout.isTTY ? process.stdout.columns || 80 : Number.POSITIVE_INFINITY;
}

/**
 * Columns as wide as their widest cell, two blanks apart. On a terminal that is too narrow for them a block of lines each row,
 * since wrapped columns say nothing. No rows: `empty`.
 */
export function table(header: string[], rows: string[][], empty: string, width = terminalWidth()): string {
  if (rows.length === 0) return empty;
  const all = [header, ...rows].map((row) => row.map(printable));
  const widths = header.map((_, column) => Math.max(...all.map((row) => cells(row[column] ?? ''))));
  const total = widths.reduce((sum, one) => sum + one, 2 * (widths.length - 1));
  if (total > width) return blocks(all);
  return all
    .map((row) =>
      row
        .map((cell, column) => padded(cell, widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function blocks([header, ...rows]: string[][]): string {
  const names = header ?? [];
  const nameWidth = Math.max(...names.map(cells));
  return rows
    .map((row) => row.map((cell, column) => `${padded(names[column] ?? '', nameWidth)}  ${cell}`.trimEnd()).join('\n'))
    .join('\n\n');
}

function padded(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - cells(text)));
}

/** How many cells of a terminal a text takes: marks none, East Asian wide characters and emoji two. */
function cells(text: string): number {
  let sum = 0;
  for (const { segment } of new Intl.Segmenter().segment(text)) sum += WIDE.test(segment) ? 2 : 1;
  return sum;
}
const WIDE =
  /^(?:\p{Emoji_Presentation}|[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{20000}-\u{3fffd}])/u;

/** `1 row`, `2 rows`. */
export function count(number: number, one: string, many = `${one}s`): string {
  return `${number} ${number === 1 ? one : many}`;
}

/** Names come from other people: control characters must not reach the terminal. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is to be replaced.
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

/** `512 B`, `4.9 kB`, `144.8 MB`, `2.1 GB`. */
export function size(bytes: number): string {
  if (bytes < 1_000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** 1234500 → `1.2345`. */
export function money(micros: number | null): string {
  return micros === null ? '-' : String(micros / 1e6);
}

/** `0.5` → 500000; exact, no floating point. Null if it is no amount. */
export function parseMoney(text: string): number | null {
  const match = /^(\d{1,9})(?:\.(\d{1,6}))?$/.exec(text);
  return match ? Number(match[1]) * 1_000_000 + Number((match[2] ?? '').padEnd(6, '0')) : null;
}

/** Of seconds since 1970. */
export function day(seconds: number | null): string {
  return seconds === null ? '-' : new Date(seconds * 1000).toISOString().slice(0, 10);
}

/** Of seconds since 1970, UTC. */
export function minute(seconds: number | null): string {
  return seconds === null ? '-' : new Date(seconds * 1000).toISOString().slice(0, 16).replace('T', ' ');
}
