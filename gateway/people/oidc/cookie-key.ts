/** The key of the cookies of log-ins under way: made at the first start, shared by all gateways on one data folder. Node only. */
import { randomBytes } from 'node:crypto';
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

const BYTES = 32;

/** 32 bytes. @throws Error if the file holds something else. */
export function cookieKey(path: string): Uint8Array {
  const held = read(path);
  if (held !== null) return held;
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const draft = `${path}.${process.pid}.tmp`;
  writeFileSync(draft, randomBytes(BYTES), { mode: 0o600, flag: 'wx' });
  try {
    // A link appears whole, and not at all where another gateway was quicker.
    linkSync(draft, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    rmSync(draft, { force: true });
  }
  return read(path) as Uint8Array;
}

function read(path: string): Uint8Array | null {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  if (bytes.length !== BYTES)
    throw new Error(`${path} is not a key of ${BYTES} bytes. Delete it; a new one is made at the next start.`);
  return new Uint8Array(bytes);
}
