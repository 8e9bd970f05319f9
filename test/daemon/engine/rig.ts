/** A whole daemon in one process over the deterministic double: for tests of the HTTP face, not of the computing. */
import type { AddressInfo } from 'node:net';
import { createAdaptorServer } from '@hono/node-server';
import type { ChatPrompt, ChatPromptInput, ParsedMessage, Vocabulary } from '../../../addon/types.ts';
import { AddonError } from '../../../addon/types.ts';
import { EngineClient } from '../../../daemon/engine/client.ts';
import { EngineHost } from '../../../daemon/engine/host.ts';
import type { FromEngine, ToEngine } from '../../../daemon/engine/messages.ts';
import { DaemonError } from '../../../daemon/errors.ts';
import type { ReceiptBook } from '../../../daemon/generate/bill.ts';
import { ENGINE_LIMITS, SERVER_LIMITS } from '../../../daemon/limits.ts';
import { Metrics } from '../../../daemon/metrics.ts';
import type { GenerateEvent, Receipt } from '../../../daemon/protocol.ts';
import { createServer, type DaemonServer, type ServerOptions } from '../../../daemon/server.ts';
import { DoubleEngine, DoubleSlots, END_TOKEN, handle, VOCABULARY } from './double.ts';

export const TOKEN = 'test-token';
export const CALLER = 'a'.repeat(64);
export const PRICE = { inputMicrosPerMillion: 1_000_000, outputMicrosPerMillion: 3_000_000, currency: 'USD' };

/** One token per character code modulo the vocabulary; answers are letters. */
export class DoubleVocabulary implements Vocabulary {
  readonly size = VOCABULARY;
  readonly bos = -1;
  readonly eos = END_TOKEN;
  readonly addBos = false;
  readonly endTokens = Int32Array.of(END_TOKEN);
  tokenize(text: string): Int32Array {
    return Int32Array.from(Buffer.from(text), (byte) => 1 + (byte % (VOCABULARY - 1)));
  }
  tokenBytes(token: number): Uint8Array {
    return Buffer.from(String.fromCharCode(97 + (token % 26)));
  }
  chatPrompt(input: ChatPromptInput): ChatPrompt {
    const messages = JSON.parse(input.messagesJson) as { role: string; content: string }[];
    if (messages.some((m) => m.role === 'bad')) throw new AddonError('template_invalid', 'unknown role');
    const prompt = messages.map((m) => `${m.role}:${m.content};`).join('');
    const grammar = input.jsonSchema.includes('impossible') ? 'bad' : '';
    return {
      prompt,
      grammar,
      grammarLazy: false,
      grammarTriggers: [],
      preservedTokens: [],
      stops: [],
      generationPrompt: '',
      format: 0,
      parser: '',
    };
  }
  parseChat(text: string): ParsedMessage {
    return { content: text, reasoningContent: '', toolCalls: [] };
  }
  schemaToGrammar(schema: string): string {
    if (schema.includes('impossible')) throw new AddonError('grammar_invalid', 'impossible');
    return '';
  }
  close(): void {}
}

/** Receipts in memory; `append` can be made to wait or to fail. */
export class DoubleReceipts implements ReceiptBook {
  readonly receipts = new Map<string, Receipt>();
  gate: Promise<void> = Promise.resolve();
  failures: Error[] = [];
  async append(receipt: Receipt): Promise<{ leafIndex: number }> {
    await this.gate;
    const failure = this.failures.shift();
    if (failure !== undefined) throw failure;
    this.receipts.set(receipt.id, receipt);
    return { leafIndex: this.receipts.size - 1 };
  }
  async get(id: string): Promise<{ entry: string } | null> {
    const receipt = this.receipts.get(id);
    return receipt === undefined ? null : { entry: JSON.stringify(receipt) };
  }
}

export interface Rig {
  url: string;
  server: DaemonServer;
  engine: DoubleEngine;
  client: EngineClient;
  receipts: DoubleReceipts;
  logged: string[];
  /** Makes the next engine step throw. */
  breakEngine(): void;
  /** What keeps receipts from being stored; null: nothing. */
  block(why: string | null): void;
  /** Pause before each step, in ms. */
  slow(ms: number): void;
  post(path: string, body: unknown, init?: RequestInit): Promise<Response>;
  close(): Promise<void>;
}

export async function startRig(
  options: {
    kvCells?: number;
    slots?: number;
    limits?: ServerOptions['limits'];
    waitingMax?: number;
    vocabulary?: Vocabulary;
  } = {},
): Promise<Rig> {
  const scheduler = { ...ENGINE_LIMITS };
  const engine = new DoubleEngine({
    kvCells: options.kvCells ?? 4096,
    sequencesMax: scheduler.sequencesMax,
    batchTokensMax: scheduler.stepTokensMax,
    slots: options.slots ?? 4,
    slotRankMax: 64,
  });
  let broken = false;
  let delayMs = 0;
  let blocked: string | null = null;
  const step = engine.step.bind(engine);
  engine.step = (batch) => {
    if (broken) throw new AddonError('compute_failed', 'the double was told to fail');
    const until = performance.now() + delayMs;
    while (performance.now() < until);
    return step(batch);
  };
  const slots = new DoubleSlots(engine, options.slots ?? 4, 0, ['broken']);
  const tiers = Object.assign(slots, {
    onChange: () => {},
    move: async () => {},
    pin: () => {},
    forget: () => {},
    places: () => [],
    counters: () => ({ hostHits: 0, slotHits: 0, misses: 0, hostEvictions: 0, slotEvictions: 0 }),
    takeLoads: () => [],
  });
  const vocabulary = options.vocabulary ?? new DoubleVocabulary();
  const metrics = new Metrics();
  let host: EngineHost | null = null;
  const post = (message: FromEngine) => setImmediate(() => client.receive(structuredClone(message)));
  const client: EngineClient = new EngineClient(
    {
      post: (message: ToEngine) => setImmediate((m: ToEngine) => host?.receive(m), structuredClone(message)),
      terminate: async () => {
        host = null;
      },
    },
    {
      waitingMax: options.waitingMax ?? ENGINE_LIMITS.waitingMax,
      waitingPerCallerMax: ENGINE_LIMITS.waitingPerCallerMax,
    },
    { step: (report, gauges) => metrics.step(report, gauges) },
  );
  host = new EngineHost({ engine, tiers, endTokens: vocabulary.endTokens, scheduler, post, onExit: () => {} });
  const receipts = new DoubleReceipts();
  const logged: string[] = [];
  const write = (fields: object, message: string) => logged.push(JSON.stringify({ ...fields, message }));
  const server = createServer({
    token: TOKEN,
    engine: client,
    vocabulary,
    model: {
      id: 'double',
      digest: 'd'.repeat(64),
      architecture: 'llama',
      contextTokens: 2048,
      vocabulary: VOCABULARY,
      embedding: 4,
      weightBytes: 1,
      device: 'none',
      created: 0,
    },
    receipts,
    resolveAdapter: async (name) => {
      if (name.startsWith('no')) throw new DaemonError('model_not_found', 'no such adapter', 'model');
      return { handle: handle(name), fingerprint: null };
    },
    metrics,
    log: { info: write, warn: write, error: write },
    version: 'test',
    blocked: () => blocked,
    health: () => ({
      status: 'ready',
      detail: '',
      version: 'test',
      uptimeSeconds: 1,
      queue: { running: 0, waiting: 0 },
      logSize: receipts.receipts.size,
    }),
    limits: { ...SERVER_LIMITS, ...options.limits },
  });
  const http = createAdaptorServer({ fetch: server.app.fetch });
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
  return {
    url,
    server,
    engine,
    client,
    receipts,
    logged,
    breakEngine: () => {
      broken = true;
    },
    block: (why) => {
      blocked = why;
    },
    slow: (ms) => {
      delayMs = ms;
    },
    post: (path, body, init = {}) =>
      fetch(`${url}${path}`, {
        method: 'POST',
        headers: { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' },
        body: typeof body === 'string' || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
        ...init,
      }),
    close: async () => {
      await client.close();
      await new Promise<void>((resolve) => {
        http.close(() => resolve());
        (http as unknown as { closeAllConnections(): void }).closeAllConnections();
      });
    },
  };
}

let ids = 0;
export function generateBody(extra: object = {}): Record<string, unknown> & { requestId: string } {
  ids += 1;
  return {
    requestId: `req_${ids}`,
    callerHash: CALLER,
    adapter: null,
    prompt: { kind: 'text', text: 'secret prompt words' },
    sampling: { seed: 5, ignoreEos: true },
    maxTokens: 12,
    price: PRICE,
    ...extra,
  };
}

export async function events(response: Response): Promise<GenerateEvent[]> {
  const text = await response.text();
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as GenerateEvent);
}

export function textOf(all: GenerateEvent[], choice = 0): string {
  return all.map((e) => (e.type === 'delta' && e.choice === choice ? (e.content ?? '') : '')).join('');
}
