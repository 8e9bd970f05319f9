/** `modelfactory files …` */

import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import type { Command } from 'commander';
import { progressPrinter } from '../../daemon/models/progress.ts';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, subcommand } from './command.ts';
import { minute, type Output, size, table } from './output.ts';
import { multipart } from './upload.ts';

interface File {
  id: string;
  filename: string;
  purpose: string;
  bytes: number;
  created_at: number;
}

/** @returns the id of the uploaded file. */
export async function uploadFile(client: GatewayClient, path: string, fields: Record<string, string>): Promise<string> {
  const found = await stat(path).catch(() => null);
  if (found === null || !found.isFile()) throw new CliError(`There is no file ${path}.`);
  const bar = progressPrinter(process.stderr);
  const file = { path, name: basename(path), bytes: found.size };
  const show = (doneBytes: number, totalBytes: number) => {
    // Small uploads are over before a bar could be read.
    if (totalBytes > 4e6) bar.show({ label: file.name, doneBytes, totalBytes });
  };
  try {
    return ((await client.upload('/v1/files', multipart(fields, [file], show, 'file'))) as File).id;
  } finally {
    bar.finish();
  }
}

export async function listFiles(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const { data } = (await client.call('GET', '/v1/files?limit=1000')) as { data: File[] };
  if (options.json) return out(JSON.stringify(data, null, 2));
  const rows = data.map((file) => [file.id, file.filename, file.purpose, size(file.bytes), minute(file.created_at)]);
  out(table(['FILE', 'NAME', 'PURPOSE', 'SIZE', 'CREATED'], rows, 'There are no files.'));
}

export async function removeFile(
  client: GatewayClient,
  id: string,
  options: { json?: boolean },
  { out }: Output,
): Promise<void> {
  const removed = await client.call('DELETE', `/v1/files/${encodeURIComponent(id)}`);
  out(options.json ? JSON.stringify(removed, null, 2) : `${id} is removed.`);
}

export function fileCommands(program: Command, { client, output }: Context): void {
  const files = program.command('files').description('uploaded files');
  subcommand(files, 'list', 'newest first').action((options) => listFiles(client(), options, output));
  subcommand(files, 'remove <id>', 'delete a file').action((id, options) => removeFile(client(), id, options, output));
}
