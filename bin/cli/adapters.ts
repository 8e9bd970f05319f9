/** `modelfactory adapters …` */
import type { Command } from 'commander';
import { progressPrinter } from '../../daemon/models/progress.ts';
import type { Adapter } from '../../daemon/protocol.ts';
import type { GatewayClient } from './client.ts';
import { type Context, subcommand } from './command.ts';
import { count, day, type Output, size, table } from './output.ts';
import { adapterFiles, multipart } from './upload.ts';

export interface AddOptions {
  name: string;
  replace?: boolean;
  json?: boolean;
}

/** Local files are uploaded; `hf:owner/repo` is fetched by the server. */
export async function addAdapter(
  client: GatewayClient,
  source: string,
  options: AddOptions,
  { out }: Output,
): Promise<void> {
  const { name, replace = false } = options;
  const adapter = source.startsWith('hf:')
    ? await client.call('POST', '/api/adapters', { name, source, replace })
    : await uploadAdapter(client, source, name, replace);
  const { digest, rankMax, bytes } = adapter as Adapter;
  out(
    options.json
      ? JSON.stringify(adapter, null, 2)
      : `${name} is ready: rank ${rankMax}, ${size(bytes)}, digest ${digest}.\nUse it with "model": "${name}".`,
  );
}

async function uploadAdapter(client: GatewayClient, source: string, name: string, replace: boolean): Promise<unknown> {
  const files = await adapterFiles(source);
  const bar = progressPrinter(process.stderr);
  const fields = { name, ...(replace && { replace: 'true' }) };
  const upload = multipart(fields, files, (doneBytes, totalBytes) => {
    // Small uploads are over before a bar could be read.
    if (totalBytes > 4e6) bar.show({ label: name, doneBytes, totalBytes });
  });
  try {
    return await client.upload(`/api/adapters?name=${encodeURIComponent(name)}`, upload);
  } finally {
    bar.finish();
  }
}

export async function listAdapters(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const { data } = (await client.call('GET', '/api/adapters')) as { data: Adapter[] };
  if (options.json) {
    out(JSON.stringify(data, null, 2));
    return;
  }
  const rows = data.map((one) => [
    one.name,
    String(one.rankMax),
    size(one.bytes),
    one.pinned ? `${one.tier}, pinned` : one.tier,
    one.digest.slice(0, 12),
    one.source,
  ]);
  out(
    table(
      ['NAME', 'RANK', 'SIZE', 'TIER', 'DIGEST', 'SOURCE'],
      rows,
      'There are no adapters. Add one with: npx modelfactory adapters add PATH --name NAME',
    ),
  );
}

export async function removeAdapter(
  client: GatewayClient,
  name: string,
  options: { json?: boolean },
  { out }: Output,
): Promise<void> {
  const removed = await client.call('DELETE', `/api/adapters/${encodeURIComponent(name)}`);
  out(options.json ? JSON.stringify(removed, null, 2) : `${name} is removed.`);
}

interface Sources {
  job: string | null;
  sources: {
    file: string;
    name: string | null;
    version: number | null;
    licence: string | null;
    state: string | null;
    weight: number;
    examples: number | null;
    contributors: { user: string; name: string | null; rows: number }[] | null;
  }[];
  marks: { kind: string; datanet: string; version: number; rows: number; created_at: number }[];
}

/** What it was trained on, who contributed it, and what became of it since. */
async function showSources(
  client: GatewayClient,
  name: string,
  options: { json?: boolean },
  { out, note }: Output,
): Promise<void> {
  const found = (await client.call('GET', `/api/adapters/${encodeURIComponent(name)}/sources`)) as Sources;
  if (options.json) return out(JSON.stringify(found, null, 2));
  const rows = found.sources.map((one) => [
    one.name === null ? one.file : `${one.name} ${one.version}`,
    one.licence ?? '-',
    one.state ?? '-',
    String(one.weight),
    one.examples === null ? '-' : String(one.examples),
    (one.contributors ?? [])
      .slice(0, CONTRIBUTORS_SHOWN)
      .map((who) => `${who.name ?? who.user} (${who.rows})`)
      .join(', ') || '-',
  ]);
  const header = ['TRAINED ON', 'LICENCE', 'STATE', 'WEIGHT', 'EXAMPLES', 'CONTRIBUTORS (ROWS)'];
  out(table(header, rows, 'It was not trained by a job here, so nothing is known of what it learned from.'));
  for (const mark of found.marks)
    note(
      mark.kind === 'revocation'
        ? `${day(mark.created_at)}: ${mark.datanet} was revoked.`
        : `${day(mark.created_at)}: ${count(mark.rows, 'row')} of version ${mark.version} of ${mark.datanet} ${mark.rows === 1 ? 'was' : 'were'} withdrawn.`,
    );
}
const CONTRIBUTORS_SHOWN = 10;

export function adapterCommands(program: Command, { client, output }: Context): void {
  const adapters = program.command('adapters').description('LoRA adapters of the running server');
  subcommand(adapters, 'add', 'upload a PEFT folder or a .gguf file, or let the server fetch one from the hub')
    .argument('<source>', 'a path, or hf:owner/repo')
    .requiredOption('--name <name>', 'what clients put into "model"')
    .option('--replace', 'replace an adapter of the same name; requests under way finish on the old weights')
    .action((source, options) => addAdapter(client(), source, options, output));
  subcommand(adapters, 'list', 'name, rank, size and where each adapter is now').action((options) =>
    listAdapters(client(), options, output),
  );
  subcommand(adapters, 'sources <name>', 'what it was trained on, by whom, and what was withdrawn since').action(
    (name, options) => showSources(client(), name, options, output),
  );
  subcommand(adapters, 'remove <name>', 'remove an adapter').action((name, options) =>
    removeAdapter(client(), name, options, output),
  );
}
