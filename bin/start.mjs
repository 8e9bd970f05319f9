#!/usr/bin/env node
/** `npm start`: installs and builds what is missing, fetches the base model, then runs gateway and daemon until stopped. */
import { join } from 'node:path';
import { bootstrap } from './bootstrap.mjs';
import { root } from './setup/paths.mjs';
import { main } from './setup/run.mjs';
import { importTypeScript } from './setup/typescript.mjs';

await main(async () => {
  await bootstrap();
  const { start } = await importTypeScript(join(root, 'bin', 'supervisor', 'main.ts'));
  return await start();
});
