/** Reads a contribution into rows: records → examples → without exact repetitions → judged, compared, signed → stored. */
import type { Client } from '@libsql/client';
import type { ContributionProblem } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import { loadLanguages } from '../validation/validate.ts';
import { checkStop, IngestFailure, type IngestJob, type IngestResult, IngestStopped } from './messages.ts';
import { likenesses } from './near-duplicates.ts';
import { type Canonical, canonical, prepare } from './prepare.ts';
import { type Numbered, openRecords, type Reading } from './records.ts';
import { knownHashes, storeRows, tellProgress } from './store.ts';

/** @throws IngestFailure; IngestStopped. Either way, what was stored by then is for the caller to remove. */
export async function ingest(job: IngestJob, deps: { client: Client }): Promise<IngestResult> {
  await loadLanguages();
  const reading =
    job.source.type === 'file' ? await openRecords(job.source, job.options, job.stop) : given(job.source.examples);
  const run = new Ingestion(job, reading, deps.client);
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
  return run.end();
}

class Ingestion {
  readonly #job: IngestJob;
  readonly #reading: Reading;
  readonly #client: Client;
  readonly #problems: ContributionProblem[] = [];
  #rows = 0;
  #refused = 0;
  #duplicates = 0;

  constructor(job: IngestJob, reading: Reading, client: Client) {
    this.#job = job;
    this.#reading = reading;
    this.#client = client;
  }

  refuse(problem: ContributionProblem): void {
    this.#refused += 1;
    if (this.#problems.length < limits.contributionProblemsMax) this.#problems.push(problem);
  }

  async store(batch: readonly Canonical[]): Promise<void> {
    checkStop(this.#job.stop);
    const { datanet, contribution, source, privateKey } = this.#job;
    const known = await knownHashes(
      this.#client,
      datanet.id,
      batch.map((row) => row.hash),
    );
    const fresh: Canonical[] = [];
    for (const row of batch) {
      if (known.has(row.hash)) this.#repeat(row);
      else fresh.push(row);
      known.add(row.hash);
    }
    const rows = fresh.map((row) => prepare(row, datanet));
    const alike = await likenesses(this.#client, rows);
    const generatedBy = source.type === 'generated' ? source.model : null;
    const numbers = await storeRows(this.#client, { datanet, contribution, privateKey, generatedBy }, rows, alike);
    numbers.forEach((seq, index) => {
      if (seq === null) this.#repeat(rows[index] as Canonical);
      else this.#rows += 1;
    });
    const { done, total, unit } = this.#reading;
    const told = {
      rows: this.#rows,
      refused: this.#refused + this.#reading.bad(),
      progress: { done: done(), total, unit },
    };
    if (!(await tellProgress(this.#client, contribution.id, told))) throw new IngestStopped();
    // Whoever shares this thread has a turn.
    await new Promise((resolve) => setImmediate(resolve));
  }

  #repeat(row: Canonical): void {
    this.#duplicates += 1;
    const message = 'The same row is in this Datanet already; whoever contributed it first keeps the credit.';
    this.refuse({ line: row.line, field: null, rule: 'duplicate', message });
  }

  end(): IngestResult {
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
