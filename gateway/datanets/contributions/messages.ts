/** What goes to the process that reads contributions, and what comes back. Plain data but for the key. */
import type { KeyObject } from 'node:crypto';
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { ContributionOptions, ContributionProblem, DatanetRow } from '../../db/datanet-schema.ts';

export interface IngestJob {
  datanet: Pick<DatanetRow, 'seq' | 'id' | 'kind' | 'languages'>;
  contribution: { id: string; contributor: string; licence: string; createdAt: number };
  source: FileSource | GeneratedSource;
  options: ContributionOptions;
  /** Signs the rows. */
  privateKey: KeyObject;
}

export interface FileSource {
  type: 'file';
  path: string;
  filename: string;
  bytes: number;
}

/** Rows that a model wrote about a document. */
export interface GeneratedSource {
  type: 'generated';
  model: string;
  /** `line`: number of the chunk that it is about. */
  examples: { line: number; example: TrainingExample }[];
}

export interface IngestResult {
  rows: number;
  refused: number;
  problems: ContributionProblem[];
}

/** The chunks of a document, for questions about them. */
export interface ChunkJob {
  path: string;
  filename: string;
  chunkCharacters: number | null;
  chunksMax: number;
}

export interface RemovalJob {
  contributionId: string;
  /** Number of its Datanet. */
  datanetSeq: number;
}

/** Contents of withdrawn rows go. */
export interface ErasureJob {
  datanetSeq: number;
  rows: number[];
}

export type IngestTask =
  | ({ type: 'ingest' } & IngestJob)
  | ({ type: 'chunks' } & ChunkJob)
  | ({ type: 'remove' } & RemovalJob)
  | ({ type: 'erase' } & ErasureJob)
  /** The database, of what was erased. */
  | { type: 'clean' };

/** The contribution cannot be taken; the message is for its contributor. */
export class IngestFailure extends Error {
  readonly code: string;
  readonly problems: ContributionProblem[];
  constructor(code: string, message: string, problems: ContributionProblem[] = []) {
    super(message);
    this.name = 'IngestFailure';
    this.code = code;
    this.problems = problems;
  }
}

/** Somebody asked for it to stop, or it is being taken back. */
export class IngestStopped extends Error {
  constructor() {
    super('the contribution is not read any further');
    this.name = 'IngestStopped';
  }
}

export function checkStop(signal: AbortSignal): void {
  if (signal.aborted) throw new IngestStopped();
}
