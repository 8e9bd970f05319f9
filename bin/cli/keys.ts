/** `modelfactory keys …` */
import type { Command } from 'commander';
import type { GatewayClient } from './client.ts';
import { CliError } from './client.ts';
import { type Context, positive, subcommand, words } from './command.ts';
import { money, type Output, parseMoney, table } from './output.ts';
import { findUser } from './users.ts';

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
  user?: string;
  json?: boolean;
}

export async function createKey(client: GatewayClient, options: KeyOptions, { out, note }: Output): Promise<void> {
  const budget = options.budget === undefined ? undefined : parseMoney(options.budget);
  if (budget === null)
    throw new CliError(`--budget is "${options.budget}"; give an amount such as 5 or 0.25 (at most six decimals).`);
  const user = options.user === undefined ? undefined : (await findUser(client, options.user)).id;
  const body = {
    name: options.name,
    ...(user !== undefined && { user_id: user }),
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

export function keyCommands(program: Command, { client, output }: Context): void {
  const keys = program.command('keys').description("API keys: a user's own, or the operator's");
  subcommand(keys, 'create', 'make a key; it is printed once and kept nowhere')
    .requiredOption('--name <name>', 'what it is for')
    .option(
      '--scopes <list>',
      'inference, adapters, fine_tuning, keys, metrics, datanets, contribute, govern, account, people, audit, admin (default: inference)',
      words,
    )
    .option('--models <list>', 'only these models', words)
    .option('--rpm <n>', 'requests per minute', positive)
    .option('--tpm <n>', 'tokens per minute', positive)
    .option('--concurrency <n>', 'requests at the same time', positive)
    .option('--budget <amount>', 'what it may spend in all, in units of the currency, e.g. 2.50')
    .option('--user <user>', "id or e-mail; default: whose key asks (the operator's: nobody's)")
    .action((options: KeyOptions) => createKey(client(), options, output));
  subcommand(keys, 'list', 'keys with their limits and what they have spent').action((options) =>
    listKeys(client(), options, output),
  );
  subcommand(keys, 'revoke', 'revoke a key, effective at once')
    .argument('<id>', 'key_…, see keys list')
    .action((id, options) => revokeKey(client(), id, options, output));
}
