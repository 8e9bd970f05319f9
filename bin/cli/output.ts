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

/** Columns as wide as their widest cell, two blanks apart. No rows: `empty`. */
export function table(header: string[], rows: string[][], empty: string): string {
  if (rows.length === 0) return empty;
  const all = [header, ...rows].map((row) => row.map(printable));
  const widths = header.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length)));
  return all
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** Names come from other people: control characters must not reach the terminal. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is to be replaced.
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
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
