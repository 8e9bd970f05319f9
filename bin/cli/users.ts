/** `modelfactory users …`: for administrators. */
import { type Command, Option } from 'commander';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, positive, subcommand } from './command.ts';
import { count, day, money, type Output, parseMoney, table } from './output.ts';

export interface User {
  id: string;
  email: string;
  name: string;
  role: string;
  state: string;
  last_login_at: number | null;
  requests_per_minute: number | null;
  tokens_per_minute: number | null;
  concurrency: number | null;
  budget_micros: number | null;
  spent_micros: number;
}
interface Invitation {
  token: string;
  expires_at: number;
}

const ROLES = ['admin', 'builder', 'contributor', 'consumer'];

/** @param who id or e-mail address. @throws CliError */
export async function findUser(client: GatewayClient, who: string): Promise<User> {
  if (!who.includes('@')) return (await client.call('GET', `/api/users/${encodeURIComponent(who)}`)) as User;
  const email = who.trim().toLowerCase();
  const found = await client.list<User>(`/api/users?q=${encodeURIComponent(email)}`);
  const user = found.find((one) => one.email.toLowerCase() === email);
  if (user === undefined) throw new CliError(`There is no user ${who}.`);
  return user;
}

/** The token alone on stdout, so that it can be handed on by a script. */
function tellInvitation(invitation: Invitation, email: string, { out, note }: Output): void {
  const until = new Date(invitation.expires_at * 1000).toISOString().slice(0, 10);
  note(`Send ${email} this token; it is shown only now and works once, until ${until}:`);
  out(invitation.token);
  note('With it a password is set and a personal key made: modelfactory account accept TOKEN');
}

async function addUser(
  client: GatewayClient,
  email: string,
  options: { role: string; name?: string; json?: boolean },
  output: Output,
): Promise<void> {
  const name = options.name ?? (email.split('@')[0] || email);
  const made = (await client.call('POST', '/api/users', { email, name, role: options.role })) as User & {
    invitation: Invitation;
  };
  if (options.json) return output.out(JSON.stringify(made, null, 2));
  output.note(`${made.email} is invited as ${made.role} (${made.id}).`);
  tellInvitation(made.invitation, made.email, output);
}

async function invite(client: GatewayClient, who: string, options: { json?: boolean }, output: Output): Promise<void> {
  const user = await findUser(client, who);
  const invitation = (await client.call('POST', `/api/users/${user.id}/invitation`, {})) as Invitation;
  if (options.json) return output.out(JSON.stringify(invitation, null, 2));
  tellInvitation(invitation, user.email, output);
}

async function listUsers(
  client: GatewayClient,
  options: { role?: string; state?: string; search?: string; json?: boolean },
  { out }: Output,
): Promise<void> {
  const query = new URLSearchParams();
  if (options.role !== undefined) query.set('role', options.role);
  if (options.state !== undefined) query.set('state', options.state);
  if (options.search !== undefined) query.set('q', options.search);
  const users = await client.list<User>(`/api/users?${query}`);
  if (options.json) return out(JSON.stringify(users, null, 2));
  const rows = users.map((user) => [user.id, user.email, user.name, user.role, user.state, day(user.last_login_at)]);
  out(table(['USER', 'E-MAIL', 'NAME', 'ROLE', 'STATE', 'LAST LOG-IN'], rows, 'There are no such users.'));
}

async function changeUser(
  client: GatewayClient,
  who: string,
  change: { role?: string; state?: string },
  options: { json?: boolean },
  { out, note }: Output,
): Promise<void> {
  const { id } = await findUser(client, who);
  const changed = (await client.call('PATCH', `/api/users/${id}`, change)) as User & { warning?: string };
  if (changed.warning !== undefined) note(changed.warning);
  out(options.json ? JSON.stringify(changed, null, 2) : `${changed.email} is ${changed.role}, ${changed.state}.`);
}

async function endSessions(
  client: GatewayClient,
  who: string,
  options: { json?: boolean },
  { out }: Output,
): Promise<void> {
  const { id, email } = await findUser(client, who);
  const answer = (await client.call('DELETE', `/api/users/${id}/sessions`)) as { ended: number };
  out(options.json ? JSON.stringify(answer, null, 2) : `${count(answer.ended, 'session')} of ${email} ended.`);
}

/** @throws CliError */
async function limitUser(client: GatewayClient, who: string, options: LimitOptions, { out }: Output): Promise<void> {
  const budget = options.budget === undefined || options.budget === 'none' ? null : parseMoney(options.budget);
  if (budget === null && options.budget !== undefined && options.budget !== 'none')
    throw new CliError(`--budget is "${options.budget}"; give an amount such as 5 or 0.25, or none.`);
  const limits = {
    ...(options.budget !== undefined && { budget_micros: budget }),
    ...(options.rpm !== undefined && { requests_per_minute: limitOf(options.rpm) }),
    ...(options.tpm !== undefined && { tokens_per_minute: limitOf(options.tpm) }),
    ...(options.concurrency !== undefined && { concurrency: limitOf(options.concurrency) }),
  };
  const { id } = await findUser(client, who);
  const asked = Object.keys(limits).length > 0;
  const user = (await client.call(asked ? 'PATCH' : 'GET', `/api/users/${id}`, asked ? limits : undefined)) as User;
  if (options.json) return out(JSON.stringify(user, null, 2));
  const shown = (limit: number | null) => (limit === null ? 'no limit' : String(limit));
  out(`${user.email}, all keys and sessions together:`);
  out(`spent ${money(user.spent_micros)} of ${user.budget_micros === null ? 'no limit' : money(user.budget_micros)}`);
  out(`requests per minute: ${shown(user.requests_per_minute)}; tokens per minute: ${shown(user.tokens_per_minute)}`);
  out(`requests at the same time: ${shown(user.concurrency)}`);
}
interface LimitOptions {
  budget?: string;
  rpm?: number | 'none';
  tpm?: number | 'none';
  concurrency?: number | 'none';
  json?: boolean;
}
const limitOf = (limit: number | 'none') => (limit === 'none' ? null : limit);
const limitOrNone = (text: string) => (text === 'none' ? text : positive(text));

export function userCommands(program: Command, { client, output }: Context): void {
  const users = program.command('users').description('who may use this server, and as what');
  const role = () => new Option('--role <role>', 'what the user may do').choices(ROLES);
  const WHO = ['<user>', 'id or e-mail'] as const;
  subcommand(users, 'add <email>', 'invite somebody; prints the token with which a password is set, once')
    .addOption(role().default('consumer'))
    .option('--name <name>', 'default: what stands before the @')
    .action((email, options) => addUser(client(), email, options, output));
  subcommand(users, 'invite', 'another token, when the first is lost, expired, or the password forgotten')
    .argument(...WHO)
    .action((who, options) => invite(client(), who, options, output));
  subcommand(users, 'list', 'newest first')
    .addOption(role())
    .addOption(new Option('--state <state>', 'only these').choices(['invited', 'active', 'disabled']))
    .option('--search <text>', 'in e-mail and name')
    .action((options) => listUsers(client(), options, output));
  subcommand(users, 'role', 'give a user another role, effective at once')
    .argument(...WHO)
    .argument('<role>', ROLES.join(', '))
    .action((who, to, options) => changeUser(client(), who, { role: to }, options, output));
  subcommand(users, 'limits', 'show or set limits of a user, all keys and sessions together; `none` lifts one')
    .argument(...WHO)
    .option('--budget <amount>', 'what the user may spend in all, in units of the currency, e.g. 2.50')
    .option('--rpm <limit>', 'requests per minute', limitOrNone)
    .option('--tpm <limit>', 'tokens per minute', limitOrNone)
    .option('--concurrency <limit>', 'requests at the same time', limitOrNone)
    .action((who, options) => limitUser(client(), who, options, output));
  subcommand(users, 'disable', 'keys and sessions stop at once; what the user made stays')
    .argument(...WHO)
    .action((who, options) => changeUser(client(), who, { state: 'disabled' }, options, output));
  subcommand(users, 'enable', 'let a disabled user in again')
    .argument(...WHO)
    .action((who, options) => changeUser(client(), who, { state: 'active' }, options, output));
  subcommand(users, 'end-sessions', 'log a user out everywhere')
    .argument(...WHO)
    .action((who, options) => endSessions(client(), who, options, output));
}
