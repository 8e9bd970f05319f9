/** Reads contributions in worker threads, each with a connection of its own to the same database, so that requests are served meanwhile. */
import { Piscina } from 'piscina';
import { limits } from '../../limits.ts';
import type { Chunk } from '../documents/read.ts';
import type { Ingester } from './ingester.ts';
import type { IngestResult, IngestTask } from './messages.ts';
import { type Outcome, opened } from './work.ts';

export interface WorkerDatabase {
  url: string;
  authToken?: string;
}

export function workerIngester(database: WorkerDatabase): Ingester & { readonly pool: Piscina } {
  const pool = new Piscina({
    filename: new URL('./worker-boot.mjs', import.meta.url).href,
    minThreads: 0,
    maxThreads: limits.ingestsAtOnce,
    idleTimeout: limits.ingestIdleMs,
    // A file that needs more than this ends its thread, not the gateway.
    resourceLimits: { maxOldGenerationSizeMb: limits.ingestHeapMb },
    workerData: database,
  });
  const run = async <T>(task: IngestTask) => opened((await pool.run(task)) as Outcome<T>);
  return {
    pool,
    ingest: (job) => run<IngestResult>({ type: 'ingest', ...job }),
    chunks: (job) => run<Chunk[]>({ type: 'chunks', ...job }),
    async remove(job) {
      await run<null>({ type: 'remove', ...job });
    },
    close: () => pool.destroy(),
  };
}
