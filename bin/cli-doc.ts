/** Writes docs/cli.md from the commands themselves: `node --import tsx bin/cli-doc.ts`. */
import { writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Command } from 'commander';
import type { Context } from './cli/command.ts';
import { createProgram } from './cli/program.ts';

/** A bar would end a cell of a table. */
const cell = (text: string) => text.replaceAll('|', '\\|');

/** `create <name>`, with what must be given. */
function usageOf(command: Command): string {
  const path: string[] = [];
  for (let one: Command | null = command; one?.parent; one = one.parent) path.unshift(one.name());
  const args = command.registeredArguments.map((one) => (one.required ? `<${one.name()}>` : `[${one.name()}]`));
  const mandatory = command.options.filter((one) => one.mandatory).map((one) => one.flags);
  return [
    ...path,
    ...args.map((arg, i) => (command.registeredArguments[i]?.variadic ? `${arg}…` : arg)),
    ...mandatory,
  ].join(' ');
}

function optionsOf(command: Command): string {
  const shown = command.options
    .filter((one) => !one.mandatory && one.long !== '--json')
    .map((one) => `\`${cell(one.flags)}\``);
  return shown.join(', ') || '–';
}

/** Commands that do something, in the order of --help. */
export function leavesOf(command: Command): Command[] {
  return command.commands.flatMap((one) => (one.commands.length > 0 ? leavesOf(one) : [one]));
}

export function cliDoc(): string {
  // Commands are only read: none is run, so nothing that they would need is there.
  const program = createProgram({ output: { out: () => {}, note: () => {} } } as unknown as Context);
  const row = (command: Command) =>
    `| \`${cell(usageOf(command))}\` | ${cell(command.description())} | ${optionsOf(command)} |`;
  const header = ['| command | what | options |', '|---|---|---|'];
  const groups = program.commands.filter((one) => one.commands.length > 0);
  const alone = program.commands.filter((one) => one.commands.length === 0);
  const sections = groups.map((group) =>
    [`## ${group.name()}`, `${group.description()}\n`, ...header, ...leavesOf(group).map(row)].join('\n'),
  );
  return `${[
    '# Command line',
    '<!-- Written by bin/cli-doc.ts; a test compares. -->',
    'All begin with `npx modelfactory`. They speak with the server at `MODELFACTORY_URL` (else `HOST` and `PORT`), with the key in `MODELFACTORY_KEY`\n(else `admin.key` of the data folder). `--help` after any of them tells its options in words; most take `--json`. What a script wants, such as an id or a key,\nis alone on standard output; what goes with it for a person is on standard error. Exit code 0: done; 1: one sentence says why not; 130: Ctrl-C.',
    [...header, ...alone.map(row)].join('\n'),
    ...sections,
  ].join('\n\n')}\n`;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  writeFileSync(join(resolve(import.meta.dirname, '..'), 'docs', 'cli.md'), cliDoc());
}
