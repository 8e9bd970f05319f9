/**
 * What gateway and daemon say to each other: HTTP with JSON bodies, answers of POST /generate as NDJSON.
 * This file is the only thing the two processes share. Every request carries `Authorization: Bearer <daemon token>`.
 *
 *   POST   /generate            GenerateRequest → NDJSON of GenerateEvent; closing the connection cancels within one step
 *   POST   /embed               EmbedRequest → EmbedResponse
 *   POST   /tokenize            TokenizeRequest → TokenizeResponse
 *   POST   /detokenize          DetokenizeRequest → DetokenizeResponse
 *   GET    /model               BaseModel
 *   GET    /adapters            { data: Adapter[] }
 *   POST   /adapters            AdapterAddRequest (JSON), or multipart/form-data with fields name and files → Adapter;
 *                               ?name=N, where given, is the name and overrides the form's field (the gateway has checked it)
 *   GET    /adapters/{name}     Adapter
 *   DELETE /adapters/{name}     { name, deleted: true }
 *   POST   /adapters/{name}/load | /unload | /pin | /unpin → Adapter
 *   GET    /receipts/{id}       ReceiptBundle
 *   GET    /receipts/by-request/{requestId}              ReceiptSettlement once the receipt of that request is durable (also of a
 *                               cancelled or failed one), 404 before. A gateway whose client hung up closes /generate and polls this
 *                               to learn what the cancelled generation cost.
 *   GET    /log/checkpoint, /log/tile/…, /log/vkey       C2SP tlog-tiles, text or octets
 *   GET    /log/consistency?from=M&to=N                  ConsistencyBundle (RFC 6962 consistency of tree sizes M ≤ N; N defaults to now)
 *   GET    /health              DaemonHealth
 *   GET    /metrics             Prometheus text
 * Errors: status + DaemonErrorBody.
 *
 * Receipt ids are derived, not drawn: the receipt of request R is `rcpt_R` (receiptIdOf), so the gateway can name it in the headers of a
 * stream before the first token. Request ids are made by the gateway alone, never taken from its clients.
 */
import { z } from 'zod';

export * from './training/protocol.ts';

/** Names are path segments and model ids: no dots first, no slashes. */
export const adapterName = z
  .string()
  .regex(/^[A-Za-z0-9_][A-Za-z0-9._:@-]{0,127}$/, 'use letters, digits, . _ : @ -; at most 128');
const sha256Hex = z.string().regex(/^[0-9a-f]{64}$/);

export const sampling = z.object({
  temperature: z.number().min(0).max(2).default(1),
  topK: z.number().int().min(0).max(100_000).default(0),
  topP: z.number().min(0).max(1).default(1),
  minP: z.number().min(0).max(1).default(0),
  repeatPenalty: z.number().min(0.1).max(10).default(1),
  frequencyPenalty: z.number().min(-2).max(2).default(0),
  presencePenalty: z.number().min(-2).max(2).default(0),
  logitBias: z
    .array(z.object({ token: z.number().int().min(0), bias: z.number().min(-100).max(100) }))
    .max(1024)
    .default([]),
  /** Absent: the daemon draws one (and tells it in `start`). */
  seed: z.number().int().min(0).max(0xffff_ffff).optional(),
  ignoreEos: z.boolean().default(false),
});

const text = z.object({ kind: z.literal('text'), text: z.string() });
const tokens = z.object({ kind: z.literal('tokens'), tokens: z.array(z.number().int().min(0)).min(1) });
const chat = z.object({
  kind: z.literal('chat'),
  /** OpenAI messages, content already reduced to text. */
  messages: z.array(z.record(z.string(), z.unknown())).min(1),
  /** OpenAI function tools; empty = none. A named tool choice arrives as that one tool with `required`. */
  tools: z.array(z.record(z.string(), z.unknown())).default([]),
  toolChoice: z.enum(['auto', 'none', 'required']).default('auto'),
  parallelToolCalls: z.boolean().default(true),
  templateArguments: z.record(z.string(), z.unknown()).default({}),
});

/** Integers in micro-units (1e-6 of the currency) for a million tokens. */
export const price = z.object({
  inputMicrosPerMillion: z.number().int().min(0),
  outputMicrosPerMillion: z.number().int().min(0),
  currency: z.string().length(3),
});

/** The price of what was computed, rounded up once; daemon (receipts) and gateway (reservations) must agree on it to the unit. */
export function costMicrosOf(rate: z.output<typeof price>, promptTokens: number, completionTokens: number): number {
  const total =
    BigInt(promptTokens) * BigInt(rate.inputMicrosPerMillion) +
    BigInt(completionTokens) * BigInt(rate.outputMicrosPerMillion);
  return Number((total + 999_999n) / 1_000_000n);
}

/** The id of the receipt of a request, known before the request is computed. */
export function receiptIdOf(requestId: string): string {
  return `rcpt_${requestId}`;
}

export const generateRequest = z.object({
  /** The gateway's request id, also the idempotency key of the receipt. */
  requestId: z.string().regex(/^[\w-]{1,255}$/),
  /** SHA-256 of who asked (key id), hex; all the log ever learns of them. */
  callerHash: sha256Hex,
  /** Adapter name, or null for the base. */
  adapter: adapterName.nullable(),
  prompt: z.discriminatedUnion('kind', [chat, text, tokens]),
  sampling: sampling.prefault({}),
  /** Absent: as many as the context has room for. */
  maxTokens: z.number().int().min(1).optional(),
  n: z.number().int().min(1).max(16).default(1),
  stop: z.array(z.string().min(1).max(256)).max(4).default([]),
  /** null: none; else how many alternatives per token. */
  topLogprobs: z.number().int().min(0).max(20).nullable().default(null),
  responseFormat: z
    .discriminatedUnion('type', [
      z.object({ type: z.literal('text') }),
      z.object({ type: z.literal('json_object') }),
      /** `strict: false`: what the grammar cannot keep to is left to the model; else such a schema is refused. */
      z.object({
        type: z.literal('json_schema'),
        schema: z.record(z.string(), z.unknown()),
        strict: z.boolean().default(true),
      }),
    ])
    .default({ type: 'text' }),
  price,
});
export type GenerateRequest = z.output<typeof generateRequest>;
export type GenerateRequestInput = z.input<typeof generateRequest>;

export interface TokenLogprob {
  token: string;
  logprob: number;
  bytes: number[];
  top: { token: string; logprob: number; bytes: number[] }[];
}
export interface ToolCallDelta {
  index: number;
  /** First delta of a call only. */
  id?: string;
  name?: string;
  arguments: string;
}
export type FinishReason = 'stop' | 'length' | 'tool_calls';

export interface Usage {
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
}

export type GenerateEvent =
  | {
      type: 'start';
      promptTokens: number;
      cachedTokens: number;
      seed: number;
      baseDigest: string;
      adapterDigest: string | null;
    }
  | {
      type: 'delta';
      choice: number;
      content?: string;
      reasoning?: string;
      toolCalls?: ToolCallDelta[];
      logprobs?: TokenLogprob[];
    }
  | { type: 'finish'; choice: number; reason: FinishReason }
  /** Last line of a good answer. Sent only once the receipt is durable. */
  | { type: 'end'; usage: Usage; receiptId: string; leafIndex: number; costMicros: number; timings: Timings }
  /** Last line of a failed one; what was generated is still receipted. */
  | { type: 'error'; error: DaemonErrorBody['error']; usage?: Usage; receiptId?: string; costMicros?: number };

export interface Timings {
  queueMs: number;
  firstTokenMs: number;
  totalMs: number;
  tokensPerSecond: number;
}

export const embedRequest = z.object({
  requestId: z.string().regex(/^[\w-]{1,255}$/),
  callerHash: sha256Hex,
  adapter: adapterName.nullable(),
  inputs: z
    .array(z.union([text, tokens]))
    .min(1)
    .max(2048),
  price,
});
export type EmbedRequest = z.output<typeof embedRequest>;
export interface EmbedResponse {
  /** Base64 of little-endian float32, L2-normalised mean of the final hidden states. */
  embeddings: string[];
  promptTokens: number;
  receiptId: string;
  leafIndex: number;
  costMicros: number;
}

/** Either a chat prompt (rendered with the template) or text. */
export const tokenizeRequest = z.object({ prompt: z.discriminatedUnion('kind', [chat, text, tokens]) });
export interface TokenizeResponse {
  tokens: number[];
}

export const detokenizeRequest = z.object({ tokens: z.array(z.number().int().min(0)).min(1) });
export interface DetokenizeResponse {
  text: string;
}

export interface BaseModel {
  /** Public model id, e.g. smollm2-135m-instruct. */
  id: string;
  digest: string;
  architecture: string;
  contextTokens: number;
  vocabulary: number;
  /** Dimensions of an embedding. */
  embedding: number;
  weightBytes: number;
  device: string;
  created: number;
}

export type AdapterTier = 'slot' | 'host' | 'disk';
export interface Adapter {
  name: string;
  /** SHA-256 over the weights and what scales them; replaced weights are another adapter. */
  digest: string;
  rankMax: number;
  targets: string[];
  /** Size on disk. */
  bytes: number;
  created: number;
  tier: AdapterTier;
  pinned: boolean;
  source: string;
}
export const adapterAddRequest = z.object({
  name: adapterName,
  /** A folder or file on the daemon's machine, or hf:owner/repo. */
  source: z.string().min(1).max(4096),
  /** Replace an adapter of the same name (requests in flight finish on the old weights). */
  replace: z.boolean().default(false),
  /** The hub is asked with the operator's token, for repositories that not everybody may read. Only where the operator asks. */
  operator: z.boolean().default(false),
});

/** A receipt as it stands in the log: canonical JSON (RFC 8785) of this object is the leaf's data. */
export const receipt = z.object({
  version: z.literal(1),
  id: z.string(),
  requestId: z.string(),
  kind: z.enum(['chat', 'completion', 'embedding']),
  callerHash: sha256Hex,
  baseDigest: sha256Hex,
  adapterDigest: sha256Hex.nullable(),
  /** Digest of the adapter's attribution statement; null until one exists. */
  fingerprint: sha256Hex.nullable(),
  promptHash: sha256Hex,
  outputHash: sha256Hex,
  promptTokens: z.number().int().min(0),
  cachedTokens: z.number().int().min(0),
  completionTokens: z.number().int().min(0),
  outcome: z.enum(['complete', 'cancelled', 'failed']),
  price,
  costMicros: z.number().int().min(0),
  /** Rule by which the fee is split; issue of a later version of the ledger. */
  splitRule: z.string(),
  attribution: z.array(z.object({ contributor: z.string(), weightPpm: z.number().int().min(0).max(1_000_000) })),
  startedAt: z.string(),
  finishedAt: z.string(),
  engineVersion: z.string(),
});
export type Receipt = z.output<typeof receipt>;

/** What a request has cost in the end; exists only once its receipt is durable. */
export interface ReceiptSettlement {
  receiptId: string;
  costMicros: number;
  usage: Usage;
}

export interface ReceiptBundle {
  /** The exact bytes of the leaf, as text (canonical JSON of Receipt). */
  entry: string;
  leafIndex: number;
  /** Base64 SHA-256 hashes, leaf to root. */
  inclusionProof: string[];
  /** C2SP signed note. */
  checkpoint: string;
  /** C2SP verifier key of the log (name+hash+key). */
  vkey: string;
}

/** Proves that the tree of `oldCheckpoint` is a prefix of that of `newCheckpoint`. */
export interface ConsistencyBundle {
  /** C2SP signed notes. */
  oldCheckpoint: string;
  newCheckpoint: string;
  /** Base64 SHA-256 hashes. Empty when the sizes are equal or the old tree is empty. */
  consistencyProof: string[];
  vkey: string;
}

export interface DaemonHealth {
  status: 'starting' | 'ready' | 'degraded' | 'stopping';
  detail: string;
  version: string;
  uptimeSeconds: number;
  queue: { running: number; waiting: number };
  logSize: number;
  /** The audit of the whole log that every start begins; absent until the daemon is ready. `failed`: what is stored is not what was signed. */
  logAudit?: { status: 'running' | 'ok' | 'failed'; leaves: number; detail: string };
}

/** Codes follow OpenAI where one exists. */
export interface DaemonErrorBody {
  error: { status: number; code: string; type: string; message: string; param: string | null };
}
