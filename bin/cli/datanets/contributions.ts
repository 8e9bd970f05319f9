/** `modelfactory datanets contribute|contributions|take-back`: rows and documents on their way into a Datanet. */
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { progressPrinter } from '../../../daemon/models/progress.ts';
import { CliError, type GatewayClient } from '../client.ts';
import { duration, liveLine } from '../live.ts';
import { count, minute, type Output, size, table } from '../output.ts';
import { columnsOf } from '../train.ts';
import { multipart } from '../upload.ts';
import type { Shown } from './datanets.ts';
import { type Datanet, findDatanet, path } from './names.ts';

interface Contribution {
  id: string;
  filename: string;
  bytes: number;
  contributor: string;
  state: 'processing' | 'ready' | 'failed';
  rows: number;
  refused: number;
  progress: { done: number; total: number | null; unit: string } | null;
  problems: { line: number | null; field: string | null; rule: string; message: string }[];
  error: { code: string; message: string } | null;
  created_at: number;
}
export interface ContributeOptions extends Shown {
  acceptLicence?: boolean;
  format?: string;
  columns?: string;
  questions?: string;
  perChunk?: number;
  chunk?: number;
  wait: boolean;
}

const POLL_MS = 500;
const PROBLEMS_SHOWN = 20;

function fieldsOf(datanet: Datanet, options: ContributeOptions): Record<string, string> {
  const questions = options.questions === undefined ? null : { model: options.questions, per_chunk: options.perChunk };
  return {
    licence: datanet.licence,
    ...(options.format !== undefined && { format: options.format }),
    ...(options.columns !== undefined && { columns: columnsOf(options.columns) }),
    ...(questions !== null && { questions: JSON.stringify(questions) }),
    ...(options.chunk !== undefined && { chunk_characters: String(options.chunk) }),
  };
}

async function upload(client: GatewayClient, datanet: Datanet, file: string, options: ContributeOptions) {
  const found = await stat(file).catch(() => null);
  if (found === null || !found.isFile()) throw new CliError(`There is no file ${file}.`);
  const local = { path: file, name: basename(file), bytes: found.size };
  const bar = progressPrinter(process.stderr);
  const body = multipart(
    fieldsOf(datanet, options),
    [local],
    (doneBytes, totalBytes) => {
      // Small uploads are over before a bar could be read.
      if (totalBytes > 4e6) bar.show({ label: local.name, doneBytes, totalBytes });
    },
    'file',
  );
  try {
    return (await client.upload(`${path(datanet.id)}/contributions`, body)) as Contribution;
  } finally {
    bar.finish();
  }
}

/** @returns the exit code. */
export async function contribute(
  client: GatewayClient,
  named: string,
  file: string,
  options: ContributeOptions,
  output: Output,
): Promise<number> {
  const datanet = await findDatanet(client, named);
  if (options.acceptLicence !== true) {
    const terms = datanet.terms === '' ? '' : `, and its terms (npx modelfactory datanets show ${datanet.id})`;
    throw new CliError(
      `What is contributed to "${datanet.name}" is under ${datanet.licence}${terms}. If you may give it so and want to, add --accept-licence.`,
    );
  }
  let contribution = await upload(client, datanet, file, options);
  if (options.wait) contribution = await settled(client, datanet, contribution, output);
  if (options.json) output.out(JSON.stringify(contribution, null, 2));
  else tell(contribution, datanet.id, output);
  return contribution.state === 'failed' ? 1 : 0;
}

/** How far it is, how fast it goes and when it will be done. */
export function contributionLine(progress: NonNullable<Contribution['progress']>, seconds: number): string {
  const { done, total, unit } = progress;
  const of = total === null ? String(done) : `${done}/${total}`;
  const rate = seconds > 0 ? done / seconds : 0;
  const parts = [`${of} ${unit}`];
  if (rate > 0) parts.push(`${Math.round(rate)} ${unit}/s`);
  if (rate > 0 && total !== null && total > done) parts.push(`${duration((total - done) / rate)} left`);
  return parts.join(' · ');
}

async function settled(
  client: GatewayClient,
  datanet: Datanet,
  begun: Contribution,
  { note }: Output,
): Promise<Contribution> {
  const startedAt = Date.now();
  const line = liveLine(process.stderr, note);
  let shown = '';
  try {
    for (let now = begun; ; ) {
      if (now.state !== 'processing') return now;
      const { progress } = now;
      if (progress !== null && progress.done > 0) {
        const text = contributionLine(progress, (Date.now() - startedAt) / 1000);
        // Where lines are not written over, only news is worth one.
        if (text !== shown) line.show(text);
        shown = text;
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      now = (await client.call('GET', `${path(datanet.id)}/contributions/${begun.id}`)) as Contribution;
    }
  } finally {
    line.finish();
  }
}

function tell(contribution: Contribution, datanet: string, { out, note }: Output): void {
  const { id, rows, refused, problems, error, state } = contribution;
  for (const { line, field, message } of problems.slice(0, PROBLEMS_SHOWN))
    note(`${line === null ? '' : `line ${line}: `}${field === null ? '' : `${field}: `}${message}`);
  const more = refused - Math.min(PROBLEMS_SHOWN, problems.length);
  if (more > 0) note(`… and ${more} more.`);
  if (state === 'failed') {
    note(`error: ${error?.message ?? 'The contribution failed.'}`);
    return;
  }
  out(id);
  note(
    state === 'processing'
      ? `It is being read. See: npx modelfactory datanets contributions ${datanet}`
      : `${count(rows, 'row waits', 'rows wait')} for review${refused > 0 ? `; ${count(refused, 'was', 'were')} not taken` : ''}.`,
  );
}

export async function listContributions(
  client: GatewayClient,
  named: string,
  options: Shown,
  { out }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const found = await client.list<Contribution>(`${path(id)}/contributions`, 1_000);
  if (options.json) return out(JSON.stringify(found, null, 2));
  const rows = found.map((one) => [
    one.id,
    one.filename,
    size(one.bytes),
    one.contributor,
    one.state === 'processing' && one.progress !== null
      ? `processing (${contributionLine(one.progress, 0)})`
      : one.state,
    String(one.rows),
    String(one.refused),
    minute(one.created_at),
  ]);
  const header = ['CONTRIBUTION', 'FILE', 'SIZE', 'BY', 'STATE', 'ROWS', 'REFUSED', 'CREATED'];
  out(table(header, rows, 'There are no contributions that you may see.'));
}

export async function takeBack(
  client: GatewayClient,
  named: string,
  contribution: string,
  options: Shown,
  { out }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const answer = await client.call('DELETE', `${path(id)}/contributions/${encodeURIComponent(contribution)}`);
  out(options.json ? JSON.stringify(answer, null, 2) : `${contribution} is taken back, with all its rows.`);
}
