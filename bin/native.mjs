#!/usr/bin/env node
/** `npm run build:addon [-- --sanitize] [--force] [--headers]`: headers, then the native addon. Prints the product's path. */
import { buildAddon } from './setup/addon.mjs';
import { ensureHeaders } from './setup/headers.mjs';
import { requireTools } from './setup/requirements.mjs';
import { main, SetupError } from './setup/run.mjs';

await main(async () => {
  const options = new Set(process.argv.slice(2));
  for (const option of options) {
    if (!['--sanitize', '--force', '--headers'].includes(option))
      throw new SetupError(`Unknown option ${option}. Known: --sanitize, --force, --headers.`);
  }
  requireTools(['node', 'git']);
  const result = options.has('--headers')
    ? await ensureHeaders()
    : await buildAddon({ sanitize: options.has('--sanitize'), force: options.has('--force') });
  console.log(result);
});
