/** `modelfactory datanets create|list|show|change|revoke|reactivate`. */
import { readFile } from 'node:fs/promises';
import { CliError, type GatewayClient } from '../client.ts';
import { count, day, type Output, printable, table } from '../output.ts';
import { type Datanet, findDatanet, path } from './names.ts';

export interface Shown {
  json?: boolean;
}
export interface DatanetFields extends Shown {
  name?: string;
  summary?: string;
  description?: string;
  tags?: string[];
  licence?: string;
  terms?: string;
  visibility?: 'public' | 'permissioned';
  languages?: string[];
}

/** `@file`: what the file holds. */
async function textOf(given: string): Promise<string> {
  if (!given.startsWith('@')) return given;
  try {
    return await readFile(given.slice(1), 'utf8');
  } catch (error) {
    throw new CliError(`${given.slice(1)} cannot be read: ${(error as Error).message}`);
  }
}

async function bodyOf(options: DatanetFields): Promise<Record<string, unknown>> {
  const { name, summary, tags, licence, visibility, languages } = options;
  const plain = { name, summary, tags, licence, visibility, languages };
  const given = Object.entries(plain).filter(([, value]) => value !== undefined);
  return {
    ...Object.fromEntries(given),
    ...(options.description !== undefined && { description: await textOf(options.description) }),
    ...(options.terms !== undefined && { terms: await textOf(options.terms) }),
  };
}

export async function createDatanet(
  client: GatewayClient,
  name: string,
  options: DatanetFields & { kind: string; org?: string },
  { out, note }: Output,
): Promise<void> {
  const body = { ...(await bodyOf(options)), name, kind: options.kind, organization_id: options.org ?? null };
  const made = (await client.call('POST', '/api/datanets', body)) as Datanet;
  if (options.json) return out(JSON.stringify(made, null, 2));
  out(made.id);
  note(`"${made.name}" is made: ${made.kind}, ${made.licence}, ${made.visibility}.`);
  note(`Put rows in with: npx modelfactory datanets contribute ${made.id} FILE --accept-licence`);
}

export async function changeDatanet(
  client: GatewayClient,
  named: string,
  options: DatanetFields,
  { out }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const body = await bodyOf(options);
  if (Object.keys(body).length === 0) throw new CliError('Say what is to be changed, such as --summary.');
  const changed = (await client.call('PATCH', path(id), body)) as Datanet;
  out(options.json ? JSON.stringify(changed, null, 2) : `"${changed.name}" is changed.`);
}

export interface ListOptions extends Shown {
  search?: string;
  tag?: string;
  licence?: string;
  kind?: string;
  visibility?: string;
  mine?: boolean;
  limit: number;
}

export async function listDatanets(client: GatewayClient, options: ListOptions, { out }: Output): Promise<void> {
  const query = new URLSearchParams();
  const { search, tag, licence, kind, visibility } = options;
  for (const [name, value] of Object.entries({ q: search, tag, licence, kind, visibility }))
    if (value !== undefined) query.set(name, value);
  if (options.mine === true) query.set('mine', 'true');
  const found = await client.list<Datanet>(`/api/datanets?${query}`, options.limit);
  if (options.json) return out(JSON.stringify(found, null, 2));
  const rows = found.map((one) => [
    one.id,
    one.name,
    one.owner.name,
    one.kind,
    one.licence,
    one.state === 'revoked' ? 'revoked' : one.visibility,
    one.version === 0 ? '-' : String(one.version),
    String(one.rows),
    day(one.created_at),
  ]);
  const header = ['DATANET', 'NAME', 'OWNER', 'KIND', 'LICENCE', 'ACCESS', 'VERSION', 'ROWS', 'CREATED'];
  out(
    table(
      header,
      rows,
      'There are no such Datanets. Make one with: npx modelfactory datanets create NAME --licence LICENCE',
    ),
  );
}

interface Statistics {
  rows?: number;
  states?: Record<string, number>;
}

export async function showDatanet(
  client: GatewayClient,
  named: string,
  options: Shown,
  { out }: Output,
): Promise<void> {
  const datanet = await findDatanet(client, named);
  const statistics = await client
    .call('GET', `${path(datanet.id)}/statistics`)
    .then((found) => found as Statistics)
    // Whoever may not read its rows sees the rest.
    .catch((error) => {
      if (error instanceof CliError) return null;
      throw error;
    });
  if (options.json) return out(JSON.stringify({ ...datanet, statistics }, null, 2));
  const say = (name: string, value: string) => {
    if (value !== '') out(`${name.padEnd(12)} ${printable(value)}`);
  };
  say('id', datanet.id);
  say('name', datanet.name);
  say('summary', datanet.summary);
  say('owner', `${datanet.owner.name} (${datanet.owner.id})`);
  say('kind', datanet.kind);
  say('licence', datanet.licence);
  say('tags', datanet.tags.join(', '));
  say('languages', datanet.languages.join(', '));
  say('access', `${datanet.visibility}, ${datanet.state}`);
  say('version', datanet.version === 0 ? 'none yet' : `${datanet.version}, ${datanet.rows} rows`);
  for (const [state, count] of Object.entries(statistics?.states ?? {})) say(state, `${count} rows`);
  say('you', datanet.access.message);
  for (const [title, text] of Object.entries({ terms: datanet.terms, description: datanet.description }))
    if (text !== '') out(`\n${title}:\n${text.split('\n').map(printable).join('\n')}`);
}

export async function setRevoked(
  client: GatewayClient,
  named: string,
  action: 'revoke' | 'reactivate',
  options: Shown & { reason: string },
  { out }: Output,
): Promise<void> {
  const { id, name } = await findDatanet(client, named);
  const answer = (await client.call('POST', `${path(id)}/${action}`, { reason: options.reason })) as {
    adapters_marked: number;
  };
  if (options.json) return out(JSON.stringify(answer, null, 2));
  out(
    action === 'revoke'
      ? `"${name}" is revoked: nothing new is trained on it. ${count(answer.adapters_marked, 'adapter is marked and stays', 'adapters are marked and stay')} on record.`
      : `"${name}" is active again.`,
  );
}
