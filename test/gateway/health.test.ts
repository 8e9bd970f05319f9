import { createClient } from '@libsql/client';
import { afterEach, describe, expect, test } from 'vitest';
import { createApp } from '../../gateway/app.ts';
import { createLog } from '../../gateway/log.ts';
import { eventually } from '../support/eventually.ts';
import { DAEMON_TOKEN } from '../support/scripted-daemon.ts';
import { NO_FILES, noDatanets, PRICE, type Rig, startRig } from './rig.ts';

let rig: Rig;
afterEach(() => rig.close());
const healthOf = async (fetch: (request: Request) => Response | Promise<Response>) => {
  const response = await fetch(new Request('http://gateway.test/health'));
  return { code: response.status, body: (await response.json()) as { status: string; daemons: { status: string }[] } };
};

describe('/health', () => {
  test('says unavailable at once when the daemon is gone, and ready at once when it is back', async () => {
    rig = await startRig();
    expect(await healthOf(rig.app.fetch)).toMatchObject({ code: 200, body: { status: 'ready' } });
    await rig.daemon.stop();
    expect(await healthOf(rig.app.fetch)).toMatchObject({
      code: 503,
      body: { status: 'unavailable', daemons: [{ status: 'unreachable' }] },
    });
    await rig.daemon.restart();
    expect(await healthOf(rig.app.fetch)).toMatchObject({ code: 200, body: { status: 'ready' } });
  });

  test('a database that can be read but not written is unavailable, and said so without waiting for it', async () => {
    rig = await startRig();
    const other = createClient({ url: rig.databaseUrl, concurrency: 1 });
    expect((await healthOf(rig.app.fetch)).body.status).toBe('ready');
    const held = await other.transaction('write');
    await eventually(async () =>
      expect(await healthOf(rig.app.fetch)).toMatchObject({
        code: 503,
        body: { status: 'unavailable', gateway: { database: 'unavailable' }, daemons: [{ status: 'ready' }] },
      }),
    );
    await held.rollback();
    other.close();
    await eventually(async () => expect((await healthOf(rig.app.fetch)).body.status).toBe('ready'));
  });

  test('the supervisor knows better than the daemon that it has just buried', async () => {
    rig = await startRig();
    let state = 'ready';
    const app = createApp({
      db: rig.database.db,
      exclusiveDatabase: true,
      daemons: { urls: [rig.daemon.url], token: DAEMON_TOKEN, fetch: (url, init) => fetch(url, init) },
      price: PRICE,
      factory: NO_FILES,
      datanets: noDatanets(),
      log: createLog({ level: 'silent', secrets: [], destination: { write: () => {} } }),
      metrics: 'key',
      version: '0.0.0',
      supervisor: async () => ({ processes: { daemon: { state, restarts: 1, since: '2026-01-01T00:00:00Z' } } }),
    });
    expect((await healthOf(app.fetch)).body.status).toBe('ready');
    for (state of ['waiting_to_restart', 'stopped', 'failed'])
      expect(await healthOf(app.fetch)).toMatchObject({
        code: 503,
        body: { status: 'unavailable', daemons: [{ status: state }] },
      });
  });
});

test('/api/models tells kind, size, tier, pin, digest and age of each model, but only of those the key may use', async () => {
  rig = await startRig({ adapters: ['poet', 'clerk'] });
  const list = async (credential: string) => {
    const headers = { authorization: `Bearer ${credential}` };
    return ((await (await rig.call('GET', '/api/models', undefined, headers)).json()) as { data: object[] }).data;
  };
  const { model } = rig.daemon;
  expect(await list(rig.admin)).toEqual([
    {
      object: 'model',
      id: model.id,
      kind: 'base',
      bytes: model.weightBytes,
      digest: model.digest,
      created: model.created,
      tier: null,
      pinned: null,
      marks: 0,
    },
    ...['poet', 'clerk'].map((id) => ({
      object: 'model',
      id,
      kind: 'adapter',
      bytes: 1000,
      digest: 'b'.repeat(64),
      created: 1_700_000_000,
      tier: 'slot',
      pinned: false,
      marks: 0,
    })),
  ]);
  const { credential } = await rig.key({ models: ['poet'] });
  expect(await list(credential)).toEqual([expect.objectContaining({ id: 'poet' })]);
});
