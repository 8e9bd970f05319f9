import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ConfigError, isLoopback, readConfig } from '../../daemon/config.ts';
import { lockInstance } from '../../daemon/instance-lock.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'mf-config-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const TOKEN = 'x'.repeat(32);

describe('configuration', () => {
  it('listens on this machine only unless told otherwise, whatever the gateway does', () => {
    const config = readConfig({ MODELFACTORY_DATA: folder, HOST: '0.0.0.0', MODELFACTORY_DAEMON_TOKEN: TOKEN });
    expect(config.host).toBe('127.0.0.1');
    expect(isLoopback('127.0.0.53')).toBe(true);
    expect(isLoopback('10.0.0.1')).toBe(false);
    expect(isLoopback('127.0.0.1.example.com')).toBe(false);
  });

  it('keeps the token it made', () => {
    const first = readConfig({ MODELFACTORY_DATA: folder }).token;
    expect(first.length).toBeGreaterThanOrEqual(32);
    expect(readConfig({ MODELFACTORY_DATA: folder }).token).toBe(first);
    expect(statSync(join(folder, 'keys', 'daemon.token')).mode & 0o777).toBe(0o600);
  });

  it.each([
    [{ MODELFACTORY_DAEMON_PORT: '70000' }],
    [{ MODELFACTORY_SLOTS: '0' }],
    [{ MODELFACTORY_KV_CELLS: 'many' }],
    [{ MODELFACTORY_THREADS: '-1' }],
    [{ MODELFACTORY_PREFIX_CACHE_PERCENT: '1.5' }],
    [{ MODELFACTORY_LOG_LEVEL: 'loud' }],
    [{ MODELFACTORY_TRAINING: 'maybe' }],
    [{ MODELFACTORY_EXACT: 'yes' }],
    [{ MODELFACTORY_EXACT: 'on', MODELFACTORY_DEVICE: 'vulkan' }],
    [{ MODELFACTORY_TRAINING_SHARE: '1.5' }],
    [{ MODELFACTORY_TRAINING_SHARE: 'half' }],
  ])('names the variable that is wrong: %o', (env) => {
    const read = () =>
      readConfig({ MODELFACTORY_DATA: folder, MODELFACTORY_DAEMON_TOKEN: TOKEN, ...env } as NodeJS.ProcessEnv);
    expect(read).toThrow(ConfigError);
    expect(read).toThrow(Object.keys(env)[0] as string);
  });
});

describe('the exact mode', () => {
  it('computes on the CPU and takes nothing from earlier requests, unless told otherwise', () => {
    const read = (env: NodeJS.ProcessEnv) =>
      readConfig({ MODELFACTORY_DATA: folder, MODELFACTORY_DAEMON_TOKEN: TOKEN, ...env });
    expect(read({})).toMatchObject({ exact: false, device: 'auto', prefixCacheShare: 0.5 });
    expect(read({ MODELFACTORY_EXACT: 'on' })).toMatchObject({ exact: true, device: 'cpu', prefixCacheShare: 0 });
    expect(read({ MODELFACTORY_EXACT: 'on', MODELFACTORY_PREFIX_CACHE_PERCENT: '25' }).prefixCacheShare).toBe(0.25);
  });
});

describe('instance lock', () => {
  it('is held by one and free again afterwards', () => {
    const unlock = lockInstance(folder);
    expect(() => lockInstance(folder)).toThrow(/Another daemon/);
    unlock();
    lockInstance(folder)();
    expect(readdirSync(folder)).toEqual([]);
  });

  it('is taken over from a process that is gone, even if its number is in use again', () => {
    writeFileSync(join(folder, 'daemon.lock'), '4194300 12345');
    lockInstance(folder)();
    // This very process, but started at another time: whoever wrote this is gone.
    writeFileSync(join(folder, 'daemon.lock'), `${process.pid} 1`);
    const unlock = lockInstance(folder);
    expect(readFileSync(join(folder, 'daemon.lock'), 'utf8')).toMatch(new RegExp(`^${process.pid} `));
    unlock();
  });
});
