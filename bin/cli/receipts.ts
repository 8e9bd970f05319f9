/** `modelfactory receipt` and `modelfactory verify` */
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { formatReport, verifyFile } from '../../daemon/receipts/verify.ts';
import { CliError, type GatewayClient } from './client.ts';
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
    `Receipt ${id} is in ${options.out}. Check it, also without this server, with: modelfactory verify ${options.out}`,
  );
}

export interface VerifyOptions {
  vkey?: string;
  vkeyFile?: string;
  json?: boolean;
}

/** Needs no server and no network. Returns the exit code. */
export async function verify(file: string, options: VerifyOptions, { out }: Output): Promise<number> {
  // On the machine that keeps the log its own key is at hand; elsewhere one is given, or the file's own is shown as such.
  const own = join(resolve(root, process.env.MODELFACTORY_DATA || 'data'), 'keys', 'log.vkey');
  const vkeyPath = options.vkeyFile ?? (options.vkey === undefined && existsSync(own) ? own : undefined);
  const report = await verifyFile(file, { vkey: options.vkey, vkeyPath });
  out(options.json ? JSON.stringify(report, null, 2) : formatReport(report));
  return report.ok ? 0 : 1;
}
