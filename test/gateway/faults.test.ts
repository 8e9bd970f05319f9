/** What becomes of requests, and of their money, when the client goes, the daemon dies, or never was there. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import type { Line } from '../support/scripted-daemon.ts';
import { sayHello } from '../support/scripted-daemon.ts';
import { CHAT, errorOf, type Rig, sseEvents, startRig } from './rig.ts';

let rig: Rig;
let key: { id: string; credential: string };
const bearer = () => ({ authorization: `Bearer ${key.credential}` });

/** Nine prompt tokens at 1 and `tokens` at 2 micro-units (PRICE). */
const cost = (tokens: number) => 9 + 2 * tokens;

/** Says `tokens` words, then waits until the gateway hangs up, then makes the receipt of what was generated durable. */
const talkUntilGone = (tokens: number) => async (request: Parameters<typeof sayHello>[0], line: Line) => {
  line.start();
  for (let index = 0; index < tokens; index++) line.emit({ type: 'delta', choice: 0, content: 'word ' });
  await line.gone;
  await new Promise((resolve) => setTimeout(resolve, 60));
  rig.daemon.settle(request.requestId, { promptTokens: 9, cachedTokens: 0, completionTokens: tokens }, request);
};

describe.each([
  ['undici', false],
  ['fetch', true],
])('streams read with %s', (_, webOnly) => {
  beforeEach(async () => {
    rig = await startRig({ adapters: ['legal'], webOnly });
    key = await rig.key({ budgetMicros: 1_000_000 });
  });
  afterEach(() => rig.close());

  describe('the client goes away', () => {
    test('breaking out of an SDK stream cancels the generation and posts what it cost', async () => {
      rig.daemon.script = talkUntilGone(4);
      const stream = (await rig
        .client(key.credential)
        .chat.completions.create({ ...CHAT, stream: true } as never)) as unknown as AsyncIterable<unknown>;
      let seen = 0;
      for await (const _ of stream) if (++seen === 3) break;
      await rig.settled();
      expect(await rig.money(key.id)).toEqual({ spent: cost(4), reserved: 0 });
    });

    test('aborting a request that is not streamed does the same', async () => {
      rig.daemon.script = talkUntilGone(2);
      const abort = new AbortController();
      const pending = rig.client(key.credential).chat.completions.create(CHAT as never, { signal: abort.signal });
      pending.catch(() => {});
      await eventually(() => expect(rig.daemon.requests).toHaveLength(1));
      await new Promise((resolve) => setTimeout(resolve, 20));
      abort.abort();
      await expect(pending).rejects.toThrow();
      await eventually(() => expect(rig.daemon.settlements.size).toBe(1));
      await rig.settled();
      expect(await rig.money(key.id)).toEqual({ spent: cost(2), reserved: 0 });
    });

    test('other streams go on undisturbed', async () => {
      const slow: Line[] = [];
      rig.daemon.script = async (request, line) => {
        line.start();
        line.emit({ type: 'delta', choice: 0, content: 'a' });
        slow.push(line);
        await line.gone;
        rig.daemon.settle(request.requestId, { promptTokens: 9, cachedTokens: 0, completionTokens: 1 }, request);
      };
      const stay = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, bearer());
      const leave = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, bearer());
      await leave.body?.cancel();
      await slow[1]?.gone;
      expect(slow[0]?.closed).toBe(false);
      slow[0]?.emit({ type: 'finish', choice: 0, reason: 'stop' });
      slow[0]?.end(1);
      expect((await sseEvents(stay)).at(-1)?.data).toBe('[DONE]');
    });

    test('a place in the concurrency limit is free again', async () => {
      const narrow = await rig.key({ concurrency: 1 });
      const headers = { authorization: `Bearer ${narrow.credential}` };
      rig.daemon.script = talkUntilGone(1);
      const first = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, headers);
      const second = await rig.call('POST', '/v1/chat/completions', CHAT, headers);
      expect([second.status, (await errorOf(second)).code]).toEqual([429, 'concurrency_limit_exceeded']);
      await first.body?.cancel();
      rig.daemon.script = sayHello;
      await eventually(async () =>
        expect((await rig.call('POST', '/v1/chat/completions', CHAT, headers)).status).toBe(200),
      );
    });
  });

  describe('the daemon fails', () => {
    test('killed mid-stream: an error event that the SDK understands, then the end; the reservation is voided if there is no receipt', async () => {
      rig.daemon.script = async (_, line) => {
        line.start();
        line.emit({ type: 'delta', choice: 0, content: 'half an' });
        await new Promise((resolve) => setTimeout(resolve, 20));
        line.kill();
      };
      const events = await sseEvents(
        await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, bearer()),
      );
      expect(events.at(-1)?.json).toEqual({
        error: { message: expect.any(String), type: 'server_error', param: null, code: 'engine_failed' },
      });
      const stream = (await rig
        .client(key.credential)
        .chat.completions.create({ ...CHAT, stream: true } as never)) as unknown as AsyncIterable<unknown>;
      await expect(
        (async () => {
          for await (const _ of stream);
        })(),
      ).rejects.toMatchObject({ code: 'engine_failed' });
      expect((await rig.money(key.id)).reserved).toBeGreaterThan(0);
      await rig.settled();
      expect(await rig.money(key.id)).toEqual({ spent: 0, reserved: 0 });
    });

    test('killed after the receipt was durable: what was generated is paid', async () => {
      rig.daemon.script = async (request, line) => {
        line.start();
        line.emit({ type: 'delta', choice: 0, content: 'x' });
        rig.daemon.settle(request.requestId, { promptTokens: 9, cachedTokens: 0, completionTokens: 1 }, request);
        await new Promise((resolve) => setTimeout(resolve, 20));
        line.kill();
      };
      const answer = await rig.call('POST', '/v1/chat/completions', CHAT, bearer());
      expect([answer.status, (await errorOf(answer)).code]).toEqual([502, 'engine_failed']);
      await rig.settled();
      expect(await rig.money(key.id)).toEqual({ spent: cost(1), reserved: 0 });
    });

    test('an error event with its cost: told in the stream, and posted', async () => {
      rig.daemon.script = (request, line) => {
        line.start();
        line.emit({ type: 'delta', choice: 0, content: 'x' });
        const usage = { promptTokens: 9, cachedTokens: 0, completionTokens: 1 };
        const { receiptId, costMicros } = rig.daemon.settle(request.requestId, usage, request);
        line.emit({
          type: 'error',
          error: {
            status: 500,
            code: 'compute_failed',
            type: 'server_error',
            message: 'The device failed.',
            param: null,
          },
          usage,
          receiptId,
          costMicros,
        });
      };
      const events = await sseEvents(
        await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, bearer()),
      );
      expect(events.at(-1)?.json).toMatchObject({ error: { code: 'compute_failed' } });
      expect(await rig.money(key.id)).toEqual({ spent: cost(1), reserved: 0 });
    });

    test('an error before the first token is a status, also for a stream', async () => {
      rig.daemon.script = (_, line) =>
        line.emit({
          type: 'error',
          error: {
            status: 400,
            code: 'context_length_exceeded',
            type: 'invalid_request_error',
            message: 'Too long.',
            param: 'prompt',
          },
        });
      const answer = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, bearer());
      expect([answer.status, (await errorOf(answer)).code]).toEqual([400, 'context_length_exceeded']);
    });

    test('a daemon that is down: 503 with retry-after, nothing reserved; back again, requests work', async () => {
      expect((await rig.call('POST', '/v1/chat/completions', CHAT, bearer())).status).toBe(200);
      await rig.daemon.stop();
      for (const stream of [false, true]) {
        const answer = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream }, bearer());
        expect([answer.status, (await errorOf(answer)).code, answer.headers.get('retry-after')]).toEqual([
          503,
          'engine_unavailable',
          '2',
        ]);
      }
      expect((await rig.money(key.id)).reserved).toBe(0);
      const health = await rig.call('GET', '/health');
      expect([health.status, await health.json()]).toMatchObject([
        503,
        { status: 'unavailable', gateway: { database: 'ok' }, daemons: [{ status: 'unreachable' }] },
      ]);
      await rig.daemon.restart();
      await eventually(async () =>
        expect((await rig.call('POST', '/v1/chat/completions', CHAT, bearer())).status).toBe(200),
      );
    });

    test.each([
      ['not JSON', 'garbage\n'],
      [
        'an end without a finish',
        '{"type":"end","usage":{"promptTokens":1,"cachedTokens":0,"completionTokens":0},"receiptId":"r","leafIndex":0,"costMicros":1,"timings":{}}\n',
      ],
    ])('a daemon that talks nonsense (%s) is engine_failed, not a crash', async (_, text) => {
      rig.daemon.script = (_request, line) => {
        line.raw(text);
        line.close();
      };
      const answer = await rig.call('POST', '/v1/chat/completions', CHAT, bearer());
      expect([answer.status, (await errorOf(answer)).code]).toEqual([502, 'engine_failed']);
      expect((await rig.call('GET', '/v1/models')).status).toBe(200);
    });

    test('a daemon that refuses our token is unavailable to the client, who is not blamed for it', async () => {
      rig.daemon.script = (_, line) =>
        line.emit({
          type: 'error',
          error: { status: 401, code: 'unauthorized', type: 'x', message: 'wrong daemon token', param: null },
        });
      const answer = await rig.call('POST', '/v1/chat/completions', CHAT, bearer());
      expect([answer.status, (await errorOf(answer)).code]).toEqual([503, 'engine_unavailable']);
    });

    test('events cut at any byte, in any language, give the same answer', async () => {
      const text = 'héllo, 世界 👩‍🚀 — ok';
      rig.daemon.script = async (request, line) => {
        const usage = { promptTokens: 9, cachedTokens: 0, completionTokens: 1 };
        const settled = rig.daemon.settle(request.requestId, usage, request);
        const lines = [
          { type: 'start', promptTokens: 9, cachedTokens: 0, seed: 1, baseDigest: 'a', adapterDigest: null },
          { type: 'delta', choice: 0, content: text },
          { type: 'finish', choice: 0, reason: 'stop' },
          {
            type: 'end',
            usage,
            receiptId: settled.receiptId,
            leafIndex: 0,
            costMicros: settled.costMicros,
            timings: {},
          },
        ];
        const bytes = Buffer.from(lines.map((one) => `${JSON.stringify(one)}\n`).join(''));
        for (const byte of bytes) {
          line.raw(Buffer.from([byte]));
          if (byte > 127) await new Promise((resolve) => setImmediate(resolve));
        }
        line.close();
      };
      const answer = (await (await rig.call('POST', '/v1/chat/completions', CHAT, bearer())).json()) as {
        choices: { message: { content: string } }[];
      };
      expect(answer.choices[0]?.message.content).toBe(text);
    });
  });

  describe('this process fails', () => {
    test('reservations of a dead process are settled from the log at start: paid where there is a receipt, released where not', async () => {
      const { ledger, settler } = rig.app.services;
      await ledger.reserve('lost-1', key.id, 500);
      await ledger.reserve('lost-2', key.id, 300);
      rig.daemon.settle(
        'lost-1',
        { promptTokens: 9, cachedTokens: 0, completionTokens: 5 },
        { price: { inputMicrosPerMillion: 1e6, outputMicrosPerMillion: 2e6, currency: 'USD' } },
      );
      expect(await settler.sweep(0)).toBe(0);
      expect(await rig.money(key.id)).toEqual({ spent: 0, reserved: 800 });
      await settler.sweep(Date.now() + 1);
      expect(await rig.money(key.id)).toEqual({ spent: cost(5), reserved: 0 });
    });

    test('they wait while no daemon answers', async () => {
      const { ledger, settler } = rig.app.services;
      await ledger.reserve('lost-3', key.id, 500);
      await rig.daemon.stop();
      expect(await settler.sweep(Date.now() + 1)).toBe(1);
      expect((await rig.money(key.id)).reserved).toBe(500);
      await rig.daemon.restart();
      expect(await settler.sweep(Date.now() + 1)).toBe(0);
      expect((await rig.money(key.id)).reserved).toBe(0);
    });

    test('a ledger that cannot be written refuses new requests with 503 and computes nothing', async () => {
      await rig.database.db.$client.execute('DROP TABLE reservations');
      const answer = await rig.call('POST', '/v1/chat/completions', CHAT, bearer());
      expect([answer.status, (await errorOf(answer)).code]).toEqual([503, 'ledger_unavailable']);
      expect(rig.daemon.requests).toHaveLength(0);
    });
  });
});
