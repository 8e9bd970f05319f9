#!/usr/bin/env node
/** `npx modelfactory COMMAND`. `doctor` and `start` work on a bare clone; the other commands install dependencies first. */
import { join } from 'node:path';
import { bootstrap } from './bootstrap.mjs';
import { root } from './setup/paths.mjs';
import { requireTools } from './setup/requirements.mjs';
import { main } from './setup/run.mjs';
import { importTypeScript } from './setup/typescript.mjs';

await main(async () => {
  const [command, ...rest] = process.argv.slice(2);
  // First of all: what follows may not even load on an older Node.
  requireTools(['node']);
  if (command === 'doctor') {
    const { doctor } = await import('./setup/doctor.mjs');
    return await doctor(rest);
  }
  if (command === 'start' && rest.length === 0) {
    await bootstrap();
    const { start } = await importTypeScript(join(root, 'bin', 'supervisor', 'main.ts'));
    return await start();
  }
  // Only what converts weights computes here; everything else asks the server.
  const converts = command === 'models' && rest.some((word) => word === 'quantize' || word.startsWith('--type'));
  await bootstrap({ addon: converts });
  const { runCli } = await importTypeScript(join(root, 'bin', 'cli', 'program.ts'));
  return await runCli(process.argv.slice(2));
});
