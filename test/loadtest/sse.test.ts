import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { groupResult, type StreamResult, stream } from '../../loadtest/bench/sse.ts';
import { startUpstream, UPSTREAM_MODEL } from '../../loadtest/bench/upstream.ts';

let server: Server | undefined;
afterEach(() => server?.close());

async function serving(script: (response: ServerResponse) => Promise<void> | void): Promise<string> {
  server = createServer((request, response) => {
    request.resume();
    request.on('end', () => void script(response));
  });
  const listening = server;
  await new Promise<void>((resolve) => listening.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(listening.address() as AddressInfo).port}/v1/chat/completions`;
}
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const event = (body: object) => `data: ${JSON.stringify(body)}\n\n`;
const text = (content: string) => event({ choices: [{ index: 0, delta: { content } }] });

describe('the streaming client', () => {
  it('times the first text, not the headers and not the role chunk', async () => {
    const url = await serving(async (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(event({ choices: [{ delta: { role: 'assistant', content: '' } }] }));
      await pause(80);
      response.write(text('a'));
      await pause(40);
      response.write(text('b'));
      response.end(`${event({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 2 } })}data: [DONE]\n\n`);
    });
    const result = await stream({ url, body: {} });
    expect(result.text).toBe('ab');
    expect(result.tokenMs).toHaveLength(2);
    // Timers may fire a millisecond early.
    expect(result.tokenMs[0]).toBeGreaterThanOrEqual(78);
    expect((result.tokenMs[1] as number) - (result.tokenMs[0] as number)).toBeGreaterThanOrEqual(38);
    expect(result.endMs).toBeGreaterThanOrEqual(result.tokenMs[1] as number);
    expect([result.promptTokens, result.completionTokens]).toEqual([3, 2]);
  });

  it('puts events and characters together that the network has cut', async () => {
    const bytes = Buffer.from(`${text('größe 🦙')}data: [DONE]\n\n`);
    const url = await serving(async (response) => {
      response.writeHead(200);
      for (const byte of bytes) {
        response.write(Buffer.of(byte));
        await pause(0);
      }
      response.end();
    });
    expect((await stream({ url, body: {} })).text).toBe('größe 🦙');
  });

  it.each([
    ['a stream without [DONE]', text('a'), /without \[DONE\]/],
    ['an error event', event({ error: { message: 'engine died' } }), /engine died/],
    ['something that is not JSON', 'data: {oops\n\n', /unreadable event/],
  ])('does not take %s for an answer', async (_, body, message) => {
    const url = await serving((response) => {
      response.writeHead(200);
      response.end(body);
    });
    await expect(stream({ url, body: {} })).rejects.toThrow(message);
  });

  it('says the status and the body of a refusal', async () => {
    const url = await serving((response) => {
      response.writeHead(429);
      response.end('slow down');
    });
    await expect(stream({ url, body: {} })).rejects.toThrow(/429: slow down/);
  });

  it('fails when the connection breaks in the middle', async () => {
    const url = await serving(async (response) => {
      response.writeHead(200);
      response.write(text('a'));
      await pause(10);
      response.destroy();
    });
    await expect(stream({ url, body: {} })).rejects.toThrow();
  });
});

describe('a group of streams', () => {
  const one = (startMs: number, tokenMs: number[], endMs: number): StreamResult => ({
    startMs,
    tokenMs,
    endMs,
    text: '',
    completionTokens: tokenMs.length,
    promptTokens: 10,
    cachedTokens: 0,
    headers: {},
    timings: undefined,
  });
  it('is counted from the first start to the last end', () => {
    const group = groupResult([one(1000, [100, 150, 400], 500), one(1500, [100, 300], 1500)]);
    expect(group.wallMs).toBe(2000);
    expect(group.tokensPerSecond).toBe(2.5);
    expect(group.firstTokenMs).toEqual([100, 100]);
    expect(group.gapMs).toEqual([50, 250, 200]);
  });
  it('does not hide a stream that never had a first token', () => {
    expect(groupResult([one(0, [], 5)]).firstTokenMs).toEqual([Number.NaN]);
  });
});

describe('the scripted upstream', () => {
  it('streams as many tokens as asked, each as its own event', async () => {
    const port = await startUpstream(0);
    for (const route of ['chat/completions', 'completions']) {
      const result = await stream({
        url: `http://127.0.0.1:${port}/v1/${route}`,
        body: { model: UPSTREAM_MODEL, stream: true, max_tokens: 5 },
      });
      expect(result.completionTokens).toBe(5);
      expect(result.text).toBe(' token'.repeat(5));
      expect(result.tokenMs).toHaveLength(5);
    }
  });
});
