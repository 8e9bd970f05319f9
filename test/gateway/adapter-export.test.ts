/** Adapters out through the gateway: who may take what, piped as it comes, ended when the client leaves. */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Rig, startRig } from './rig.ts';

let rig: Rig;
const asked: string[] = [];
let answer: (response: ServerResponse) => void;
beforeAll(async () => {
  rig = await startRig({ adapters: ['legal', 'poet'] });
  rig.daemon.extra = async (request, response, url) => {
    if (!/^\/adapters\/[^/]+\/(export|card)$/.test(url.pathname)) return false;
    asked.push(`${request.method} ${url.pathname}${url.search}`);
    answer(response);
    return true;
  };
});
afterAll(() => rig.close());
beforeEach(() => {
  asked.length = 0;
  answer = (response) => {
    response.writeHead(200, {
      'content-type': 'application/x-tar',
      'content-length': 5,
      'content-disposition': 'attachment; filename="legal.tar"',
      'x-inner': 'not for clients',
    });
    response.end('bytes');
  };
});

test('the stream of the daemon comes with its name and length, and with nothing else of it', async () => {
  const response = await rig.call('GET', '/api/adapters/legal/export?format=merged&type=q8_0');
  expect(response.status).toBe(200);
  expect(await response.text()).toBe('bytes');
  expect(asked).toEqual(['GET /adapters/legal/export?format=merged&type=q8_0']);
  expect(response.headers.get('content-disposition')).toBe('attachment; filename="legal.tar"');
  expect(response.headers.get('content-length')).toBe('5');
  expect(response.headers.get('x-inner')).toBeNull();
});

describe('who may', () => {
  test.each([
    [['inference'], null, 403],
    [['adapters'], null, 200],
    [['adapters'], ['poet'], 404],
    [['adapters'], ['legal'], 200],
    [['admin'], null, 200],
  ] as const)('a key with %j and the models %j: %i', async (scopes, models, status) => {
    const { credential } = await rig.key({ scopes: [...scopes], ...(models && { models: [...models] }) });
    const headers = { authorization: `Bearer ${credential}` };
    for (const what of ['export?format=peft', 'card']) {
      answer = (response) => response.writeHead(200, { 'content-type': 'application/json' }).end('{"name":"legal"}');
      const response = await rig.call('GET', `/api/adapters/legal/${what}`, undefined, headers);
      expect(response.status).toBe(status);
      await response.text();
    }
    expect(asked.length).toBe(status === 200 ? 2 : 0);
  });
});

test.each([
  ['legal/export', 400],
  ['legal/export?format=onnx', 400],
  ['legal/export?format=peft&type=../x', 400],
  ['legal/export?format=peft&more=1', 400],
  ['nobody/export?format=peft', 404],
  ['..%2Flegal/export?format=peft', 400],
])('%s is refused before the daemon is asked', async (path, status) => {
  const response = await rig.call('GET', `/api/adapters/${path}`);
  expect(response.status).toBe(status);
  expect(asked).toEqual([]);
});

test("the daemon's refusal is the client's", async () => {
  answer = (response) => {
    const error = {
      status: 503,
      code: 'overloaded',
      type: 'server_error',
      message: '4 exports are under way',
      param: null,
    };
    response.writeHead(503, { 'content-type': 'application/json' }).end(JSON.stringify({ error }));
  };
  const response = await rig.call('GET', '/api/adapters/legal/export?format=gguf');
  expect(response.status).toBe(503);
  expect(await response.text()).toContain('4 exports are under way');
});

test('a client who leaves ends the making', async () => {
  let closed: Promise<unknown> | undefined;
  answer = (response) => {
    closed = once(response, 'close');
    response.writeHead(200, { 'content-length': 1_000_000 });
    response.write('begin');
  };
  const response = await rig.call('GET', '/api/adapters/legal/export?format=merged');
  const reader = response.body?.getReader();
  await reader?.read();
  await reader?.cancel();
  await closed;
  expect(closed).toBeDefined();
});
