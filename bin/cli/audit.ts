/** `modelfactory audit`: who did what. */
import type { Command } from 'commander';
import type { GatewayClient } from './client.ts';
import { type Context, positive, subcommand } from './command.ts';
import { minute, type Output, table } from './output.ts';

interface Act {
  id: string;
  at: number;
  action: string;
  user_id: string | null;
  key_id: string | null;
  target: string | null;
  address: string | null;
  status: number | null;
}
interface AuditOptions {
  action?: string;
  user?: string;
  key?: string;
  object?: string;
  limit: number;
  json?: boolean;
}

async function listActs(client: GatewayClient, options: AuditOptions, { out }: Output): Promise<void> {
  const query = new URLSearchParams();
  for (const name of ['action', 'user', 'key', 'object'] as const) {
    const value = options[name];
    if (value !== undefined) query.set(name, value);
  }
  const acts = await client.list<Act>(`/api/audit?${query}`, options.limit);
  if (options.json) return out(JSON.stringify(acts, null, 2));
  const rows = acts.map((act) => [
    minute(act.at),
    act.action,
    act.user_id ?? act.key_id ?? '-',
    act.target ?? '-',
    act.status === null ? '?' : String(act.status),
    act.address ?? '-',
  ]);
  out(table(['AT', 'ACTION', 'BY', 'ON', 'STATUS', 'FROM'], rows, 'There are no such acts.'));
}

export function auditCommands(program: Command, { client, output }: Context): void {
  subcommand(program, 'audit', 'administrative acts, newest first')
    .option('--action <action>', 'such as user.create or datanet.publish')
    .option('--user <id>', 'who acted')
    .option('--key <id>', 'which key acted')
    .option('--object <id>', 'what was acted upon')
    .option('--limit <n>', 'how many', positive, 100)
    .action((options) => listActs(client(), options, output));
}
