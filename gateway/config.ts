/** Settings, read from the environment once at start. Names are in docs/operating.md. */

import type { z } from 'zod';
import { price } from '../daemon/protocol.ts';
import { limits } from './limits.ts';
import { type OidcSettings, readOidcSettings } from './people/oidc/settings.ts';

export type Price = z.output<typeof price>;

export interface Config {
  host: string;
  port: number;
  dataDir: string;
  databaseUrl: string;
  databaseToken: string | undefined;
  daemonUrls: string[];
  daemonToken: string;
  price: Price;
  /** Micro-units for a million trained tokens (all tokens × epochs). */
  trainingMicrosPerMillion: number;
  /** Stands in the names of fine-tuned models: ft:BASE:ORGANIZATION:SUFFIX:ID. */
  organization: string;
  /** Bytes that a user may contribute to Datanets in 24 hours; null: the default. */
  contributionBytesPerDay: number | null;
  metrics: MetricsAccess;
  /** Where browsers reach the gateway, if not where it listens: the origin of a proxy. */
  publicUrl: string | null;
  oidc: OidcSettings | null;
  /** How long the audit log keeps acts that bear on nothing lasting; null: for ever. */
  auditKeptMs: number | null;
  /** The last X-Forwarded-For is believed: a proxy of ours has written it. */
  trustProxy: boolean;
  supervisorStatePath: string | undefined;
  logLevel: string;
}

export class ConfigError extends Error {}

/** Who gets /metrics without a key: nobody, callers on this machine, or everybody; never what came through a proxy. */
export type MetricsAccess = 'key' | 'loopback' | 'public';

const LOOPBACK = new Set(['127.0.0.1', '::1', '[::1]', 'localhost']);

export const isLoopback = (host: string) => LOOPBACK.has(host);

function metricsAccess(wished: string | undefined, host: string): MetricsAccess {
  if (wished === 'public' || wished === 'key') return wished;
  return isLoopback(host) ? 'loopback' : 'key';
}

function integer(name: string, text: string | undefined, fallback: number, max: number): number {
  if (text === undefined || text === '') return fallback;
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0 || value > max)
    throw new ConfigError(`${name} must be an integer from 0 to ${max}, but is "${text}".`);
  return value;
}

/** In milliseconds; 0: null, for ever. */
function days(name: string, text: string | undefined, fallbackMs: number): number | null {
  const count = integer(name, text, fallbackMs / DAY_MS, 36_500);
  return count === 0 ? null : count * DAY_MS;
}
const DAY_MS = 24 * 3_600_000;

function flag(name: string, text: string | undefined): boolean {
  if (text === undefined || text === '' || text === '0') return false;
  if (text === '1') return true;
  throw new ConfigError(`${name} must be 1 or 0, but is "${text}".`);
}

function isOrigin(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, pathname, search, hash, username, password } = new URL(text);
  return /^https?:$/.test(protocol) && pathname === '/' && `${search}${hash}${username}${password}` === '';
}

/** @throws ConfigError with a sentence that says what to set. */
export function readConfig(env: Record<string, string | undefined>): Config {
  const host = env.HOST || '127.0.0.1';
  const dataDir = env.MODELFACTORY_DATA || './data';
  const daemonUrls = (env.MODELFACTORY_DAEMONS || 'http://127.0.0.1:8788')
    .split(',')
    .map((text) => text.trim())
    .filter(Boolean);
  for (const url of daemonUrls) {
    if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol))
      throw new ConfigError(`MODELFACTORY_DAEMONS holds "${url}", which is not an http(s) URL.`);
  }
  const daemonToken = env.MODELFACTORY_DAEMON_TOKEN ?? '';
  if (daemonToken.length < 32) {
    throw new ConfigError(
      'MODELFACTORY_DAEMON_TOKEN must hold the secret shared with the daemon, at least 32 characters (`openssl rand -hex 32`); a daemon already running on this data folder has put its own into keys/daemon.token. There is no default.',
    );
  }
  const prices = {
    inputMicrosPerMillion: integer('MODELFACTORY_PRICE_INPUT', env.MODELFACTORY_PRICE_INPUT, 100_000, 1e12),
    outputMicrosPerMillion: integer('MODELFACTORY_PRICE_OUTPUT', env.MODELFACTORY_PRICE_OUTPUT, 400_000, 1e12),
    currency: env.MODELFACTORY_CURRENCY || 'USD',
  };
  const checked = price.safeParse(prices);
  if (!checked.success) throw new ConfigError('MODELFACTORY_CURRENCY must be a three-letter code.');
  const organization = env.MODELFACTORY_ORGANIZATION || 'local';
  if (!/^[A-Za-z0-9_-]{1,24}$/.test(organization))
    throw new ConfigError('MODELFACTORY_ORGANIZATION must be 1 to 24 letters, digits, _ or -.');
  const publicUrl = env.MODELFACTORY_PUBLIC_URL || null;
  if (publicUrl !== null && !isOrigin(publicUrl))
    throw new ConfigError(
      `MODELFACTORY_PUBLIC_URL must be an origin such as https://models.example.org, but is "${publicUrl}".`,
    );
  return {
    host,
    port: integer('PORT', env.PORT, 8787, 65_535),
    dataDir,
    databaseUrl: env.MODELFACTORY_GATEWAY_DB || `file:${dataDir}/gateway.db`,
    databaseToken: env.MODELFACTORY_GATEWAY_DB_TOKEN || undefined,
    daemonUrls,
    daemonToken,
    price: checked.data,
    trainingMicrosPerMillion: integer('MODELFACTORY_PRICE_TRAINING', env.MODELFACTORY_PRICE_TRAINING, 1_000_000, 1e12),
    organization,
    contributionBytesPerDay: env.MODELFACTORY_CONTRIBUTION_BYTES
      ? integer('MODELFACTORY_CONTRIBUTION_BYTES', env.MODELFACTORY_CONTRIBUTION_BYTES, 0, Number.MAX_SAFE_INTEGER)
      : null,
    metrics: metricsAccess(env.MODELFACTORY_METRICS, host),
    publicUrl: publicUrl === null ? null : new URL(publicUrl).origin,
    oidc: readOidcSettings(
      env,
      publicUrl === null ? null : new URL(publicUrl).origin,
      (message) => new ConfigError(message),
    ),
    auditKeptMs: days('MODELFACTORY_AUDIT_DAYS', env.MODELFACTORY_AUDIT_DAYS, limits.auditKeptMs),
    trustProxy: flag('MODELFACTORY_TRUST_PROXY', env.MODELFACTORY_TRUST_PROXY),
    supervisorStatePath: env.MODELFACTORY_SUPERVISOR_STATE || undefined,
    logLevel: env.MODELFACTORY_LOG_LEVEL || 'info',
  };
}
