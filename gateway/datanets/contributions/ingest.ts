/** Reads a contribution into rows: records → examples → without exact repetitions → judged, compared, signed → stored. */
import type { Client } from '@libsql/client';
import type { ContributionProblem } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import { checkStop, IngestFailure, type IngestJob, type IngestResult, IngestStopped } from './messages.ts';
import { Neighbours } from './near-duplicates.ts';
import { type Canonical, type Context, canonical, type Prepared } from './prepare.ts';
import type { Preparer } from './preparer.ts';
import { type Numbered, openRecords, type Reading } from './records.ts';
import { knownHashes, storeRows, tellProgress } from './store.ts';

export interface IngestDeps {
  client: Client;
  preparer: Preparer;
  /** Aborted: stop where you are. */
  signal: AbortSignal;
}

/** @throws IngestFailure; IngestStopped. Either way, what was stored by then is for the caller to remove. */
export async function ingest(job: IngestJob, deps: IngestDeps): Promise<IngestResult> {
  const reading =
    job.source.type === 'file' ? await openRecords(job.source, job.options, deps.signal) : given(job.source.examples);
  const run = new Ingestion(job, reading, deps);
  try {
    let waiting: Canonical[] = [];
    let characters = 0;
    for await (const batch of reading.batches) {
      for (const item of batch) {
        const row = canonical(item, job.datanet.kind);
        if (!('content' in row)) {
          run.refuse(row);
          continue;
        }
        waiting.push(row);
        characters += row.content.length;
        if (waiting.length >= limits.ingestBatchRows || characters >= limits.ingestBatchCharacters) {
          await run.store(waiting);
          waiting = [];
          characters = 0;
        }
      }
    }
    await run.store(waiting);
    return await run.end();
  } finally {
    // Whoever cleans up after a failure must not be overtaken by a batch that is still on its way.
    await run.settled();
  }
}

class Ingestion {
  readonly #job: IngestJob;
  readonly #reading: Reading;
  readonly #client: Client;
  readonly #signal: AbortSignal;
  readonly #preparer: Preparer;
  readonly #context: Context;
  readonly #neighbours: Neighbours;
  readonly #problems: ContributionProblem[] = [];
  #rows = 0;
  #refused = 0;
  #duplicates = 0;
  /** The batch before: it is written while the next one is prepared. */
  #writing: Promise<void> = Promise.resolve();

  constructor(job: IngestJob, reading: Reading, deps: IngestDeps) {
    const { datanet, contribution, source, privateKey } = job;
    this.#job = job;
    this.#reading = reading;
    this.#client = deps.client;
    this.#signal = deps.signal;
    this.#preparer = deps.preparer;
    this.#neighbours = new Neighbours(deps.client);
    this.#context = {
      datanet,
      contribution,
      generatedBy: source.type === 'generated' ? source.model : null,
      privateKey,
    };
  }

  refuse(problem: ContributionProblem): void {
    this.#refused += 1;
    if (this.#problems.length < limits.contributionProblemsMax) this.#problems.push(problem);
  }

  async store(batch: readonly Canonical[]): Promise<void> {
    checkStop(this.#signal);
    const hashes = batch.map((row) => row.hash);
    const known = await knownHashes(this.#client, this.#job.datanet.id, hashes);
    const fresh: Canonical[] = [];
    for (const row of batch) {
      if (known.has(row.hash)) this.#repeat(row);
      else fresh.push(row);
      known.add(row.hash);
    }
    const prepared = this.#preparer.prepare(fresh, this.#context);
    // Looked at when its turn comes.
    prepared.catch(() => {});
    await this.#writing;
    this.#writing = prepared.then((rows) => this.#write(rows));
    this.#writing.catch(() => {});
  }

  async #write(rows: readonly Prepared[]): Promise<void> {
    const alike = await this.#neighbours.of(rows);
    const numbers = await storeRows(this.#client, this.#context, rows, alike);
    await this.#neighbours.add(rows, numbers);
    numbers.forEach((seq, index) => {
      // The same in the batch before this one, or in another gateway's contribution.
      if (seq === null) this.#repeat(rows[index] as Prepared);
      else this.#rows += 1;
    });
    const { done, total, unit } = this.#reading;
    const told = {
      rows: this.#rows,
      refused: this.#refused + this.#reading.bad(),
      progress: { done: done(), total, unit },
    };
    if (!(await tellProgress(this.#client, this.#job.contribution.id, told))) throw new IngestStopped();
    // Whoever shares this process has a turn.
    await new Promise((resolve) => setImmediate(resolve));
  }

  #repeat(row: { line: number }): void {
    this.#duplicates += 1;
    const message = 'The same row is in this Datanet already; whoever contributed it first keeps the credit.';
    this.refuse({ line: row.line, field: null, rule: 'duplicate', message });
  }

  async settled(): Promise<void> {
    await this.#writing.catch(() => {});
  }

  async end(): Promise<IngestResult> {
    await this.#writing;
    await this.#neighbours.flush();
    const refused = this.#refused + this.#reading.bad();
    const problems = [...this.#reading.problems(), ...this.#problems].slice(0, limits.contributionProblemsMax);
    if (this.#rows > 0) return { rows: this.#rows, refused, problems };
    if (refused === 0) throw new IngestFailure('empty', 'There is nothing in it that could be a row.', problems);
    const message =
      this.#duplicates === refused
        ? `All ${refused} rows are in this Datanet already.`
        : `None of the ${refused} records became a row. ${problems[0]?.message ?? ''}`.trim();
    throw new IngestFailure('no_rows', message, problems);
  }
}

function given(examples: Numbered[]): Reading {
  return {
    bad: () => 0,
    problems: () => [],
    done: () => examples.length,
    total: examples.length,
    unit: 'rows',
    batches: (async function* () {
      yield examples;
    })(),
  };
}
