/** What the files of commands share: the frame of a subcommand, and how options are read. */
import { type Command, InvalidArgumentError } from 'commander';
import type { GatewayClient } from './client.ts';
import type { Output } from './output.ts';

/** Where a person types: a terminal, or what is piped in. */
export type Input = NodeJS.ReadableStream & { isTTY?: boolean; setRawMode?: (raw: boolean) => unknown };

export interface Context {
  output: Output;
  input: Input;
  /** Speaks with the key of the environment. */
  client: () => GatewayClient;
  /** Speaks for nobody: for what needs no key. */
  stranger: () => GatewayClient;
  setCode: (code: number) => void;
}

/** @param usage name and arguments, as commander writes them: `remove <id>`. */
export function subcommand(parent: Command, usage: string, description: string): Command {
  return parent.command(usage).description(description).option('--json', 'as JSON');
}

export function words(text: string): string[] {
  const list = text
    .split(',')
    .map((word) => word.trim())
    .filter(Boolean);
  if (list.length === 0) throw new InvalidArgumentError('Give one or more names, separated by commas.');
  return list;
}

export function collect(text: string, list: string[] = []): string[] {
  return [...list, text];
}

export function positive(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) throw new InvalidArgumentError('Give a whole number from 1.');
  return value;
}

/** For what need not be whole. The server says which of them it takes. */
export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('Give a number.');
  return value;
}

export function score(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0 || value > 100)
    throw new InvalidArgumentError('Give a whole number from 0 to 100.');
  return value;
}
