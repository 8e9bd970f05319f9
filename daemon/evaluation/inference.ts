/** The daemon's own models as an evaluation asks them: the path of every request, receipts included, without HTTP. */
import type { JobListener } from '../engine/client.ts';
import type { AdapterHandle } from '../engine/slots.ts';
import { DaemonError } from '../errors.ts';
import { embed } from '../generate/embedding.ts';
import { Generation, type GenerationContext, type GenerationOutcome } from '../generate/generation.ts';
import { type PrepareContext, prepareEmbedding, prepareGeneration } from '../generate/prepare.ts';
import { EMBED_TOKENS_MAX } from '../limits.ts';
import { type GenerateRequestInput, generateRequest, type Usage } from '../protocol.ts';

export interface Asked {
  requestId: string;
  /** Adapter name, null for the base. */
  adapter: string | null;
  prompt: GenerateRequestInput['prompt'];
  /** At most; less where the context has no room. */
  maxTokens: number;
  sampling: GenerateRequestInput['sampling'];
  responseFormat?: GenerateRequestInput['responseFormat'];
}
export interface Answer {
  text: string;
  toolCalls: { name: string; arguments: string }[];
  usage: Usage;
  costMicros: number;
}
export interface Rating {
  /** Σ ln p of the rated tokens. */
  logprob: number;
  rated: number;
  hits: number;
}

export interface InferenceOptions {
  callerHash: string;
  price: GenerateRequestInput['price'];
  baseId: string;
  prepare: PrepareContext;
  context: GenerationContext;
  signal: AbortSignal;
  /** Told of every generation that has ended, for metrics. */
  onGenerated?: (kind: 'chat' | 'completion', outcome: GenerationOutcome) => void;
}

/** Times between two tries while the engine's queue is full. */
const BUSY_MS = 100;

export class Inference {
  private readonly options: InferenceOptions;

  constructor(options: InferenceOptions) {
    this.options = options;
  }

  /** The base's public id means the base. */
  adapterOf(model: string): string | null {
    return model === this.options.baseId ? null : model;
  }

  /** @throws DaemonError; `context_length_exceeded` where the prompt alone fills the context. */
  async generate(asked: Asked): Promise<Answer> {
    const { callerHash, price, prepare, context, signal } = this.options;
    const { maxTokens, ...rest } = asked;
    const request = generateRequest.parse({ ...rest, callerHash, price });
    const prepared = await prepareGeneration(request, prepare);
    const bounded = { ...prepared, maxTokens: Math.min(prepared.maxTokens, maxTokens) };
    const answer: Answer = {
      text: '',
      toolCalls: [],
      usage: { promptTokens: 0, cachedTokens: 0, completionTokens: 0 },
      costMicros: 0,
    };
    const generation = await this.patiently(
      () =>
        new Generation(request, bounded, context, (events) => {
          for (const event of events) {
            if (event.type !== 'delta') continue;
            answer.text += event.content ?? '';
            for (const call of event.toolCalls ?? []) {
              const known = answer.toolCalls[call.index];
              if (known === undefined)
                answer.toolCalls[call.index] = { name: call.name ?? '', arguments: call.arguments };
              else known.arguments += call.arguments;
            }
          }
        }),
    );
    const cancel = () => generation.cancel(cancelled());
    signal.addEventListener('abort', cancel, { once: true });
    if (signal.aborted) cancel();
    const outcome = await generation.done;
    signal.removeEventListener('abort', cancel);
    this.options.onGenerated?.(request.prompt.kind === 'chat' ? 'chat' : 'completion', outcome);
    if (outcome.error !== null) throw outcome.error;
    return { ...answer, usage: outcome.usage, costMicros: outcome.costMicros };
  }

  /** Vectors of length 1 by the base. */
  async embed(
    requestId: string,
    texts: string[],
  ): Promise<{ vectors: Float32Array[]; usage: Usage; costMicros: number }> {
    const { callerHash, price, prepare, context, signal } = this.options;
    const inputs = texts.map((text) => ({ kind: 'text' as const, text }));
    const request = { requestId, callerHash, adapter: null, inputs, price };
    const prepared = await prepareEmbedding(request, prepare, EMBED_TOKENS_MAX);
    const { embeddings, promptTokens, costMicros } = await this.patiently(() =>
      embed(request, prepared, context, signal),
    );
    const vectors = embeddings.map((base64) => {
      const bytes = Buffer.from(base64, 'base64');
      return Float32Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(i * 4));
    });
    return { vectors, usage: { promptTokens, cachedTokens: 0, completionTokens: 0 }, costMicros };
  }

  /** How likely the model finds the tokens that `rated` marks (1 at a position: the token after it), all before them being given. */
  async rate(adapter: AdapterHandle | null, tokens: Int32Array, rated: Uint8Array): Promise<Rating> {
    const { callerHash, context, signal } = this.options;
    if (signal.aborted) throw cancelled();
    return await this.patiently(
      () =>
        new Promise<Rating>((resolve, reject) => {
          const over = () => signal.removeEventListener('abort', cancel);
          const listener: JobListener = {
            event(event) {
              over();
              if (event.type === 'failed') reject(DaemonError.fromPlain(event.error));
              else if (event.type === 'finished') reject(cancelled());
              else if (event.type === 'scored')
                resolve({ logprob: event.logprob, rated: event.rated, hits: event.hits });
              else if (event.type === 'started') signal.addEventListener('abort', cancel, { once: true });
            },
            flush() {},
          };
          const cancel = () => context.engine.abort(job);
          const job = context.engine.submit(
            {
              kind: 'score',
              adapter,
              visibility: callerHash,
              prompts: [tokens],
              rated: [rated],
              choices: 1,
              maxTokens: 0,
              sampler: null,
            },
            listener,
          );
          signal.addEventListener('abort', cancel, { once: true });
        }),
    );
  }

  /** While the queue is full of others' requests, or of this caller's own, an evaluation waits: it has time. */
  private async patiently<T>(submit: () => T | Promise<T>): Promise<T> {
    for (;;) {
      if (this.options.signal.aborted) throw cancelled();
      try {
        return await submit();
      } catch (error) {
        const busy =
          error instanceof DaemonError && (error.code === 'overloaded' || error.code === 'rate_limit_exceeded');
        if (!busy) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, BUSY_MS));
    }
  }
}

export function cancelled(): DaemonError {
  return new DaemonError('cancelled', 'the caller closed the connection before the evaluation was complete');
}
