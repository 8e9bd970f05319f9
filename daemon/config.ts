import { randomBytes } from 'node:crypto';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import type { DeviceChoice } from '../addon/types.ts';

/** Everything that the daemon reads from its environment. */
export interface DaemonConfig {
  dataDir: string;
  base: string | undefined;
  device: DeviceChoice;
  /** Logits are libllama's own to the bit; slower, and on the CPU only. */
  exact: boolean;
  host: string;
  /** 0: any free port. */
  port: number;
  token: string;
  /** null: all cores. */
  threads: number | null;
  /** null: by the device's kind and memory. */
  kvCells: number | null;
  slots: number | null;
  slotRankMax: number | null;
  adapterHostBytes: number;
  prefixCacheShare: number;
  /** Whether this daemon trains. */
  training: boolean;
  /** Share of the cores that training gets while something is served too. */
  trainingShare: number;
  logLevel: string;
}

/** The set-up is wrong; starting again would not help. The message says which variable and what it may be. */
export class ConfigError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'ConfigError';
  }
}

const DEVICES = ['auto', 'cpu', 'vulkan', 'cuda', 'metal'] as const;
const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'];
/** Shorter tokens can be guessed. */
const TOKEN_LENGTH_MIN = 32;

/** Throws ConfigError. Makes the token file if there is no token and only this machine can reach the daemon. */
export function readConfig(env: NodeJS.ProcessEnv = process.env): DaemonConfig {
  const dataDir = resolve(env.MODELFACTORY_DATA || 'data');
  // Not HOST: that is where the gateway listens, and the daemon is nobody's but the gateway's.
  const host = env.MODELFACTORY_DAEMON_HOST || '127.0.0.1';
  const device = (env.MODELFACTORY_DEVICE || 'auto') as DeviceChoice;
  if (!DEVICES.includes(device)) {
    throw new ConfigError(`MODELFACTORY_DEVICE is "${device}"; it may be ${DEVICES.join(', ')}.`);
  }
  const exact = env.MODELFACTORY_EXACT || 'off';
  if (exact !== 'on' && exact !== 'off') {
    throw new ConfigError(`MODELFACTORY_EXACT is "${exact}"; it may be on or off.`);
  }
  if (exact === 'on' && device !== 'auto' && device !== 'cpu') {
    throw new ConfigError(
      `MODELFACTORY_EXACT is on and MODELFACTORY_DEVICE is "${device}"; the exact mode computes on the CPU. Set MODELFACTORY_DEVICE to cpu, or turn the exact mode off.`,
    );
  }
  const logLevel = env.MODELFACTORY_LOG_LEVEL || 'info';
  if (!LOG_LEVELS.includes(logLevel)) {
    throw new ConfigError(`MODELFACTORY_LOG_LEVEL is "${logLevel}"; it may be ${LOG_LEVELS.join(', ')}.`);
  }
  const whole = (name: string, low: number, high: number): number | null => {
    const text = env[name];
    if (text === undefined || text === '') return null;
    const value = Number(text);
    if (Number.isInteger(value) && value >= low && value <= high) return value;
    throw new ConfigError(`${name} is "${text}"; it must be a whole number from ${low} to ${high}.`);
  };
  const hostBytes = whole('MODELFACTORY_ADAPTER_HOST_BYTES', 1, Number.MAX_SAFE_INTEGER);
  const training = env.MODELFACTORY_TRAINING || 'on';
  if (training !== 'on' && training !== 'off') {
    throw new ConfigError(`MODELFACTORY_TRAINING is "${training}"; it may be on or off.`);
  }
  const trainingShare = Number(env.MODELFACTORY_TRAINING_SHARE || 0.25);
  if (!(trainingShare >= 0.05 && trainingShare <= 0.95)) {
    throw new ConfigError(
      `MODELFACTORY_TRAINING_SHARE is "${env.MODELFACTORY_TRAINING_SHARE}"; it may be a number from 0.05 to 0.95.`,
    );
  }
  const prefixPercent = whole('MODELFACTORY_PREFIX_CACHE_PERCENT', 0, 90);
  return {
    dataDir,
    base: env.MODELFACTORY_BASE || undefined,
    device: exact === 'on' ? 'cpu' : device,
    exact: exact === 'on',
    host,
    port: whole('MODELFACTORY_DAEMON_PORT', 0, 65_535) ?? 8788,
    token: tokenOf(env.MODELFACTORY_DAEMON_TOKEN, host, dataDir),
    threads: whole('MODELFACTORY_THREADS', 1, 512),
    kvCells: whole('MODELFACTORY_KV_CELLS', 256, 1 << 24),
    slots: whole('MODELFACTORY_SLOTS', 1, 4096),
    slotRankMax: whole('MODELFACTORY_SLOT_RANK_MAX', 1, 1024),
    adapterHostBytes: hostBytes ?? Math.floor(totalmem() / 8),
    // What is computed after a shared prefix is rounded otherwise than the whole prompt is.
    prefixCacheShare: (prefixPercent ?? (exact === 'on' ? 0 : 50)) / 100,
    training: training === 'on',
    trainingShare,
    logLevel,
  };
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host);
}

function tokenOf(given: string | undefined, host: string, dataDir: string): string {
  if (given !== undefined && given !== '') {
    if (given.length >= TOKEN_LENGTH_MIN) return given;
    throw new ConfigError(
      `MODELFACTORY_DAEMON_TOKEN has ${given.length} characters; it needs ${TOKEN_LENGTH_MIN} (\`openssl rand -hex 32\`).`,
    );
  }
  if (!isLoopback(host)) {
    throw new ConfigError(
      `MODELFACTORY_DAEMON_TOKEN is not set, and the daemon would listen on ${host}, where others can reach it. Set a secret of at least ${TOKEN_LENGTH_MIN} characters that the gateway has too.`,
    );
  }
  return tokenFile(join(dataDir, 'keys', 'daemon.token'));
}

/** The token in a file that only this user can read; made at the first start. */
function tokenFile(path: string): string {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  try {
    writeFileSync(path, randomBytes(32).toString('hex'), { mode: 0o600, flag: 'wx' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    chmodSync(path, 0o600);
  }
  const token = readFileSync(path, 'utf8').trim();
  if (token.length >= TOKEN_LENGTH_MIN) return token;
  throw new ConfigError(
    `${path} holds no token of at least ${TOKEN_LENGTH_MIN} characters; delete the file to get a new one.`,
  );
}
