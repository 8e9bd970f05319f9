/**
 * The events of one run: a line each in `events.ndjson`, numbered from 1 without gaps. Written by one thread at a time: the
 * worker while it has the run, else the main thread. A line that a crash cut short was never told to anybody and is dropped.
 */
import { closeSync, existsSync, fsyncSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import type { StepMetrics, TrainingEvent } from './protocol.ts';

const CHUNK_BYTES = 256 * 1024;

export interface EventLogSummary {
  lastEvent: number;
  lastMetrics: StepMetrics | null;
  /** Steps of which a checkpoint event was written. */
  checkpoints: Set<number>;
}

export type NewEvent = Pick<TrainingEvent, 'level' | 'type' | 'message' | 'data'>;

export class EventLog {
  private readonly file: number;
  private bytes: number;
  readonly summary: EventLogSummary;
  /** Hears of each event once it is written. */
  onEvent: (event: TrainingEvent) => void = () => {};

  private constructor(file: number, bytes: number, summary: EventLogSummary) {
    this.file = file;
    this.bytes = bytes;
    this.summary = summary;
  }

  static open(path: string): EventLog {
    const summary: EventLogSummary = { lastEvent: 0, lastMetrics: null, checkpoints: new Set() };
    const file = openSync(path, existsSync(path) ? 'r+' : 'w+', 0o600);
    let bytes = 0;
    try {
      for (const { line, end } of linesOf(file)) {
        const event = readEvent(line);
        if (event === null || event.seq !== summary.lastEvent + 1) break;
        note(summary, event);
        bytes = end;
      }
      ftruncateSync(file, bytes);
    } catch (error) {
      closeSync(file);
      throw error;
    }
    return new EventLog(file, bytes, summary);
  }

  append(event: NewEvent, durable = false): TrainingEvent {
    const whole: TrainingEvent = { seq: this.summary.lastEvent + 1, time: new Date().toISOString(), ...event };
    const line = Buffer.from(`${JSON.stringify(whole)}\n`);
    try {
      for (let at = 0; at < line.byteLength; )
        at += writeSync(this.file, line, at, line.byteLength - at, this.bytes + at);
    } catch (error) {
      ftruncateSync(this.file, this.bytes);
      throw error;
    }
    this.bytes += line.byteLength;
    note(this.summary, whole);
    if (durable) this.sync();
    this.onEvent(whole);
    return whole;
  }

  sync(): void {
    fsyncSync(this.file);
  }

  close(): void {
    closeSync(this.file);
  }
}

function note(summary: EventLogSummary, event: TrainingEvent): void {
  summary.lastEvent = event.seq;
  if (event.type === 'metrics') summary.lastMetrics = event.data as unknown as StepMetrics;
  if (event.type === 'checkpoint') summary.checkpoints.add((event.data as { step: number }).step);
}

function readEvent(line: string): TrainingEvent | null {
  try {
    const event = JSON.parse(line) as TrainingEvent | null;
    return typeof event?.seq === 'number' && typeof event.type === 'string' ? event : null;
  } catch {
    return null;
  }
}

/** Complete lines with where each ends. */
function* linesOf(file: number): Generator<{ line: string; end: number }> {
  let rest = Buffer.alloc(0);
  let read = 0;
  for (;;) {
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    const got = readSync(file, chunk, 0, CHUNK_BYTES, read);
    if (got === 0) return;
    read += got;
    rest = Buffer.concat([rest, chunk.subarray(0, got)]);
    let from = 0;
    for (let at = rest.indexOf(10); at >= 0; at = rest.indexOf(10, from)) {
      yield { line: rest.toString('utf8', from, at), end: read - rest.byteLength + at + 1 };
      from = at + 1;
    }
    rest = rest.subarray(from);
  }
}

/** The events after `seq`, from a file that may grow meanwhile; a line that is not complete yet is left for the next call. */
export class EventReader {
  private offset = 0;
  private readonly path: string;
  private seq: number;

  constructor(path: string, after: number) {
    this.path = path;
    this.seq = after;
  }

  /** At most about 256 kB of lines; empty: there is nothing more at the moment. */
  next(): TrainingEvent[] {
    if (!existsSync(this.path)) return [];
    const file = openSync(this.path, 'r');
    try {
      for (;;) {
        let size = CHUNK_BYTES;
        let chunk = Buffer.allocUnsafe(size);
        let got = readSync(file, chunk, 0, size, this.offset);
        let end = chunk.lastIndexOf(10, got - 1);
        // One line longer than the chunk.
        while (got === size && end < 0) {
          size *= 2;
          chunk = Buffer.allocUnsafe(size);
          got = readSync(file, chunk, 0, size, this.offset);
          end = got === 0 ? -1 : chunk.lastIndexOf(10, got - 1);
        }
        if (got === 0 || end < 0) return [];
        this.offset += end + 1;
        const events = chunk
          .toString('utf8', 0, end)
          .split('\n')
          .map((line) => readEvent(line))
          .filter((event): event is TrainingEvent => event !== null && event.seq > this.seq);
        if (events.length > 0) {
          this.seq = (events.at(-1) as TrainingEvent).seq;
          return events;
        }
      }
    } finally {
      closeSync(file);
    }
  }
}
