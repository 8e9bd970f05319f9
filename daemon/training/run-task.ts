/** One run in the worker's thread: checks that it fits, opens what it needs, trains, and says how it ended. */
import type { MessagePort } from 'node:worker_threads';
import type { Model, Trainer } from '../../addon/types.ts';
import { AddonError } from '../../addon/types.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { EventLog } from './event-log.ts';
import { type CheckpointFacts, type LoopOutcome, TrainingLoop } from './loop.ts';
import { availableBytes, megabytes, neededBytes } from './memory.ts';
import { COMMANDS, type FromRun, type Progress, type RunOutcome, type RunTask, type ToRun } from './messages.ts';
import { encodePeftFolder, encodeSafetensors, type NamedBytes } from './peft-folder.ts';
import type { Recipe, RunCheckpoint } from './protocol.ts';
import { planOf, RunData, rowsMaxOf, trainerOptions } from './run-data.ts';
import { RunError } from './run-error.ts';
import { RunFolder } from './run-folder.ts';

/** What a run needs of a model. */
export type TrainableModel = Pick<Model, 'info' | 'createTrainer' | 'trainerMemory'>;

export async function runTask(model: TrainableModel, task: RunTask): Promise<RunOutcome> {
  const { port } = task;
  let events: EventLog | null = null;
  const progress: { at: Progress | null } = { at: null };
  try {
    const folder = new RunFolder(task.folder);
    folder.clear();
    events = EventLog.open(folder.eventsPath);
    return { outcome: await train(model, task, folder, events, progress), at: progress.at };
  } catch (error) {
    return { ...failure(error), at: progress.at };
  } finally {
    events?.close();
    port.close();
  }
}

async function train(
  model: TrainableModel,
  task: RunTask,
  folder: RunFolder,
  events: EventLog,
  progress: { at: Progress | null },
): Promise<LoopOutcome> {
  const { recipe } = task.request;
  const { port } = task;
  const post = (message: FromRun) => port.postMessage(message);
  const command = () => COMMANDS[Atomics.load(new Int32Array(task.control), 0)] ?? 'run';
  const opened: RunData[] = [];
  const open = (files: RunTask['training'], param: 'training_file' | 'validation_file') => {
    const data = new RunData(files, recipe, param);
    opened.push(data);
    return data;
  };
  const replies = new Replies(port);
  let close = () => {};
  try {
    const data = open(task.training, 'training_file');
    const validation = task.validation === null ? null : open(task.validation, 'validation_file');
    const rowsMax = rowsMaxOf(model.info, [data, validation]);
    const plan = planOf(data, recipe, rowsMax);
    const fit = fittingOptions(model, recipe, rowsMax, task.share, availableBytes());
    checkDisk(folder, model.trainerMemory(fit.options).parameters);
    const trainer = model.createTrainer(fit.options);
    close = () => trainer.close();
    events.onEvent = (event) => post({ type: 'event', event });
    post({ type: 'begun', steps: plan.steps, memoryBytes: process.memoryUsage.rss() });
    if (data.skipped > 0 && events.summary.lastMetrics === null) {
      const message = `${data.skipped} of ${data.skipped + data.examples.length} examples are left out: nothing of them can be learnt within ${recipe.contextTokens} tokens.`;
      events.append({ level: 'warn', type: 'message', message, data: null });
    }
    const loop = new TrainingLoop({
      recipe,
      trainer,
      rowsMax,
      plan,
      data,
      validation,
      folder,
      events,
      command,
      encode: () => encodeAdapter(model, recipe, trainer, task.baseName),
      publish: (path, as, facts) => replies.publish(path, as, facts),
      progress: (at) => post({ type: 'progress', ...at }),
      memoryBytes: () => process.memoryUsage.rss(),
      ...(task.resumePointMs === null ? {} : { resumePointMs: task.resumePointMs }),
    });
    try {
      return await loop.run();
    } finally {
      progress.at = loop.at;
    }
  } finally {
    close();
    for (const data of opened) data.close();
  }
}

/** With activations kept where they fit, else computed again on the way back. @throws RunError `insufficient_memory` */
export function fittingOptions(
  model: TrainableModel,
  recipe: Recipe,
  rowsMax: number,
  share: number,
  available: number,
) {
  const tries = recipe.recompute === 'auto' ? [false, true] : [recipe.recompute];
  let need = 0;
  for (const recompute of tries) {
    const options = trainerOptions(recipe, rowsMax, share, recompute);
    need = neededBytes(model.trainerMemory(options));
    // Half of what is free stays so where there is a choice: recomputing costs time, swapping costs more.
    const room = tries.length > 1 && !recompute ? available / 2 : available;
    if (need <= room) return { options, need };
  }
  throw new RunError(
    'insufficient_memory',
    `Training needs ${megabytes(need)} beside what is in use, and ${megabytes(available)} are available. ` +
      'Lower the context length, the rank or the number of target modules, or turn activation checkpointing (recompute) on; or free memory on the machine.',
  );
}

/**
 * Before a run begins: `bytes` are values, gradients and two moments. On disk come two resume points and one being made
 * (three quarters each), and the adapters of the checkpoints, here and in the registry (a quarter each).
 */
function checkDisk(folder: RunFolder, bytes: number): void {
  const need = 4.5 * bytes + TRAINING_LIMITS.diskReserveBytes;
  const free = folder.disk.freeBytes(folder.path);
  if (free >= need) return;
  throw new RunError(
    'disk_full',
    `The run will need ${megabytes(need)} on disk, and ${megabytes(free)} are free. Free some space, or lower the rank, and start the job again.`,
  );
}

function encodeAdapter(model: TrainableModel, recipe: Recipe, trainer: Trainer, baseName: string): NamedBytes[] {
  const { adapter } = recipe;
  if (adapter.type === 'lora') {
    return encodePeftFolder({ pairs: trainer.pairs(), ...adapter, base: model.info, baseName });
  }
  const width = model.info.kvHeads * model.info.headDim;
  const tensors = trainer.prefix().flatMap(({ layer, k, v }) => [
    { name: `layers.${layer}.k`, shape: [adapter.tokens, width], values: k },
    { name: `layers.${layer}.v`, shape: [adapter.tokens, width], values: v },
  ]);
  return [{ name: 'prefix.safetensors', bytes: encodeSafetensors(tensors) }];
}

/** Asks the main thread, which has the adapter registry, and waits for its answer. */
class Replies {
  private calls = 0;
  private readonly waiting = new Map<
    number,
    { resolve: (checkpoint: RunCheckpoint | null) => void; reject: (error: Error) => void }
  >();
  private readonly port: MessagePort;

  constructor(port: MessagePort) {
    this.port = port;
    port.on('message', (message: ToRun) => {
      const call = this.waiting.get(message.call);
      this.waiting.delete(message.call);
      if (message.error === null) call?.resolve(message.checkpoint);
      else
        call?.reject(
          new RunError(message.error.code === 'disk_full' ? 'disk_full' : 'internal_error', message.error.message),
        );
    });
  }

  publish(folder: string, as: 'checkpoint' | 'result', facts: CheckpointFacts): Promise<RunCheckpoint | null> {
    const call = this.calls++;
    return new Promise((resolve, reject) => {
      this.waiting.set(call, { resolve, reject });
      this.port.postMessage({ type: 'publish', call, folder, as, facts } satisfies FromRun);
    });
  }
}

function failure(error: unknown): Omit<Extract<RunOutcome, { outcome: 'failed' }>, 'at'> {
  if (error instanceof RunError) return { outcome: 'failed', error: error.toPlain(), cause: null };
  if (error instanceof AddonError && error.code === 'out_of_memory') {
    const message = `${error.message}. Lower the context length or the rank, or free memory on the machine.`;
    return { outcome: 'failed', error: new RunError('insufficient_memory', message).toPlain(), cause: null };
  }
  const code = (error as NodeJS.ErrnoException | null)?.code;
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    const message = 'The disk is full. Free some space and start the job again; the last checkpoint was kept.';
    return { outcome: 'failed', error: new RunError('disk_full', message).toPlain(), cause: null };
  }
  const cause = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return {
    outcome: 'failed',
    error: new RunError(
      'internal_error',
      'The training failed unexpectedly; the daemon’s log has the cause under the run’s id.',
    ).toPlain(),
    cause,
  };
}
