import { AddonError, type Engine, type SamplerOptions, type StepBatch, type StepResult } from '../../addon/types.ts';
import { invariant, type PlainError } from '../errors.ts';
import type { EngineGauges, Job, SequenceEvent, StepReport } from './messages.ts';
import type { Plan } from './plan.ts';
import { Scheduler, type SchedulerOptions } from './scheduler.ts';
import { Sequence } from './sequence.ts';
import type { AdapterSlots } from './slots.ts';

export interface LoopOptions {
  engine: Engine;
  slots: AdapterSlots;
  /** Tokens that end a generation. */
  endTokens: Int32Array;
  scheduler: SchedulerOptions;
  /** Called at most once per turn, with all that happened in it. */
  emit: (events: SequenceEvent[], report: StepReport | null, gauges: EngineGauges) => void;
  now?: () => number;
}

/**
 * The engine's loop, one turn at a time: schedule → step → postprocess. Single-threaded and synchronous, so that
 * between two turns (and only there) requests arrive, are cancelled, and adapters move.
 */
export class EngineLoop {
  readonly scheduler: Scheduler;
  private readonly options: LoopOptions;
  private readonly engine: Engine;
  private readonly endTokens: Set<number>;
  private readonly jobs = new Map<number, Sequence[]>();
  private readonly means = new Map<Sequence, Float64Array>();
  private readonly ratings = new Map<Sequence, { logprob: number; rated: number; hits: number }>();
  private readonly started = new Set<number>();
  private readonly batch: Required<Omit<StepBatch, 'wantLogits' | 'wantHidden'>>;
  private readonly now: () => number;
  private events: SequenceEvent[] = [];
  private orders = 0;
  private lastStepEnd = 0;

  constructor(options: LoopOptions) {
    this.options = options;
    this.engine = options.engine;
    this.scheduler = new Scheduler(options.engine, options.slots, options.scheduler);
    this.endTokens = new Set(options.endTokens);
    this.now = options.now ?? (() => performance.now());
    const rows = options.scheduler.stepTokensMax;
    const array = () => new Int32Array(rows);
    this.batch = {
      tokens: array(),
      positions: array(),
      sequences: array(),
      slots: array(),
      outputs: array(),
      samplers: array(),
      targets: array(),
    };
  }

  /** True if no turn would do anything. */
  get idle(): boolean {
    return this.scheduler.idle && this.events.length === 0;
  }
  get jobCount(): number {
    return this.jobs.size;
  }

  submit(job: Job): void {
    const sequences: Sequence[] = [];
    for (let choice = 0; choice < job.choices; choice += 1) {
      const prompt = job.kind === 'generate' ? job.prompts[0] : job.prompts[choice];
      invariant(prompt !== undefined && prompt.length > 0, 'a job has a prompt for every choice');
      const sampler: SamplerOptions | null =
        job.sampler === null ? null : { ...job.sampler, seed: (job.sampler.seed + choice) >>> 0 };
      const { kind, adapter, visibility, maxTokens } = job;
      const rated = job.rated?.[choice];
      invariant(kind !== 'score' || rated?.length === prompt.length, 'a rated prompt says which of its places count');
      this.orders += 1;
      const sequence = new Sequence({
        job: job.job,
        choice,
        order: this.orders,
        kind,
        adapter,
        visibility,
        prompt,
        maxTokens,
        sampler,
        ...(rated === undefined ? {} : { rated }),
      });
      sequence.queuedAtMs = this.now();
      sequences.push(sequence);
    }
    this.jobs.set(job.job, sequences);
    const [leader, ...siblings] = sequences;
    invariant(leader !== undefined, 'a job has at least one choice');
    if (job.kind === 'generate') {
      leader.siblings = siblings;
      this.scheduler.add(leader);
    } else {
      for (const sequence of sequences) this.scheduler.add(sequence);
    }
  }

  /** Ends a job, or one of its choices, before the next step. Unknown jobs are those that have just ended. */
  abort(job: number, choice: number | null): void {
    const sequences = this.jobs.get(job);
    if (sequences === undefined) return;
    for (const sequence of [...sequences]) {
      if (choice === null || sequence.choice === choice) this.end(sequence, 'aborted');
    }
  }

  /** Ends every job with an error. */
  failAll(error: PlainError): void {
    for (const job of [...this.jobs.keys()]) this.fail(job, error);
    this.flush(null);
  }

  /** One turn. False if nothing could be computed: idle, or everybody waits for adapters from disk. */
  turn(): boolean {
    const { plan, admitted, failed } = this.scheduler.schedule();
    for (const { sequence, error } of failed) this.fail(sequence.job, error);
    for (const sequence of admitted) this.begin(sequence);
    const rows = plan?.rows.filter((row) => row.sequence.state === 'running') ?? [];
    if (plan === null || rows.length === 0) {
      this.flush(null);
      return this.scheduler.runningCount > 0;
    }
    const live = rows.length === plan.rows.length ? plan : { ...plan, rows };
    const batch = this.fill(live);
    const startMs = this.now();
    const overheadMicros = this.lastStepEnd === 0 ? 0 : (startMs - this.lastStepEnd) * 1000;
    const result = this.engine.step(batch);
    this.lastStepEnd = this.now();
    const tokens = batch.tokens.length;
    this.scheduler.budget.observe(live.decodeRows, tokens - live.decodeRows, result.computeMicros);
    this.scheduler.advance(live);
    this.postprocess(live, result);
    this.flush({
      computeMicros: result.computeMicros,
      overheadMicros,
      decodeRows: live.decodeRows,
      prefillRows: tokens - live.decodeRows,
    });
    if (this.scheduler.idle) this.lastStepEnd = 0;
    return true;
  }

  private begin(sequence: Sequence): void {
    if (sequence.state !== 'running') return;
    // Also after a preemption: it is computed from its beginning again.
    if (sequence.kind === 'score') {
      this.ratings.set(sequence, { logprob: 0, rated: 0, hits: 0 });
    } else if (sequence.kind === 'embed') {
      this.means.set(sequence, new Float64Array(0));
    } else if (sequence.samplerId < 0) {
      invariant(sequence.samplerOptions !== null, 'a generation has a sampler');
      try {
        sequence.samplerId = this.engine.createSampler(sequence.samplerOptions);
      } catch (error) {
        this.fail(sequence.job, samplerError(error));
        return;
      }
      if (usesPenalties(sequence.samplerOptions))
        this.engine.acceptTokens(sequence.samplerId, sequence.tokens.slice(0, sequence.promptLength));
    }
    if (this.started.has(sequence.job)) return;
    this.started.add(sequence.job);
    this.events.push({
      type: 'started',
      job: sequence.job,
      cachedTokens: sequence.cachedTokens,
      queueMs: this.now() - sequence.queuedAtMs,
    });
  }

  /** Writes the plan's rows into the arrays that all steps share. */
  private fill(plan: Plan): StepBatch {
    const { tokens, positions, sequences, slots, outputs, samplers, targets } = this.batch;
    let t = 0;
    let o = 0;
    for (const { sequence, count } of plan.rows) {
      const all = sequence.tokens;
      for (let i = 0; i < count; i += 1) {
        const position = sequence.computed + i;
        tokens[t] = all[position] as number;
        positions[t] = position;
        sequences[t] = sequence.id;
        slots[t] = sequence.slot;
        const wanted = plan.kind === 'score' ? isRated(sequence, position) : position === sequence.length - 1;
        if (plan.kind === 'embed' || wanted) {
          outputs[o] = t;
          samplers[o] = sequence.samplerId;
          if (plan.kind === 'score') targets[o] = all[position + 1] as number;
          o += 1;
        }
        t += 1;
      }
    }
    const batch: StepBatch = {
      tokens: tokens.subarray(0, t),
      positions: positions.subarray(0, t),
      sequences: sequences.subarray(0, t),
      slots: slots.subarray(0, t),
      outputs: outputs.subarray(0, o),
      samplers: samplers.subarray(0, o),
    };
    if (plan.kind === 'embed') batch.wantHidden = true;
    if (plan.kind === 'score') batch.targets = targets.subarray(0, o);
    return batch;
  }

  private postprocess(plan: Plan, result: StepResult): void {
    if (plan.kind === 'embed') {
      this.postprocessEmbed(plan, result);
      return;
    }
    if (plan.kind === 'score') {
      this.postprocessScore(plan, result);
      return;
    }
    let output = 0;
    for (const { sequence } of plan.rows) {
      // Rows that end before the last token of a sequence had no output.
      if (sequence.pending > 0) continue;
      const choice = result.choices[output];
      output += 1;
      invariant(choice !== undefined, 'every output row has a choice');
      if (sequence.state !== 'running') continue;
      if (choice.error !== undefined) {
        this.fail(sequence.job, deadEnd(choice.error));
        continue;
      }
      invariant(choice.token >= 0, 'every output row has a chosen token');
      this.scheduler.append(sequence, choice.token);
      if (this.endTokens.has(choice.token)) {
        this.end(sequence, 'stop');
        continue;
      }
      const event: SequenceEvent = { type: 'token', job: sequence.job, choice: sequence.choice, token: choice.token };
      if (sequence.samplerOptions !== null && sequence.samplerOptions.topLogprobs >= 0) {
        event.logprob = choice.logprob;
        event.top = choice.top;
      }
      this.events.push(event);
      if (sequence.remaining <= 0) this.end(sequence, 'length');
    }
  }

  private postprocessEmbed(plan: Plan, result: StepResult): void {
    const hidden = result.hidden;
    invariant(hidden !== undefined, 'an embedding step returns hidden states');
    let rows = 0;
    for (const row of plan.rows) rows += row.count;
    const width = hidden.length / rows;
    let at = 0;
    for (const { sequence, count } of plan.rows) {
      let mean = this.means.get(sequence);
      if (mean === undefined || mean.length === 0) {
        mean = new Float64Array(width);
        this.means.set(sequence, mean);
      }
      for (let i = 0; i < count; i += 1, at += width) {
        for (let k = 0; k < width; k += 1) mean[k] = (mean[k] as number) + (hidden[at + k] as number);
      }
      if (sequence.pending > 0) continue;
      const vector = Float32Array.from(mean, (sum) => sum / sequence.length);
      this.events.push({ type: 'embedded', job: sequence.job, choice: sequence.choice, vector });
      this.close(sequence);
    }
  }

  private postprocessScore(plan: Plan, result: StepResult): void {
    const { targetLogprobs, targetHits } = result;
    invariant(targetLogprobs !== undefined && targetHits !== undefined, 'a step with targets rates them');
    let output = 0;
    for (const { sequence, count } of plan.rows) {
      const sums = this.ratings.get(sequence) ?? { logprob: 0, rated: 0, hits: 0 };
      // The plan was advanced: the rows of this step are the last `count` computed ones.
      for (let position = sequence.computed - count; position < sequence.computed; position += 1) {
        if (!isRated(sequence, position)) continue;
        sums.logprob += targetLogprobs[output] as number;
        sums.hits += targetHits[output] as number;
        sums.rated += 1;
        output += 1;
      }
      if (sequence.pending > 0) continue;
      this.events.push({ type: 'scored', job: sequence.job, choice: sequence.choice, ...sums });
      this.close(sequence);
    }
    invariant(output === targetLogprobs.length, 'every rated row has a rating');
  }

  private end(sequence: Sequence, reason: 'stop' | 'length' | 'aborted'): void {
    if (sequence.state === 'done') return;
    const generated = sequence.generated;
    this.close(sequence);
    this.events.push({ type: 'finished', job: sequence.job, choice: sequence.choice, reason, generated });
  }

  private fail(job: number, error: PlainError): void {
    const sequences = this.jobs.get(job);
    if (sequences === undefined) return;
    for (const sequence of [...sequences]) this.close(sequence);
    this.events.push({ type: 'failed', job, error });
  }

  private close(sequence: Sequence): void {
    this.scheduler.finish(sequence);
    if (sequence.samplerId >= 0) {
      this.engine.freeSampler(sequence.samplerId);
      sequence.samplerId = -1;
    }
    this.means.delete(sequence);
    this.ratings.delete(sequence);
    const sequences = this.jobs.get(sequence.job);
    if (sequences?.every((s) => s.state === 'done')) {
      this.jobs.delete(sequence.job);
      this.started.delete(sequence.job);
    }
  }

  /** Hands out what happened, and how the engine stands. */
  flush(report: StepReport | null): void {
    if (this.events.length === 0 && report === null) return;
    const events = this.events;
    this.events = [];
    const { preemptions, yields, prefixHits, prefixMisses, prefixEvictions } = this.scheduler.stats;
    this.options.emit(events, report, {
      running: this.scheduler.runningCount,
      waiting: this.scheduler.waitingCount,
      kvCellsFree: this.engine.kvCellsFree,
      preemptions,
      yields,
      prefixHits,
      prefixMisses,
      prefixEvictions,
    });
  }
}

/** The last token of all predicts nothing that could be compared. */
function isRated(sequence: Sequence, position: number): boolean {
  return sequence.rated?.[position] === 1 && position + 1 < sequence.length;
}

function deadEnd(why: string): PlainError {
  return {
    code: 'grammar_invalid',
    message: `the answer could not go on within its response format: ${why}`,
    param: 'response_format',
  };
}

function usesPenalties(options: SamplerOptions): boolean {
  return options.repeatPenalty !== 1 || options.frequencyPenalty !== 0 || options.presencePenalty !== 0;
}

function samplerError(error: unknown): PlainError {
  if (error instanceof AddonError && error.code === 'grammar_invalid') {
    return {
      code: 'grammar_invalid',
      message: `the response format can't be turned into a grammar: ${error.message}`,
      param: 'response_format',
    };
  }
  const message = error instanceof Error ? error.message : String(error);
  return { code: 'invalid_request_error', message: `the sampling options were refused: ${message}`, param: null };
}
