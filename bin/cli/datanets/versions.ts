/** `modelfactory datanets publish|versions|diff|export|proof|withdraw`. */
import { createWriteStream } from 'node:fs';
import { rename, rm, stat, writeFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { progressPrinter } from '../../../daemon/models/progress.ts';
import { CliError, type GatewayClient } from '../client.ts';
import { count, minute, type Output, size, table } from '../output.ts';
import type { Shown } from './datanets.ts';
import { findDatanet, findVersion, path } from './names.ts';

interface Version {
  version: number;
  cause: string;
  notes: string;
  rows: number;
  added: number;
  removed: number;
  root: string;
  created_at: number;
}

export async function publish(
  client: GatewayClient,
  named: string,
  options: Shown & { notes: string },
  { out, note }: Output,
): Promise<void> {
  const { id, name } = await findDatanet(client, named);
  const version = (await client.call('POST', `${path(id)}/versions`, { notes: options.notes })) as Version;
  if (options.json) return out(JSON.stringify(version, null, 2));
  out(String(version.version));
  note(`Version ${version.version} of "${name}": ${version.rows} rows, root ${version.root}.`);
  note(`Train on it with: npx modelfactory train --datanet ${id}@${version.version}`);
}

export async function listVersions(
  client: GatewayClient,
  named: string,
  options: Shown,
  { out }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const versions = await client.list<Version & { id?: string }>(`${path(id)}/versions`, 1_000);
  if (options.json) return out(JSON.stringify(versions, null, 2));
  const rows = versions.map((one) => [
    String(one.version),
    one.cause,
    String(one.rows),
    `+${one.added} −${one.removed}`,
    one.root.slice(0, 16),
    minute(one.created_at),
    one.notes.replaceAll('\n', ' ').slice(0, 60) || '-',
  ]);
  out(
    table(
      ['VERSION', 'CAUSE', 'ROWS', 'CHANGE', 'ROOT', 'CREATED', 'NOTES'],
      rows,
      `Nothing is published yet. Publish what is approved with: npx modelfactory datanets publish ${id}`,
    ),
  );
}

export async function diff(
  client: GatewayClient,
  named: string,
  from: number,
  to: number,
  options: Shown,
  { out, note }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const at = `${path(id)}/versions/${from}/diff/${to}`;
  const difference = (await client.call('GET', at)) as {
    added: number;
    removed: number;
    unchanged: number;
    licence_changed: boolean;
    terms_changed: boolean;
  };
  const rows = async (which: 'added' | 'removed') => client.list<{ id: string }>(`${at}?rows=${which}`, 10_000);
  const [added, removed] = [await rows('added'), await rows('removed')];
  if (options.json) return out(JSON.stringify({ ...difference, data: undefined, added, removed }, null, 2));
  for (const row of added) out(`+ ${row.id}`);
  for (const row of removed) out(`- ${row.id}`);
  note(`${difference.added} added, ${difference.removed} removed, ${difference.unchanged} the same.`);
  if (difference.licence_changed) note('The licence is another one.');
  if (difference.terms_changed) note('The terms are other ones.');
}

export interface ExportOptions extends Shown {
  format: 'jsonl' | 'csv' | 'croissant';
  out?: string;
  provenance?: boolean;
  force?: boolean;
}

/** What is there at the end is whole; what was begun is gone if it fails. */
export async function exportVersion(
  client: GatewayClient,
  named: string,
  options: ExportOptions,
  { out, note }: Output,
): Promise<void> {
  const { datanet, version } = await findVersion(client, named);
  const { format } = options;
  const safe = datanet.name.replace(/[^\p{L}\p{N}._-]+/gu, '-').replace(/^[.-]+/, '') || datanet.id;
  const extension = format === 'croissant' ? 'croissant.json' : format;
  const file = options.out ?? `${safe}-v${version}.${extension}`;
  if (options.force !== true && (await stat(file).catch(() => null)) !== null)
    throw new CliError(`${file} is there already. Choose another --out, or replace it with --force.`);
  const query = `format=${format}${options.provenance === true ? '&provenance=true' : ''}`;
  const { bytes, body } = await client.download(`${path(datanet.id)}/versions/${version}/export?${query}`);
  const bar = progressPrinter(process.stderr);
  const part = `${file}.part`;
  let doneBytes = 0;
  try {
    await pipeline(
      Readable.from(body),
      async function* (chunks: AsyncIterable<Uint8Array>) {
        for await (const chunk of chunks) {
          doneBytes += chunk.length;
          if ((bytes ?? doneBytes) > 4e6) bar.show({ label: file, doneBytes, totalBytes: bytes });
          yield chunk;
        }
      },
      createWriteStream(part),
    );
    await rename(part, file);
  } catch (error) {
    await rm(part, { force: true });
    throw error instanceof CliError ? error : new CliError(`The export broke off: ${(error as Error).message}.`);
  } finally {
    bar.finish();
  }
  if (options.json) return out(JSON.stringify({ datanet: datanet.id, version, format, file, bytes: doneBytes }));
  out(file);
  note(`Version ${version} of "${datanet.name}", ${size(doneBytes)}.`);
}

export async function saveProof(
  client: GatewayClient,
  named: string,
  row: string,
  options: { out?: string },
  { out, note }: Output,
): Promise<void> {
  const { datanet, version } = await findVersion(client, named);
  const at = `${path(datanet.id)}/versions/${version}/rows/${encodeURIComponent(row)}/proof`;
  const text = JSON.stringify(await client.call('GET', at), null, 2);
  if (options.out === undefined || options.out === '-') return out(text);
  try {
    await writeFile(options.out, `${text}\n`);
  } catch (error) {
    throw new CliError(`${options.out} cannot be written: ${(error as Error).message}`);
  }
  note(
    `That ${row} is in version ${version} is proved by ${options.out}. Check it, also without this server, with: npx modelfactory verify ${options.out}`,
  );
}

export interface WithdrawOptions extends Shown {
  contribution?: string;
  reason: string;
  erase?: boolean;
}

export async function withdraw(
  client: GatewayClient,
  named: string,
  rows: string[],
  options: WithdrawOptions,
  { out }: Output,
): Promise<void> {
  if ((options.contribution === undefined) === (rows.length === 0))
    throw new CliError('Name the rows (row_…), or all of a contribution with --contribution.');
  // Who contributed may withdraw also when the Datanet is not to be seen any more.
  const id = named.startsWith('dn_') ? named : (await findDatanet(client, named)).id;
  const answer = (await client.call('POST', `${path(id)}/withdrawals`, {
    ...(rows.length > 0 ? { rows } : { contribution: options.contribution }),
    reason: options.reason,
    erase: options.erase === true,
  })) as { rows: number; version: number | null };
  if (options.json) return out(JSON.stringify(answer, null, 2));
  const then =
    answer.version === null
      ? 'None of them was in the newest version.'
      : `Version ${answer.version} is without them, and the adapters trained on them are marked.`;
  out(`${count(answer.rows, 'row is', 'rows are')} withdrawn${options.erase === true ? ' and erased' : ''}. ${then}`);
}
