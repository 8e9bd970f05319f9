import type { Vocabulary } from '../../addon/types.ts';
import type { EngineClient, JobListener } from '../engine/client.ts';
import type { SequenceEvent } from '../engine/messages.ts';
import { DaemonError } from '../errors.ts';
import { SERVER_LIMITS } from '../limits.ts';
import {
  costMicrosOf,
  type FinishReason,
  type GenerateEvent,
  type GenerateRequest,
  type Receipt,
  receiptIdOf,
  type TokenLogprob,
  type Usage,
} from '../protocol.ts';
import { appendDurably, outputHash, type ReceiptBook, SPLIT_RULE } from './bill.ts';
import { beginsReasoning, ChatStream } from './chat-stream.ts';
import type { PreparedGeneration } from './prepare.ts';
import { TextStream } from './text-stream.ts';

export interface GenerationContext {
  engine: EngineClient;
  vocabulary: Vocabulary;
  receipts: ReceiptBook;
  baseDigest: string;
  engineVersion: string;
  /** Default: `SERVER_LIMITS.receiptMs`. */
  receiptMs?: number;
}

/** Where the events of a generation go: one call per step. */
export type EventSink = (events: GenerateEvent[]) => void;

/** What became of a generation, for logs and metrics; no text. */
export interface GenerationOutcome {
  outcome: Receipt['outcome'];
  usage: Usage;
  receiptId: string | null;
  costMicros: number;
  queueMs: number;
  firstTokenMs: number;
  totalMs: number;
  error: DaemonError | null;
}

interface Choice {
  text: TextStream;
  /** `undecided`: the answer may still turn out to begin with reasoning. */
  mode: 'plain' | 'undecided' | 'parsed';
  chat: ChatStream | null;
  tokens: number;
  reason: FinishReason | null;
  /** Its `finish` event was sent. */
  told: boolean;
  /** Ended for the engine too. */
  ended: boolean;
  /** Logprobs of tokens whose text the parser has not given out yet. */
  logprobs: TokenLogprob[];
}

/**
 * One request from its first token to its receipt. The engine's events come in, per step, and go out as text; when all
 * choices have ended, the receipt is appended, and only when it is durable the last event is sent.
 */
export class Generation implements JobListener {
  /** Resolves when nothing more will be sent; never rejects. */
  readonly done: Promise<GenerationOutcome>;
  /** Resolves when the engine has begun (the first event is out); rejects if the request never got that far. */
  readonly begun: Promise<void>;
  private readonly request: GenerateRequest;
  private readonly prepared: PreparedGeneration;
  private readonly context: GenerationContext;
  private readonly sink: EventSink;
  private readonly choices: Choice[];
  private readonly startedAt = new Date();
  private readonly startMs = performance.now();
  private job = -1;
  private started = false;
  private out: GenerateEvent[] = [];
  private cachedTokens = 0;
  private queueMs = 0;
  private firstTokenMs = 0;
  private cancelled: DaemonError | null = null;
  private failure: DaemonError | null = null;
  private settled = false;
  private resolveDone: (outcome: GenerationOutcome) => void = () => {};
  private resolveBegun: () => void = () => {};
  private rejectBegun: (error: DaemonError) => void = () => {};

  /** Queues the request; throws what `EngineClient.submit` throws. */
  constructor(request: GenerateRequest, prepared: PreparedGeneration, context: GenerationContext, sink: EventSink) {
    this.request = request;
    this.prepared = prepared;
    this.context = context;
    this.sink = sink;
    this.done = new Promise((resolve) => {
      this.resolveDone = resolve;
    });
    this.begun = new Promise((resolve, reject) => {
      this.resolveBegun = resolve;
      this.rejectBegun = reject;
    });
    // Whoever does not look at `begun` looks at `done`.
    this.begun.catch(() => {});
    this.choices = Array.from({ length: request.n }, () => this.newChoice());
    this.job = context.engine.submit(
      {
        kind: 'generate',
        adapter: prepared.adapter?.handle ?? null,
        visibility: request.callerHash,
        prompts: [prepared.tokens],
        choices: request.n,
        maxTokens: prepared.maxTokens,
        sampler: prepared.sampler,
      },
      this,
    );
  }

  /** Ends the generation within one step; what was generated is receipted all the same. */
  cancel(why: DaemonError): void {
    if (this.settled || this.cancelled !== null) return;
    this.cancelled = why;
    this.context.engine.abort(this.job);
  }

  event(event: SequenceEvent): void {
    if (this.settled) return;
    switch (event.type) {
      case 'started':
        this.begin(event.cachedTokens, event.queueMs);
        return;
      case 'token':
        this.token(event);
        return;
      case 'finished':
        this.finished(event.choice, event.reason, event.generated);
        return;
      case 'failed':
        this.failure = DaemonError.fromPlain(event.error);
        for (const choice of this.choices) choice.ended = true;
        return;
      case 'embedded':
      case 'scored':
        return;
    }
  }

  flush(): void {
    if (this.settled) return;
    if (this.cancelled === null) {
      for (const [index, choice] of this.choices.entries()) this.write(index, choice);
      this.send();
    }
    if (this.choices.every((choice) => choice.ended || choice.reason !== null)) this.settle();
  }

  private newChoice(): Choice {
    const { reader, stops, preserved } = this.prepared;
    const { vocabulary } = this.context;
    const bytesOf = (token: number) => vocabulary.tokenBytes(token, preserved.has(token));
    return {
      text: new TextStream({ stops, bytesOf }),
      mode: reader === null ? 'plain' : reader.always ? 'parsed' : 'undecided',
      chat: reader === null ? null : new ChatStream(reader),
      tokens: 0,
      reason: null,
      told: false,
      ended: false,
      logprobs: [],
    };
  }

  private begin(cachedTokens: number, queueMs: number): void {
    this.started = true;
    this.cachedTokens = cachedTokens;
    this.queueMs = queueMs;
    this.out.push({
      type: 'start',
      promptTokens: this.prepared.tokens.length,
      cachedTokens,
      seed: this.prepared.sampler.seed,
      baseDigest: this.context.baseDigest,
      adapterDigest: this.prepared.adapter?.handle.digest ?? null,
    });
    this.resolveBegun();
  }

  private token(event: Extract<SequenceEvent, { type: 'token' }>): void {
    const choice = this.choices[event.choice];
    // After a stop string the engine may have made a token more before it heard of it.
    if (choice === undefined || choice.reason !== null) return;
    if (this.firstTokenMs === 0) this.firstTokenMs = performance.now() - this.startMs;
    choice.tokens += 1;
    const logprob = event.logprob === undefined ? null : this.describe(event.token, event.logprob, event.top ?? []);
    if (!choice.text.push(event.token, logprob)) return;
    choice.reason = 'stop';
    this.context.engine.abort(this.job, event.choice);
  }

  private finished(index: number, reason: 'stop' | 'length' | 'aborted', generated: number): void {
    const choice = this.choices[index];
    if (choice === undefined) return;
    choice.ended = true;
    if (choice.reason !== null) return;
    choice.tokens = generated;
    choice.text.end();
    if (reason !== 'aborted') choice.reason = reason;
  }

  /** Puts what is new of a choice into `out`. */
  private write(index: number, choice: Choice): void {
    if (choice.told) return;
    const final = choice.reason !== null;
    const piece = choice.text.take();
    const logprobs = piece?.logprobs ?? [];
    if (choice.mode === 'undecided') {
      const reasons = beginsReasoning(choice.text.text);
      if (reasons === null && !final) {
        choice.logprobs.push(...logprobs);
        return;
      }
      choice.mode = reasons === true ? 'parsed' : 'plain';
      // Everything held back so far is decided now.
      this.emit(index, choice, choice.text.text, [...choice.logprobs.splice(0), ...logprobs], final);
    } else {
      this.emit(index, choice, piece?.text ?? '', [...choice.logprobs.splice(0), ...logprobs], final);
    }
    if (choice.reason === null) return;
    choice.told = true;
    const calls = choice.reason === 'stop' && choice.chat?.hasToolCalls === true;
    this.out.push({ type: 'finish', choice: index, reason: calls ? 'tool_calls' : choice.reason });
  }

  private emit(index: number, choice: Choice, text: string, logprobs: TokenLogprob[], final: boolean): void {
    const delta: Extract<GenerateEvent, { type: 'delta' }> = { type: 'delta', choice: index };
    if (choice.mode === 'parsed' && choice.chat !== null) {
      // What the token limit cut off is as incomplete as what is still being written.
      const state = !final ? 'growing' : choice.reason === 'length' ? 'cut' : 'whole';
      const parsed = text !== '' || final ? choice.chat.update(choice.text.text, state) : null;
      if (parsed !== null && parsed.content !== '') delta.content = parsed.content;
      if (parsed !== null && parsed.reasoning !== '') delta.reasoning = parsed.reasoning;
      if (parsed !== null && parsed.toolCalls.length > 0) delta.toolCalls = parsed.toolCalls;
    } else if (text !== '') {
      delta.content = text;
    }
    if (logprobs.length > 0) delta.logprobs = logprobs;
    if (Object.keys(delta).length > 2) this.out.push(delta);
  }

  private describe(token: number, logprob: number, top: { token: number; logprob: number }[]): TokenLogprob {
    const bytes = this.bytesOf(token);
    return {
      token: bytes.toString('utf8'),
      logprob,
      bytes: [...bytes],
      top: top.map((other) => {
        const otherBytes = this.bytesOf(other.token);
        return { token: otherBytes.toString('utf8'), logprob: other.logprob, bytes: [...otherBytes] };
      }),
    };
  }

  private bytesOf(token: number): Buffer {
    return Buffer.from(this.context.vocabulary.tokenBytes(token, true));
  }

  private send(): void {
    if (this.out.length === 0) return;
    const events = this.out;
    this.out = [];
    this.sink(events);
  }

  private settle(): void {
    this.settled = true;
    if (!this.started) {
      const error =
        this.failure ?? this.cancelled ?? new DaemonError('internal_error', 'the request ended before it began');
      this.rejectBegun(error);
      this.resolveDone(this.outcome(this.failure === null ? 'cancelled' : 'failed', null, 0, error));
      return;
    }
    const outcome = this.failure !== null ? 'failed' : this.cancelled !== null ? 'cancelled' : 'complete';
    void this.conclude(outcome);
  }

  /** Receipt first, last line second. */
  private async conclude(outcome: Receipt['outcome']): Promise<void> {
    const usage = this.usage();
    // Nobody pays for what the server broke off.
    const cost =
      outcome === 'failed' ? 0 : costMicrosOf(this.request.price, usage.promptTokens, usage.completionTokens);
    const receipt = this.receipt(outcome, usage, cost);
    try {
      const { leafIndex } = await appendDurably(
        this.context.receipts,
        receipt,
        this.context.receiptMs ?? SERVER_LIMITS.receiptMs,
      );
      const error = this.failure ?? this.cancelled;
      if (error !== null) {
        this.sink([{ type: 'error', error: error.body().error, usage, receiptId: receipt.id, costMicros: cost }]);
      } else {
        this.sink([
          { type: 'end', usage, receiptId: receipt.id, leafIndex, costMicros: cost, timings: this.timings(usage) },
        ]);
      }
      this.resolveDone(this.outcome(outcome, receipt.id, cost, error));
    } catch (caught) {
      const error =
        caught instanceof DaemonError
          ? caught
          : new DaemonError('receipt_log_unavailable', 'the receipt of this answer could not be stored');
      this.sink([{ type: 'error', error: error.body().error, usage }]);
      this.resolveDone(this.outcome('failed', null, 0, error));
    }
  }

  private usage(): Usage {
    let completionTokens = 0;
    for (const choice of this.choices) completionTokens += choice.tokens;
    return { promptTokens: this.prepared.tokens.length, cachedTokens: this.cachedTokens, completionTokens };
  }

  private receipt(outcome: Receipt['outcome'], usage: Usage, cost: number): Receipt {
    const { request, prepared, context } = this;
    return {
      version: 1,
      id: receiptIdOf(request.requestId),
      requestId: request.requestId,
      kind: request.prompt.kind === 'chat' ? 'chat' : 'completion',
      callerHash: request.callerHash,
      baseDigest: context.baseDigest,
      adapterDigest: prepared.adapter?.handle.digest ?? null,
      fingerprint: prepared.adapter?.fingerprint ?? null,
      promptHash: prepared.promptHash,
      outputHash: outputHash(this.choices.map((choice) => choice.text.text)),
      ...usage,
      outcome,
      price: request.price,
      costMicros: cost,
      splitRule: SPLIT_RULE,
      attribution: [],
      startedAt: this.startedAt.toISOString(),
      finishedAt: new Date().toISOString(),
      engineVersion: context.engineVersion,
    };
  }

  private timings(usage: Usage) {
    const totalMs = performance.now() - this.startMs;
    const decodeMs = totalMs - this.firstTokenMs;
    const later = usage.completionTokens - this.choices.length;
    const tokensPerSecond = later > 0 && decodeMs > 0 ? (later * 1000) / decodeMs : 0;
    return {
      queueMs: round(this.queueMs),
      firstTokenMs: round(this.firstTokenMs),
      totalMs: round(totalMs),
      tokensPerSecond: round(tokensPerSecond),
    };
  }

  private outcome(
    outcome: Receipt['outcome'],
    receiptId: string | null,
    cost: number,
    error: DaemonError | null,
  ): GenerationOutcome {
    const totalMs = performance.now() - this.startMs;
    return {
      outcome,
      usage: this.usage(),
      receiptId,
      costMicros: cost,
      queueMs: this.queueMs,
      firstTokenMs: this.firstTokenMs,
      totalMs,
      error,
    };
  }
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
