/** Passes on what the processes log: as it is for machines, readable on a terminal. */
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { LOG_LINE_BYTES_MAX } from './limits.ts';

/** pino's numbers. */
const LEVELS: Record<number, string> = { 10: 'trace', 20: 'debug', 30: 'info', 40: 'WARN', 50: 'ERROR', 60: 'FATAL' };
/** Said already, or of no use on a terminal. */
const HIDDEN = new Set(['level', 'time', 'pid', 'hostname', 'msg', 'name', 'v', 'service', 'ready']);

export interface LogSink {
  write(text: string): unknown;
  isTTY?: boolean;
}

export function passOn(name: string, stream: Readable, sink: LogSink): void {
  const lines = createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY });
  lines.on('line', (line) => sink.write(sink.isTTY ? `${readable(name, line)}\n` : `${line}\n`));
  // A process that dies takes its pipe with it; that is no error of ours.
  stream.on('error', () => {});
}

/** `12:00:01 daemon  info  ready port=4711` out of a JSON line; other lines keep their text. */
export function readable(name: string, line: string): string {
  const prefix = name.padEnd(7);
  if (line.length <= LOG_LINE_BYTES_MAX && line.startsWith('{')) {
    try {
      const fields = JSON.parse(line) as Record<string, unknown>;
      const time = new Date((fields.time as number | string | undefined) ?? Date.now());
      const clock = Number.isNaN(time.getTime()) ? '--:--:--' : time.toTimeString().slice(0, 8);
      const level =
        typeof fields.level === 'number'
          ? (LEVELS[fields.level] ?? String(fields.level))
          : String(fields.level ?? 'info');
      const rest = Object.entries(fields).filter(([key]) => !HIDDEN.has(key));
      const words = rest.map(([key, value]) => `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
      return [clock, prefix, level.padEnd(5), String(fields.msg ?? ''), ...words].join(' ').trimEnd();
    } catch {
      // Not JSON after all.
    }
  }
  return `${new Date().toTimeString().slice(0, 8)} ${prefix} ${line}`;
}
