import { randomUUID } from 'node:crypto';
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ConfigError } from './config.ts';

/**
 * One daemon per data folder: two would append to one log. The lock names a process and when it started, so that a lock
 * left by a killed daemon is recognised even if its process number is in use again. Answers what lets go.
 */
export function lockInstance(dataDir: string): () => void {
  mkdirSync(dataDir, { recursive: true });
  const path = join(dataDir, 'daemon.lock');
  const draft = `${path}.${randomUUID()}`;
  const me = `${process.pid} ${startOf(process.pid)}`;
  writeFileSync(draft, me, { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < 5; attempt += 1) {
      if (claim(draft, path)) return () => release(path, me);
      const holder = read(path);
      if (holder !== null && isRunning(holder)) {
        throw new ConfigError(
          `Another daemon (process ${holder.split(' ')[0]}) uses the data folder ${dataDir}. Stop it, or set MODELFACTORY_DATA to another folder.`,
        );
      }
      // Moved away rather than deleted: if somebody else has just taken over, only one of us moves this one.
      const stale = `${path}.${randomUUID()}`;
      try {
        renameSync(path, stale);
        rmSync(stale, { force: true });
      } catch {
        // Gone already.
      }
    }
    throw new ConfigError(`The lock ${path} could not be taken; delete it if no daemon runs.`);
  } finally {
    rmSync(draft, { force: true });
  }
}

/** A hard link is made or not, never half. */
function claim(draft: string, path: string): boolean {
  try {
    linkSync(draft, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

function release(path: string, me: string): void {
  if (read(path) === me) rmSync(path, { force: true });
}

function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

function isRunning(holder: string): boolean {
  const [pidText = '', start = ''] = holder.split(' ');
  const pid = Number(pidText);
  if (!Number.isInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  const now = startOf(pid);
  return now === '-' || start === '-' || now === start;
}

/** When a process started, in the kernel's ticks; '-' where the system does not tell. */
function startOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name in brackets may hold anything; the 22nd field is the 20th after it.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '-';
  } catch {
    return '-';
  }
}
