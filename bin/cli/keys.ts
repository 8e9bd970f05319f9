/** `modelfactory keys …` */
import type { GatewayClient } from './client.ts';
import { CliError } from './client.ts';
import { money, type Output, parseMoney, table } from './output.ts';

interface Key {
  id: string;
  name: string;
  hint: string;
  scopes: string[];
  models: string[] | null;
  requests_per_minute: number | null;
  tokens_per_minute: number | null;
  concurrency: number | null;
  budget_micros: number | null;
  spent_micros: number;
  revoked_at: number | null;
}

export interface KeyOptions {
  name: string;
  scopes?: string[];
  models?: string[];
  rpm?: number;
  tpm?: number;
  concurrency?: number;
  budget?: string;
  json?: boolean;
}

export async function createKey(client: GatewayClient, options: KeyOptions, { out, note }: Output): Promise<void> {
  const budget = options.budget === undefined ? undefined : parseMoney(options.budget);
  if (budget === null)
    throw new CliError(`--budget is "${options.budget}"; give an amount such as 5 or 0.25 (at most six decimals).`);
  const body = {
    name: options.name,
    ...(options.scopes && { scopes: options.scopes }),
    ...(options.models && { models: options.models }),
    ...(options.rpm !== undefined && { requests_per_minute: options.rpm }),
    ...(options.tpm !== undefined && { tokens_per_minute: options.tpm }),
    ...(options.concurrency !== undefined && { concurrency: options.concurrency }),
    ...(budget !== undefined && { budget_micros: budget }),
  };
  const made = (await client.call('POST', '/api/keys', body)) as Key & { key: string };
  if (options.json) {
    out(JSON.stringify(made, null, 2));
    return;
  }
  // The key alone on stdout, so that `KEY=$(modelfactory keys create --name app)` works.
  note(`Key ${made.id} (${made.name}), scopes ${made.scopes.join(', ')}. It is shown only now:`);
  out(made.key);
}

export async function listKeys(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const { data } = (await client.call('GET', '/api/keys')) as { data: Key[] };
  if (options.json) {
    out(JSON.stringify(data, null, 2));
    return;
  }
  const number = (value: number | null) => (value === null ? '-' : String(value));
  const rows = data.map((key) => [
    key.id,
    key.name,
    key.hint,
    key.revoked_at === null ? key.scopes.join(',') : 'revoked',
    key.models?.join(',') ?? 'all',
    number(key.requests_per_minute),
    number(key.tokens_per_minute),
    number(key.concurrency),
    `${money(key.spent_micros)} / ${money(key.budget_micros)}`,
  ]);
  out(
    table(
      ['ID', 'NAME', 'KEY', 'SCOPES', 'MODELS', 'RPM', 'TPM', 'PARALLEL', 'SPENT / BUDGET'],
      rows,
      'There are no keys.',
    ),
  );
}

export async function revokeKey(
  client: GatewayClient,
  id: string,
  options: { json?: boolean },
  { out }: Output,
): Promise<void> {
  const revoked = await client.call('DELETE', `/api/keys/${encodeURIComponent(id)}`);
  out(options.json ? JSON.stringify(revoked, null, 2) : `${id} is revoked.`);
}
