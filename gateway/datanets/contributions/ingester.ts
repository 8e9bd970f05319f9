/** Where contributions are read: in threads of their own (worker-ingester.ts), or, where a runtime or a test has none, in this one. */
import type { Client } from '@libsql/client';
import type { Chunk } from '../documents/read.ts';
import type { ChunkJob, IngestJob, IngestResult, RemovalJob } from './messages.ts';
import { type Outcome, opened, work } from './work.ts';

export interface Ingester {
  /** @throws IngestFailure, IngestStopped; anything else: its thread died. */
  ingest(job: IngestJob): Promise<IngestResult>;
  /** @throws IngestFailure, IngestStopped */
  chunks(job: ChunkJob): Promise<Chunk[]>;
  remove(job: RemovalJob): Promise<void>;
  close(): Promise<void>;
}

export function inProcess(client: Client): Ingester {
  return {
    ingest: async (job) => opened((await work({ type: 'ingest', ...job }, client)) as Outcome<IngestResult>),
    chunks: async (job) => opened((await work({ type: 'chunks', ...job }, client)) as Outcome<Chunk[]>),
    async remove(job) {
      opened((await work({ type: 'remove', ...job }, client)) as Outcome<null>);
    },
    close: () => Promise.resolve(),
  };
}
