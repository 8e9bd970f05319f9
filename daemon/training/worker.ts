/** What runs in a training worker's thread; piscina calls `work` with one task at a time. */
import { loadModel, openVocabulary } from '../../addon/index.ts';
import type { Model } from '../../addon/types.ts';
import { DaemonError } from '../errors.ts';
import { buildDataset } from './dataset-build.ts';
import type { WorkerResult, WorkerTask } from './messages.ts';
import { RunError } from './run-error.ts';
import { runTask } from './run-task.ts';
import { trial } from './trial.ts';

export async function work(task: WorkerTask): Promise<WorkerResult> {
  try {
    switch (task.type) {
      case 'build': {
        const vocabulary = openVocabulary(task.modelPath);
        try {
          return await buildDataset({ ...task, vocabulary });
        } finally {
          vocabulary.close();
        }
      }
      case 'trial':
        return await withModel(task, (model) => trial(model, task));
      case 'run':
        return await withModel(task, (model) => runTask(model, task));
    }
  } catch (error) {
    // Errors lose their class and their fields on the way between threads, so these go as data.
    if (error instanceof DaemonError || error instanceof RunError) return { refused: error.toPlain() };
    throw error;
  }
}

async function withModel<T>(
  task: { modelPath: string; threads: number | null },
  use: (model: Model) => T | Promise<T>,
): Promise<T> {
  // The weights are the engine's own where it computes on the CPU too: one file, one copy in the process.
  const model = loadModel({
    path: task.modelPath,
    device: 'cpu',
    ...(task.threads === null ? {} : { threads: task.threads }),
  });
  try {
    return await use(model);
  } finally {
    model.close();
  }
}
