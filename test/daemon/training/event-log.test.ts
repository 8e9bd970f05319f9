import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { EventLog, EventReader } from '../../../daemon/training/event-log.ts';
import { temporaryFolder } from './support.ts';

let root: ReturnType<typeof temporaryFolder>;
let path: string;
beforeEach(() => {
  root = temporaryFolder();
  path = join(root.path, 'events.ndjson');
});
afterEach(() => root.remove());

const message = (text: string) => ({ level: 'info' as const, type: 'message' as const, message: text, data: null });
const write = (...texts: string[]) => {
  const log = EventLog.open(path);
  for (const text of texts) log.append(message(text));
  log.close();
};

describe('event log', () => {
  it('loses nothing but what was not whole, wherever the file is cut', () => {
    write('a', 'öffnen', 'c'.repeat(300));
    const whole = readFileSync(path);
    const ends = [...whole.entries()].filter(([, byte]) => byte === 10).map(([at]) => at + 1);
    fc.assert(
      fc.property(fc.integer({ min: 0, max: whole.byteLength }), (length) => {
        writeFileSync(path, whole.subarray(0, length));
        const log = EventLog.open(path);
        expect(log.summary.lastEvent).toBe(ends.filter((end) => end <= length).length);
        expect(log.append(message('next')).seq).toBe(log.summary.lastEvent);
        log.close();
        const seqs = new EventReader(path, 0).next().map(({ seq }) => seq);
        expect(seqs).toEqual(seqs.map((_, i) => i + 1));
      }),
      { numRuns: 60 },
    );
  });

  it('is read from any number on, in pieces, while it grows', () => {
    write('a', 'b', 'c');
    const reader = new EventReader(path, 1);
    expect(reader.next().map(({ message }) => message)).toEqual(['b', 'c']);
    expect(reader.next()).toEqual([]);
    appendFileSync(path, '{"seq":4,"time":"","level":"info","type":"mess');
    expect(reader.next()).toEqual([]);
    appendFileSync(path, 'age","message":"d","data":null}\n');
    expect(reader.next().map(({ message }) => message)).toEqual(['d']);
    expect(new EventReader(path, 4).next()).toEqual([]);
    expect(new EventReader(join(root.path, 'none'), 0).next()).toEqual([]);
  });

  it('holds lines and files that are larger than one reading', () => {
    const texts = Array.from({ length: 40 }, (_, i) => String(i).repeat(20_000));
    write('x'.repeat(700_000), ...texts);
    const reader = new EventReader(path, 0);
    const all: string[] = [];
    for (let some = reader.next(); some.length > 0; some = reader.next())
      all.push(...some.map(({ message }) => message));
    expect(all.map(({ length }) => length)).toEqual([700_000, ...texts.map(({ length }) => length)]);
    expect(EventLog.open(path).summary.lastEvent).toBe(41);
  });

  it('does not believe a line that does not follow the one before', () => {
    write('a');
    appendFileSync(path, `${JSON.stringify({ seq: 7, type: 'message', message: 'z' })}\n`);
    const log = EventLog.open(path);
    expect(log.append(message('b')).seq).toBe(2);
    log.close();
    expect(new EventReader(path, 0).next().map(({ message }) => message)).toEqual(['a', 'b']);
  });
});
