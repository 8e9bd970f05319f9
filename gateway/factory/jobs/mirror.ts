/** What the daemon tells of a run, as events and checkpoints of the job. Pure: the same events give the same changes. */
import type { CheckpointMetrics, RunCheckpoint, StepMetrics, TrainingEvent } from '../../../daemon/protocol.ts';
import type { JobRow } from '../../db/schema.ts';
import type { Change, NewEvent } from './job-rows.ts';

/** The gateway says these itself, in OpenAI's words and order. */
const OURS =
  /^(created fine-tuning job|validating training file|files validated|fine-tuning job started|(new )?checkpoint (created|saved)|new fine-tuned model|the job has successfully|fine-tuning job (paused|resumed|cancelled))/i;

export function createdEvent(id: string): NewEvent {
  return { dedupe: 'created', level: 'info', type: 'message', message: `Created fine-tuning job: ${id}` };
}

export const STARTED: NewEvent = {
  dedupe: 'started',
  level: 'info',
  type: 'message',
  message: 'Fine-tuning job started',
};

type Metrics = StepMetrics & Record<string, unknown>;

function metricsView(metrics: CheckpointMetrics | StepMetrics): Record<string, number> {
  const names = {
    step: metrics.step,
    train_loss: metrics.trainLoss,
    train_mean_token_accuracy: metrics.trainMeanTokenAccuracy,
    valid_loss: metrics.validLoss,
    valid_mean_token_accuracy: metrics.validMeanTokenAccuracy,
    full_valid_loss: metrics.fullValidLoss,
    full_valid_mean_token_accuracy: metrics.fullValidMeanTokenAccuracy,
  };
  return Object.fromEntries(Object.entries(names).filter(([, value]) => typeof value === 'number')) as Record<
    string,
    number
  >;
}

function progressView(metrics: Metrics): Record<string, number> {
  const extra = {
    total_steps: metrics.steps,
    epoch: metrics.epoch,
    learning_rate: metrics.learningRate,
    gradient_norm: metrics.gradientNorm,
    tokens: metrics.tokens,
    tokens_per_second: metrics.tokensPerSecond,
    elapsed_seconds: metrics.elapsedSeconds,
    remaining_seconds: metrics.remainingSeconds,
    memory_bytes: metrics.memoryBytes,
    reward_accuracy: metrics.rewardAccuracy,
    reward_margin: metrics.rewardMargin,
  };
  const numbers = Object.entries(extra).filter(([, value]) => typeof value === 'number') as [string, number][];
  return { ...metricsView(metrics), ...Object.fromEntries(numbers) };
}

function stepMessage(metrics: Metrics): string {
  const parts = [`training loss=${metrics.trainLoss.toFixed(2)}`];
  if (typeof metrics.validLoss === 'number') parts.push(`validation loss=${metrics.validLoss.toFixed(2)}`);
  if (typeof metrics.fullValidLoss === 'number') parts.push(`full validation loss=${metrics.fullValidLoss.toFixed(2)}`);
  return `Step ${metrics.step}/${metrics.steps}: ${parts.join(', ')}`;
}

/** `incarnation`: which of the daemon's runs of this id the events belong to. Ends of runs are left to whoever has seen the run itself. */
export function changeOf(
  job: JobRow,
  events: readonly TrainingEvent[],
  incarnation: string,
): Change & { over: boolean } {
  const set: NonNullable<Change['set']> = {};
  const told: NewEvent[] = [];
  const checkpoints: NonNullable<Change['checkpoints']> = [];
  let status = job.status;
  let over = false;
  for (const event of events) {
    if (event.seq <= job.lastEvent) continue;
    set.lastEvent = event.seq;
    const createdAt = timeOf(event.time);
    const base = { dedupe: `run ${incarnation} ${event.seq}`, level: event.level, createdAt };
    if (event.type === 'message' && !OURS.test(event.message)) {
      told.push({ ...base, type: 'message', message: event.message.slice(0, 4096), data: event.data });
    } else if (event.type === 'metrics' && event.data !== null) {
      const metrics = event.data as Metrics;
      if (typeof metrics.step !== 'number' || typeof metrics.trainLoss !== 'number') continue;
      told.push({ ...base, type: 'metrics', message: stepMessage(metrics), data: progressView(metrics) });
      set.progress = progressView(metrics);
      set.estimatedFinish =
        typeof metrics.remainingSeconds === 'number' ? createdAt + Math.round(metrics.remainingSeconds * 1000) : null;
    } else if (event.type === 'checkpoint' && event.data !== null) {
      const checkpoint = event.data as unknown as RunCheckpoint;
      checkpoints.push({
        step: checkpoint.step,
        adapter: checkpoint.adapter,
        digest: checkpoint.digest,
        metrics: metricsView(checkpoint.metrics),
        createdAt: timeOf(checkpoint.createdAt),
      });
      const message = `Checkpoint created at step ${checkpoint.step} with Snapshot ID: ${checkpoint.adapter}`;
      told.push({ ...base, type: 'message', message });
    } else if (event.type === 'status') {
      const next = event.data?.status;
      if (next === 'running') {
        // Its own key, so that it is said once whatever happens.
        told.push(
          status === 'paused'
            ? { ...base, type: 'message', message: 'Fine-tuning job resumed' }
            : { ...STARTED, createdAt },
        );
        status = 'running';
      } else if (next === 'paused') {
        told.push({ ...base, type: 'message', message: 'Fine-tuning job paused' });
        status = 'paused';
        set.estimatedFinish = null;
      } else if (next === 'queued') {
        status = 'queued';
        set.estimatedFinish = null;
      } else if (next === 'succeeded' || next === 'failed' || next === 'cancelled') over = true;
    }
  }
  if (status !== job.status) set.status = status;
  return { set, events: told, checkpoints, over };
}

export function timeOf(iso: string): number {
  const time = Date.parse(iso);
  return Number.isNaN(time) ? 0 : time;
}
