/** Streams over a real socket, on Node's own answer: the same bytes and the same ends as through a Web stream. */
import { Agent, request as httpRequest, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createAdaptorServer } from '@hono/node-server';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { CHAT, type Rig, startRig } from './rig.ts';

let rig: Rig;
let server: Server;
let agent: Agent;
let key: { id: string; credential: string };
beforeEach(async () => {
  rig = await startRig();
  key = await rig.key({ budgetMicros: 1_000_000_000, concurrency: 1 });
  server = createAdaptorServer({ fetch: rig.app.fetch }) as Server;
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  agent = new Agent({ keepAlive: true, maxSockets: 1 });
});
afterEach(async () => {
  agent.destroy();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  await rig.close();
});

function stream(): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const { port } = server.address() as AddressInfo;
    const headers = { authorization: `Bearer ${key.credential}`, 'content-type': 'application/json' };
    const sent = httpRequest(
      { host: '127.0.0.1', port, path: '/v1/chat/completions', method: 'POST', agent, headers },
      resolve,
    );
    sent.on('error', reject);
    sent.end(JSON.stringify({ ...CHAT, stream: true }));
  });
}

async function textOf(message: IncomingMessage): Promise<string> {
  let text = '';
  for await (const part of message) text += part;
  return text;
}

/** Ids and times differ from answer to answer. */
const plain = (text: string) => text.replaceAll(/chatcmpl-\w+|"created":\d+/g, '…');

test('the bytes are those of a Web stream, the headers are all there, and the connection goes on', async () => {
  const direct = vi.spyOn(rig.app.services, 'direct');
  const first = await stream();
  expect(direct.mock.results[0]?.value).not.toBeNull();
  const local = first.socket.localPort;
  expect(first.statusCode).toBe(200);
  expect(first.headers).toMatchObject({
    'content-type': 'text/event-stream; charset=utf-8',
    'transfer-encoding': 'chunked',
    'x-request-id': expect.stringMatching(/^req_/),
    'x-receipt-id': expect.stringMatching(/^rcpt_/),
    'x-ratelimit-limit-requests': expect.any(String),
    'openai-processing-ms': expect.stringMatching(/^\d+$/),
    'x-content-type-options': 'nosniff',
  });
  expect(first.headers['x-hono-already-sent']).toBeUndefined();
  const text = await textOf(first);
  const web = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true });
  expect(plain(text)).toBe(plain(await web.text()));
  const second = await stream();
  expect([second.socket.localPort, second.headers['x-request-id'] === first.headers['x-request-id']]).toEqual([
    local,
    false,
  ]);
  await textOf(second);
  await rig.settled();
  expect(await rig.money(key.id)).toEqual({ spent: 2 * (9 + 2 * 3), reserved: 0 });
});

test('a caller who hangs up stops the generation, pays for what was made, and gets its place back', async () => {
  rig.daemon.script = async (request, line) => {
    line.start();
    line.emit({ type: 'delta', choice: 0, content: 'word' });
    await line.gone;
    rig.daemon.settle(request.requestId, { promptTokens: 9, cachedTokens: 0, completionTokens: 1 }, request);
  };
  const answer = await stream();
  answer.destroy();
  await eventually(() => expect(rig.daemon.settlements.size).toBe(1));
  await rig.settled();
  expect(await rig.money(key.id)).toEqual({ spent: 9 + 2, reserved: 0 });
  rig.daemon.script = (_, line) => line.say(['next']);
  expect(await textOf(await stream())).toMatch(/\[DONE\]\n\n$/);
});

test('an engine that dies under way is told in the stream, which then ends in good order', async () => {
  rig.daemon.script = (_, line) => {
    line.start();
    line.emit({ type: 'delta', choice: 0, content: 'word' });
    setTimeout(() => line.kill(), 30);
  };
  const text = await textOf(await stream());
  expect(text).toContain('"word"');
  expect(text.trimEnd().split('\n\n').at(-1)).toMatch(/^data: \{"error":\{.*"code":"engine_failed"\}\}$/);
});

test('a caller who does not read is cut off, and nobody waits for it', async () => {
  const piece = 'x'.repeat(256 * 1024);
  rig.daemon.script = async (request, line) => {
    line.start();
    for (let sent = 0; sent < 400 && !line.closed; sent++) {
      line.emit({ type: 'delta', choice: 0, content: piece });
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await line.gone;
    rig.daemon.settle(request.requestId, { promptTokens: 9, cachedTokens: 0, completionTokens: 1 }, request);
  };
  const answer = await stream();
  answer.on('error', () => {});
  answer.pause();
  await eventually(() => expect(rig.daemon.settlements.size).toBe(1));
  await rig.settled();
  expect(await rig.money(key.id)).toEqual({ spent: 9 + 2, reserved: 0 });
});
