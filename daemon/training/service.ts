/** Puts the parts of training together for `daemon/main.ts`. */
import { join } from 'node:path';
import type { AdapterRegistry } from '../adapters/registry.ts';
import { DatasetStore } from './dataset-store.ts';
import { Estimator } from './estimate.ts';
import { TrainingPool } from './pool.ts';
import type { TrainingParts } from './routes.ts';
import { type RunsOptions, TrainingRuns } from './runs.ts';

export interface TrainingSettings {
  dataDir: string;
  base: { id: string; digest: string; modelPath: string; contextTokens: number };
  threads: number | null;
  share: number;
  registry: AdapterRegistry;
  log: RunsOptions['log'];
  resumePointMs?: number;
}

export interface TrainingService extends TrainingParts {
  /** Saves what is trained and ends the workers. */
  close(): Promise<void>;
}

export async function startTraining(settings: TrainingSettings): Promise<TrainingService> {
  const { dataDir, base, threads, share, registry, log } = settings;
  const { modelPath, contextTokens } = base;
  const workers = new TrainingPool();
  const datasets = await DatasetStore.open({
    root: join(dataDir, 'datasets'),
    baseDigest: base.digest,
    contextTokens,
    build: (source, target) => workers.build({ source, target, modelPath, contextTokens }),
  });
  const runs = TrainingRuns.open({
    root: join(dataDir, 'training'),
    base,
    threads,
    share,
    workers,
    datasets,
    registry,
    log,
    ...(settings.resumePointMs === undefined ? {} : { resumePointMs: settings.resumePointMs }),
  });
  const estimator = new Estimator({
    workers,
    datasets,
    base,
    threads,
    share,
    runningTokensPerSecond: () => runs.current?.tokensPerSecond ?? null,
  });
  return {
    datasets,
    runs,
    estimator,
    async close() {
      await runs.close();
      await workers.close();
    },
  };
}
