/** One process at a time fetches a file; the others wait and find it done. */
import { open, readFile, rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { FetchError } from './fetch-errors.ts';
import { LOCK_POLL_MS, LOCK_WAIT_MS } from './fetch-limits.ts';

export async function withLock<T>(path: string, body: () => Promise<T>, onWait?: () => void): Promise<T> {
  const deadline = Date.now() + LOCK_WAIT_MS;
  for (let waited = false; ; waited = true) {
    const file = await open(path, 'wx').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return null;
      throw error;
    });
    if (file !== null) {
      try {
        await file.writeFile(String(process.pid));
        return await body();
      } finally {
        await file.close();
        await rm(path, { force: true });
      }
    }
    // The owner may have been killed. An empty file is one whose owner is just writing its number.
    const owner = Number(await readFile(path, 'utf8').catch(() => ''));
    if (owner > 0 && !isAlive(owner)) {
      await rm(path, { force: true });
      continue;
    }
    if (Date.now() > deadline)
      throw new FetchError('interrupted', `Another process holds ${path}; delete that file if it is stale.`);
    if (!waited) onWait?.();
    await sleep(LOCK_POLL_MS);
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
