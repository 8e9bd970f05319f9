/** `modelfactory receipt` and `modelfactory verify` */

import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { formatReport, verifyFile } from '../../daemon/receipts/verify.ts';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, subcommand } from './command.ts';
import type { Output } from './output.ts';

const root = resolve(import.meta.dirname, '..', '..');

export async function saveReceipt(
  client: GatewayClient,
  id: string,
  options: { out?: string },
  { out, note }: Output,
): Promise<void> {
  const bundle = await client.call('GET', `/v1/receipts/${encodeURIComponent(id)}`);
  const text = JSON.stringify(bundle, null, 2);
  if (options.out === undefined || options.out === '-') {
    out(text);
    return;
  }
  try {
    await writeFile(options.out, `${text}\n`);
  } catch (error) {
    throw new CliError(`${options.out} cannot be written: ${(error as Error).message}`);
  }
  note(
    `Receipt ${id} is in ${options.out}. Check it, also without this server, with: npx modelfactory verify ${options.out}`,
  );
}

export interface VerifyOptions {
  vkey?: string;
  vkeyFile?: string;
  json?: boolean;
}

/** Needs no server and no network. Returns the exit code. */
export async function verify(file: string, options: VerifyOptions, { out }: Output): Promise<number> {
  // On the machine that made the proof its keys are at hand; elsewhere one is given, or the file's own is shown as such.
  const keysFolder = join(resolve(root, process.env.MODELFACTORY_DATA || 'data'), 'keys');
  const report = await verifyFile(file, { vkey: options.vkey, vkeyPath: options.vkeyFile, keysFolder });
  out(options.json ? JSON.stringify(report, null, 2) : formatReport(report));
  return report.ok ? 0 : 1;
}

export function receiptCommands(program: Command, { client, output, setCode }: Context): void {
  program
    .command('receipt <id>')
    .description('save the receipt of an answer with its proof (its id is in the x-receipt-id header)')
    .option('--out <file>', 'where to; default: standard output')
    .action((id, options) => saveReceipt(client(), id, options, output));
  subcommand(
    program,
    'verify <file>',
    'check a receipt, or the proof of a row of a Datanet, offline: its form, the signature of the log, and that it is in the log',
  )
    .option('--vkey <key>', "the log's public key (name+hash+key); trust nothing else")
    .option('--vkey-file <file>', 'a file that holds it')
    .action(async (file: string, options: VerifyOptions) => setCode(await verify(file, options, output)));
}
