/** `modelfactory files …` */
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { progressPrinter } from '../../daemon/models/progress.ts';
import { CliError, type GatewayClient } from './client.ts';
import { megabytes, type Output, table } from './output.ts';
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
  const rows = data.map((file) => [
    file.id,
    file.filename,
    file.purpose,
    megabytes(file.bytes),
    new Date(file.created_at * 1000).toISOString().slice(0, 16).replace('T', ' '),
  ]);
  out(table(['FILE', 'NAME', 'PURPOSE', 'SIZE', 'CREATED'], rows, 'There are no files.'));
}

export async function removeFile(client: GatewayClient, id: string, { out }: Output): Promise<void> {
  await client.call('DELETE', `/v1/files/${encodeURIComponent(id)}`);
  out(`${id} is removed.`);
}
