/** `modelfactory account …`: one's own password, personal keys and sessions. */
import type { Command } from 'commander';
import type { GatewayClient } from './client.ts';
import { type Context, type Input, subcommand } from './command.ts';
import { count, minute, type Output, table } from './output.ts';
import { readChange, readNewPassword, readPassword } from './password.ts';
import type { User } from './users.ts';

interface Session {
  id: string;
  method: string;
  address: string | null;
  user_agent: string | null;
  current: boolean;
  last_seen_at: number;
  expires_at: number;
}
interface KeyOptions {
  name: string;
  json?: boolean;
}

/** The key alone on stdout, so that `export MODELFACTORY_KEY=$(…)` works. The session that made it ends. */
async function makePersonalKey(
  stranger: GatewayClient,
  email: string,
  password: string,
  options: KeyOptions,
  { out, note }: Output,
): Promise<void> {
  const session = await stranger.logIn(email, password);
  try {
    const { scopes } = (await session.call('GET', '/api/session')) as { scopes: string[] };
    const made = (await session.call('POST', '/api/keys', { name: options.name, scopes })) as {
      id: string;
      key: string;
    };
    if (options.json) return out(JSON.stringify(made, null, 2));
    note(`Your personal key ${made.id}, for MODELFACTORY_KEY; it is shown only now:`);
    out(made.key);
  } finally {
    await session.call('DELETE', '/api/session');
  }
}

async function accept(
  stranger: GatewayClient,
  token: string,
  options: KeyOptions,
  output: Output,
  input: Input,
): Promise<void> {
  const password = await readNewPassword(input, output);
  const user = (await stranger.call('POST', '/api/invitations/accept', { token, password })) as User;
  output.note(`Welcome, ${user.name}. You are ${user.role} here.`);
  await makePersonalKey(stranger, user.email, password, options, output);
}

async function show(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const account = (await client.call('GET', '/api/account')) as User & { scopes: string[] };
  if (options.json) return out(JSON.stringify(account, null, 2));
  out(`${account.name} <${account.email}>, ${account.id}`);
  out(`${account.role}; this key may: ${account.scopes.join(', ')}`);
}

async function changePassword(
  client: GatewayClient,
  options: { json?: boolean },
  output: Output,
  input: Input,
): Promise<void> {
  const { current, next } = await readChange(input, output);
  const body = { current_password: current, new_password: next };
  const answer = (await client.call('POST', '/api/account/password', body)) as { sessions_ended: number };
  output.out(
    options.json
      ? JSON.stringify(answer, null, 2)
      : `The password is changed; ${count(answer.sessions_ended, 'session')} ended.`,
  );
}

async function listSessions(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const { data } = (await client.call('GET', '/api/account/sessions')) as { data: Session[] };
  if (options.json) return out(JSON.stringify(data, null, 2));
  const rows = data.map((one) => [
    one.id,
    one.method,
    one.address ?? '-',
    minute(one.last_seen_at),
    minute(one.expires_at),
    (one.user_agent ?? '-').slice(0, 60),
  ]);
  out(table(['SESSION', 'BY', 'FROM', 'LAST SEEN', 'EXPIRES', 'BROWSER'], rows, 'You are logged in nowhere.'));
}

async function endSessions(
  client: GatewayClient,
  id: string | undefined,
  options: { json?: boolean },
  { out }: Output,
): Promise<void> {
  const path = id === undefined ? '' : `/${encodeURIComponent(id)}`;
  const answer = (await client.call('DELETE', `/api/account/sessions${path}`)) as { ended: number | boolean };
  const said = id === undefined ? `${count(Number(answer.ended), 'session')} ended.` : `${id} has ended.`;
  out(options.json ? JSON.stringify(answer, null, 2) : said);
}

export function accountCommands(program: Command, { client, stranger, output, input }: Context): void {
  const account = program.command('account').description('your own password, personal keys and sessions');
  const NAME = ['--name <name>', 'of the key', 'command line'] as const;
  subcommand(account, 'accept <token>', 'set your password with the token of an invitation, and print a personal key')
    .option(...NAME)
    .action((token, options) => accept(stranger(), token, options, output, input));
  subcommand(account, 'login <email>', 'print another personal key; asks for the password, or reads it from a pipe')
    .option(...NAME)
    .action(async (email, options) => {
      const password = await readPassword(input, output);
      await makePersonalKey(stranger(), email, password, options, output);
    });
  subcommand(account, 'show', 'who you are, and what this key may').action((options) =>
    show(client(), options, output),
  );
  subcommand(account, 'password', 'change it; ends all sessions').action((options) =>
    changePassword(client(), options, output, input),
  );
  subcommand(account, 'sessions', 'where you are logged in').action((options) =>
    listSessions(client(), options, output),
  );
  subcommand(account, 'end-sessions [id]', 'log out there; without an id, everywhere').action((id, options) =>
    endSessions(client(), id, options, output),
  );
}
