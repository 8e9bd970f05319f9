/** Whose run is next: owners take turns, and of one owner the oldest comes first. */
export interface Waiting {
  id: string;
  owner: string;
  /** When it entered the queue; ISO times sort as text. */
  queuedAt: string;
}

/** `servedAt`: when each owner last got the machine; those that never did come first. */
export function nextRun<T extends Waiting>(waiting: readonly T[], servedAt: ReadonlyMap<string, string>): T | null {
  const before = (a: T, b: T): number => {
    const servedA = servedAt.get(a.owner) ?? '';
    const servedB = servedAt.get(b.owner) ?? '';
    if (a.owner !== b.owner && servedA !== servedB) return servedA < servedB ? -1 : 1;
    if (a.queuedAt !== b.queuedAt) return a.queuedAt < b.queuedAt ? -1 : 1;
    return a.id < b.id ? -1 : 1;
  };
  return waiting.reduce<T | null>((best, one) => (best === null || before(one, best) < 0 ? one : best), null);
}
