/** The default model for tests: found on this machine, or fetched once into the cache that all clones share. */
import { join, resolve } from 'node:path';
import { DEFAULT_MODEL } from '../../daemon/models/builtin.ts';
import { ensureBaseModel, type FetchOptions, findBuiltin } from '../../daemon/models/fetch.ts';

const root = resolve(import.meta.dirname, '..', '..');

/** Tests never touch the data folder of the person who runs them. */
const options: FetchOptions = { dataDir: join(root, '.cache', 'test') };

/** Path of the default model, or null where no source has it; then say `SKIP_REASON` and skip. */
export async function defaultModelPath(): Promise<string | null> {
  return await findBuiltin(DEFAULT_MODEL, options);
}

export const SKIP_REASON = `the default model (${DEFAULT_MODEL.file}) is not on this machine and no source gave it`;

/** Called once before all tests. Never throws: without a network the tests that need the model are skipped. */
export async function fetchDefaultModel(onNotice: (line: string) => void): Promise<void> {
  try {
    await ensureBaseModel(DEFAULT_MODEL.id, { ...options, onNotice });
  } catch (error) {
    onNotice((error as Error).message);
  }
}
