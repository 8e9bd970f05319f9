/** Where things lie. Plain built-ins: this runs before anything is installed. */
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository. */
export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** What clones of one user share: downloaded headers and models. Safe to delete at any time. */
export function cacheDir() {
  return resolve(process.env.MODELFACTORY_CACHE || join(homedir(), '.cache', 'modelfactory'));
}

/** State of this installation; relative paths are relative to the repository. */
export function dataDir() {
  return resolve(root, process.env.MODELFACTORY_DATA || 'data');
}
