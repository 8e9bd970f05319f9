#!/usr/bin/env node
/** `npm run build:addon [-- --sanitize] [--force] [--headers]`: headers, then the native addon. Prints the product's path. */
import { requireTools } from './setup/requirements.mjs';
import { main, SetupError } from './setup/run.mjs';

const KNOWN = ['--sanitize', '--force', '--headers'];

await main(async () => {
  const options = new Set(process.argv.slice(2));
  const unknown = [...options].find((option) => !KNOWN.includes(option));
  if (unknown) throw new SetupError(`Unknown option ${unknown}. Known: ${KNOWN.join(', ')}.`);
  // First of all: what follows may not even load on an older Node.
  requireTools(['node', 'git']);
  if (options.has('--headers')) {
    const { ensureHeaders } = await import('./setup/headers.mjs');
    console.log(await ensureHeaders());
    return;
  }
  const { buildAddon } = await import('./setup/addon.mjs');
  console.log(await buildAddon({ sanitize: options.has('--sanitize'), force: options.has('--force') }));
});
