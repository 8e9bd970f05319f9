/** What a run must be to be taken in: everything that can be known before it has its turn. */
import { DaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import type { DatasetStore } from './dataset-store.ts';
import type { RunRequest } from './protocol.ts';
import { OVER, type Run } from './run.ts';

export interface Admission {
  runs: Iterable<Run>;
  /** Whether an adapter of this name belongs to somebody else. */
  taken(name: string): boolean;
}

/** Whether there is room for it, and its name is free. @throws DaemonError */
export function checkPlace(request: RunRequest, context: Admission): void {
  const { recipe } = request;
  const waiting = [...context.runs].filter(({ state }) => !OVER.has(state.status));
  if (waiting.length >= TRAINING_LIMITS.runsMax) {
    throw new DaemonError(
      'overloaded',
      `${waiting.length} training runs are under way or waiting, which is the limit; try again later`,
    );
  }
  if (waiting.filter((run) => run.request.owner === request.owner).length >= TRAINING_LIMITS.runsPerOwnerMax) {
    throw new DaemonError(
      'rate_limit_exceeded',
      `${TRAINING_LIMITS.runsPerOwnerMax} training runs of yours are under way or waiting; wait for some to end, or cancel them`,
    );
  }
  if (recipe.earlyStopping !== undefined && request.validation === undefined) {
    throw new DaemonError(
      'invalid_request_error',
      'early stopping looks at a validation set, and none is given',
      'recipe.earlyStopping',
    );
  }
  if (recipe.adapter.type === 'lora' && context.taken(request.adapter)) {
    throw new DaemonError(
      'adapter_exists',
      `there is an adapter ${request.adapter} already; choose another name`,
      'adapter',
    );
  }
  if (waiting.some((run) => run.request.adapter === request.adapter)) {
    throw new DaemonError(
      'adapter_exists',
      `another training run will be named ${request.adapter}; choose another name`,
      'adapter',
    );
  }
}

/** Whether its files are there and of the kind that its method learns from. @throws DaemonError */
export async function checkFiles(request: RunRequest, datasets: Pick<DatasetStore, 'get'>): Promise<void> {
  const { recipe } = request;
  for (const digest of [request.dataset, request.validation]) {
    if (digest === undefined) continue;
    const { kind } = await datasets.get(digest);
    if ((recipe.method.type === 'dpo') !== (kind === 'preference')) {
      const what = recipe.method.type === 'dpo' ? 'learns from preferences' : 'does not learn from preferences';
      throw new DaemonError(
        'invalid_request_error',
        `the method ${recipe.method.type} ${what}, but the dataset holds ${kind} examples`,
        'recipe.method',
      );
    }
  }
}
