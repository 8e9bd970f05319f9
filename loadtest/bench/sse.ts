/**
 * A streaming client for OpenAI-style completions, on node:http: one connection per request, timestamps as the bytes come
 * in, little work per chunk, because the client shares its cores with the servers that it measures.
 */
import http from 'node:http';
import { performance } from 'node:perf_hooks';
import { createParser } from 'eventsource-parser';

export interface StreamRequest {
  url: string;
  headers?: Record<string, string>;
  body: unknown;
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface StreamResult {
  /** performance.now() when the request was handed to the socket. */
  startMs: number;
  /** Milliseconds from start to each event that carried text; the first is the time to the first token. */
  tokenMs: number[];
  /** Milliseconds from start to the end of the stream. */
  endMs: number;
  text: string;
  completionTokens: number;
  promptTokens: number;
  cachedTokens: number;
  headers: http.IncomingHttpHeaders;
  /** What the server itself says about its timings, where it does. */
  timings: unknown;
}

interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number };
}
interface Chunk {
  choices?: { text?: string; delta?: { content?: string | null; reasoning_content?: string | null } }[];
  usage?: Usage | null;
  timings?: unknown;
  error?: { message?: string };
}

const TIMEOUT_MS = 300_000;

/** Text of a chunk of /v1/completions or /v1/chat/completions; '' for role and finish chunks. */
export function chunkText(chunk: Chunk): string {
  let text = '';
  for (const choice of chunk.choices ?? [])
    text += choice.text ?? choice.delta?.content ?? choice.delta?.reasoning_content ?? '';
  return text;
}

/**
 * Streams one request to its end. Rejects on a status other than 200, on an error event, and on a stream that ends
 * without `[DONE]`: a broken answer must not count as a fast one.
 */
export function stream(request: StreamRequest): Promise<StreamResult> {
  const body = JSON.stringify(request.body);
  return new Promise((resolve, reject) => {
    const startMs = performance.now();
    const result: StreamResult = {
      startMs,
      tokenMs: [],
      endMs: 0,
      text: '',
      completionTokens: 0,
      promptTokens: 0,
      cachedTokens: 0,
      headers: {},
      timings: undefined,
    };
    let done = false;
    const fail = (message: string) => {
      outgoing.destroy();
      reject(new Error(`${request.url}: ${message}`));
    };
    const parser = createParser({
      onEvent(event) {
        if (event.data === '[DONE]') {
          done = true;
          return;
        }
        const chunk = JSON.parse(event.data) as Chunk;
        if (chunk.error) {
          fail(`error in the stream: ${chunk.error.message ?? event.data}`);
          return;
        }
        const text = chunkText(chunk);
        if (text !== '') {
          result.tokenMs.push(performance.now() - startMs);
          result.text += text;
        }
        if (chunk.usage) {
          result.completionTokens = chunk.usage.completion_tokens;
          result.promptTokens = chunk.usage.prompt_tokens;
          result.cachedTokens = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
        }
        if (chunk.timings !== undefined) result.timings = chunk.timings;
      },
    });
    const outgoing = http.request(
      request.url,
      {
        method: 'POST',
        agent: false,
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), ...request.headers },
        timeout: request.timeoutMs ?? TIMEOUT_MS,
        ...(request.signal ? { signal: request.signal } : {}),
      },
      (incoming) => {
        result.headers = incoming.headers;
        incoming.setEncoding('utf8');
        if (incoming.statusCode !== 200) {
          let text = '';
          incoming.on('data', (part: string) => {
            if (text.length < 2000) text += part;
          });
          incoming.on('end', () => fail(`status ${incoming.statusCode}: ${text.slice(0, 500)}`));
          return;
        }
        incoming.on('data', (part: string) => {
          try {
            parser.feed(part);
          } catch (error) {
            fail(`unreadable event: ${(error as Error).message}`);
          }
        });
        incoming.on('end', () => {
          result.endMs = performance.now() - startMs;
          if (!done) fail('the stream ended without [DONE]');
          else resolve(result);
        });
        incoming.on('error', (error) => reject(error));
      },
    );
    outgoing.setNoDelay(true);
    outgoing.on('timeout', () => fail('timed out'));
    outgoing.on('error', (error) => reject(error));
    outgoing.end(body);
  });
}

export interface GroupResult {
  /** Completion tokens of all streams over the wall time from the first start to the last end. */
  tokensPerSecond: number;
  completionTokens: number;
  promptTokens: number;
  cachedTokens: number;
  wallMs: number;
  /** One per stream, ms. */
  firstTokenMs: number[];
  /** All gaps between consecutive events with text, of all streams, ms. */
  gapMs: number[];
  events: number;
}

/** Puts the streams of one closed group (all started together) into numbers. */
export function groupResult(streams: readonly StreamResult[]): GroupResult {
  const begin = Math.min(...streams.map((s) => s.startMs));
  const end = Math.max(...streams.map((s) => s.startMs + s.endMs));
  const completionTokens = streams.reduce((sum, s) => sum + s.completionTokens, 0);
  return {
    tokensPerSecond: completionTokens / ((end - begin) / 1000),
    completionTokens,
    promptTokens: streams.reduce((sum, s) => sum + s.promptTokens, 0),
    cachedTokens: streams.reduce((sum, s) => sum + s.cachedTokens, 0),
    wallMs: end - begin,
    firstTokenMs: streams.map((s) => s.tokenMs[0] ?? Number.NaN),
    gapMs: streams.flatMap((s) => s.tokenMs.slice(1).map((t, i) => t - (s.tokenMs[i] as number))),
    events: streams.reduce((sum, s) => sum + s.tokenMs.length, 0),
  };
}
