/** Writing that is whole or not at all, from a worker thread: nothing else happens there meanwhile, so the calls are synchronous. */
import { randomUUID } from 'node:crypto';
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { TRAINING_LIMITS } from '../limits.ts';
import type { NamedBytes } from './peft-folder.ts';
import { RunError } from './run-error.ts';

const TEMPORARY = '.tmp-';

export interface Disk {
  /** Bytes that an unprivileged user may still write where `path` is. */
  freeBytes(path: string): number;
  /** Writes a new file and fsyncs it. */
  write(path: string, bytes: Uint8Array): void;
}

export const realDisk: Disk = {
  freeBytes(path) {
    const { bavail, bsize } = statfsSync(path);
    return bavail * bsize;
  },
  write(path, bytes) {
    const file = openSync(path, 'wx', 0o600);
    try {
      for (let at = 0; at < bytes.byteLength; ) at += writeSync(file, bytes, at, bytes.byteLength - at);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
  },
};

/** Makes a new or renamed entry survive a power cut. Windows has no such call and needs none. */
export function syncFolder(path: string): void {
  if (process.platform === 'win32') return;
  const folder = openSync(path, 'r');
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/** Replaces a file as a whole. @throws RunError `disk_full` */
export function replaceFile(path: string, bytes: Uint8Array | string, disk: Disk = realDisk): void {
  const temporary = join(dirname(path), `${TEMPORARY}${randomUUID()}`);
  try {
    disk.write(temporary, typeof bytes === 'string' ? Buffer.from(bytes) : bytes);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw asDiskError(error, path);
  }
  syncFolder(dirname(path));
}

/** Makes a folder with these files, or leaves nothing; a folder of that name that was there is replaced. @throws RunError `disk_full` */
export function placeFolder(path: string, files: readonly NamedBytes[], disk: Disk = realDisk): void {
  const parent = dirname(path);
  mkdirSync(parent, { recursive: true });
  const bytes = files.reduce((sum, file) => sum + file.bytes.byteLength, 0);
  if (disk.freeBytes(parent) < bytes + TRAINING_LIMITS.diskReserveBytes) throw diskFull(path, bytes);
  const temporary = join(parent, `${TEMPORARY}${randomUUID()}`);
  try {
    mkdirSync(temporary);
    for (const file of files) disk.write(join(temporary, file.name), file.bytes);
    syncFolder(temporary);
    // A rename does not replace a folder that has files. Whoever finds neither goes on from an older one.
    rmSync(path, { recursive: true, force: true });
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    throw asDiskError(error, path);
  }
  syncFolder(parent);
}

/** Removes what a process that was killed left half-written. */
export function clearTemporary(folder: string): void {
  for (const name of readdirSync(folder)) {
    if (name.startsWith(TEMPORARY)) rmSync(join(folder, name), { recursive: true, force: true });
  }
}

export function isDiskFull(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return code === 'ENOSPC' || code === 'EDQUOT' || code === 'disk_full';
}

function asDiskError(error: unknown, path: string): unknown {
  return isDiskFull(error) && !(error instanceof RunError) ? diskFull(path, null) : error;
}

function diskFull(path: string, bytes: number | null): RunError {
  const what = bytes === null ? '' : ` for ${Math.ceil(bytes / 1e6)} MB and a reserve`;
  return new RunError(
    'disk_full',
    `The disk of ${dirname(path)} has no room${what}. Free some space and start the job again; the last checkpoint was kept.`,
  );
}
