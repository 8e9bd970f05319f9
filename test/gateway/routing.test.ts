/** Several daemons: every gateway sends an adapter to the same one, a lost one moves only its own, a down one is passed by. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createApp } from '../../gateway/app.ts';
import { rank, unitHash } from '../../gateway/daemons/rendezvous.ts';
import { mergeMetrics } from '../../gateway/ops/metrics.ts';
import { DAEMON_TOKEN, type ScriptedDaemon, startScriptedDaemon } from '../support/scripted-daemon.ts';
import { CHAT, NO_FILES, noDatanets, PRICE, type Rig, startRig } from './rig.ts';

const nodes = (weights: number[]) => weights.map((weight, index) => ({ id: `http://d${index}`, weight, node: index }));

describe('weighted rendezvous', () => {
  test('taking a node away moves only the keys it had', () => {
    fc.assert(
      fc.property(fc.string(), fc.integer({ min: 2, max: 8 }), fc.nat(7), (key, count, lost) => {
        const all = nodes(Array.from({ length: count }, () => 1));
        const before = rank(key, all);
        const after = rank(
          key,
          all.filter(({ node }) => node !== lost),
        );
        expect(after).toEqual(before.filter((node) => node !== lost));
      }),
    );
  });

  test('the share of a node is its weight', () => {
    const counts = [0, 0, 0];
    for (let key = 0; key < 20_000; key++) counts[rank(`adapter-${key}`, nodes([1, 2, 1]))[0] as number]! += 1;
    for (const [index, share] of [0.25, 0.5, 0.25].entries()) expect(counts[index]! / 20_000).toBeCloseTo(share, 1);
    expect(rank('x', nodes([0, 1]))).toEqual([1]);
  });

  test('the hash lies inside (0, 1)', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        expect(unitHash(text)).toBeGreaterThan(0);
        expect(unitHash(text)).toBeLessThan(1);
      }),
    );
  });
});

describe('two daemons', () => {
  let rig: Rig;
  let second: ScriptedDaemon;
  let call: (path: string, init?: { method?: string; body?: unknown }) => Promise<Response>;
  beforeAll(async () => {
    rig = await startRig({ adapters: ['first-only'] });
    second = await startScriptedDaemon({ adapters: ['second-only'] });
    const app = createApp({
      db: rig.database.db,
      exclusiveDatabase: true,
      daemons: { urls: [rig.daemon.url, second.url], token: DAEMON_TOKEN, fetch: (url, init) => fetch(url, init) },
      price: PRICE,
      factory: NO_FILES,
      datanets: noDatanets(),
      log: { info() {}, warn() {}, error() {} },
      metrics: 'key',
      version: '0',
    });
    call = async (path, { method = 'GET', body } = {}) =>
      app.fetch(
        new Request(`http://gateway.test${path}`, {
          method,
          headers: { authorization: `Bearer ${rig.admin}`, 'content-type': 'application/json' },
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        }),
      );
  });
  afterAll(async () => {
    await second.stop();
    await rig.close();
  });
  const chat = (model: string) => call('/v1/chat/completions', { method: 'POST', body: { ...CHAT, model } });

  test('requests go where their adapter is; both lists are one', async () => {
    expect((await chat('first-only')).status).toBe(200);
    expect((await chat('second-only')).status).toBe(200);
    expect(rig.daemon.requests.map(({ adapter }) => adapter)).toEqual(['first-only']);
    expect(second.requests.map(({ adapter }) => adapter)).toEqual(['second-only']);
    const { data } = (await (await call('/v1/models')).json()) as { data: { id: string }[] };
    expect(data.map(({ id }) => id).sort()).toEqual(['first-only', 'second-only', 'tiny-base']);
  });

  test('with one down, the base is served by the other, its adapters are 503, not 404; health says degraded', async () => {
    await second.stop();
    for (let index = 0; index < 8; index++) expect((await chat('tiny-base')).status).toBe(200);
    const lost = await chat('second-only');
    expect([lost.status, lost.headers.get('retry-after')]).toEqual([503, '2']);
    const health = await call('/health');
    expect([health.status, await health.json()]).toMatchObject([200, { status: 'degraded' }]);
    await second.restart();
  });
});

test('metrics of daemons are merged: labelled, each family told once, our own names kept for us', () => {
  const own = '# HELP a x\n# TYPE a counter\na 1\n';
  const daemon = '# HELP b y\n# TYPE b gauge\nb{t="1"} 2\nb 3\n# TYPE a counter\na 9\n';
  expect(mergeMetrics(own, [daemon, null, daemon])).toBe(
    '# HELP a x\n# TYPE a counter\na 1\n# HELP b y\n# TYPE b gauge\nb{daemon="0",t="1"} 2\nb{daemon="0"} 3\nb{daemon="2",t="1"} 2\nb{daemon="2"} 3\n',
  );
});

test('the API description names every route, and its schemas resolve', async () => {
  const rig = await startRig();
  const document = (await (await rig.call('GET', '/openapi.json')).json()) as {
    openapi: string;
    paths: Record<string, Record<string, unknown>>;
  };
  expect(document.openapi).toBe('3.1.0');
  for (const { method, path } of rig.app.routes) expect(document.paths[path]).toHaveProperty(method);
  const text = JSON.stringify(document);
  for (const [, name] of text.matchAll(/#\/components\/schemas\/(\w+)/g)) expect(text).toContain(`"${name}":{`);
  expect(document.paths['/v1/chat/completions']?.post).toMatchObject({
    requestBody: { required: true },
    security: [{ key: [] }, { session: [] }],
  });
  await rig.close();
});
