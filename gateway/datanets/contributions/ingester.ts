/** Where contributions are read: in processes of their own (process-ingester.ts), or, where a runtime or a test has none, in this one. */
import type { Client } from '@libsql/client';
import type { Chunk } from '../documents/read.ts';
import type { ChunkJob, ErasureJob, IngestJob, IngestResult, IngestTask, RemovalJob } from './messages.ts';
import { prepareHere } from './preparer.ts';
import { type Outcome, opened, work } from './work.ts';

export interface Ingester {
  /** @throws IngestFailure; IngestStopped after the signal; anything else: its process died. */
  ingest(job: IngestJob, signal: AbortSignal): Promise<IngestResult>;
  /** @throws IngestFailure, IngestStopped */
  chunks(job: ChunkJob, signal: AbortSignal): Promise<Chunk[]>;
  remove(job: RemovalJob): Promise<void>;
  erase(job: ErasureJob): Promise<void>;
  clean(): Promise<void>;
  close(): Promise<void>;
}

/** One way to have a task done makes an ingester. */
export function ingesterOf(
  run: (task: IngestTask, signal: AbortSignal) => Promise<Outcome<unknown>>,
  close: () => Promise<void>,
): Ingester {
  const never = new AbortController().signal;
  return {
    ingest: async (job, signal) => opened(await run({ type: 'ingest', ...job }, signal)) as IngestResult,
    chunks: async (job, signal) => opened(await run({ type: 'chunks', ...job }, signal)) as Chunk[],
    async remove(job) {
      opened(await run({ type: 'remove', ...job }, never));
    },
    async erase(job) {
      opened(await run({ type: 'erase', ...job }, never));
    },
    async clean() {
      opened(await run({ type: 'clean' }, never));
    },
    close,
  };
}

export function inProcess(client: Client): Ingester {
  return ingesterOf(
    (task, signal) => work(task, { client, preparer: prepareHere, signal }),
    () => Promise.resolve(),
  );
}
