/** What a run will take, before it is started: planned as it would be, timed by a short trial on this machine. */
import { LRUCache } from 'lru-cache';
import type { DatasetFiles, DatasetStore } from './dataset-store.ts';
import { availableBytes } from './memory.ts';
import type { TrialRates } from './messages.ts';
import type { TrainingWorkers } from './pool.ts';
import type { Estimate, EstimateRequest, Recipe } from './protocol.ts';
import type { RunFiles } from './run-data.ts';
import { PUBLISH_SECONDS, trialSeconds } from './trial.ts';

export interface EstimatorOptions {
  workers: Pick<TrainingWorkers, 'trial'>;
  datasets: Pick<DatasetStore, 'files'>;
  base: { digest: string; modelPath: string };
  threads: number | null;
  share: number;
  /** Speed of the run that is trained now; a trial beside it would measure both. */
  runningTokensPerSecond(): number | null;
}

const RATES_MAX = 64;
/** A pass without the way back, against one with it. */
const FORWARD_SHARE = 0.35;

export class Estimator {
  private readonly o: EstimatorOptions;
  private readonly rates = new LRUCache<string, TrialRates>({ max: RATES_MAX });

  constructor(options: EstimatorOptions) {
    this.o = options;
  }

  /** @throws DaemonError `not_found`, `invalid_request_error` */
  async estimate({ dataset, validation, recipe }: EstimateRequest): Promise<Estimate> {
    const { workers, datasets, base, threads, share } = this.o;
    const training = filesOf(await datasets.files(dataset));
    const key = shapeOf(base.digest, dataset, recipe);
    const busy = this.o.runningTokensPerSecond();
    const known = this.rates.get(key);
    const found = await workers.trial({
      recipe,
      training,
      validation: validation === undefined ? null : filesOf(await datasets.files(validation)),
      modelPath: base.modelPath,
      threads,
      share,
      measure: known === undefined && busy === null,
    });
    if (found.rates !== null) this.rates.set(key, found.rates);
    const rates = found.rates ?? known ?? guessed(busy);
    const rss = process.memoryUsage.rss();
    const available = availableBytes();
    return {
      steps: found.steps,
      tokens: found.rows,
      trainedTokens: found.rows,
      seconds: rates === null ? 0 : trialSeconds(found, rates, recipe),
      memoryBytes: rss + found.memoryBytes,
      memoryAvailableBytes: rss + available,
      fits: found.memoryBytes <= available,
    };
  }
}

/** What decides the speed: not how long, how fast or in which order it learns. */
function shapeOf(base: string, dataset: string, recipe: Recipe): string {
  const { adapter, method, batchSize, contextTokens, packing, recompute } = recipe;
  return JSON.stringify([base, dataset, adapter, method.type, batchSize, contextTokens, packing, recompute]);
}

function guessed(tokensPerSecond: number | null): TrialRates | null {
  if (tokensPerSecond === null || tokensPerSecond <= 0) return null;
  const secondsPerRow = 1 / tokensPerSecond;
  return {
    setupSeconds: 1,
    secondsPerRow,
    evaluateSecondsPerRow: FORWARD_SHARE * secondsPerRow,
    referenceSecondsPerRow: FORWARD_SHARE * secondsPerRow,
    updateSeconds: 0,
    saveSeconds: PUBLISH_SECONDS,
  };
}

function filesOf({ tokensPath, size, dataset }: DatasetFiles): RunFiles {
  return { tokensPath, size, kind: dataset.kind };
}
