/**
 * One generation on a daemon, with its money: reserve → POST /generate → events → post, void or settle later.
 * `next()` hands out a network chunk's worth of events; everything between them and the ledger happens in here, once.
 */
import {
  costMicrosOf,
  type GenerateEvent,
  type GenerateRequestInput,
  receiptIdOf,
  type Usage,
} from '../../daemon/protocol.ts';
import type { Principal } from '../auth/scopes.ts';
import type { DaemonClient, EventSource } from '../daemons/client.ts';
import type { ResolvedModel } from '../daemons/pool.ts';
import { ApiError, clientGone, engineFailed, fromDaemon } from '../errors.ts';
import { limits } from '../limits.ts';
import type { Services } from '../services.ts';
import type { EngineRequest } from './chat-request.ts';
import { promptTokensBound, tokensEstimate } from './estimate.ts';
import { reserve } from './reserve.ts';

export class Generation {
  readonly requestId: string;
  readonly receiptId: string;
  /** Known after the last event. */
  usage: Usage | null = null;
  costMicros = 0;
  /** Text, tool-call and reasoning pieces seen so far; about one per token. */
  #pieces = 0;

  readonly #services: Services;
  readonly #principal: Principal;
  readonly #model: ResolvedModel;
  readonly #engine: EngineRequest;
  readonly #abort = new AbortController();
  #client: DaemonClient | null = null;
  #source: EventSource | null = null;
  #pending: Promise<GenerateEvent[] | null> | null = null;
  #deferred: ApiError | null = null;
  #settled = false;
  #cancelled = false;
  #heardAt = 0;
  #watch: ReturnType<typeof setInterval> | undefined;

  constructor(
    services: Services,
    options: { requestId: string; principal: Principal; model: ResolvedModel; engine: EngineRequest },
  ) {
    this.#services = services;
    this.requestId = options.requestId;
    this.receiptId = receiptIdOf(options.requestId);
    this.#principal = options.principal;
    this.#model = options.model;
    this.#engine = options.engine;
  }

  /**
   * Reserves, connects, and waits for the first events, at most `waitMs` (then failures surface in `next()`).
   * @throws ApiError: budget, engine, or what the daemon refused.
   */
  async open(waitMs: number): Promise<void> {
    const { pool } = this.#services;
    const candidates = pool.route(this.#model, this.requestId);
    await this.#reserve(candidates[0] as DaemonClient);
    if (this.#cancelled) {
      await this.#services.ledger.void(this.requestId);
      throw clientGone();
    }
    const request: GenerateRequestInput = {
      ...this.#engine,
      requestId: this.requestId,
      callerHash: this.#principal.callerHash,
      adapter: this.#model.adapter,
      price: this.#services.price,
    };
    this.#heardAt = this.#services.now();
    this.#watch = setInterval(() => this.#probe(), limits.stallProbeMs / 2);
    this.#pending = this.#connect(candidates, request);
    this.#pending.catch(() => {});
    if (waitMs === Number.POSITIVE_INFINITY) {
      await this.#pending;
      return;
    }
    let timer: ReturnType<typeof setTimeout> | undefined;
    const patience = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, waitMs);
    });
    await Promise.race([this.#pending, patience]).finally(() => clearTimeout(timer));
  }

  async #reserve(client: DaemonClient): Promise<void> {
    const { contextTokens } = this.#model.base;
    const { prompt, maxTokens, n = 1 } = this.#engine;
    const { price } = this.#services;
    const most = (promptTokens: number) =>
      costMicrosOf(
        price,
        promptTokens,
        n * Math.min(maxTokens ?? contextTokens, Math.max(1, contextTokens - promptTokens)),
      );
    const bound = promptTokensBound(prompt, contextTokens);
    await reserve(this.#services, {
      requestId: this.requestId,
      principal: this.#principal,
      // A longer prompt leaves less room for the answer: the dearest case lies at one of the two ends.
      amountMicros: Math.max(most(bound), most(0)),
      // The bound is generous; before refusing, count.
      exactMicros: async () => most((await client.tokenize(prompt)).tokens.length),
    });
  }

  async #connect(candidates: DaemonClient[], request: GenerateRequestInput): Promise<GenerateEvent[] | null> {
    try {
      const { client, value } = await this.#services.pool.firstReachable(candidates, (candidate) => {
        this.#client = candidate;
        return candidate.generate(request, this.#abort.signal);
      });
      this.#client = client;
      this.#source = value;
    } catch (error) {
      await this.#refused(error);
      throw error;
    }
    return this.#read();
  }

  /** The next events, or null after the last. @throws ApiError when the engine failed or the client is gone. */
  async next(): Promise<GenerateEvent[] | null> {
    if (this.#pending !== null) {
      const pending = this.#pending;
      this.#pending = null;
      return pending;
    }
    if (this.#deferred !== null) throw this.#deferred;
    // Gone between two reads: that is no end of the answer.
    if (this.#cancelled) throw clientGone();
    if (this.#settled) return null;
    return this.#read();
  }

  async #read(): Promise<GenerateEvent[] | null> {
    let events: GenerateEvent[] | null;
    try {
      events = await (this.#source as EventSource).next();
      if (this.#cancelled) throw clientGone();
      if (events === null) throw engineFailed(new Error('the answer ended without its end event'));
    } catch (error) {
      this.#leave();
      throw this.#cancelled ? clientGone() : error;
    }
    this.#heardAt = this.#services.now();
    this.#pieces += events.length;
    const last = events[events.length - 1] as GenerateEvent;
    if (last.type === 'end') await this.#ended(last);
    else if (last.type === 'error') {
      await this.#failed(last);
      // What came before the failure is still delivered; a failure that comes first is thrown at once.
      if (events.length === 1 && this.#deferred !== null) throw this.#deferred;
    }
    return events;
  }

  /** For the rate limit: what was used, or a fair guess where the end was not seen; nothing if it never began. */
  tokensUsed(): number {
    if (this.usage !== null) return this.usage.promptTokens + this.usage.completionTokens;
    return this.#source === null ? 0 : tokensEstimate(this.#engine.prompt, 0, 1) + this.#pieces;
  }

  /** The client is gone: stop computing, pay for what was computed. */
  cancel(): void {
    if (this.#settled || this.#cancelled) return;
    this.#cancelled = true;
    this.#leave();
  }

  async #ended(end: Extract<GenerateEvent, { type: 'end' }>): Promise<void> {
    this.#finish();
    this.usage = end.usage;
    this.costMicros = end.costMicros;
    try {
      await this.#services.ledger.post(this.requestId, {
        costMicros: end.costMicros,
        usage: end.usage,
        model: this.#model.id,
      });
    } catch (error) {
      // The answer is complete and receipted; its reservation stays open, and the sweep posts it from the log.
      this.#services.log.error(
        { requestId: this.requestId, err: error },
        'the cost of an answer could not be posted yet',
      );
    }
  }

  async #failed(event: Extract<GenerateEvent, { type: 'error' }>): Promise<void> {
    const { usage, costMicros } = event;
    this.#deferred = fromDaemon(event.error, limits.retryAfterSeconds);
    // Without a receipt nothing was computed; with one but no cost, the log has to be asked.
    if (event.receiptId !== undefined && (usage === undefined || costMicros === undefined)) return this.#leave();
    this.#finish();
    const { ledger, log } = this.#services;
    const complain = (error: unknown) =>
      log.error({ requestId: this.requestId, err: error }, 'a failed answer could not be settled yet');
    if (usage === undefined || costMicros === undefined) {
      await ledger.void(this.requestId).catch(complain);
      return;
    }
    this.usage = usage;
    this.costMicros = costMicros;
    await ledger.post(this.requestId, { costMicros, usage, model: this.#model.id }).catch(complain);
  }

  /** Refused before anything was computed, unless the connection broke under way. */
  async #refused(error: unknown): Promise<void> {
    if (this.#cancelled || !(error instanceof ApiError) || error.outcomeUnknown) {
      this.#leave();
      return;
    }
    this.#finish();
    await this.#services.ledger
      .void(this.requestId)
      .catch((cause) =>
        this.#services.log.error({ requestId: this.requestId, err: cause }, 'a reservation could not be voided yet'),
      );
  }

  /** Ends here; what it cost is for the daemon's log to say. */
  #leave(): void {
    if (this.#settled) return;
    this.#finish();
    this.#abort.abort();
    if (this.#client !== null) this.#services.settler.settle(this.requestId, this.#model.id, this.#client);
  }

  #finish(): void {
    this.#settled = true;
    clearInterval(this.#watch);
  }

  /** A daemon that is silent may be queueing or gone; its health tells. */
  #probe(): void {
    if (this.#settled || this.#client === null || this.#services.now() - this.#heardAt < limits.stallProbeMs) return;
    this.#client.health().catch(() => this.#abort.abort(new Error('the daemon is silent and does not answer')));
  }
}
