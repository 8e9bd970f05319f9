/**
 * One epoch of a mixture, as NDJSON for the daemon. The sources are read once, one after the other, into a scratch file; the epoch's order
 * is drawn over their numbers alone; then its lines are read back in that order. In memory are 12 bytes an example, and one portion of texts.
 */
import { createHash, type Hash } from 'node:crypto';
import { limits } from '../../limits.ts';
import type { FileStorage, Scratch } from '../files/storage.ts';
import { type Selection, selectionOf, sourceOfExample } from './selection.ts';
import type { Example } from './sources.ts';

/** What of a source went into the data, in the order in which it was sent. */
export interface SentSource {
  examples: number;
  /** SHA-256 over the examples' hashes. */
  digest: string;
}

const HASH_BYTES = 32;
const WRITE_BYTES = 1024 * 1024;

/** Where each example ends in the scratch file. */
class Ends {
  #values = new Float64Array(1024);
  count = 0;

  push(end: number): void {
    if (this.count === this.#values.length) {
      const larger = new Float64Array(2 * this.count);
      larger.set(this.#values);
      this.#values = larger;
    }
    this.#values[this.count++] = end;
  }

  startOf(example: number): number {
    return example === 0 ? 0 : (this.#values[example - 1] as number);
  }

  endOf(example: number): number {
    return this.#values[example] as number;
  }
}

export class Epoch {
  readonly selection: Selection;
  readonly sizes: number[];
  readonly #scratch: Scratch;
  readonly #ends: Ends;
  readonly #sums: Hash[];
  #sent = 0;

  private constructor(scratch: Scratch, ends: Ends, sizes: number[], selection: Selection) {
    this.#scratch = scratch;
    this.#ends = ends;
    this.sizes = sizes;
    this.selection = selection;
    this.#sums = sizes.map(() => createHash('sha256'));
  }

  /** @param sources in the order of the mixture; @throws RangeError with the reason in words when there is no such epoch */
  static async of(
    storage: FileStorage,
    sources: { weight: number; bytes: number; examples: AsyncGenerator<Example[]> }[],
    seed: number,
  ): Promise<Epoch> {
    const scratch = await storage.scratch(sources.reduce((sum, { bytes }) => sum + bytes, 0));
    try {
      const ends = new Ends();
      const sizes: number[] = [];
      for (const { examples } of sources) {
        const before = ends.count;
        await copy(examples, scratch, ends);
        sizes.push(ends.count - before);
        if (ends.count > limits.datasetExamplesMax)
          throw new RangeError(`The sources have more than ${limits.datasetExamplesMax} examples together.`);
      }
      const empty = sizes.indexOf(0);
      if (empty !== -1) throw new RangeError(`Source ${empty + 1} of the mixture has no examples.`);
      const weights = sources.map(({ weight }) => weight);
      const selection = selectionOf(sizes, weights, seed);
      const none = selection.shares.indexOf(0);
      if (none !== -1)
        throw new RangeError(
          `Source ${none + 1} of the mixture would give none of the ${ends.count} examples of an epoch. Raise its weight, or leave it out.`,
        );
      return new Epoch(scratch, ends, sizes, selection);
    } catch (error) {
      await scratch.drop();
      throw error;
    }
  }

  /** Once. */
  async *lines(): AsyncGenerator<Uint8Array> {
    const { order, starts } = this.selection;
    for (let at = 0; at < order.length; at += limits.mixtureReadRows) {
      const parts: Uint8Array[] = [];
      for (const example of order.subarray(at, at + limits.mixtureReadRows)) {
        const start = this.#ends.startOf(example);
        const record = this.#scratch.read(start, this.#ends.endOf(example) - start);
        this.#sums[sourceOfExample(starts, example)]?.update(record.subarray(0, HASH_BYTES));
        parts.push(record.subarray(HASH_BYTES));
      }
      this.#sent += parts.length;
      yield Buffer.concat(parts);
      // Nothing above waits for anything, so others are let in here.
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** After the last line was sent. */
  sources(): SentSource[] {
    if (this.#sent !== this.selection.order.length) throw new Error('an epoch was not sent to its end');
    return this.#sums.map((sum, position) => ({
      examples: this.selection.shares[position] as number,
      digest: sum.digest('hex'),
    }));
  }

  drop(): Promise<void> {
    return this.#scratch.drop();
  }
}

/** Hash and line of each example, one behind the other. */
async function copy(examples: AsyncGenerator<Example[]>, scratch: Scratch, ends: Ends): Promise<void> {
  let parts: Uint8Array[] = [];
  let held = 0;
  let end = scratch.bytes;
  const write = async () => {
    await scratch.write(Buffer.concat(parts));
    parts = [];
    held = 0;
  };
  for await (const batch of examples) {
    for (const { line, hash } of batch) {
      const text = Buffer.from(`${line}\n`);
      parts.push(hash, text);
      held += hash.byteLength + text.byteLength;
      end += hash.byteLength + text.byteLength;
      ends.push(end);
      if (held >= WRITE_BYTES) await write();
    }
    if (ends.count > limits.datasetExamplesMax) break;
  }
  if (held > 0) await write();
}

/** A single source, in its own order: nothing is drawn, nothing is held. */
export class Straight {
  readonly #examples: AsyncGenerator<Example[]>;
  readonly #sum = createHash('sha256');
  #count = 0;
  #ended = false;

  constructor(examples: AsyncGenerator<Example[]>) {
    this.#examples = examples;
  }

  /** Once. */
  async *lines(): AsyncGenerator<Uint8Array> {
    for await (const batch of this.#examples) {
      for (const { hash } of batch) this.#sum.update(hash);
      this.#count += batch.length;
      yield Buffer.from(batch.map(({ line }) => `${line}\n`).join(''));
    }
    this.#ended = true;
  }

  sources(): SentSource[] {
    if (!this.#ended) throw new Error('a data set was not sent to its end');
    return [{ examples: this.#count, digest: this.#sum.digest('hex') }];
  }
}
