/** Between the gateway and a process that reads contributions. */
import type { IngestJob, IngestTask } from './messages.ts';
import type { Outcome } from './work.ts';

export interface IngestDatabase {
  url: string;
  authToken?: string;
}

/** Keys cannot go between processes as objects: DER (PKCS #8). */
export type WireTask =
  | Exclude<IngestTask, { type: 'ingest' }>
  | ({ type: 'ingest'; keyDer: Uint8Array } & Omit<IngestJob, 'privateKey'>);

export type ToProcess =
  | { type: 'open'; database: IngestDatabase }
  | { type: 'task'; task: WireTask }
  | { type: 'stop' };

export type FromProcess =
  | { type: 'alive' }
  | { type: 'done'; outcome: Outcome<unknown> }
  /** A defect: nothing that a contributor could be told. */
  | { type: 'failed'; message: string };
