import { readFileSync } from 'node:fs';

/** Of this program, as package.json says; goes into receipts. */
export const VERSION: string = (
  JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
).version;
