import type { JobListener } from '../engine/client.ts';
import type { SequenceEvent } from '../engine/messages.ts';
import { DaemonError } from '../errors.ts';
import { EMBED_INPUTS_TOGETHER, SERVER_LIMITS } from '../limits.ts';
import { costMicrosOf, type EmbedRequest, type EmbedResponse, type Receipt, receiptIdOf } from '../protocol.ts';
import { appendDurably, inputsHash, SPLIT_RULE, sha256Hex } from './bill.ts';
import type { GenerationContext } from './generation.ts';
import type { PreparedEmbedding } from './prepare.ts';

/**
 * Computes the embeddings of a request and answers once their receipt is durable. An embedding is the mean of the final
 * hidden states over its tokens, scaled to length 1. Rejects with DaemonError; aborting `signal` ends it within one step.
 */
export async function embed(
  request: EmbedRequest,
  prepared: PreparedEmbedding,
  context: GenerationContext,
  signal: AbortSignal,
): Promise<EmbedResponse> {
  const startedAt = new Date().toISOString();
  const vectors = await compute(request, prepared, context, signal);
  const bytes = vectors.map(normalised);
  const cost = costMicrosOf(request.price, prepared.promptTokens, 0);
  const receipt: Receipt = {
    version: 1,
    id: receiptIdOf(request.requestId),
    requestId: request.requestId,
    kind: 'embedding',
    callerHash: request.callerHash,
    baseDigest: context.baseDigest,
    adapterDigest: prepared.adapter?.handle.digest ?? null,
    fingerprint: prepared.adapter?.fingerprint ?? null,
    promptHash: inputsHash(prepared.hashes),
    // The output of an embedding is its vectors, as the answer carries them.
    outputHash: sha256Hex(Buffer.concat(bytes)),
    promptTokens: prepared.promptTokens,
    cachedTokens: 0,
    completionTokens: 0,
    outcome: 'complete',
    price: request.price,
    costMicros: cost,
    splitRule: SPLIT_RULE,
    attribution: [],
    startedAt,
    finishedAt: new Date().toISOString(),
    engineVersion: context.engineVersion,
  };
  const { leafIndex } = await appendDurably(context.receipts, receipt, context.receiptMs ?? SERVER_LIMITS.receiptMs);
  return {
    embeddings: bytes.map((vector) => vector.toString('base64')),
    promptTokens: prepared.promptTokens,
    receiptId: receipt.id,
    leafIndex,
    costMicros: cost,
  };
}

/**
 * The vectors of all inputs. At most `EMBED_INPUTS_TOGETHER` of them are with the engine at a time: the list of one request
 * must not fill the queue that everybody waits in.
 */
async function compute(
  request: EmbedRequest,
  prepared: PreparedEmbedding,
  context: GenerationContext,
  signal: AbortSignal,
): Promise<Float32Array[]> {
  const vectors: Float32Array[] = [];
  for (let at = 0; at < prepared.inputs.length; at += EMBED_INPUTS_TOGETHER) {
    const inputs = prepared.inputs.slice(at, at + EMBED_INPUTS_TOGETHER);
    vectors.push(...(await computeTogether(inputs, request, prepared, context, signal)));
  }
  return vectors;
}

function computeTogether(
  inputs: Int32Array[],
  request: EmbedRequest,
  prepared: PreparedEmbedding,
  context: GenerationContext,
  signal: AbortSignal,
): Promise<Float32Array[]> {
  return new Promise<Float32Array[]>((resolve, reject) => {
    const vectors = new Array<Float32Array>(inputs.length);
    let left = vectors.length;
    const listener: JobListener = {
      event(event: SequenceEvent) {
        if (event.type === 'failed') reject(DaemonError.fromPlain(event.error));
        else if (event.type === 'finished') reject(new DaemonError('cancelled', 'the request was cancelled'));
        else if (event.type === 'embedded') {
          vectors[event.choice] = event.vector;
          left -= 1;
        }
      },
      flush() {
        if (left > 0) return;
        signal.removeEventListener('abort', cancel);
        resolve(vectors);
      },
    };
    const job = context.engine.submit(
      {
        kind: 'embed',
        adapter: prepared.adapter?.handle ?? null,
        visibility: request.callerHash,
        prompts: inputs,
        choices: inputs.length,
        maxTokens: 0,
        sampler: null,
      },
      listener,
    );
    const cancel = () => context.engine.abort(job);
    if (signal.aborted) cancel();
    else signal.addEventListener('abort', cancel, { once: true });
  });
}

/** Little-endian float32 of a vector scaled to length 1. */
function normalised(vector: Float32Array): Buffer {
  let sum = 0;
  for (const x of vector) sum += x * x;
  const scale = sum > 0 ? 1 / Math.sqrt(sum) : 0;
  const bytes = Buffer.alloc(vector.length * 4);
  for (const [i, x] of vector.entries()) bytes.writeFloatLE(x * scale, i * 4);
  return bytes;
}
