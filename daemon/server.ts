import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import { type Context, Hono } from 'hono';
import type { z } from 'zod';
import type { Vocabulary } from '../addon/types.ts';
import type { EngineClient } from './engine/client.ts';
import { DaemonError, toDaemonError } from './errors.ts';
import type { ReceiptBook } from './generate/bill.ts';
import { embed } from './generate/embedding.ts';
import { Generation, type GenerationContext } from './generate/generation.ts';
import {
  detokenize,
  type PrepareContext,
  prepareEmbedding,
  prepareGeneration,
  tokenizePrompt,
} from './generate/prepare.ts';
import { EMBED_TOKENS_MAX, SERVER_LIMITS } from './limits.ts';
import type { Metrics } from './metrics.ts';
import { NdjsonStream } from './ndjson-stream.ts';
import {
  type BaseModel,
  type DaemonHealth,
  type DetokenizeResponse,
  detokenizeRequest,
  embedRequest,
  generateRequest,
  receiptIdOf,
  type TokenizeResponse,
  tokenizeRequest,
} from './protocol.ts';

export interface DaemonLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface ServerOptions {
  token: string;
  engine: EngineClient;
  vocabulary: Vocabulary;
  model: BaseModel;
  receipts: ReceiptBook;
  resolveAdapter: PrepareContext['resolveAdapter'];
  metrics: Metrics;
  log: DaemonLog;
  version: string;
  health(): DaemonHealth;
  /** Why no receipt can be stored now, or null: nothing is computed that could not be receipted. */
  blocked?(): string | null;
  /** Routes of the daemon's other parts: adapters, log. They throw DaemonErrors or answer themselves. */
  parts?: Hono<DaemonEnv>[];
  limits?: Partial<Record<keyof typeof SERVER_LIMITS, number>>;
}

export type DaemonEnv = { Bindings: { incoming: IncomingMessage; outgoing: ServerResponse } };

export interface DaemonServer {
  app: Hono<DaemonEnv>;
  /** Generations and embeddings under way. */
  readonly active: number;
  /** New work is refused from now on. */
  refuse(): void;
  /** Resolves when nothing is under way, receipts included. */
  idle(): Promise<void>;
}

/** The HTTP face of the daemon, in the order in which a request meets it. */
export function createServer(options: ServerOptions): DaemonServer {
  const { engine, vocabulary, model, metrics, log } = options;
  const limits = { ...SERVER_LIMITS, ...options.limits };
  const prepare: PrepareContext = {
    vocabulary,
    contextTokens: model.contextTokens,
    resolveAdapter: options.resolveAdapter,
  };
  const context: GenerationContext = {
    engine,
    vocabulary,
    receipts: options.receipts,
    baseDigest: model.digest,
    engineVersion: options.version,
    receiptMs: limits.receiptMs,
  };
  /** Request ids under way: the id is the receipt's, so it can't be used twice. */
  const underWay = new Map<string, Promise<unknown>>();
  let refusing = false;

  const app = new Hono<DaemonEnv>();
  app.onError((error, c) => {
    const known = toDaemonError(error);
    if (known.code === 'internal_error') log.error({ err: error, path: c.req.path }, 'a request failed unexpectedly');
    if (c.env?.outgoing?.headersSent) return RESPONSE_ALREADY_SENT;
    return c.json(known.body(), known.status as 400);
  });
  app.notFound((c) => {
    const error = new DaemonError('not_found', `there is nothing at ${c.req.method} ${c.req.path}`);
    return c.json(error.body(), 404);
  });
  app.get('/health', (c) => {
    const health = options.health();
    return c.json(health, health.status === 'ready' || health.status === 'degraded' ? 200 : 503);
  });
  app.use(bearer(options.token));
  app.get('/metrics', async (c) => {
    metrics.standing(engine.gauges);
    return c.text(await metrics.registry.metrics(), 200, { 'content-type': metrics.registry.contentType });
  });
  app.get('/model', (c) => c.json(model));
  app.post('/tokenize', async (c) => {
    const { prompt } = parse(tokenizeRequest, await readJson(c, limits.bodyBytesMax));
    return c.json({ tokens: [...tokenizePrompt(prompt, vocabulary)] } satisfies TokenizeResponse);
  });
  app.post('/detokenize', async (c) => {
    const { tokens } = parse(detokenizeRequest, await readJson(c, limits.bodyBytesMax));
    return c.json({ text: detokenize(tokens, vocabulary) } satisfies DetokenizeResponse);
  });
  app.post('/generate', async (c) => {
    const request = parse(generateRequest, await readJson(c, limits.bodyBytesMax));
    return claim(request.requestId, async () => {
      const prepared = await prepareGeneration(request, prepare);
      const { outgoing } = c.env;
      const stream = new NdjsonStream(outgoing, () => generation.cancel(slow()), limits.streamBufferBytesMax);
      const generation = new Generation(request, prepared, context, stream.write);
      outgoing.on('close', () => generation.cancel(gone()));
      // A caller who has gone already closed before anybody listened.
      if (outgoing.destroyed) generation.cancel(gone());
      const result = await generation.done;
      metrics.request(request.prompt.kind === 'chat' ? 'chat' : 'completion', result);
      const { outcome, usage, receiptId, costMicros, queueMs, firstTokenMs, totalMs } = result;
      const fields = {
        requestId: request.requestId,
        adapter: request.adapter,
        outcome,
        usage,
        receiptId,
        costMicros,
        queueMs,
        firstTokenMs,
        totalMs,
      };
      if (result.error === null) log.info(fields, 'generated');
      else log.warn({ ...fields, code: result.error.code }, 'a generation ended early');
      // Nothing was sent yet: the error gets a status of its own.
      if (!stream.begun && result.error !== null) throw result.error;
      stream.end();
      return RESPONSE_ALREADY_SENT;
    });
  });
  app.post('/embed', async (c) => {
    const request = parse(embedRequest, await readJson(c, limits.bodyBytesMax));
    return claim(request.requestId, async () => {
      const startMs = performance.now();
      const prepared = await prepareEmbedding(request, prepare, EMBED_TOKENS_MAX);
      const abort = new AbortController();
      c.env.outgoing.on('close', () => abort.abort());
      const answer = await embed(request, prepared, context, abort.signal);
      const usage = { promptTokens: answer.promptTokens, cachedTokens: 0, completionTokens: 0 };
      const totalMs = performance.now() - startMs;
      metrics.request('embedding', { outcome: 'complete', usage, queueMs: 0, firstTokenMs: 0, totalMs });
      log.info(
        { requestId: request.requestId, adapter: request.adapter, usage, receiptId: answer.receiptId, totalMs },
        'embedded',
      );
      return c.json(answer);
    });
  });
  // No receipt yet is not the same as no receipt: whoever settles an account has to wait for the end.
  app.get('/receipts/by-request/:requestId', async (c, next) => {
    const requestId = c.req.param('requestId');
    if (underWay.has(requestId))
      throw new DaemonError(
        'request_id_in_use',
        `the request ${requestId} is still under way; its receipt comes with its end`,
      );
    await next();
  });
  for (const part of options.parts ?? []) app.route('/', part);

  /** Runs one piece of work under its request id. */
  async function claim<T>(requestId: string, work: () => Promise<T>): Promise<T> {
    if (refusing) throw new DaemonError('shutting_down', 'the daemon is stopping; send the request again in a moment');
    const blocked = options.blocked?.() ?? null;
    if (blocked !== null) {
      throw new DaemonError(
        'receipt_log_unavailable',
        `no receipt can be stored at the moment, so nothing is computed: ${blocked}`,
      );
    }
    if (underWay.size >= limits.requestsMax) {
      throw new DaemonError(
        'overloaded',
        `${underWay.size} requests are under way, which is the limit; try again in a few seconds`,
      );
    }
    if (underWay.has(requestId)) {
      throw new DaemonError(
        'request_id_in_use',
        `the request id ${requestId} is under way already; every request needs an id of its own`,
      );
    }
    const run = (async () => {
      if ((await options.receipts.get(receiptIdOf(requestId))) !== null) {
        throw new DaemonError(
          'request_id_in_use',
          `the request id ${requestId} has a receipt already; every request needs an id of its own`,
        );
      }
      return work();
    })();
    underWay.set(
      requestId,
      run.catch(() => {}),
    );
    try {
      return await run;
    } finally {
      underWay.delete(requestId);
    }
  }

  return {
    app,
    get active() {
      return underWay.size;
    },
    refuse() {
      refusing = true;
    },
    async idle() {
      while (underWay.size > 0) await Promise.all(underWay.values());
    },
  };
}

function gone(): DaemonError {
  return new DaemonError('cancelled', 'the caller closed the connection before the answer was complete');
}

function slow(): DaemonError {
  return new DaemonError('client_too_slow', 'the caller did not read the answer, so it was broken off');
}

/** Compares digests, so that neither length nor content of the token shows in the time it takes. */
function bearer(token: string) {
  const expected = createHash('sha256').update(`Bearer ${token}`).digest();
  return async (c: Context, next: () => Promise<void>): Promise<void> => {
    const given = createHash('sha256')
      .update(c.req.header('authorization') ?? '')
      .digest();
    if (!timingSafeEqual(expected, given)) {
      throw new DaemonError(
        'unauthorized',
        'this daemon needs the bearer token of its gateway (MODELFACTORY_DAEMON_TOKEN)',
      );
    }
    await next();
  };
}

/** Reads a JSON body of at most `bytesMax`, without trusting content-length, and refuses broken UTF-8. */
export async function readJson(c: Context, bytesMax: number): Promise<unknown> {
  const tooLarge = () => new DaemonError('request_too_large', `the body has more than ${bytesMax} bytes`);
  if (Number(c.req.header('content-length') ?? 0) > bytesMax) throw tooLarge();
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of c.req.raw.body ?? []) {
    size += (chunk as Uint8Array).byteLength;
    if (size > bytesMax) throw tooLarge();
    chunks.push(chunk as Uint8Array);
  }
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks));
  } catch {
    throw new DaemonError('invalid_request_error', 'the body is not valid UTF-8');
  }
  try {
    return JSON.parse(text);
  } catch {
    throw new DaemonError('invalid_request_error', 'the body is not valid JSON');
  }
}

/** Parses with a schema; the error names the first field that is wrong. */
export function parse<S extends z.ZodType>(schema: S, value: unknown): z.output<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const path = issue?.path.join('.') ?? '';
  throw new DaemonError(
    'invalid_request_error',
    path === '' ? (issue?.message ?? 'the body is malformed') : `${path}: ${issue?.message}`,
    path === '' ? null : path,
  );
}
