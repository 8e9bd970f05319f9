/**
 * The run itself: step after step, each micro-batch by micro-batch, until it is over or somebody wants it to stop. Whatever
 * decides how it goes on is in the resume points, so that it ends with the same weights wherever it was cut off.
 */
import type { Trainer } from '../../addon/types.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { isDiskFull } from './disk.ts';
import type { EventLog } from './event-log.ts';
import type { Progress } from './messages.ts';
import type { NamedBytes } from './peft-folder.ts';
import { learningRate, type Plan, type PlanItem, type Step } from './plan.ts';
import type { CheckpointMetrics, Recipe, RunCheckpoint, StepMetrics } from './protocol.ts';
import type { RunData } from './run-data.ts';
import { RunError } from './run-error.ts';
import type { ResumePoint, RunFolder, StepSums } from './run-folder.ts';
import { add, Validation } from './validation.ts';

export type Command = 'run' | 'pause' | 'cancel' | 'stop';

export interface LoopOptions {
  recipe: Recipe;
  trainer: Trainer;
  rowsMax: number;
  plan: Plan;
  data: RunData;
  validation: RunData | null;
  folder: RunFolder;
  events: EventLog;
  /** What the main thread wants now; asked before each micro-batch. */
  command(): Command;
  /** The files of what is trained, as it is now. */
  encode(): NamedBytes[];
  /** Makes a folder servable, as a checkpoint or as the run's result. Null: nothing serves it. */
  publish(folder: string, as: 'checkpoint' | 'result', facts: CheckpointFacts): Promise<RunCheckpoint | null>;
  /** Hears of each step whose weights are there. */
  progress?(at: Progress): void;
  /** Resident bytes of the process. */
  memoryBytes(): number;
  resumePointMs?: number;
}

export interface CheckpointFacts {
  step: number;
  epoch: number;
  metrics: CheckpointMetrics;
}

export type LoopOutcome = 'succeeded' | 'paused' | 'cancelled' | 'stopped';

/** Thrown to leave whatever is under way; never leaves this file. */
class Interrupted extends Error {
  readonly command: Exclude<Command, 'run'>;
  constructor(command: Exclude<Command, 'run'>) {
    super(command);
    this.command = command;
  }
}

const SECONDS_WINDOW = 20;

export class TrainingLoop {
  private readonly o: LoopOptions;
  private point: ResumePoint = {
    step: 0,
    reported: true,
    sums: null,
    trainedTokens: 0,
    elapsedSeconds: 0,
    stopping: { bestLoss: null, bestStep: 0, bestMetrics: null, waited: 0, stopped: false },
  };
  private startedMs = performance.now();
  private pointMs = performance.now();
  private warnedOfDisk = false;
  /** Seconds and tokens of the last steps, for rate and time left. */
  private readonly recent: { seconds: number; tokens: number }[] = [];
  private readonly validation: Validation;
  private lastReported: number;

  constructor(options: LoopOptions) {
    this.o = options;
    this.validation = new Validation(options, () => this.check());
    this.lastReported = options.events.summary.lastMetrics?.step ?? 0;
  }

  /** @throws RunError, or whatever broke */
  async run(): Promise<LoopOutcome> {
    const { folder, plan, trainer, events } = this.o;
    const resumed = folder.readResumePoint();
    if (resumed !== null) {
      trainer.restore(resumed.trainer);
      this.point = resumed.point;
      this.message('info', `Going on from step ${this.point.step} of ${plan.steps}.`);
      this.o.progress?.(this.at);
    }
    this.startedMs = performance.now() - this.point.elapsedSeconds * 1000;
    this.pointMs = performance.now();
    try {
      await this.publishMissed();
      while (!this.point.reported || (this.point.step < plan.steps && !this.point.stopping.stopped)) {
        if (this.point.reported) this.compute(plan.step(this.point.step + 1));
        await this.report(plan.step(this.point.step));
        this.o.progress?.(this.at);
        this.check();
        // Messages of the main thread arrive between steps.
        await new Promise((resolve) => setImmediate(resolve));
      }
      await this.finish();
      return 'succeeded';
    } catch (error) {
      if (error instanceof RunError && error.code === 'loss_not_finite') await this.keepWeights();
      if (!(error instanceof Interrupted)) throw error;
      if (error.command === 'cancel') return 'cancelled';
      this.savePoint();
      events.sync();
      if (error.command !== 'pause') return 'stopped';
      // Whoever pauses may want to look at what there is.
      await this.keepWeights();
      return 'paused';
    }
  }

  get at(): Progress {
    const { step, trainedTokens } = this.point;
    return { step, epoch: this.epochOf(step), trainedTokens };
  }

  /** One optimiser step. */
  private compute(step: Step): void {
    const { recipe, trainer, data, plan } = this.o;
    const startMs = performance.now();
    const sums: StepSums = {
      loss: 0,
      weight: 0,
      correct: 0,
      counted: 0,
      preferred: 0,
      margin: 0,
      pairs: 0,
      tokens: step.rows,
      gradientNorm: 0,
      learningRate: learningRate(recipe, step.step, plan.steps),
    };
    const dpo = recipe.method.type === 'dpo';
    const divisor = dpo ? step.items.length : data.weight(step.items);
    for (const items of step.microBatches) {
      this.check();
      const rows = data.rows(items);
      if (recipe.method.type === 'dpo') {
        const reference = this.validation.referencesOf(data, items);
        const got = trainer.accumulatePreference(rows, reference, recipe.method.beta, divisor);
        add(sums, got);
        sums.preferred += got.preferred;
        sums.margin += got.margin;
        sums.pairs += items.length;
      } else add(sums, trainer.accumulate(rows, divisor));
      if (!Number.isFinite(sums.loss)) throw notFinite(step.step, items, 'loss');
    }
    const { learningRate: rate } = sums;
    const { adamBeta1: beta1, adamBeta2: beta2, adamEpsilon: epsilon, weightDecay, clipNorm } = recipe;
    const { gradientNorm, applied } = trainer.update({
      learningRate: rate,
      beta1,
      beta2,
      epsilon,
      weightDecay,
      clipNorm,
    });
    if (!applied || !Number.isFinite(gradientNorm)) throw notFinite(step.step, step.items, 'gradient');
    sums.gradientNorm = gradientNorm;
    this.recent.push({ seconds: (performance.now() - startMs) / 1000, tokens: step.rows });
    if (this.recent.length > SECONDS_WINDOW) this.recent.shift();
    this.point = {
      ...this.point,
      step: step.step,
      reported: false,
      sums,
      trainedTokens: this.point.trainedTokens + step.rows,
    };
  }

  /** What follows a step: validation, metrics, checkpoint. Interrupted, it is done again from its beginning. */
  private async report(step: Step): Promise<void> {
    const { recipe, validation, folder, events, plan } = this.o;
    const sums = this.point.sums as StepSums;
    let { stopping } = this.point;
    const metrics = this.trainMetrics(step.step, sums);
    const ends = step.epochEnds;
    const every = recipe.validateEverySteps;
    if (validation !== null) {
      let watched: number | null = null;
      if (every !== undefined && (step.step % every === 0 || step.step === plan.steps)) {
        const sample = this.validation.measure(validation, this.validation.sampleOf(validation));
        metrics.validLoss = sample.loss;
        metrics.validMeanTokenAccuracy = sample.accuracy;
        watched = sample.loss;
      }
      if (ends) {
        const full = this.validation.measure(validation, validation.examples.flat());
        metrics.fullValidLoss = full.loss;
        metrics.fullValidMeanTokenAccuracy = full.accuracy;
        // One measure for the whole run: the sample where there is one.
        if (every === undefined) watched = full.loss;
      }
      if (watched !== null && recipe.earlyStopping !== undefined) {
        stopping = this.watch(stopping, watched, metrics, recipe.earlyStopping);
      }
    }
    if (step.step > this.lastReported) {
      const data = this.stepMetrics(step, sums, metrics);
      const rate = `${data.tokensPerSecond.toFixed(0)} tokens/s`;
      const loss = `training loss ${metrics.trainLoss.toFixed(4)}`;
      events.append({
        level: 'info',
        type: 'metrics',
        message: `Step ${step.step}/${plan.steps}: ${loss}, ${rate}`,
        data: data as unknown as Record<string, unknown>,
      });
      this.lastReported = step.step;
      if (stopping.stopped) {
        this.message(
          'info',
          `Stopped early at step ${step.step}: the validation loss has not improved for ${stopping.waited} validations. The best was ${stopping.bestLoss?.toFixed(4)} at step ${stopping.bestStep}.`,
        );
      }
    }
    const checkpoint = stopping.stopped || this.isDue(step);
    const files = checkpoint || stopping.bestStep === step.step ? this.o.encode() : null;
    if (files !== null && stopping.bestStep === step.step) folder.writeBest(step.step, files);
    if (files !== null && checkpoint && !events.summary.checkpoints.has(step.step)) {
      folder.writeCheckpoint(step.step, files, metrics, this.epochOf(step.step));
    }
    this.point = { ...this.point, reported: true, stopping };
    if (checkpoint) {
      events.sync();
      this.savePoint();
      await this.publishMissed();
    } else if (performance.now() - this.pointMs >= (this.o.resumePointMs ?? TRAINING_LIMITS.resumePointMs)) {
      this.savePrivatePoint();
    }
  }

  /** Checkpoints that are on disk but were not told of yet: also those of just before a crash. */
  private async publishMissed(): Promise<void> {
    const { folder, events } = this.o;
    for (const step of folder.checkpoints()) {
      // A checkpoint beyond the resume point is made again when the run comes there.
      if (step > this.point.step || events.summary.checkpoints.has(step)) continue;
      const published = await this.o.publish(folder.checkpointPath(step), 'checkpoint', folder.readCheckpoint(step));
      if (published === null) continue;
      events.append(
        {
          level: 'info',
          type: 'checkpoint',
          message: `Checkpoint created at step ${step} as ${published.adapter}`,
          data: published as unknown as Record<string, unknown>,
        },
        true,
      );
    }
    for (const step of folder.checkpoints().slice(0, -TRAINING_LIMITS.checkpointsKept)) folder.removeCheckpoint(step);
  }

  /** A checkpoint out of turn: of the last whole step, for no update that would spoil the weights was made. */
  private async keepWeights(): Promise<void> {
    const { step, sums, reported } = this.point;
    const { folder, events, plan } = this.o;
    // One that is due anyway is made with the validation that was interrupted, when the run goes on.
    if (sums === null || (!reported && this.isDue(plan.step(step))) || events.summary.checkpoints.has(step)) return;
    folder.writeCheckpoint(step, this.o.encode(), this.trainMetrics(step, sums), this.epochOf(step));
    await this.publishMissed();
  }

  private isDue({ step, epochEnds }: Step): boolean {
    return epochEnds || step % (this.o.recipe.checkpointEverySteps ?? Number.POSITIVE_INFINITY) === 0;
  }

  private trainMetrics(step: number, sums: StepSums): CheckpointMetrics {
    const trainMeanTokenAccuracy = sums.counted === 0 ? 0 : sums.correct / sums.counted;
    return { step, trainLoss: meanLoss(sums), trainMeanTokenAccuracy };
  }

  private async finish(): Promise<void> {
    const { folder, events } = this.o;
    const { stopping, step } = this.point;
    const { adapter } = this.o.recipe;
    if (adapter.type === 'prefix')
      folder.writeResult(stopping.bestMetrics === null ? this.o.encode() : folder.readBest(stopping.bestStep));
    else {
      const { bestStep: best, bestMetrics } = stopping;
      if (bestMetrics === null)
        await this.o.publish(folder.checkpointPath(step), 'result', folder.readCheckpoint(step));
      else
        await this.o.publish(folder.bestPath(best), 'result', {
          step: best,
          epoch: this.epochOf(best),
          metrics: bestMetrics,
        });
      if (bestMetrics !== null && best !== step) {
        this.message('info', `The adapter is that of step ${best}, the best on the validation set.`);
      }
    }
    events.sync();
  }

  private watch(
    before: ResumePoint['stopping'],
    loss: number,
    metrics: CheckpointMetrics,
    rule: NonNullable<Recipe['earlyStopping']>,
  ): ResumePoint['stopping'] {
    if (before.bestLoss === null || loss < before.bestLoss - rule.minDelta) {
      return { bestLoss: loss, bestStep: metrics.step, bestMetrics: { ...metrics }, waited: 0, stopped: false };
    }
    const waited = before.waited + 1;
    return { ...before, waited, stopped: waited >= rule.patience };
  }

  private stepMetrics(step: Step, sums: StepSums, metrics: CheckpointMetrics): StepMetrics {
    const { plan } = this.o;
    const seconds = this.recent.reduce((sum, one) => sum + one.seconds, 0);
    const tokens = this.recent.reduce((sum, one) => sum + one.tokens, 0);
    const elapsed = this.elapsedSeconds();
    // From all that was spent so far, validations and saves included; the first step is not like the others.
    const perStep = step.step > 1 ? Math.max(seconds / Math.max(1, this.recent.length), elapsed / step.step) : elapsed;
    return {
      ...metrics,
      steps: plan.steps,
      epoch: this.epochOf(step.step),
      learningRate: sums.learningRate,
      gradientNorm: sums.gradientNorm,
      tokens: sums.tokens,
      tokensPerSecond: seconds > 0 ? tokens / seconds : 0,
      elapsedSeconds: elapsed,
      remainingSeconds: (plan.steps - step.step) * perStep,
      memoryBytes: this.o.memoryBytes(),
      ...(sums.pairs > 0
        ? { rewardAccuracy: sums.preferred / sums.pairs, rewardMargin: sums.margin / sums.pairs }
        : {}),
    };
  }

  /** How many times the data was seen, with a fraction within an epoch. */
  private epochOf(step: number): number {
    return Math.round((step / this.o.plan.stepsPerEpoch) * 10_000) / 10_000;
  }

  private elapsedSeconds(): number {
    return (performance.now() - this.startedMs) / 1000;
  }

  private savePoint(): void {
    this.point = { ...this.point, elapsedSeconds: this.elapsedSeconds() };
    this.o.folder.writeResumePoint(this.point, this.o.trainer.snapshot());
    if (this.point.stopping.bestStep > 0) this.o.folder.keepBest(this.point.stopping.bestStep);
    this.pointMs = performance.now();
  }

  /** One that nobody asked for: a full disk is said once, and the run goes on as long as it can. */
  private savePrivatePoint(): void {
    try {
      this.o.events.sync();
      this.savePoint();
    } catch (error) {
      if (!isDiskFull(error)) throw error;
      this.pointMs = performance.now();
      if (!this.warnedOfDisk)
        this.message(
          'warn',
          'The disk is full: until there is room, a crash would take the run back to its last checkpoint.',
        );
      this.warnedOfDisk = true;
    }
  }

  private check(): void {
    const command = this.o.command();
    if (command !== 'run') throw new Interrupted(command);
  }

  private message(level: 'info' | 'warn', message: string): void {
    this.o.events.append({ level, type: 'message', message, data: null });
  }
}

function meanLoss(sums: StepSums): number {
  return sums.loss / (sums.pairs > 0 ? sums.pairs : sums.weight);
}

function notFinite(step: number, items: readonly PlanItem[], what: 'loss' | 'gradient'): RunError {
  const examples = [...new Set(items.map(({ example }) => example + 1))];
  const shown = examples.slice(0, 16).join(', ') + (examples.length > 16 ? ', …' : '');
  return new RunError(
    'loss_not_finite',
    `The ${what} of step ${step} is not a finite number (example ${shown} of the training file). ` +
      'The last checkpoint was kept. Lower the learning rate, or look at these examples.',
    'training_file',
  );
}
