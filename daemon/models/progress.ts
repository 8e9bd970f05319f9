/** Shows a transfer on a terminal: a bar that rewrites its line, or a line now and then where there is no terminal. */
import type { Progress } from './download.ts';

const BAR_CELLS = 24;
const TERMINAL_INTERVAL_MS = 100;
const LOG_INTERVAL_MS = 5_000;
/** The rate is that of the last few seconds, so that it tells what is now. */
const RATE_WINDOW_MS = 5_000;

export interface ProgressStream {
  write(text: string): unknown;
  isTTY?: boolean;
  /** Width of the terminal. */
  columns?: number;
}

const COLUMNS_DEFAULT = 80;

export function columnsOf({ columns }: ProgressStream): number {
  return columns !== undefined && columns > 0 ? columns : COLUMNS_DEFAULT;
}

/** A line that is wider than the terminal wraps, and then it can't be written over. */
export function fitted(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(1, width) - 1)}…`;
}

/** Returns the function to feed; `finish` ends the line. `now`: milliseconds, for tests. */
export function progressPrinter(stream: ProgressStream, now: () => number = Date.now) {
  const samples: { at: number; bytes: number }[] = [];
  // What is over before a line is due elsewhere than on a terminal says so once, at its end.
  let shownAt = stream.isTTY ? Number.NEGATIVE_INFINITY : now();
  let isLineOpen = false;

  function show(progress: Progress): void {
    const at = now();
    // A transfer that began anew (another source) starts a new rate.
    if (samples.length > 0 && progress.doneBytes < (samples.at(-1)?.bytes ?? 0)) samples.length = 0;
    if (samples.length === 0 || at - (samples.at(-1)?.at ?? 0) >= TERMINAL_INTERVAL_MS)
      samples.push({ at, bytes: progress.doneBytes });
    while (samples.length > 2 && at - (samples[0]?.at ?? at) > RATE_WINDOW_MS) samples.shift();
    const isDone = progress.doneBytes === progress.totalBytes;
    const interval = stream.isTTY ? TERMINAL_INTERVAL_MS : LOG_INTERVAL_MS;
    if (!isDone && at - shownAt < interval) return;
    shownAt = at;
    const rate = rateOf(samples, at, progress.doneBytes);
    const whole = progressLine(progress, rate);
    if (!stream.isTTY) {
      stream.write(`${whole}\n`);
      return;
    }
    const width = columnsOf(stream) - 1;
    // Where there is no room for the bar the figures are worth more.
    const line = fitted(whole.length <= width ? whole : progressLine(progress, rate, 0), width);
    stream.write(`\r\x1b[2K${line}${isDone ? '\n' : ''}`);
    isLineOpen = !isDone;
  }

  function finish(): void {
    if (isLineOpen) stream.write('\n');
    isLineOpen = false;
  }

  return { show, finish };
}

function rateOf(samples: { at: number; bytes: number }[], at: number, bytes: number): number | null {
  const first = samples[0];
  if (first === undefined || at <= first.at) return null;
  return ((bytes - first.bytes) * 1000) / (at - first.at);
}

/** `model [######----] 42 %  41.3/98.4 MB  12.1 MB/s  5 s left` */
export function progressLine(progress: Progress, bytesPerSecond: number | null, barCells = BAR_CELLS): string {
  const { label, doneBytes, totalBytes } = progress;
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
  const rate = bytesPerSecond === null ? '' : `  ${megabytes(bytesPerSecond)} MB/s`;
  if (totalBytes === null || totalBytes === 0) return `${label}  ${megabytes(doneBytes)} MB${rate}`;
  const share = Math.min(1, doneBytes / totalBytes);
  const cells = Math.floor(share * barCells);
  const bar = barCells === 0 ? '' : `[${'#'.repeat(cells)}${'-'.repeat(barCells - cells)}] `;
  const isMoving = bytesPerSecond !== null && bytesPerSecond > 0 && doneBytes < totalBytes;
  const left = isMoving ? `  ${duration((totalBytes - doneBytes) / bytesPerSecond)} left` : '';
  return `${label} ${bar}${Math.floor(share * 100)} %  ${megabytes(doneBytes)}/${megabytes(totalBytes)} MB${rate}${left}`;
}

function duration(seconds: number): string {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
