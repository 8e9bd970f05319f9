/**
 * What a fresh clone lacks, in order: tools, dependencies, the native addon. Plain Node built-ins, since nothing is installed
 * yet. Does nothing, in milliseconds, when everything is there.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './setup/paths.mjs';
import { requireTools } from './setup/requirements.mjs';
import { npmCommand, run, say } from './setup/run.mjs';

/** `withDev`: also what only tests need. `addon`: build it (true), or leave it. */
export async function bootstrap({ withDev = false, addon = true } = {}) {
  requireTools(['node']);
  if (!isInstalled(withDev)) {
    // Said before minutes of downloading, not after.
    requireTools(addon ? ['compiler', 'cmake', 'git'] : []);
    say('Installing dependencies (npm ci) …');
    const [command, args] = npmCommand(['ci', '--no-audit', '--no-fund', '--loglevel=error']);
    await run(command, args, { cwd: root, quiet: true, what: 'npm ci' });
  }
  if (addon) {
    const { buildAddon } = await import('./setup/addon.mjs');
    await buildAddon();
  }
}

/**
 * Whether node_modules holds what the lockfile asks for: npm keeps a lockfile of what it installed in node_modules.
 * Optional packages may be missing (another platform), and more may be there (a CUDA package added by hand).
 */
export function isInstalled(withDev, folder = root) {
  const wanted = readPackages(join(folder, 'package-lock.json'));
  const installed = readPackages(join(folder, 'node_modules', '.package-lock.json'));
  if (wanted === null) return existsSync(join(folder, 'node_modules'));
  if (installed === null) return false;
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === '') return true;
    const found = installed[path];
    if (found !== undefined) return found.version === entry.version && found.integrity === entry.integrity;
    return Boolean(entry.optional || entry.devOptional || entry.peer || (entry.dev && !withDev));
  });
}

function readPackages(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8')).packages ?? {};
  } catch {
    return null;
  }
}
