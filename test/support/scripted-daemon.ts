/**
 * A daemon without an engine: speaks daemon/protocol.ts over real HTTP and answers /generate by a script the test gives.
 * It refuses what the protocol's schemas refuse, so a gateway that sends nonsense fails its tests.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { z } from 'zod';
import {
  type Adapter,
  adapterAddRequest,
  type BaseModel,
  costMicrosOf,
  embedRequest,
  type GenerateEvent,
  type GenerateRequest,
  generateRequest,
  type ReceiptSettlement,
  receiptIdOf,
  type Usage,
} from '../../daemon/protocol.ts';

export const DAEMON_TOKEN = 'scripted-daemon-token-0123456789abcdef';

export interface Line {
  emit(event: GenerateEvent): void;
  /** Writes bytes as they are. */
  raw(text: string | Uint8Array): void;
  /** start … deltas of `tokens` for every choice … finish … end. */
  say(tokens: string[], reason?: 'stop' | 'length' | 'tool_calls'): Promise<void>;
  start(): void;
  /** Makes the receipt durable and sends `end`. */
  end(completionTokens: number): void;
  /** Ends the answer in good order, complete or not. */
  close(): void;
  /** Breaks the connection. */
  kill(): void;
  readonly closed: boolean;
  /** Fulfilled when the gateway closed the connection. */
  readonly gone: Promise<void>;
}
export type Script = (request: GenerateRequest, line: Line) => Promise<void> | void;

export interface ScriptedDaemon {
  url: string;
  requests: GenerateRequest[];
  settlements: Map<string, ReceiptSettlement>;
  /** Request ids whose receipts are still to come, as the test says. */
  underWay: Set<string>;
  adapters: Map<string, Adapter>;
  uploads: { name: string; bytes: number; contentType: string }[];
  /** What was asked to be added from a source. */
  added: z.output<typeof adapterAddRequest>[];
  /** Requests that arrived, method and path. */
  log: string[];
  model: BaseModel;
  promptTokens: number;
  status: 'ready' | 'starting' | 'degraded' | 'stopping';
  script: Script;
  /** Accepts connections and answers nothing, like a stopped process. */
  freeze: boolean;
  /** The process is gone: connections break, new ones are refused. */
  stop(): Promise<void>;
  restart(): Promise<void>;
  /** Answers what the daemon itself does not know, such as training; false: neither does it. */
  extra?: (request: IncomingMessage, response: ServerResponse, url: URL) => Promise<boolean>;
  settle(requestId: string, usage: Usage, request: Pick<GenerateRequest, 'price'>): ReceiptSettlement;
}

export const sayHello: Script = (_, line) => line.say(['Hel', 'lo', ' world']);

/** Answers begin at once and end, after three tokens, when `open` is called: nobody is settled before everybody has asked. */
export function endingTogether(): { script: Script; open: () => void } {
  let open = () => {};
  const gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  const script: Script = async (_, line) => {
    line.start();
    await gate;
    line.emit({ type: 'finish', choice: 0, reason: 'stop' });
    line.end(3);
  };
  return { script, open };
}

export function adapterOf(name: string): Adapter {
  return {
    name,
    digest: 'b'.repeat(64),
    rankMax: 8,
    targets: ['attn_q'],
    bytes: 1000,
    created: 1_700_000_000,
    tier: 'slot',
    pinned: false,
    source: `/adapters/${name}`,
  };
}

export async function startScriptedDaemon(
  options: { adapters?: string[]; script?: Script; model?: Partial<BaseModel> } = {},
): Promise<ScriptedDaemon> {
  const sockets = new Set<Socket>();
  const daemon: ScriptedDaemon = {
    url: '',
    requests: [],
    settlements: new Map(),
    underWay: new Set(),
    adapters: new Map((options.adapters ?? []).map((name) => [name, adapterOf(name)])),
    uploads: [],
    added: [],
    log: [],
    promptTokens: 9,
    status: 'ready',
    freeze: false,
    script: options.script ?? sayHello,
    model: {
      id: 'tiny-base',
      digest: 'a'.repeat(64),
      architecture: 'llama',
      contextTokens: 2048,
      vocabulary: 49152,
      embedding: 4,
      weightBytes: 1e8,
      device: 'CPU',
      created: 1_700_000_000,
      ...options.model,
    },
    async stop() {
      await new Promise((resolve) => {
        server.close(resolve);
        for (const socket of sockets) socket.destroy();
      });
    },
    async restart() {
      const { port } = new URL(daemon.url);
      server = listenable();
      await listen(server, Number(port));
    },
    settle(requestId, usage, request) {
      const settlement = {
        receiptId: receiptIdOf(requestId),
        costMicros: costMicrosOf(request.price, usage.promptTokens, usage.completionTokens),
        usage,
      };
      daemon.settlements.set(requestId, settlement);
      return settlement;
    },
  };
  const listenable = () => {
    const created = createServer((request, response) => {
      handle(daemon, request, response).catch((error) => {
        if (!response.headersSent)
          json(response, 500, {
            error: { status: 500, code: 'scripted', type: 'server_error', message: String(error), param: null },
          });
        else response.destroy();
      });
    });
    created.on('connection', (socket) => {
      sockets.add(socket);
      socket.on('close', () => sockets.delete(socket));
    });
    return created;
  };
  let server: Server = listenable();
  await listen(server, 0);
  daemon.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return daemon;
}

function listen(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', resolve);
  });
}

function json(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

function refuse(
  response: ServerResponse,
  status: number,
  code: string,
  message: string,
  param: string | null = null,
): void {
  json(response, status, {
    error: { status, code, type: status < 500 ? 'invalid_request_error' : 'server_error', message, param },
  });
}

async function read(request: IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

async function handle(daemon: ScriptedDaemon, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = new URL(request.url ?? '/', daemon.url);
  const route = `${request.method} ${url.pathname}`;
  daemon.log.push(route);
  if (daemon.freeze) return;
  if (request.headers.authorization !== `Bearer ${DAEMON_TOKEN}`)
    return refuse(response, 401, 'unauthorized', 'wrong daemon token');
  if (route === 'POST /generate') return generate(daemon, JSON.parse((await read(request)).toString()), response);
  if (route === 'GET /model') return json(response, 200, daemon.model);
  if (route === 'GET /adapters') return json(response, 200, { data: [...daemon.adapters.values()] });
  if (route === 'GET /health') {
    return json(response, 200, {
      status: daemon.status,
      detail: '',
      version: '0',
      uptimeSeconds: 1,
      queue: { running: 0, waiting: 0 },
      logSize: daemon.settlements.size,
    });
  }
  if (route === 'GET /metrics')
    return void response
      .writeHead(200, { 'content-type': 'text/plain' })
      .end('# TYPE modelfactory_slots gauge\nmodelfactory_slots{tier="slot"} 3\n');
  if (route === 'POST /tokenize')
    return json(response, 200, { tokens: Array.from({ length: daemon.promptTokens }, (_, index) => index) });
  if (route === 'POST /detokenize') {
    const { tokens } = JSON.parse((await read(request)).toString()) as { tokens: number[] };
    return json(response, 200, { text: tokens.map((token) => `<${token}>`).join('') });
  }
  if (route === 'POST /embed') return embed(daemon, JSON.parse((await read(request)).toString()), response);
  if (route === 'POST /adapters') return add(daemon, url, request, response);
  const settlement = /^\/receipts\/by-request\/(.+)$/.exec(url.pathname)?.[1];
  if (settlement !== undefined) {
    if (daemon.underWay.has(settlement)) return refuse(response, 409, 'request_id_in_use', 'still under way');
    const found = daemon.settlements.get(settlement);
    return found === undefined
      ? refuse(response, 404, 'receipt_not_found', 'no such receipt')
      : json(response, 200, found);
  }
  const receipt = /^\/receipts\/rcpt_(.+)$/.exec(url.pathname)?.[1];
  if (receipt !== undefined) {
    if (!daemon.settlements.has(receipt)) return refuse(response, 404, 'receipt_not_found', 'no such receipt');
    return json(response, 200, {
      entry: JSON.stringify({
        id: `rcpt_${receipt}`,
        callerHash: daemon.requests.find(({ requestId }) => requestId === receipt)?.callerHash,
      }),
      leafIndex: 0,
      inclusionProof: [],
      checkpoint: 'log\n1\nroot\n',
      vkey: 'log+1+k',
    });
  }
  if (daemon.extra !== undefined && (await daemon.extra(request, response, url))) return;
  if (url.pathname.startsWith('/log/'))
    return void response.writeHead(200, { 'content-type': 'text/plain' }).end(`${url.pathname}${url.search}`);
  const [, name = '', action] = /^\/adapters\/([^/]+)(?:\/(\w+))?$/.exec(url.pathname) ?? [];
  const adapter = daemon.adapters.get(decodeURIComponent(name));
  if (adapter === undefined) return refuse(response, 404, 'model_not_found', `no adapter ${name}`, 'adapter');
  if (request.method === 'DELETE') {
    daemon.adapters.delete(adapter.name);
    return json(response, 200, { name: adapter.name, deleted: true });
  }
  if (action === 'pin' || action === 'unpin') adapter.pinned = action === 'pin';
  if (action === 'load') adapter.tier = 'slot';
  if (action === 'unload') adapter.tier = 'disk';
  json(response, 200, adapter);
}

async function add(
  daemon: ScriptedDaemon,
  url: URL,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const contentType = request.headers['content-type'] ?? '';
  let name = url.searchParams.get('name') ?? '';
  if (contentType.startsWith('multipart/form-data')) {
    let bytes = 0;
    for await (const part of request) bytes += (part as Buffer).byteLength;
    name ||= 'from-form';
    daemon.uploads.push({ name, bytes, contentType });
  } else {
    const asked = adapterAddRequest.parse(JSON.parse((await read(request)).toString()));
    name = asked.name;
    daemon.added.push(asked);
  }
  daemon.adapters.set(name, adapterOf(name));
  json(response, 200, daemon.adapters.get(name));
}

function embed(daemon: ScriptedDaemon, body: unknown, response: ServerResponse): void {
  const request = embedRequest.parse(body);
  const promptTokens = request.inputs.length * 4;
  const { receiptId, costMicros } = daemon.settle(
    request.requestId,
    { promptTokens, cachedTokens: 0, completionTokens: 0 },
    request,
  );
  const vector = Buffer.alloc(16);
  [0.5, 0.5, -0.5, 0.5].forEach((value, index) => {
    vector.writeFloatLE(value, index * 4);
  });
  json(response, 200, {
    embeddings: request.inputs.map(() => vector.toString('base64')),
    promptTokens,
    receiptId,
    leafIndex: 0,
    costMicros,
  });
}

async function generate(daemon: ScriptedDaemon, body: unknown, response: ServerResponse): Promise<void> {
  const parsed = generateRequest.safeParse(body);
  if (!parsed.success) return refuse(response, 400, 'protocol', parsed.error.message);
  const request = parsed.data;
  daemon.requests.push(request);
  if (request.adapter !== null && !daemon.adapters.has(request.adapter))
    return refuse(response, 404, 'model_not_found', 'no such adapter', 'adapter');
  if (daemon.promptTokens > daemon.model.contextTokens) {
    return refuse(
      response,
      400,
      'context_length_exceeded',
      `This model's maximum context length is ${daemon.model.contextTokens} tokens.`,
      'messages',
    );
  }
  let closed = false;
  const gone = new Promise<void>((resolve) => {
    response.on('close', () => {
      closed = true;
      resolve();
    });
  });
  const raw = (text: string | Uint8Array) => {
    if (closed) return;
    if (!response.headersSent) response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    response.write(text);
  };
  const line: Line = {
    raw,
    gone,
    get closed() {
      return closed;
    },
    emit: (event) => raw(`${JSON.stringify(event)}\n`),
    start: () =>
      line.emit({
        type: 'start',
        promptTokens: daemon.promptTokens,
        cachedTokens: 0,
        seed: request.sampling.seed ?? 1,
        baseDigest: daemon.model.digest,
        adapterDigest: null,
      }),
    end(completionTokens) {
      const usage = { promptTokens: daemon.promptTokens, cachedTokens: 0, completionTokens };
      const { receiptId, costMicros } = daemon.settle(request.requestId, usage, request);
      line.emit({
        type: 'end',
        usage,
        receiptId,
        leafIndex: 0,
        costMicros,
        timings: { queueMs: 0, firstTokenMs: 1, totalMs: 2, tokensPerSecond: 1 },
      });
      response.end();
    },
    async say(tokens, reason = 'stop') {
      line.start();
      for (const token of tokens) {
        for (let choice = 0; choice < request.n; choice++) {
          const logprobs = request.topLogprobs === null ? undefined : [logprobOf(token, request.topLogprobs)];
          line.emit({ type: 'delta', choice, content: token, ...(logprobs === undefined ? {} : { logprobs }) });
        }
        await new Promise((resolve) => setImmediate(resolve));
      }
      for (let choice = 0; choice < request.n; choice++) line.emit({ type: 'finish', choice, reason });
      line.end(tokens.length * request.n);
    },
    close: () => response.end(),
    kill: () => response.destroy(),
  };
  await daemon.script(request, line);
}

function logprobOf(token: string, top: number) {
  const entry = { token, logprob: -0.5, bytes: [...Buffer.from(token)] };
  return {
    ...entry,
    top: Array.from({ length: top }, (_, index) => ({
      ...entry,
      token: index === 0 ? token : `${token}${index}`,
      logprob: -0.5 - index,
    })),
  };
}
