/** What long work shows while it runs. */
import { columnsOf, fitted } from '../../daemon/models/progress.ts';

/** Where lines are not written over, one now and then is enough. */
const LOG_INTERVAL_MS = 5_000;

export interface LiveStream {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

/**
 * A line that is written over on a terminal, never wider than it; elsewhere a line of its own each, at most one in `everyMs`.
 * @param now milliseconds, for tests.
 */
export function liveLine(
  stream: LiveStream,
  note: (line: string) => void,
  { everyMs = LOG_INTERVAL_MS, now = Date.now }: { everyMs?: number; now?: () => number } = {},
) {
  let shown = false;
  let notedAt = Number.NEGATIVE_INFINITY;
  return {
    show(text: string): void {
      if (stream.isTTY === true) {
        stream.write(`\r\u001b[2K${fitted(text, columnsOf(stream) - 1)}`);
        shown = true;
      } else if (now() - notedAt >= everyMs) {
        notedAt = now();
        note(text);
      }
    },
    /** The line stays, and what follows begins a new one. */
    finish(): void {
      if (shown) stream.write('\n');
      shown = false;
    },
    /** The line goes. */
    clear(): void {
      if (shown) stream.write('\r\u001b[2K');
      shown = false;
    },
  };
}
