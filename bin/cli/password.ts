/** Reads passwords: asked for without echo on a terminal, else a line each of what is piped in. */
import { createInterface } from 'node:readline';
import { Writable } from 'node:stream';
import { CliError } from './client.ts';
import type { Input } from './command.ts';
import type { Output } from './output.ts';

const NEW = 'New password, at least 12 characters';
const AGAIN = 'Once more';

/** @throws CliError where one is missing. */
async function ask(input: Input, { note }: Output, prompts: string[]): Promise<string[]> {
  const isTerminal = input.isTTY === true;
  const tell = (prompt: string | undefined) => {
    if (isTerminal && prompt !== undefined) note(`${prompt} (it is not shown):`);
  };
  // What readline would echo goes nowhere.
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const reader = createInterface({ input, output: nowhere, terminal: isTerminal });
  const given: string[] = [];
  tell(prompts[0]);
  await new Promise<void>((resolve) => {
    reader.on('line', (line) => {
      if (given.length < prompts.length) given.push(line);
      if (given.length === prompts.length) resolve();
      else tell(prompts[given.length]);
    });
    reader.once('close', resolve);
    reader.once('SIGINT', resolve);
  });
  reader.close();
  input.pause();
  if (given.length < prompts.length || given.includes(''))
    throw new CliError('There is no password: type one, or pipe it in as a line of standard input.');
  return given;
}

export async function readPassword(input: Input, output: Output): Promise<string> {
  const [password] = await ask(input, output, ['Password']);
  return password as string;
}

/** Asked for twice on a terminal, so that a slip does not become the password. */
export async function readNewPassword(input: Input, output: Output): Promise<string> {
  const [password, again] = await ask(input, output, input.isTTY === true ? [NEW, AGAIN] : [NEW]);
  return same(password as string, again);
}

/** Piped in: the password now, and on the next line the new one. */
export async function readChange(input: Input, output: Output): Promise<{ current: string; next: string }> {
  const now = 'Your password now';
  const [current, next, again] = await ask(input, output, input.isTTY === true ? [now, NEW, AGAIN] : [now, NEW]);
  return { current: current as string, next: same(next as string, again) };
}

function same(password: string, again: string | undefined): string {
  if (again !== undefined && again !== password) throw new CliError('The two were not the same. Nothing was changed.');
  return password;
}
