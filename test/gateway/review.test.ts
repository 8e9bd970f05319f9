/** Promises at the edges: money of requests whose end comes late, callers who left early, and keys that hand out keys. */
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { promptTokensBound } from '../../gateway/openai/estimate.ts';
import { eventually } from '../support/eventually.ts';
import { CHAT, errorOf, type Rig, startRig } from './rig.ts';

let rig: Rig;
let key: { id: string; credential: string };
const bearer = () => ({ authorization: `Bearer ${key.credential}` });
beforeEach(async () => {
  rig = await startRig({ adapters: ['legal'] });
  key = await rig.key({ budgetMicros: 1_000_000 });
});
afterEach(() => rig.close());

test('a receipt that takes longer than the settler has patience is still paid, if the daemon says that it will come', async () => {
  rig.daemon.script = async (request, line) => {
    rig.daemon.underWay.add(request.requestId);
    line.start();
    line.emit({ type: 'delta', choice: 0, content: 'word' });
    await line.gone;
    // Longer than the five absences after which this rig gives a reservation back.
    await new Promise((resolve) => setTimeout(resolve, 600));
    rig.daemon.settle(request.requestId, { promptTokens: 9, cachedTokens: 0, completionTokens: 1 }, request);
    rig.daemon.underWay.delete(request.requestId);
  };
  const stream = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, bearer());
  await stream.body?.cancel();
  await rig.settled();
  expect(await rig.money(key.id)).toEqual({ spent: 9 + 2, reserved: 0 });
});

describe.each([
  ['streamed', true],
  ['whole', false],
])('a caller who left before the engine was asked (%s)', (_, stream) => {
  test('costs nothing and computes nothing', async () => {
    const abort = new AbortController();
    const seen = vi.fn();
    rig.daemon.script = (_request, line) => {
      seen();
      return line.say(['never']);
    };
    // Gone after the body was read, while the model is looked up: no event tells of it afterwards.
    const resolve = rig.app.services.pool.resolve.bind(rig.app.services.pool);
    vi.spyOn(rig.app.services.pool, 'resolve').mockImplementation(async (id) => {
      const model = await resolve(id);
      abort.abort();
      return model;
    });
    const response = await rig.app.fetch(
      new Request('http://gateway.test/v1/chat/completions', {
        method: 'POST',
        headers: { ...bearer(), 'content-type': 'application/json' },
        body: JSON.stringify({ ...CHAT, stream }),
        signal: abort.signal,
      }),
    );
    expect(response.status).toBe(400);
    await rig.settled();
    expect(seen).not.toHaveBeenCalled();
    expect(await rig.money(key.id)).toEqual({ spent: 0, reserved: 0 });
  });
});

test('a stream whose caller leaves while the engine is silent is cancelled', async () => {
  const abort = new AbortController();
  let gone = false;
  rig.daemon.script = async (request, line) => {
    line.start();
    // The headers leave with the first event; the caller goes in that very moment.
    abort.abort();
    await line.gone;
    gone = true;
    rig.daemon.settle(request.requestId, { promptTokens: 9, cachedTokens: 0, completionTokens: 0 }, request);
  };
  await rig.app.fetch(
    new Request('http://gateway.test/v1/chat/completions', {
      method: 'POST',
      headers: { ...bearer(), 'content-type': 'application/json' },
      body: JSON.stringify({ ...CHAT, stream: true }),
      signal: abort.signal,
    }),
  );
  await eventually(() => expect(gone).toBe(true));
  await rig.settled();
  expect(await rig.money(key.id)).toEqual({ spent: 9, reserved: 0 });
});

describe('a key that may make keys hands out no more than it has', () => {
  const asked = (extra: object) => ({ name: 'x', scopes: ['inference'], ...extra });
  const rates = { requestsPerMinute: 10, tokensPerMinute: 1000, concurrency: 2 };
  const within = { requests_per_minute: 10, tokens_per_minute: 1000, concurrency: 2 };
  const send = (credential: string, method: string, path: string, body: object) =>
    rig.call(method, path, body, { authorization: `Bearer ${credential}` });

  test.each([
    ['requests', { ...within, requests_per_minute: 11 }],
    ['tokens', { ...within, tokens_per_minute: 1001 }],
    ['concurrency', { ...within, concurrency: 3 }],
    ['rates left to the default', {}],
  ])('%s beyond its own are refused', async (_, extra) => {
    const { credential } = await rig.key({ scopes: ['keys', 'inference'], ...rates });
    const response = await send(credential, 'POST', '/api/keys', asked(extra));
    expect(response.status).toBe(403);
    expect((await errorOf(response)).code).toBe('insufficient_scope');
  });

  test('its own rates it may hand out, and not raise its own', async () => {
    const { id, credential } = await rig.key({ scopes: ['keys', 'inference'], ...rates });
    expect((await send(credential, 'POST', '/api/keys', asked(within))).status).toBe(201);
    expect((await send(credential, 'PATCH', `/api/keys/${id}`, { requests_per_minute: 1000 })).status).toBe(403);
    expect((await send(credential, 'PATCH', `/api/keys/${id}`, { concurrency: null })).status).toBe(403);
    expect((await send(credential, 'PATCH', `/api/keys/${id}`, { concurrency: 1 })).status).toBe(200);
  });
});

test('what a template may write into a prompt is part of what is reserved', () => {
  const prompt = { kind: 'chat' as const, messages: [{ role: 'user', content: 'Hi' }] };
  const long = { ...prompt, templateArguments: { instructions: 'x'.repeat(2000) } };
  expect(promptTokensBound(long, 100_000) - promptTokensBound(prompt, 100_000)).toBeGreaterThanOrEqual(2000);
});

describe('bodies that do not come', () => {
  /** A request whose body is declared and never sent; `end` breaks it off. `read`: it was let in, and its body is waited for. */
  const hanging = (headers: Record<string, string>) => {
    let end = () => {};
    let begin = () => {};
    const read = new Promise<void>((resolve) => {
      begin = resolve;
    });
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(new Uint8Array([0x7b]));
        end = () => controller.error(new Error('gone'));
      },
      // Asked for once the first byte was taken.
      pull: () => begin(),
    });
    const init = { method: 'POST', headers: { ...bearer(), 'content-type': 'application/json', ...headers }, body };
    const request = new Request('http://gateway.test/v1/chat/completions', { ...init, duplex: 'half' } as RequestInit);
    return { answer: Promise.resolve(rig.app.fetch(request)), read, end: () => end() };
  };

  test('cannot fill the memory: large ones are refused when many are under way, and taken again afterwards', async () => {
    const declared = { 'content-length': String(10 * 1024 * 1024) };
    const many = Array.from({ length: 25 }, () => hanging(declared));
    await Promise.all(many.map(({ read }) => read));
    const refused = await hanging(declared).answer;
    expect([refused.status, (await errorOf(refused)).code]).toEqual([503, 'overloaded']);
    expect((await rig.call('POST', '/v1/chat/completions', CHAT, bearer())).status).toBe(200);
    for (const one of many) one.end();
    for (const one of many) expect((await one.answer).status).toBe(400);
    const later = hanging(declared);
    await later.read;
    later.end();
    expect((await later.answer).status).toBe(400);
  });

  test.each([
    ['with a length', { 'content-length': '100' }],
    ['without one', {}],
  ])('%s are given up', async (_, headers) => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const { answer, end } = hanging(headers);
      let over = false;
      const answered = answer.finally(() => {
        over = true;
      });
      // The clock runs ahead until the request has come so far that it is told.
      while (!over) {
        await new Promise((resolve) => setImmediate(resolve));
        vi.advanceTimersByTime(120_000);
      }
      const response = await answered;
      expect([response.status, (await errorOf(response)).code]).toEqual([408, 'request_timeout']);
      try {
        end();
      } catch {
        // Cancelled already.
      }
    } finally {
      vi.useRealTimers();
    }
  });
});

test('more dimensions than there are cost nothing: they are refused before anything is computed', async () => {
  const body = { model: 'tiny-base', input: 'a', dimensions: 5 };
  const response = await rig.call('POST', '/v1/embeddings', body, bearer());
  expect([response.status, (await errorOf(response)).param]).toEqual([400, 'dimensions']);
  expect(rig.daemon.settlements.size).toBe(0);
  expect(await rig.money(key.id)).toEqual({ spent: 0, reserved: 0 });
});
