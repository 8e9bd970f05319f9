/** `modelfactory datanets accept-licence|request|requests|grant|deny|revoke-access`. */
import { CliError, type GatewayClient } from '../client.ts';
import { day, minute, type Output, printable, table } from '../output.ts';
import type { Shown } from './datanets.ts';
import { findDatanet, path } from './names.ts';

interface Acceptance {
  licence: string;
  terms: string;
  terms_sha256: string;
  accepted: boolean;
}
interface AccessRequest {
  id: string;
  requested_by: string;
  organization_id: string | null;
  purpose: string;
  state: string;
  active: boolean;
  reason: string | null;
  expires_at: number | null;
  created_at: number;
}

async function termsOf(client: GatewayClient, id: string, { note }: Output): Promise<Acceptance> {
  const terms = (await client.call('GET', `${path(id)}/licence-acceptance`)) as Acceptance;
  note(`Licence: ${terms.licence} (SPDX)`);
  if (terms.terms !== '') note(`Terms:\n${terms.terms.split('\n').map(printable).join('\n')}`);
  return terms;
}

const refusal = (what: string) =>
  new CliError(`Nothing was sent: to agree to this licence${what} add --yes, when you have read it.`);

export async function acceptLicence(
  client: GatewayClient,
  named: string,
  options: Shown & { yes?: boolean },
  output: Output,
): Promise<void> {
  const { id, name } = await findDatanet(client, named);
  const { licence, terms, terms_sha256 } = await termsOf(client, id, output);
  if (options.yes !== true) throw refusal(terms === '' ? '' : ' and these terms');
  const answer = await client.call('POST', `${path(id)}/licence-acceptance`, { licence, terms_sha256 });
  output.out(
    options.json
      ? JSON.stringify(answer, null, 2)
      : `You have agreed to ${licence}${terms === '' ? '' : ' and the terms'} of "${name}"; it is on record.`,
  );
}

export async function requestAccess(
  client: GatewayClient,
  named: string,
  options: Shown & { purpose: string; org?: string; acceptLicence?: boolean },
  output: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const { licence, terms, terms_sha256 } = await termsOf(client, id, output);
  if (options.acceptLicence !== true) {
    const what = terms === '' ? 'this licence' : 'this licence and these terms';
    throw new CliError(`Nothing was sent: whoever asks for access agrees to ${what}. Add --accept-licence.`);
  }
  const request = (await client.call('POST', `${path(id)}/access-requests`, {
    purpose: options.purpose,
    organization_id: options.org ?? null,
    licence_accepted: licence,
    terms_sha256,
  })) as AccessRequest;
  if (options.json) return output.out(JSON.stringify(request, null, 2));
  output.out(request.id);
  output.note(`The owners decide about it. See: npx modelfactory datanets requests ${id}`);
}

export async function listRequests(
  client: GatewayClient,
  named: string,
  options: Shown & { state?: string },
  { out }: Output,
): Promise<void> {
  const { id } = await findDatanet(client, named);
  const query = options.state === undefined ? '' : `?state=${options.state}`;
  const found = await client.list<AccessRequest>(`${path(id)}/access-requests${query}`, 1_000);
  if (options.json) return out(JSON.stringify(found, null, 2));
  const rows = found.map((one) => [
    one.id,
    one.organization_id ?? one.requested_by,
    one.state === 'approved' && !one.active ? 'expired' : one.state,
    day(one.expires_at),
    minute(one.created_at),
    one.purpose.replaceAll('\n', ' ').slice(0, 80),
  ]);
  out(table(['REQUEST', 'FOR', 'STATE', 'EXPIRES', 'CREATED', 'PURPOSE'], rows, 'Nobody has asked for access.'));
}

/** `30d`, `12h` or a date → seconds since 1970. */
export function parseExpiry(text: string, now: number): number {
  const span = /^(\d{1,5})([hd])$/.exec(text);
  if (span !== null) return Math.floor(now / 1000) + Number(span[1]) * (span[2] === 'h' ? 3_600 : 86_400);
  const at = /^\d{4}-\d{2}-\d{2}(T[\d:.]+Z)?$/.test(text) ? Date.parse(text) : Number.NaN;
  if (Number.isNaN(at)) throw new CliError(`--expires is "${text}"; give 30d, 12h, or a date such as 2027-01-31.`);
  return Math.floor(at / 1000);
}

export async function decide(
  client: GatewayClient,
  named: string,
  request: string,
  action: 'approve' | 'reject' | 'revoke',
  options: Shown & { reason?: string; expires?: string },
  { out }: Output,
): Promise<void> {
  const expires_at = options.expires === undefined ? undefined : parseExpiry(options.expires, Date.now());
  const { id } = await findDatanet(client, named);
  const decided = (await client.call('POST', `${path(id)}/access-requests/${encodeURIComponent(request)}/${action}`, {
    ...(options.reason !== undefined && { reason: options.reason }),
    ...(expires_at !== undefined && { expires_at }),
  })) as AccessRequest;
  if (options.json) return out(JSON.stringify(decided, null, 2));
  const until = decided.expires_at === null ? '' : ` until ${minute(decided.expires_at)} UTC`;
  out(`${request} is ${decided.state}${action === 'approve' ? until : ''}.`);
}
