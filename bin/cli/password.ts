/** Reads a password: asked for without echo on a terminal, else the first line of what is piped in. */
import { createInterface } from 'node:readline';
import { Writable } from 'node:stream';
import { CliError } from './client.ts';
import type { Input } from './command.ts';
import type { Output } from './output.ts';

/** @throws CliError where there is none. */
export async function readPassword(input: Input, { note }: Output, prompt: string): Promise<string> {
  const isTerminal = input.isTTY === true;
  if (isTerminal) note(`${prompt} (it is not shown):`);
  // What readline would echo goes nowhere.
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const reader = createInterface({ input, output: nowhere, terminal: isTerminal });
  try {
    const line = await new Promise<string | null>((resolve) => {
      reader.once('line', resolve);
      reader.once('close', () => resolve(null));
      reader.once('SIGINT', () => resolve(null));
    });
    if (line === null || line === '')
      throw new CliError('There is no password: type one, or pipe it in as the first line of standard input.');
    return line;
  } finally {
    reader.close();
    input.pause();
  }
}

/** Twice on a terminal, so that a slip does not become the password. */
export async function readNewPassword(input: Input, output: Output): Promise<string> {
  const first = await readPassword(input, output, 'New password, at least 12 characters');
  if (input.isTTY !== true) return first;
  if ((await readPassword(input, output, 'Once more')) !== first)
    throw new CliError('The two were not the same. Nothing was changed.');
  return first;
}
