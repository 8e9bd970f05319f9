/** The commands, a file each noun. Every command ends with exit code 0, or with one sentence and exit code 1. */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { FetchError } from '../../daemon/models/fetch.ts';
import { fileProblem } from '../setup/file-problem.mjs';
import { accountCommands } from './account.ts';
import { adapterCommands } from './adapters.ts';
import { auditCommands } from './audit.ts';
import { CliError, GatewayClient } from './client.ts';
import { type Context, type Input, subcommand } from './command.ts';
import { datanetCommands } from './datanets/commands.ts';
import { evaluationCommands } from './evaluate.ts';
import { exportCommands } from './export.ts';
import { fileCommands } from './files.ts';
import { jobCommands } from './jobs.ts';
import { keyCommands } from './keys.ts';
import { modelCommands } from './models.ts';
import { orgCommands } from './orgs.ts';
import { type Output, terminal } from './output.ts';
import { receiptCommands } from './receipts.ts';
import { trainCommands } from './train.ts';
import { userCommands } from './users.ts';

/** `args`: without node and script. Returns the exit code. */
export async function runCli(
  args: string[],
  output: Output = terminal,
  env: NodeJS.ProcessEnv = process.env,
  input: Input = process.stdin,
): Promise<number> {
  let code = 0;
  const program = createProgram({
    output,
    input,
    client: () => new GatewayClient(env),
    stranger: () => new GatewayClient(env, {}),
    setCode: (result) => {
      code = result;
    },
  });
  try {
    await program.parseAsync(args, { from: 'user' });
    return code;
  } catch (error) {
    // Help and version are no errors; what else commander refuses, it has said already.
    if (error instanceof CommanderError) return error.exitCode;
    const sentence = sentenceOf(error);
    if (sentence === null) throw error;
    output.note(`error: ${sentence}`);
    return 1;
  }
}

/** What a person can do something about; null: a defect of the program. */
function sentenceOf(error: unknown): string | null {
  if (error instanceof CliError || error instanceof FetchError) return error.message;
  return fileProblem(error);
}

/** An option that does not exist is named before one that is missing: mostly the one is the other, mistyped. */
class CliCommand extends Command {
  override createCommand(name?: string): CliCommand {
    return new CliCommand(name);
  }

  override parseOptions(args: string[]): ReturnType<Command['parseOptions']> {
    const parsed = super.parseOptions(args);
    const [unknown] = parsed.unknown;
    const isLeaf = this.commands.length === 0;
    const wantsHelp = parsed.unknown.some((word) => word === '-h' || word === '--help');
    if (isLeaf && unknown !== undefined && !wantsHelp) this.unknownOption(unknown);
    return parsed;
  }

  /** Commander's own, which also tells what may have been meant; not in its types. */
  declare unknownOption: (flag: string) => never;
}

export function createProgram(context: Context): Command {
  const { output } = context;
  const program = new CliCommand('modelfactory');
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  program
    .description('Serves many LoRA adapters over one base model, with a verifiable receipt for every answer.')
    .version(version)
    .showHelpAfterError('(--help shows what there is)')
    .configureOutput({
      writeOut: (text) => output.out(text.trimEnd()),
      writeErr: (text) => output.note(text.trimEnd()),
    })
    .exitOverride();

  // Both are handled before this program is loaded; they are here for --help.
  program
    .command('start')
    .description('install and build what is missing, then run gateway and daemon (the same as npm start)');
  subcommand(program, 'doctor', 'what this machine has and lacks, and how to get it');

  modelCommands(program, context);
  adapterCommands(program, context);
  exportCommands(program, context);
  evaluationCommands(program, context);
  trainCommands(program, context);
  jobCommands(program, context);
  fileCommands(program, context);
  datanetCommands(program, context);
  userCommands(program, context);
  orgCommands(program, context);
  accountCommands(program, context);
  auditCommands(program, context);
  keyCommands(program, context);
  receiptCommands(program, context);
  return program;
}
