import { describe, expect, it } from 'vitest';
import {
  adapterIndex,
  adapterProbability,
  buildSchedule,
  gamma,
  type ScheduleOptions,
  uniformSource,
} from '../../loadtest/schedule.js';

const OPTIONS: ScheduleOptions = {
  adapters: 200,
  alpha: 1,
  rate: 2,
  cv: 1,
  durationSeconds: 300,
  inputTokens: [8, 512],
  outputTokens: [8, 512],
  seed: 42,
};
const share = (alpha: number, count: number) =>
  Array.from({ length: count }, (_, i) => adapterProbability(200, alpha, i)).reduce((a, b) => a + b, 0);
const distinct = (alpha: number, batch: number) =>
  Array.from({ length: 200 }, (_, i) => 1 - (1 - adapterProbability(200, alpha, i)) ** batch).reduce(
    (a, b) => a + b,
    0,
  );

describe('popularity', () => {
  // Worked out independently for n = 200: share of the top adapter and the top ten, expected distinct adapters in 32 and 64 requests.
  it.each([
    [0.1, 0.589, 0.74, 12.5, 21.8],
    [0.3, 0.204, 0.41, 23.2, 40.8],
    [0.6, 0.042, 0.17, 28.7, 52.2],
    [1.0, 0.005, 0.05, 29.6, 54.9],
  ])('of alpha = %d has the shares of the power law', (alpha, top, topTen, in32, in64) => {
    expect(share(alpha, 1)).toBeCloseTo(top, 3);
    expect(share(alpha, 10)).toBeCloseTo(topTen, 2);
    expect(Math.abs(distinct(alpha, 32) - in32)).toBeLessThan(0.06);
    expect(Math.abs(distinct(alpha, 64) - in64)).toBeLessThan(0.06);
    expect(share(alpha, 200)).toBeCloseTo(1, 12);
  });

  it('is what the draws follow', () => {
    for (const alpha of [0.3, 1]) {
      const uniform = uniformSource(7);
      const counts = new Array<number>(200).fill(0);
      const draws = 100_000;
      for (let i = 0; i < draws; i++) {
        const index = adapterIndex(200, alpha, uniform());
        counts[index] = (counts[index] as number) + 1;
      }
      for (const i of [0, 1, 50, 199]) {
        const p = adapterProbability(200, alpha, i);
        const sigma = Math.sqrt((p * (1 - p)) / draws);
        expect(Math.abs((counts[i] as number) / draws - p)).toBeLessThan(5 * sigma);
      }
    }
  });

  it('never names an adapter that is not there', () => {
    expect(adapterIndex(200, 0.1, 0)).toBe(0);
    expect(adapterIndex(200, 1, 1 - 2 ** -32)).toBe(199);
    expect(adapterIndex(200, 100, 1 - 2 ** -53)).toBe(199);
    expect(adapterIndex(1, 1, 0.999)).toBe(0);
  });
});

describe('intervals', () => {
  it.each([0.5, 1, 2, 4])('with cv = %d have the mean 1/R and that coefficient of variation', (cv) => {
    const uniform = uniformSource(11);
    const rate = 4;
    const draws = Array.from({ length: 200_000 }, () => gamma(uniform, 1 / cv ** 2, cv ** 2 / rate));
    const mean = draws.reduce((a, b) => a + b, 0) / draws.length;
    const deviation = Math.sqrt(draws.reduce((a, b) => a + (b - mean) ** 2, 0) / draws.length);
    expect(mean * rate).toBeGreaterThan(0.95);
    expect(mean * rate).toBeLessThan(1.05);
    expect(deviation / mean / cv).toBeGreaterThan(0.94);
    expect(deviation / mean / cv).toBeLessThan(1.06);
    expect(Math.min(...draws.slice(0, 50_000))).toBeGreaterThanOrEqual(0);
  });
});

describe('the schedule', () => {
  it('is the same for the same seed and another for another', () => {
    expect(buildSchedule(OPTIONS)).toEqual(buildSchedule({ ...OPTIONS }));
    expect(buildSchedule({ ...OPTIONS, seed: 43 })).not.toEqual(buildSchedule(OPTIONS));
  });

  it('has rate × duration arrivals, in order, with lengths inside their ranges', () => {
    const schedule = buildSchedule(OPTIONS);
    expect(schedule).toHaveLength(600);
    for (const [i, arrival] of schedule.entries()) {
      expect(arrival.atSeconds).toBeGreaterThanOrEqual(schedule[i - 1]?.atSeconds ?? 0);
      expect(arrival.inputTokens).toBeGreaterThanOrEqual(8);
      expect(arrival.inputTokens).toBeLessThan(512);
      expect(arrival.outputTokens).toBeGreaterThanOrEqual(8);
      expect(arrival.outputTokens).toBeLessThan(512);
      expect(Number.isInteger(arrival.adapter) && arrival.adapter >= 0 && arrival.adapter < 200).toBe(true);
    }
    const last = schedule.at(-1)?.atSeconds ?? 0;
    expect(last).toBeGreaterThan(250);
    expect(last).toBeLessThan(350);
  });

  it('keeps adapters and lengths when only the burstiness changes, so that sweeps compare like with like', () => {
    const strip = (options: ScheduleOptions) => buildSchedule(options).map(({ atSeconds: _, ...rest }) => rest);
    expect(strip({ ...OPTIONS, cv: 4 })).toEqual(strip(OPTIONS));
  });

  it('with no adapters sends the same lengths at the same times to the base', () => {
    const base = buildSchedule({ ...OPTIONS, adapters: 0 });
    expect(base.every((a) => a.adapter === -1)).toBe(true);
    expect(base.map((a) => a.atSeconds)).toEqual(buildSchedule(OPTIONS).map((a) => a.atSeconds));
  });

  it.each([
    [{ adapters: -1 }],
    [{ adapters: 1.5 }],
    [{ alpha: 0 }],
    [{ rate: Number.NaN }],
    [{ cv: 0 }],
    [{ durationSeconds: Number.POSITIVE_INFINITY }],
    [{ inputTokens: [5, 5] as [number, number] }],
    [{ outputTokens: [0, 5] as [number, number] }],
  ])('refuses %j', (bad) => {
    expect(() => buildSchedule({ ...OPTIONS, ...bad })).toThrow(RangeError);
  });
});
