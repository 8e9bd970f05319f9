/** What a stream does while the engine is silent, and with a reader that does not read. Limits are shortened for this file alone. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { limits } from '../../gateway/limits.ts';
import { eventually } from '../support/eventually.ts';
import { PATIENCE_MS } from '../support/patience.ts';
import { CHAT, type Rig, startRig } from './rig.ts';

let rig: Rig;
const kept = { ...limits };
beforeAll(async () => {
  Object.assign(limits, {
    heartbeatMs: 60,
    streamHeadersMs: 30,
    streamBacklogBytesMax: 200_000,
    stallProbeMs: 80,
    probeTimeoutMs: PATIENCE_MS,
  });
  rig = await startRig();
});
afterAll(async () => {
  await rig.close();
  Object.assign(limits, kept);
});

const stream = { ...CHAT, stream: true };

test('while a request waits in the queue the client gets headers and comments, then the answer', async () => {
  // The engine begins only once the client has its headers and two comments, so that no clock is needed.
  let begin = () => {};
  const asked = new Promise<void>((resolve) => {
    begin = resolve;
  });
  rig.daemon.script = async (_, line) => {
    await asked;
    await line.say(['late']);
  };
  const response = await rig.call('POST', '/v1/chat/completions', stream);
  expect(response.headers.get('x-receipt-id')).toMatch(/^rcpt_/);
  let text = '';
  const decoder = new TextDecoder();
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    text += decoder.decode(chunk, { stream: true });
    if ((text.match(/^: ping$/gm)?.length ?? 0) >= 2) begin();
  }
  expect(text).toContain('"content":"late"');
  expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
});

test('a failure after the headers have left is told inside the stream', async () => {
  let fail = () => {};
  const headers = new Promise<void>((resolve) => {
    fail = resolve;
  });
  rig.daemon.script = async (_, line) => {
    await headers;
    line.emit({
      type: 'error',
      error: {
        status: 400,
        code: 'context_length_exceeded',
        type: 'invalid_request_error',
        message: 'Too long.',
        param: 'messages',
      },
    });
  };
  const response = await rig.call('POST', '/v1/chat/completions', stream);
  expect(response.status).toBe(200);
  fail();
  expect((await response.text()).replaceAll(': ping\n\n', '')).toBe(
    'data: {"error":{"message":"Too long.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}\n\n',
  );
});

test('a client that never reads does not hold its money: the engine is followed at its own pace and the cost posted', async () => {
  const { id, credential } = await rig.key({ budgetMicros: 1_000_000 });
  rig.daemon.script = (_, line) => line.say(Array.from({ length: 200 }, () => 'word '));
  const response = await rig.call('POST', '/v1/chat/completions', stream, { authorization: `Bearer ${credential}` });
  await eventually(async () => expect(await rig.money(id)).toEqual({ spent: 9 + 2 * 200, reserved: 0 }));
  expect(await response.text()).toContain('[DONE]');
});

test('one that leaves too much unread is cut off, and the generation with it', async () => {
  let cut: Promise<void> | undefined;
  rig.daemon.script = async (_, line) => {
    line.start();
    cut = line.gone;
    while (!line.closed) {
      line.emit({ type: 'delta', choice: 0, content: 'x'.repeat(1000) });
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const response = await rig.call('POST', '/v1/chat/completions', stream);
  await eventually(() => expect(cut).toBeDefined());
  await cut;
  await expect(response.text()).rejects.toThrow();
});

test('a daemon that freezes (accepts, says nothing, answers nothing) does not hang the stream', async () => {
  rig.daemon.script = async (_, line) => {
    line.start();
    rig.daemon.freeze = true;
    await line.gone;
  };
  // Only here: a machine that stands still for a moment is no daemon that froze.
  Object.assign(limits, { probeTimeoutMs: 200 });
  const response = await rig.call('POST', '/v1/chat/completions', stream);
  expect(await response.text()).toContain('"code":"engine_failed"');
  rig.daemon.freeze = false;
});
