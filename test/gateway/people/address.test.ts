/** Where a request comes from: the socket's word, or that of a proxy we were told to believe; never the client's own. */
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { serve } from '@hono/node-server';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ConfigError, readConfig } from '../../../gateway/config.ts';
import { nodeAddress } from '../../../gateway/node-address.ts';
import { networkOf } from '../../../gateway/people/login-failures.ts';
import { type Rig, startRig } from '../rig.ts';

const from = (trustProxy: boolean, forwarded: string | null, remoteAddress = '192.0.2.9') =>
  nodeAddress({ trustProxy })(
    { incoming: { socket: { remoteAddress } } },
    new Headers(forwarded === null ? {} : { 'x-forwarded-for': forwarded }),
  );

test('without a proxy, X-Forwarded-For is not looked at; with one, its last address is believed', () => {
  expect(from(false, '203.0.113.1')).toBe('192.0.2.9');
  expect(from(true, '203.0.113.1')).toBe('203.0.113.1');
  expect(from(true, '10.0.0.1, 203.0.113.1')).toBe('203.0.113.1');
  expect(from(true, null)).toBe('192.0.2.9');
  for (const nonsense of ['', 'unknown', '203.0.113.1, ', '1.2.3.4:80', "'; DROP TABLE users", '999.1.1.1'])
    expect([nonsense, from(true, nonsense)]).toEqual([nonsense, '192.0.2.9']);
  expect(nodeAddress({ trustProxy: false })(undefined, new Headers())).toBeNull();
});

test.each([
  ['192.0.2.9', '192.0.2.9'],
  ['::ffff:192.0.2.9', '192.0.2.9'],
  ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
  ['2001:0DB8:1:2::9', '2001:db8:1:2::/64'],
  ['2001:db8::1', '2001:db8:0:0::/64'],
  ['::1', '0:0:0:0::/64'],
  ['fe80::1%eth0', 'fe80:0:0:0::/64'],
  ['nonsense', 'nonsense'],
])('%s counts as %s', (address, network) => {
  expect(networkOf(address)).toBe(network);
});

test('settings: what is no origin and no switch is refused at the start', () => {
  const base = { MODELFACTORY_DAEMON_TOKEN: 'x'.repeat(32) };
  expect(readConfig(base)).toMatchObject({ publicUrl: null, trustProxy: false });
  expect(
    readConfig({ ...base, MODELFACTORY_PUBLIC_URL: 'https://models.test/', MODELFACTORY_TRUST_PROXY: '1' }),
  ).toMatchObject({ publicUrl: 'https://models.test', trustProxy: true });
  for (const url of ['models.test', 'ftp://models.test', 'https://models.test/path', 'https://u:p@models.test', 'x'])
    expect(() => readConfig({ ...base, MODELFACTORY_PUBLIC_URL: url })).toThrow(ConfigError);
  expect(() => readConfig({ ...base, MODELFACTORY_TRUST_PROXY: 'yes' })).toThrow(ConfigError);
});

describe('over a socket', () => {
  let rig: Rig;
  let server: Server;
  beforeAll(async () => {
    rig = await startRig({ people: { addressOf: nodeAddress({ trustProxy: false }) } });
    server = serve({ fetch: rig.app.fetch, hostname: '127.0.0.1', port: 0 }) as Server;
    await new Promise((done) => server.once('listening', done));
  });
  afterAll(async () => {
    await new Promise((done) => {
      server.close(done);
      server.closeAllConnections();
    });
    await rig.close();
  });

  test('a client cannot get round its waits by claiming other addresses', async () => {
    const { port } = server.address() as AddressInfo;
    const statuses: number[] = [];
    for (let count = 0; count < 21; count++) {
      const response = await fetch(`http://127.0.0.1:${port}/api/session`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'x-forwarded-for': `203.0.113.${count}` },
        body: JSON.stringify({ email: `nobody${count}@x.test`, password: 'not the password' }),
      });
      statuses.push(response.status);
    }
    expect(statuses).toEqual([...Array(20).fill(401), 429]);
    const acts = (await (await rig.call('GET', '/api/audit?action=session.start&limit=1')).json()) as {
      data: { address: string }[];
    };
    expect(acts.data[0]?.address).toBe('127.0.0.1');
  });
});
