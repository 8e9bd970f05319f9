/** What work costs, by measures that other programs on the machine and its speed do not change. */

/** Milliseconds of processor time, all threads of this process together, that `work` takes: waiting for a core does not count. */
export function cpuMs(work: () => void): number {
  const from = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(from);
  return (user + system) / 1000;
}

/** As `cpuMs`, of work that is waited for. Nothing else may run in this process meanwhile. */
export async function cpuMsOf(work: () => Promise<unknown>): Promise<number> {
  const from = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(from);
  return (user + system) / 1000;
}

/** Less is noise: the clock of processes may be as coarse as a few milliseconds. */
const FLOOR_MS = 5;

/**
 * How much more an input costs than an eighth of it. About 8 where work grows with the input, 64 where it grows with its square.
 * @param work given the share of the whole input that it shall do.
 */
export function growth(work: (share: number) => void): number {
  const part = Math.max(
    FLOOR_MS,
    cpuMs(() => work(1 / 8)),
  );
  return cpuMs(() => work(1)) / part;
}
/** Between the two; caches that large inputs do not fit into, and collections of garbage, cost a part of it. */
export const GROWTH_MAX = 32;

/**
 * How many times as long `one` takes as `other`, both by their quickest of many short rounds in turn: what else the machine does in
 * some of them does not count.
 */
export async function timesAsLong(one: () => Promise<unknown>, other: () => Promise<unknown>): Promise<number> {
  const least = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY] as [number, number];
  for (let round = 0; round < 40; round++) {
    for (const [index, work] of [one, other].entries()) {
      const from = performance.now();
      for (let i = 0; i < 10; i++) await work();
      least[index as 0 | 1] = Math.min(least[index as 0 | 1], performance.now() - from);
    }
  }
  return least[0] / least[1];
}
