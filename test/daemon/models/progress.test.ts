import { describe, expect, it } from 'vitest';
import { progressLine, progressPrinter } from '../../../daemon/models/progress.ts';

function printed(isTTY: boolean, feed: (show: (doneBytes: number, atMs: number) => void) => void): string {
  let text = '';
  let clock = 0;
  const printer = progressPrinter({ isTTY, write: (more) => (text += more) }, () => clock);
  feed((doneBytes, atMs) => {
    clock = atMs;
    printer.show({ label: 'm', doneBytes, totalBytes: 100_000_000 });
  });
  printer.finish();
  return text;
}

describe('the progress of a download', () => {
  it('shows share, rate and the time left', () => {
    const line = progressLine({ label: 'm', doneBytes: 50_000_000, totalBytes: 100_000_000 }, 10_000_000);
    expect(line).toBe('m [############------------] 50 %  50.0/100.0 MB  10.0 MB/s  5 s left');
  });
  it('shows what it knows when the size is unknown', () => {
    expect(progressLine({ label: 'm', doneBytes: 1_500_000, totalBytes: null }, null)).toBe('m  1.5 MB');
  });
  it('counts minutes and hours', () => {
    const left = (rate: number) => progressLine({ label: 'm', doneBytes: 0, totalBytes: 100_000_000 }, rate);
    expect(left(1_000_000)).toContain('1 min 40 s left');
    expect(left(10_000)).toContain('2 h 46 min left');
  });
  it('rewrites one line on a terminal and ends it', () => {
    const text = printed(true, (show) => {
      for (let i = 0; i <= 10; i++) show(i * 10_000_000, i * 1000);
    });
    expect(text.match(/\n/g)).toHaveLength(1);
    expect(text).toContain('10.0 MB/s  5 s left');
  });
  it('says a line now and then where there is no terminal', () => {
    const text = printed(false, (show) => {
      for (let i = 0; i <= 100; i++) show(i * 1_000_000, i * 200);
    });
    const lines = text.trim().split('\n');
    expect(lines.length).toBeLessThanOrEqual(6);
    expect(lines.at(-1)).toContain('100 %');
    expect(text).not.toContain('\r');
  });
  it('starts a new rate with a new source', () => {
    const text = printed(true, (show) => {
      show(90_000_000, 0);
      show(0, 1000);
      show(2_000_000, 2000);
    });
    expect(text).toContain('2.0 MB/s');
  });
});
