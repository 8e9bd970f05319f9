/**
 * A scripted upstream that answers at once: the daemon's protocol (for our gateway) and OpenAI's (for others), with the same
 * tokens and the same writes. Started as a child (`upstream.ts PORT`), so that its CPU time is its own.
 */

import { createHash } from 'node:crypto';
import { createServer, type ServerResponse } from 'node:http';
import { pathToFileURL } from 'node:url';
import {
  type BaseModel,
  type DaemonHealth,
  type GenerateEvent,
  type GenerateRequestInput,
  receiptIdOf,
} from '../../daemon/protocol.ts';

export const UPSTREAM_MODEL = 'scripted';
/** Names only; all answer alike. For trying the k6 scripts. */
const UPSTREAM_ADAPTERS = Array.from({ length: 8 }, (_, i) => `bench-${i}`);
const digest = createHash('sha256').update('scripted').digest('hex');

const model: BaseModel = {
  id: UPSTREAM_MODEL,
  digest,
  architecture: 'llama',
  contextTokens: 100_000,
  vocabulary: 49_152,
  embedding: 0,
  weightBytes: 0,
  device: 'none',
  created: 0,
};
const health: DaemonHealth = {
  status: 'ready',
  detail: 'scripted',
  version: '0',
  uptimeSeconds: 1,
  queue: { running: 0, waiting: 0 },
  logSize: 1,
};

const usage = (tokens: number) => ({ promptTokens: 10, cachedTokens: 0, completionTokens: tokens });

/** Waits between writes so that each token is a write of its own, as a real engine's are. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

async function writeAll(response: ServerResponse, pieces: Iterable<string>): Promise<void> {
  for (const piece of pieces) {
    if (response.destroyed) return;
    if (!response.write(piece)) await new Promise<void>((resolve) => response.once('drain', resolve));
    await turn();
  }
  response.end();
}

function* daemonLines(request: GenerateRequestInput): Generator<string> {
  const tokens = request.maxTokens ?? 16;
  const line = (event: GenerateEvent) => `${JSON.stringify(event)}\n`;
  yield line({ type: 'start', promptTokens: 10, cachedTokens: 0, seed: 1, baseDigest: digest, adapterDigest: null });
  for (let i = 0; i < tokens; i++) yield line({ type: 'delta', choice: 0, content: ' token' });
  yield line({ type: 'finish', choice: 0, reason: 'length' });
  yield line({
    type: 'end',
    usage: usage(tokens),
    receiptId: receiptIdOf(request.requestId),
    leafIndex: 0,
    costMicros: 0,
    timings: { queueMs: 0, firstTokenMs: 0, totalMs: 0, tokensPerSecond: 0 },
  });
}

interface ChatRequest {
  model: string;
  stream?: boolean;
  max_tokens?: number;
}

function* openaiEvents(request: ChatRequest): Generator<string> {
  const tokens = request.max_tokens ?? 16;
  const head = { id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 0, model: request.model };
  const event = (choice: object | null, more: object = {}) =>
    `data: ${JSON.stringify({ ...head, choices: choice === null ? [] : [{ index: 0, finish_reason: null, ...choice }], ...more })}\n\n`;
  yield event({ delta: { role: 'assistant', content: '' } });
  for (let i = 0; i < tokens; i++) yield event({ delta: { content: ' token' } });
  yield event({ delta: {}, finish_reason: 'length' });
  yield event(null, { usage: { prompt_tokens: 10, completion_tokens: tokens, total_tokens: 10 + tokens } });
  yield 'data: [DONE]\n\n';
}

function* completionEvents(request: ChatRequest): Generator<string> {
  const tokens = request.max_tokens ?? 16;
  const head = { id: 'cmpl-1', object: 'text_completion', created: 0, model: request.model };
  const event = (choices: object[], more: object = {}) => `data: ${JSON.stringify({ ...head, choices, ...more })}\n\n`;
  for (let i = 0; i < tokens; i++) yield event([{ index: 0, text: ' token', finish_reason: null }]);
  yield event([{ index: 0, text: '', finish_reason: 'length' }]);
  yield event([], { usage: { prompt_tokens: 10, completion_tokens: tokens, total_tokens: 10 + tokens } });
  yield 'data: [DONE]\n\n';
}

function openaiAnswer(request: ChatRequest): string {
  const tokens = request.max_tokens ?? 16;
  return JSON.stringify({
    id: 'chatcmpl-1',
    object: 'chat.completion',
    created: 0,
    model: request.model,
    choices: [{ index: 0, message: { role: 'assistant', content: ' token'.repeat(tokens) }, finish_reason: 'length' }],
    usage: { prompt_tokens: 10, completion_tokens: tokens, total_tokens: 10 + tokens },
  });
}

/** Serves until the process ends. Resolves with the port. */
export function startUpstream(port: number): Promise<number> {
  const json = (response: ServerResponse, body: unknown, status = 200) => {
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(typeof body === 'string' ? body : JSON.stringify(body));
  };
  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part));
    request.on('end', () => {
      const route = `${request.method} ${(request.url ?? '').split('?')[0]}`;
      const body = () => JSON.parse(Buffer.concat(parts).toString('utf8'));
      switch (route) {
        case 'GET /model':
          return json(response, model);
        case 'GET /adapters':
          return json(response, { data: [] });
        case 'GET /health':
          return json(response, health);
        case 'GET /metrics':
          response.writeHead(200, { 'content-type': 'text/plain' });
          return response.end('');
        case 'POST /generate':
          response.writeHead(200, { 'content-type': 'application/x-ndjson' });
          return void writeAll(response, daemonLines(body() as GenerateRequestInput));
        case 'POST /tokenize':
          return json(response, { tokens: Array.from({ length: 10 }, (_, i) => i) });
        case 'POST /v1/chat/completions': {
          const chat = body() as ChatRequest;
          if (!chat.stream) return json(response, openaiAnswer(chat));
          response.writeHead(200, { 'content-type': 'text/event-stream' });
          return void writeAll(response, openaiEvents(chat));
        }
        case 'POST /v1/completions':
          response.writeHead(200, { 'content-type': 'text/event-stream' });
          return void writeAll(response, completionEvents(body() as ChatRequest));
        case 'GET /v1/models':
          return json(response, {
            object: 'list',
            data: [UPSTREAM_MODEL, ...UPSTREAM_ADAPTERS].map((id) => ({
              id,
              object: 'model',
              created: 0,
              owned_by: 'nobody',
            })),
          });
        default:
          return json(
            response,
            { error: { status: 404, code: 'not_found', type: 'invalid_request_error', message: route, param: null } },
            404,
          );
      }
    });
  });
  server.keepAliveTimeout = 60_000;
  return new Promise((resolve, reject) => {
    server.on('error', reject);
    server.listen(port, '127.0.0.1', () => {
      const address = server.address();
      resolve(typeof address === 'object' && address ? address.port : port);
    });
  });
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  startUpstream(Number(process.argv[2] ?? 0)).then((port) => process.stdout.write(`listening on ${port}\n`));
}
