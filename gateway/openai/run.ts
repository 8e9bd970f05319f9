/** What the three model endpoints share: permission, limits, the head of an answer, and following generations to their end. */
import type { Context } from 'hono';
import { type GenerateEvent, receiptIdOf, type Usage } from '../../daemon/protocol.ts';
import type { Admission } from '../auth/rate-limit.ts';
import type { Principal } from '../auth/scopes.ts';
import type { ResolvedModel } from '../daemons/pool.ts';
import { engineFailed, modelNotFound, toApiError } from '../errors.ts';
import { resolveAlias } from '../factory/evaluations/resolve.ts';
import { randomId } from '../http/ids.ts';
import { limits } from '../limits.ts';
import type { AppEnv, RequestRecord, Services } from '../services.ts';
import type { EngineRequest } from './chat-request.ts';
import type { AnswerHead } from './chat-stream.ts';
import { tokensEstimate } from './estimate.ts';
import { Generation } from './generation.ts';
import { sseResponse } from './sse.ts';

/** A model this key may use, or what an alias stands for; one it may not use does not exist for it. */
export async function resolveFor(services: Services, principal: Principal, id: string): Promise<ResolvedModel> {
  const alias = await services.aliases.find(id);
  if (alias !== null) return resolveAlias(services, principal, alias);
  if (!(await services.factory.owners.canUse(principal, id))) throw modelNotFound(id);
  return services.pool.resolve(id);
}

export interface AnswerPlan {
  operation: 'chat' | 'text_completion';
  idPrefix: string;
  model: ResolvedModel;
  engines: EngineRequest[];
  stream: boolean;
}

/** How a kind of answer is written, streamed or whole. `source` is the index of the engine request an event belongs to. */
export interface StreamWriter {
  begin(): string;
  encode(source: number, event: GenerateEvent): string;
  readonly finished: number;
  end(usage: Usage): string;
}
export interface WholeWriter {
  add(source: number, event: GenerateEvent): void;
  readonly finished: number;
  build(usage: Usage): object;
}

/** Admits, runs and answers; the one path of every generated text. */
export async function answer(
  services: Services,
  c: Context<AppEnv>,
  plan: AnswerPlan,
  writers: { stream: (head: AnswerHead) => StreamWriter; whole: (head: AnswerHead) => WholeWriter },
): Promise<Response> {
  const principal = c.get('principal');
  const record = c.get('record');
  const { model } = plan;
  // Never the client's own request id: this one is the idempotency key of the receipt.
  const id = randomId();
  const head: AnswerHead = {
    id: `${plan.idPrefix}-${id}`,
    created: Math.floor(services.now() / 1000),
    model: model.id,
    systemFingerprint: `fp_${model.base.digest.slice(0, 10)}`,
  };
  const generations = plan.engines.map(
    (engine, index) =>
      new Generation(services, {
        requestId: plan.engines.length === 1 ? id : `${id}-${index}`,
        principal,
        model,
        engine,
      }),
  );
  record.operation = plan.operation;
  record.model = model.id;
  record.stream = plan.stream;
  record.receiptId = generations.map(({ requestId }) => receiptIdOf(requestId)).join(',');

  const estimate = plan.engines.reduce(
    (sum, engine) => sum + tokensEstimate(engine.prompt, engine.maxTokens, engine.n ?? 1),
    0,
  );
  const admission = services.limiter.admit(principal, estimate);
  const run = new Run(services, record, generations, admission);
  const headers = c.get('headers');
  Object.assign(headers, admission.headers);
  const signal = c.req.raw.signal;
  const choices = plan.engines.reduce((sum, engine) => sum + (engine.n ?? 1), 0);

  if (!plan.stream) {
    signal.addEventListener('abort', run.cancel, { once: true });
    // Gone while its body was read or its model looked up: that event is over.
    if (signal.aborted) run.cancel();
    try {
      await run.open(Number.POSITIVE_INFINITY);
      const whole = writers.whole(head);
      await run.follow((source, events) => {
        for (const event of events) whole.add(source, event);
      });
      if (whole.finished < choices) throw engineFailed(new Error('a choice has no finish reason'));
      headers['x-receipt-id'] = record.receiptId;
      return c.json(whole.build(run.usage()));
    } catch (error) {
      run.cancel();
      throw error;
    } finally {
      signal.removeEventListener('abort', run.cancel);
      run.close();
    }
  }

  try {
    if (signal.aborted) run.cancel();
    await run.open(limits.streamHeadersMs);
  } catch (error) {
    run.cancel();
    run.close();
    throw error;
  }
  record.deferred = true;
  record.status = 200;
  headers['x-receipt-id'] = record.receiptId;
  headers['openai-processing-ms'] = String(Math.round(services.now() - record.startedAt));
  const writer = writers.stream(head);
  return sseResponse({
    signal,
    headers,
    direct: services.direct(c.env),
    onGone: run.cancel,
    run: async (write) => {
      write(writer.begin());
      await run.follow((source, events) => {
        let text = '';
        for (const event of events) text += writer.encode(source, event);
        write(text);
      });
      if (writer.finished < choices) throw engineFailed(new Error('a choice has no finish reason'));
      write(writer.end(run.usage()));
    },
    onEnd: (error) => {
      if (error !== undefined) {
        run.cancel();
        const told = toApiError(error);
        record.code = told.code;
        record.cause = told.cause ?? (told.code === 'internal_error' ? error : undefined);
      }
      run.close();
      writeRecord(services, record);
    },
  });
}

/** The generations of one HTTP request, followed side by side. */
class Run {
  readonly #services: Services;
  readonly #record: RequestRecord;
  readonly #generations: Generation[];
  readonly #admission: Admission;

  constructor(services: Services, record: RequestRecord, generations: Generation[], admission: Admission) {
    this.#services = services;
    this.#record = record;
    this.#generations = generations;
    this.#admission = admission;
  }

  async open(waitMs: number): Promise<void> {
    const opened = await Promise.allSettled(this.#generations.map((generation) => generation.open(waitMs)));
    const failed = opened.find((outcome) => outcome.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }

  async follow(take: (source: number, events: GenerateEvent[]) => void): Promise<void> {
    await Promise.all(
      this.#generations.map(async (generation, source) => {
        for (let events = await generation.next(); events !== null; events = await generation.next()) {
          if (this.#record.firstTokenMs === undefined && events.some((event) => event.type === 'delta')) {
            this.#record.firstTokenMs = this.#services.now() - this.#record.startedAt;
          }
          take(source, events);
        }
      }),
    );
  }

  cancel = (): void => {
    for (const generation of this.#generations) generation.cancel();
  };

  usage(): Usage {
    const sum: Usage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
    for (const { usage } of this.#generations) {
      sum.promptTokens += usage?.promptTokens ?? 0;
      sum.cachedTokens += usage?.cachedTokens ?? 0;
      sum.completionTokens += usage?.completionTokens ?? 0;
    }
    return sum;
  }

  close(): void {
    this.#admission.release(this.#generations.reduce((sum, generation) => sum + generation.tokensUsed(), 0));
    // Where an end was not seen, the settler logs what it finds out.
    if (this.#generations.some(({ usage }) => usage === null)) return;
    const { promptTokens, completionTokens } = this.usage();
    this.#record.promptTokens = promptTokens;
    this.#record.completionTokens = completionTokens;
    this.#record.costMicros = this.#generations.reduce((sum, generation) => sum + generation.costMicros, 0);
  }
}

/** The request's one log line and its metrics. */
export function writeRecord(services: Services, record: RequestRecord): void {
  const now = services.now();
  services.metrics.end(record, now);
  const { cause, startedAt, deferred: _, ...fields } = record;
  const line = { ...fields, durationMs: now - startedAt, ...(cause === undefined ? {} : { err: cause }) };
  const broken = record.status === 200 && record.code != null && record.code !== 'client_disconnected';
  if (record.status >= 500 || broken) services.log.error(line, 'request failed');
  else services.log.info(line, 'request');
}
