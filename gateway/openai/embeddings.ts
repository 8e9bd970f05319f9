/** POST /v1/embeddings */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { costMicrosOf, type EmbedRequest, receiptIdOf } from '../../daemon/protocol.ts';
import { ApiError, badRequest, engineFailed } from '../errors.ts';
import { readJsonObject } from '../http/body.ts';
import { randomId } from '../http/ids.ts';
import { integer, parseWith } from '../http/validate.ts';
import { limits } from '../limits.ts';
import type { AppEnv, Services } from '../services.ts';
import { promptTokensBound, tokensEstimate } from './estimate.ts';
import { reserve } from './reserve.ts';
import { resolveFor } from './run.ts';

const text = z.string().min(1);
const tokens = z.array(integer(0, 0x7fffffff)).min(1).max(limits.tokensMax);

export const embeddingRequest = z
  .looseObject({
    model: z.string().min(1).max(256),
    input: z.union([
      text,
      z.array(text).min(1).max(limits.embeddingInputsMax),
      tokens,
      z.array(tokens).min(1).max(limits.embeddingInputsMax),
    ]),
    encoding_format: z.enum(['float', 'base64']).nullish(),
    dimensions: integer(1, 1_000_000).nullish(),
    user: z.string().nullish(),
  })
  .openapi('CreateEmbeddingRequest');

type Input = EmbedRequest['inputs'][number];

function inputsOf(input: z.output<typeof embeddingRequest>['input']): Input[] {
  if (typeof input === 'string') return [{ kind: 'text', text: input }];
  if (typeof input[0] === 'number') return [{ kind: 'tokens', tokens: input as number[] }];
  return (input as (string | number[])[]).map((one) =>
    typeof one === 'string' ? { kind: 'text', text: one } : { kind: 'tokens', tokens: one },
  );
}

export async function createEmbedding(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(embeddingRequest, await readJsonObject(c.req.raw));
  const principal = c.get('principal');
  const record = c.get('record');
  const headers = c.get('headers');
  const model = await resolveFor(services, principal, body.model);
  const inputs = inputsOf(body.input);
  const { contextTokens, embedding: width } = model.base;
  const dimensions = body.dimensions ?? width;
  if (dimensions > width)
    throw badRequest(
      'dimensions',
      'integer_above_max_value',
      `Invalid 'dimensions': embeddings of this model have ${width}.`,
    );
  const requestId = randomId();
  Object.assign(record, { operation: 'embeddings', model: model.id, receiptId: receiptIdOf(requestId) });

  const admission = services.limiter.admit(
    principal,
    inputs.reduce((sum, input) => sum + tokensEstimate(input, 0, 1), 0),
  );
  Object.assign(headers, admission.headers);
  let tokensUsed = 0;
  const signal = c.req.raw.signal;
  try {
    const candidates = services.pool.route(model, requestId);
    const bound = inputs.reduce((sum, input) => sum + promptTokensBound(input, contextTokens), 0);
    await reserve(services, { requestId, principal, amountMicros: costMicrosOf(services.price, bound, 0) });
    const request: EmbedRequest = {
      requestId,
      callerHash: principal.callerHash,
      adapter: model.adapter,
      inputs,
      price: services.price,
    };
    let used = candidates[0];
    const { value } = await services.pool
      .firstReachable(candidates, (client) => {
        used = client;
        return client.embed(request, signal);
      })
      .catch(async (error) => {
        if (error instanceof ApiError && !error.outcomeUnknown && error.status !== 499)
          await services.ledger.void(requestId);
        else if (used !== undefined) services.settler.settle(requestId, model.id, used);
        throw error;
      });
    tokensUsed = value.promptTokens;
    const usage = { promptTokens: value.promptTokens, cachedTokens: 0, completionTokens: 0 };
    await services.ledger
      .post(requestId, { costMicros: value.costMicros, usage, model: model.id })
      .catch((error) => services.log.error({ requestId, err: error }, 'the cost of an answer could not be posted yet'));
    Object.assign(record, { promptTokens: value.promptTokens, costMicros: value.costMicros });
    headers['x-receipt-id'] = receiptIdOf(requestId);
    if (value.embeddings.length !== inputs.length)
      throw engineFailed(new Error('the daemon answered with another number of embeddings'));
    return c.json({
      object: 'list',
      data: value.embeddings.map((embedding, index) => ({
        object: 'embedding',
        index,
        embedding: encode(embedding, body.encoding_format ?? 'float', dimensions, width),
      })),
      model: model.id,
      usage: { prompt_tokens: value.promptTokens, total_tokens: value.promptTokens },
    });
  } finally {
    admission.release(tokensUsed);
  }
}

/** Little-endian float32 in base64, as the daemon sends it, or numbers; fewer dimensions are the first ones, normalised again. */
function encode(base64: string, format: 'float' | 'base64', dimensions: number, width: number): string | number[] {
  if (format === 'base64' && dimensions === width) return base64;
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  let values = Array.from({ length: bytes.byteLength / 4 }, (_, index) => view.getFloat32(index * 4, true));
  if (dimensions < width) {
    values = values.slice(0, dimensions);
    const norm = Math.hypot(...values) || 1;
    values = values.map((value) => value / norm);
  }
  if (format === 'float') return values;
  const packed = new DataView(new ArrayBuffer(values.length * 4));
  for (const [index, value] of values.entries()) packed.setFloat32(index * 4, value, true);
  let binary = '';
  for (const byte of new Uint8Array(packed.buffer)) binary += String.fromCharCode(byte);
  return btoa(binary);
}
