/** `modelfactory orgs …`: organisations, which own Datanets and are given access together. */
import { type Command, Option } from 'commander';
import type { GatewayClient } from './client.ts';
import { type Context, subcommand } from './command.ts';
import { day, type Output, table } from './output.ts';

interface Organization {
  id: string;
  name: string;
  role: string | null;
  created_at: number;
}
interface Member {
  user: string;
  name: string;
  email?: string;
  role: string;
  active: boolean;
}
interface Shown {
  json?: boolean;
}

const path = (id: string) => `/api/organizations/${encodeURIComponent(id)}`;
const memberPath = (id: string, user: string) => `${path(id)}/members/${encodeURIComponent(user)}`;

async function createOrg(client: GatewayClient, name: string, options: Shown, { out, note }: Output): Promise<void> {
  const made = (await client.call('POST', '/api/organizations', { name })) as Organization;
  if (options.json) return out(JSON.stringify(made, null, 2));
  out(made.id);
  note(`${made.name} is made, and you own it. Add members with: npx modelfactory orgs members add ${made.id} E-MAIL`);
}

async function listOrgs(client: GatewayClient, options: Shown, { out }: Output): Promise<void> {
  const found = await client.list<Organization>('/api/organizations');
  if (options.json) return out(JSON.stringify(found, null, 2));
  const rows = found.map((org) => [org.id, org.name, org.role ?? '-', day(org.created_at)]);
  out(table(['ORGANISATION', 'NAME', 'YOU ARE', 'CREATED'], rows, 'You belong to no organisation.'));
}

async function renameOrg(
  client: GatewayClient,
  id: string,
  name: string,
  options: Shown,
  { out }: Output,
): Promise<void> {
  const renamed = (await client.call('PATCH', path(id), { name })) as Organization;
  out(options.json ? JSON.stringify(renamed, null, 2) : `${id} is called ${renamed.name} now.`);
}

async function listMembers(client: GatewayClient, id: string, options: Shown, { out }: Output): Promise<void> {
  const members = await client.list<Member & { id?: string }>(`${path(id)}/members`);
  if (options.json) return out(JSON.stringify(members, null, 2));
  const rows = members.map((one) => [one.user, one.name, one.email ?? '-', one.role, one.active ? 'yes' : 'no']);
  out(table(['USER', 'NAME', 'E-MAIL', 'ROLE', 'ACTIVE'], rows, 'It has no members.'));
}

async function putMember(
  client: GatewayClient,
  id: string,
  user: string,
  options: Shown & { role: string },
  { out }: Output,
): Promise<void> {
  const member = (await client.call('PUT', memberPath(id, user), { role: options.role })) as Member;
  out(options.json ? JSON.stringify(member, null, 2) : `${member.name} (${member.user}) is ${member.role} of ${id}.`);
}

async function removeMember(
  client: GatewayClient,
  id: string,
  user: string,
  options: Shown,
  { out }: Output,
): Promise<void> {
  const removed = await client.call('DELETE', memberPath(id, user));
  out(options.json ? JSON.stringify(removed, null, 2) : `${user} does not belong to ${id} any more.`);
}

export function orgCommands(program: Command, { client, output }: Context): void {
  const orgs = program.command('orgs').description('organisations: they own Datanets and get access to them together');
  subcommand(orgs, 'create <name>', 'make an organisation, and own it').action((name, options) =>
    createOrg(client(), name, options, output),
  );
  subcommand(orgs, 'list', 'those that you belong to, newest first').action((options) =>
    listOrgs(client(), options, output),
  );
  subcommand(orgs, 'rename <id> <name>', 'for its owners').action((id, name, options) =>
    renameOrg(client(), id, name, options, output),
  );
  const members = orgs.command('members').description('who belongs to an organisation');
  subcommand(members, 'list <id>', 'newest first').action((id, options) => listMembers(client(), id, options, output));
  subcommand(members, 'add <id> <user>', 'by id or e-mail; also changes the role of a member')
    .addOption(
      new Option('--role <role>', 'an owner decides who belongs').choices(['owner', 'member']).default('member'),
    )
    .action((id, user, options) => putMember(client(), id, user, options, output));
  subcommand(members, 'remove <id> <user>', 'by id or e-mail; `me` leaves').action((id, user, options) =>
    removeMember(client(), id, user, options, output),
  );
}
