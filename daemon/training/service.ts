/** Puts the parts of training together for `daemon/main.ts`. */
import { join } from 'node:path';
import type { AdapterRegistry } from '../adapters/registry.ts';
import { TRAINING_LIMITS } from '../limits.ts';
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
  // Until the runs are known, every dataset may be needed.
  let needed: (digest: string) => boolean = () => true;
  const datasets = await DatasetStore.open({
    root: join(dataDir, 'datasets'),
    baseDigest: base.digest,
    contextTokens,
    needed: (digest) => needed(digest),
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
  needed = (digest) => runs.needs(digest);
  const sweep = () =>
    datasets.sweep().catch((error) => log.warn({ err: error }, 'datasets that nobody needs could not be removed'));
  void sweep();
  const sweeper = setInterval(sweep, TRAINING_LIMITS.datasetSweepMs);
  sweeper.unref();
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
      clearInterval(sweeper);
      await runs.close();
      await workers.close();
    },
  };
}
