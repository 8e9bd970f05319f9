/** How people name Datanets and their versions: `dn_…` or the name, with `@VERSION` and `:WEIGHT` where that is wanted. */
import { CliError, type GatewayClient } from '../client.ts';

export interface Datanet {
  id: string;
  name: string;
  summary: string;
  description: string;
  terms: string;
  tags: string[];
  kind: string;
  licence: string;
  visibility: string;
  state: string;
  languages: string[];
  owner: { type: string; id: string; name: string };
  /** 0: nothing is published. */
  version: number;
  rows: number;
  created_at: number;
  access: { training: string; message: string };
}

export const path = (id: string) => `/api/datanets/${encodeURIComponent(id)}`;

/** @param named id or name. @throws CliError */
export async function findDatanet(client: GatewayClient, named: string): Promise<Datanet> {
  if (/^dn_[A-Za-z0-9]+$/.test(named)) return (await client.call('GET', path(named))) as Datanet;
  const same = (name: string) => name.normalize('NFKC').toLowerCase() === named.normalize('NFKC').trim().toLowerCase();
  const found = await client.list<Datanet>(`/api/datanets?q=${encodeURIComponent(named)}`, LOOKED_AT);
  const datanet = found.find((one) => same(one.name));
  if (datanet === undefined)
    throw new CliError(`There is no Datanet called "${named}" that you may see. See: npx modelfactory datanets list`);
  return (await client.call('GET', path(datanet.id))) as Datanet;
}
const LOOKED_AT = 1_000;

export interface VersionName {
  datanet: string;
  /** null: the newest. */
  version: number | null;
  weight: number;
}

/** `NAME[@VERSION][:WEIGHT]` */
export function parseVersionName(text: string): VersionName {
  const weighted = /^(.+):(\d+(?:\.\d+)?)$/.exec(text);
  const rest = weighted?.[1] ?? text;
  const weight = weighted === null ? 1 : Number(weighted[2]);
  const versioned = /^(.+)@v?([1-9]\d*)$/.exec(rest);
  if (!(weight > 0)) throw new CliError(`The weight in "${text}" must be more than 0.`);
  return {
    datanet: versioned?.[1] ?? rest,
    version: versioned === null ? null : Number(versioned[2]),
    weight,
  };
}

/** @throws CliError where nothing is published. */
export async function findVersion(
  client: GatewayClient,
  named: string,
): Promise<{ datanet: Datanet; version: number; weight: number }> {
  const { datanet: name, version, weight } = parseVersionName(named);
  const datanet = await findDatanet(client, name);
  if (version === null && datanet.version === 0)
    throw new CliError(
      `Nothing of "${datanet.name}" is published yet. Its owners publish with: npx modelfactory datanets publish ${datanet.id}`,
    );
  return { datanet, version: version ?? datanet.version, weight };
}
