/** `modelfactory datanets rows|search|review`: the rows of a Datanet, and the decision about them. */
import { CliError, type GatewayClient } from '../client.ts';
import { count, type Output, printable, table } from '../output.ts';
import type { Shown } from './datanets.ts';
import { findDatanet, path } from './names.ts';

interface Row {
  id: string;
  content: Record<string, unknown> | null;
  contributor: string;
  score: number;
  reasons: { rule: string; message: string }[];
  state: string;
  language: string | null;
  near_duplicate_of: string | null;
  added_in: number | null;
  removed_in: number | null;
}
export interface RowsOptions extends Shown {
  state?: string;
  contribution?: string;
  contributor?: string;
  minScore?: number;
  version?: number;
  limit: number;
}

const PREVIEW_CHARACTERS = 60;

/** The beginning of a row's words. */
function preview({ content }: Row): string {
  if (content === null) return '(erased)';
  const words: string[] = [];
  const collect = (value: unknown, key: string) => {
    if (typeof value === 'string' && key !== 'role' && key !== 'kind') words.push(value);
    else if (value !== null && typeof value === 'object')
      for (const [name, part] of Object.entries(value)) collect(part, name);
  };
  collect(content, '');
  const text = printable(words.filter(Boolean).join(' | ').replaceAll(/\s+/g, ' '));
  return text.length > PREVIEW_CHARACTERS ? `${text.slice(0, PREVIEW_CHARACTERS - 1)}…` : text;
}

function inVersions({ added_in, removed_in }: Row): string {
  if (added_in === null) return '-';
  return removed_in === null ? `${added_in}–` : `${added_in}–${removed_in - 1}`;
}

function rowTable(rows: Row[]): string {
  const header = ['ROW', 'STATE', 'SCORE', 'VERSIONS', 'TEXT', 'REMARKS'];
  const lines = rows.map((row) => [
    row.id,
    row.state,
    String(row.score),
    inVersions(row),
    preview(row),
    row.reasons.map(({ rule }) => rule).join(', ') || '-',
  ]);
  return table(header, lines, 'There are no such rows.');
}

export async function listRows(
  client: GatewayClient,
  named: string,
  options: RowsOptions,
  { out }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const { state, contribution, contributor, minScore, version } = options;
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ state, contribution, contributor, min_score: minScore, version }))
    if (value !== undefined) query.set(name, String(value));
  const rows = await client.list<Row>(`${path(id)}/rows?${query}`, options.limit);
  out(options.json ? JSON.stringify(rows, null, 2) : rowTable(rows));
}

export async function showRow(
  client: GatewayClient,
  named: string,
  row: string,
  _options: Shown,
  { out }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  out(JSON.stringify(await client.call('GET', `${path(id)}/rows/${encodeURIComponent(row)}`), null, 2));
}

export async function searchRows(
  client: GatewayClient,
  named: string,
  query: string,
  options: Shown & { limit: number },
  { out, note }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const answer = (await client.call(
    'GET',
    `${path(id)}/search?q=${encodeURIComponent(query)}&limit=${options.limit}`,
  )) as { data: (Row & { match: { snippet: string } })[]; bounded: boolean };
  if (options.json) return out(JSON.stringify(answer, null, 2));
  const lines = answer.data.map((row) => [
    row.id,
    row.state,
    String(row.score),
    row.match.snippet.replaceAll(/\s+/g, ' '),
  ]);
  out(table(['ROW', 'STATE', 'SCORE', 'FOUND'], lines, 'Nothing was found.'));
  if (answer.bounded) note('There are more matches than were ranked; these are among the newest.');
}

export interface ReviewOptions extends Shown {
  allPending?: boolean;
  contribution?: string;
  contributor?: string;
  minScore?: number;
  maxScore?: number;
  nearDuplicates?: boolean;
  reason?: string;
}

export async function reviewRows(
  client: GatewayClient,
  named: string,
  action: 'approve' | 'reject',
  rows: string[],
  options: ReviewOptions,
  { out, note }: Output,
): Promise<void> {
  const filter = {
    ...(options.contribution !== undefined && { contribution: options.contribution }),
    ...(options.contributor !== undefined && { contributor: options.contributor }),
    ...(options.minScore !== undefined && { min_score: options.minScore }),
    ...(options.maxScore !== undefined && { max_score: options.maxScore }),
    ...(options.nearDuplicates !== undefined && { near_duplicates: options.nearDuplicates }),
  };
  const filtered = options.allPending === true || Object.keys(filter).length > 0;
  if (filtered === rows.length > 0)
    throw new CliError('Name rows, or choose pending ones with --all-pending, --min-score or --contribution.');
  if (action === 'reject' && options.reason === undefined)
    throw new CliError('Say why with --reason; the contributor reads it.');
  const { id } = await findDatanet(client, named);
  const answer = (await client.call('POST', `${path(id)}/review`, {
    action,
    ...(filtered ? { filter } : { rows }),
    ...(options.reason !== undefined && { reason: options.reason }),
  })) as { changed: number; already_decided: number; own: number; not_found: number };
  if (options.json) return out(JSON.stringify(answer, null, 2));
  out(`${count(answer.changed, 'row is', 'rows are')} ${action === 'approve' ? 'approved' : 'rejected'}.`);
  if (answer.own > 0)
    note(
      `${count(answer.own, 'is', 'are')} your own; somebody else who governs this Datanet has to approve ${answer.own === 1 ? 'it' : 'them'}.`,
    );
  if (answer.already_decided > 0) note(`${count(answer.already_decided, 'was', 'were')} decided before.`);
  if (answer.not_found > 0) note(`${count(answer.not_found, 'is', 'are')} not in this Datanet.`);
}
