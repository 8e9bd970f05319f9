import { createHash } from 'node:crypto';
import { request as httpRequest } from 'node:http';
import { afterEach, describe, expect, it } from 'vitest';
import type { GenerateEvent } from '../../daemon/protocol.ts';
import { until } from '../support/eventually.ts';
import {
  CALLER,
  DoubleVocabulary,
  events,
  generateBody,
  PRICE,
  type Rig,
  startRig,
  TOKEN,
  textOf,
} from './engine/rig.ts';

let rig: Rig | null = null;
async function start(options: Parameters<typeof startRig>[0] = {}): Promise<Rig> {
  rig = await startRig(options);
  return rig;
}
afterEach(async () => {
  await rig?.close();
  rig = null;
});

const sha = (text: string) => createHash('sha256').update(text).digest('hex');
const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const last = (all: GenerateEvent[]) => all.at(-1) as GenerateEvent;

describe('daemon server', () => {
  it('streams an answer and ends with its receipt', async () => {
    const r = await start();
    const body = generateBody({ adapter: 'alpha', n: 2 });
    const response = await r.post('/generate', body);
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toContain('application/x-ndjson');
    const all = await events(response);
    expect(all[0]).toMatchObject({
      type: 'start',
      promptTokens: 19,
      cachedTokens: 0,
      seed: 5,
      baseDigest: 'd'.repeat(64),
      adapterDigest: 'alpha',
    });
    expect(textOf(all, 0)).toHaveLength(12);
    expect(textOf(all, 1)).toHaveLength(12);
    expect(all.filter((e) => e.type === 'finish')).toEqual([
      { type: 'finish', choice: 0, reason: 'length' },
      { type: 'finish', choice: 1, reason: 'length' },
    ]);
    // 19 · 1 + 24 · 3 micro-units.
    expect(last(all)).toMatchObject({
      type: 'end',
      receiptId: `rcpt_${body.requestId}`,
      leafIndex: 0,
      costMicros: 91,
      usage: { promptTokens: 19, completionTokens: 24 },
    });
    const stored = r.receipts.receipts.get(`rcpt_${body.requestId}`);
    expect(stored).toMatchObject({
      outcome: 'complete',
      callerHash: CALLER,
      kind: 'completion',
      promptHash: sha('secret prompt words'),
      outputHash: sha(`${textOf(all, 0)}\0${textOf(all, 1)}`),
    });
  });

  it('writes neither prompt nor answer into receipt or log', async () => {
    const r = await start();
    const all = await events(
      await r.post(
        '/generate',
        generateBody({ prompt: { kind: 'chat', messages: [{ role: 'user', content: 'my dark secret' }] } }),
      ),
    );
    const kept = JSON.stringify([...r.receipts.receipts.values()]) + r.logged.join('');
    expect(kept).not.toContain('secret');
    expect(kept).not.toContain(textOf(all));
  });

  it('does not send the last line before the receipt is durable', async () => {
    const r = await start();
    let open = () => {};
    r.receipts.gate = new Promise((resolve) => {
      open = resolve;
    });
    const response = await r.post('/generate', generateBody());
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    let text = '';
    const read = (async () => {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        text += Buffer.from(value).toString();
      }
    })();
    await until(() => text.includes('"finish"'));
    await wait(50);
    expect(text).not.toContain('"end"');
    expect(r.receipts.receipts.size).toBe(0);
    open();
    await read;
    expect(text).toContain('"end"');
    expect(r.receipts.receipts.size).toBe(1);
  });

  it('says so instead of ending well when the receipt can not be stored', async () => {
    const r = await start();
    r.receipts.failures = [new Error('disk full')];
    const all = await events(await r.post('/generate', generateBody()));
    expect(last(all)).toMatchObject({ type: 'error', error: { code: 'receipt_log_unavailable', status: 503 } });
    expect(all.some((e) => e.type === 'end')).toBe(false);
    expect(r.receipts.receipts.size).toBe(0);
  });

  it('says so when the log never answers', async () => {
    const r = await start({ limits: { receiptMs: 50 } });
    r.receipts.gate = new Promise(() => {});
    const all = await events(await r.post('/generate', generateBody()));
    expect(last(all)).toMatchObject({ type: 'error', error: { code: 'receipt_log_unavailable' } });
  });

  it('computes nothing while no receipt could be stored', async () => {
    const r = await start();
    r.block('the disk is full');
    const response = await r.post('/generate', generateBody());
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ error: { code: 'receipt_log_unavailable' } });
    expect(r.engine.steps).toBe(0);
    r.block(null);
    expect((await r.post('/generate', generateBody())).status).toBe(200);
  });

  it('tries once more when the log was restarting', async () => {
    const r = await start();
    r.receipts.failures = [Object.assign(new Error('restarting'), { code: 'log_unavailable' })];
    const all = await events(await r.post('/generate', generateBody()));
    expect(last(all).type).toBe('end');
  });

  it('stops within a step when the caller hangs up, and receipts what was generated', async () => {
    const r = await start();
    r.slow(5);
    const body = generateBody({ maxTokens: 1500 });
    const abort = new AbortController();
    const response = await r.post('/generate', body, { signal: abort.signal });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    await reader.read();
    abort.abort();
    await until(() => r.receipts.receipts.size === 1);
    const stored = r.receipts.receipts.get(`rcpt_${body.requestId}`);
    expect(stored).toMatchObject({ outcome: 'cancelled' });
    expect(stored?.completionTokens).toBeGreaterThan(0);
    expect(stored?.completionTokens).toBeLessThan(1500);
    expect(stored?.costMicros).toBe(19 + 3 * (stored?.completionTokens ?? 0));
    const steps = r.engine.steps;
    await wait(30);
    expect(r.engine.steps).toBe(steps);
    expect(r.engine.samplersOpen).toBe(0);
  });

  it('cuts off a caller that does not read, without holding up others', async () => {
    // Kilobytes per token, so that the buffers of the operating system fill too.
    const vocabulary = new DoubleVocabulary();
    vocabulary.tokenBytes = () => Buffer.alloc(4096, 'x');
    const r = await start({ limits: { streamBufferBytesMax: 256 * 1024 }, vocabulary });
    const body = generateBody({ maxTokens: 2000, n: 8 });
    const socket = httpRequest(`${r.url}/generate`, {
      method: 'POST',
      headers: { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' },
    });
    socket.on('error', () => {});
    socket.on('response', (response) => response.pause());
    socket.end(JSON.stringify(body));
    const other = await events(await r.post('/generate', generateBody()));
    expect(last(other).type).toBe('end');
    await until(() => r.receipts.receipts.has(`rcpt_${body.requestId}`));
    expect(r.receipts.receipts.get(`rcpt_${body.requestId}`)?.outcome).toBe('cancelled');
    socket.destroy();
  });

  it('ends at a stop string, which is not returned', async () => {
    const r = await start();
    const free = textOf(await events(await r.post('/generate', generateBody({ maxTokens: 30 }))));
    const stop = free.slice(10, 13);
    const all = await events(await r.post('/generate', generateBody({ maxTokens: 30, stop: [stop] })));
    expect(textOf(all)).toBe(free.slice(0, free.indexOf(stop)));
    expect(all.find((e) => e.type === 'finish')).toEqual({ type: 'finish', choice: 0, reason: 'stop' });
    expect(last(all)).toMatchObject({ usage: { completionTokens: free.indexOf(stop) + 3 } });
  });

  it('gives every choice its log-probabilities', async () => {
    const r = await start();
    const all = await events(await r.post('/generate', generateBody({ topLogprobs: 0, maxTokens: 5 })));
    const logprobs = all.flatMap((e) => (e.type === 'delta' ? (e.logprobs ?? []) : []));
    expect(logprobs.map((l) => l.token).join('')).toBe(textOf(all));
    expect(logprobs).toHaveLength(5);
  });

  const schema = (name: string) => ({ type: 'json_schema', schema: { title: name } });
  it.each([
    ['an unknown adapter', { adapter: 'nothing' }, 404, 'model_not_found', 'model'],
    [
      'a context that is too long',
      { prompt: { kind: 'text', text: 'x'.repeat(3000) } },
      400,
      'context_length_exceeded',
      'prompt',
    ],
    [
      'a chat that is too long',
      { prompt: { kind: 'chat', messages: [{ role: 'user', content: 'x'.repeat(3000) }] } },
      400,
      'context_length_exceeded',
      'messages',
    ],
    ['a completion that does not fit', { maxTokens: 2040 }, 400, 'context_length_exceeded', 'max_tokens'],
    [
      'tokens outside the vocabulary',
      { prompt: { kind: 'tokens', tokens: [1, 5000] } },
      400,
      'invalid_request_error',
      'prompt',
    ],
    [
      'a bias outside the vocabulary',
      { sampling: { logitBias: [{ token: 5000, bias: 1 }] } },
      400,
      'invalid_request_error',
      'logit_bias',
    ],
    [
      'a template that refuses',
      { prompt: { kind: 'chat', messages: [{ role: 'bad', content: '' }] } },
      400,
      'invalid_request_error',
      'messages',
    ],
    [
      'a schema without a grammar',
      { responseFormat: schema('impossible'), sampling: {} },
      400,
      'grammar_invalid',
      'response_format',
    ],
    [
      'a grammar that the sampler refuses',
      {
        responseFormat: schema('impossible'),
        sampling: {},
        prompt: { kind: 'chat', messages: [{ role: 'user', content: 'x' }] },
      },
      400,
      'grammar_invalid',
      'response_format',
    ],
    ['half a surrogate pair', { stop: ['\ud800'] }, 400, 'invalid_request_error', 'stop'],
    ['a negative number', { maxTokens: -1 }, 400, 'invalid_request_error', 'maxTokens'],
    ['a wrong type', { n: 'two' }, 400, 'invalid_request_error', 'n'],
    ['an adapter that can not be loaded', { adapter: 'broken' }, 503, 'adapter_unavailable', 'model'],
  ])('refuses %s with the right status, before anything is computed', async (_what, extra, status, code, param) => {
    const r = await start();
    const response = await r.post('/generate', generateBody(extra));
    expect(response.status).toBe(status);
    expect(await response.json()).toMatchObject({
      error: { status, code, param, message: expect.any(String), type: expect.any(String) },
    });
    expect(r.engine.steps).toBe(0);
    expect(r.receipts.receipts.size).toBe(0);
    expect(r.engine.samplersOpen).toBe(0);
  });

  it('names the numbers when a context is too long', async () => {
    const r = await start();
    const response = await r.post('/generate', generateBody({ maxTokens: 2040 }));
    const { error } = (await response.json()) as { error: { message: string } };
    expect(error.message).toContain('maximum context length is 2048 tokens');
    expect(error.message).toContain('2059 tokens (19 in the prompt, 2040 in the completion)');
  });

  it('refuses bodies that are broken, too large, or not allowed in', async () => {
    const r = await start({ limits: { bodyBytesMax: 2000 } });
    const status = async (response: Promise<Response>) => {
      const answer = await response;
      const body = (await answer.json()) as { error: { code: string } };
      return [answer.status, body.error.code];
    };
    expect(await status(r.post('/generate', '{'))).toEqual([400, 'invalid_request_error']);
    expect(await status(r.post('/generate', '[]'))).toEqual([400, 'invalid_request_error']);
    expect(await status(r.post('/generate', Uint8Array.of(0x22, 0xff, 0x22)))).toEqual([400, 'invalid_request_error']);
    expect(await status(r.post('/generate', `"${'x'.repeat(3000)}"`))).toEqual([413, 'request_too_large']);
    expect(await status(r.post('/generate', generateBody(), { headers: { authorization: 'Bearer wrong' } }))).toEqual([
      401,
      'unauthorized',
    ]);
    expect(await status(r.post('/nowhere', {}))).toEqual([404, 'not_found']);
    expect((await fetch(`${r.url}/health`)).status).toBe(200);
    expect((await fetch(`${r.url}/metrics`)).status).toBe(401);
  });

  it('refuses a request id that is or was in use: it is the id of a receipt', async () => {
    const r = await start();
    const body = generateBody();
    const [one, two] = await Promise.all([r.post('/generate', body), r.post('/generate', body)]);
    expect([one.status, two.status].sort()).toEqual([200, 409]);
    await one.text();
    await two.text();
    expect((await r.post('/generate', body)).status).toBe(409);
    expect(r.receipts.receipts.size).toBe(1);
  });

  it('refuses with 503 when the queue is full, and serves on', async () => {
    const r = await start({ waitingMax: 3 });
    r.slow(20);
    const all = await Promise.all(
      Array.from({ length: 12 }, () => r.post('/generate', generateBody({ n: 2, maxTokens: 3 }))),
    );
    const statuses = all.map((response) => response.status);
    for (const response of all) await response.text();
    expect(statuses).toContain(503);
    expect(statuses).toContain(200);
    r.slow(0);
    expect((await r.post('/generate', generateBody())).status).toBe(200);
  });

  it('tells everybody in flight when the engine fails, receipts it, and charges nothing for it', async () => {
    const r = await start();
    r.slow(3);
    const body = generateBody({ maxTokens: 1500 });
    const response = await r.post('/generate', body);
    setTimeout(() => r.breakEngine(), 30);
    const all = await events(response);
    expect(last(all)).toMatchObject({
      type: 'error',
      costMicros: 0,
      receiptId: `rcpt_${body.requestId}`,
      error: { code: 'engine_failed', status: 503 },
    });
    expect(r.receipts.receipts.get(`rcpt_${body.requestId}`)?.outcome).toBe('failed');
    const next = await r.post('/generate', generateBody());
    expect(next.status).toBe(503);
    expect(r.client.failed).toBe(true);
  });

  it('embeds: unit vectors in order, with a receipt', async () => {
    const r = await start();
    const inputs = [
      { kind: 'text', text: 'one' },
      { kind: 'text', text: 'another one' },
      { kind: 'tokens', tokens: [1, 2] },
    ];
    const response = await r.post('/embed', {
      requestId: 'emb_1',
      callerHash: CALLER,
      adapter: 'alpha',
      inputs,
      price: PRICE,
    });
    expect(response.status).toBe(200);
    const answer = (await response.json()) as {
      embeddings: string[];
      promptTokens: number;
      receiptId: string;
      costMicros: number;
    };
    expect(answer).toMatchObject({ promptTokens: 16, receiptId: 'rcpt_emb_1', costMicros: 16 });
    const bytes = answer.embeddings.map((text) => Buffer.from(text, 'base64'));
    for (const vector of bytes) {
      const floats = new Float32Array(vector.buffer.slice(vector.byteOffset, vector.byteOffset + vector.length));
      expect(Math.hypot(...floats)).toBeCloseTo(1, 5);
    }
    expect(r.receipts.receipts.get('rcpt_emb_1')).toMatchObject({
      kind: 'embedding',
      outputHash: createHash('sha256').update(Buffer.concat(bytes)).digest('hex'),
    });
  });

  it('serves metrics and tokens', async () => {
    const r = await start();
    await (await r.post('/generate', generateBody())).text();
    const text = await (await fetch(`${r.url}/metrics`, { headers: { authorization: `Bearer ${TOKEN}` } })).text();
    expect(text).toContain('modelfactory_requests_total{kind="completion",outcome="complete"} 1');
    expect(text).toContain('modelfactory_tokens_total{kind="generated"} 12');
    const tokens = await (await r.post('/tokenize', { prompt: { kind: 'text', text: 'ab' } })).json();
    expect(tokens).toEqual({ tokens: [2, 3] });
  });
});
