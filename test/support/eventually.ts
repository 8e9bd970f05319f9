import { vi } from 'vitest';
import { PATIENCE_MS } from './patience.ts';

/** Tries `what` until it neither throws nor rejects, and gives its value. */
export function eventually<T>(what: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(what, { timeout: PATIENCE_MS, interval: 10 }) as Promise<T>;
}

/** Waits until `what` is so. */
export async function until(what: () => boolean | Promise<boolean>): Promise<void> {
  await eventually(async () => {
    if (!(await what())) throw new Error(`it never came to that: ${what}`);
  });
}
