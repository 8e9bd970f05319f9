/**
 * Tokenised examples on disk: `tokens.bin` holds all tokens, then a record per sequence, then the trained spans, all as
 * little-endian int32. The records stay in memory (28 bytes a sequence); tokens are read when they are computed.
 */
import { closeSync, fstatSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import type { TrainingRows } from '../../addon/types.ts';
import type { Sequence, Span } from './tokenise.ts';

/** example, first token, tokens, first span, spans. */
const RECORD = 5;
const BUFFER_TOKENS = 256 * 1024;

export interface TokenFileSize {
  tokens: number;
  sequences: number;
  spans: number;
}

export class TokenFileWriter {
  private readonly file: number;
  private buffer = new Int32Array(BUFFER_TOKENS);
  private filled = 0;
  private at = 0;
  private tokens = 0;
  private readonly records = new IntList();
  private readonly spans = new IntList();

  constructor(path: string) {
    this.file = openSync(path, 'wx', 0o600);
  }

  /** `tokensMax`: what comes after is not kept. */
  add(example: number, { tokens, spans }: Sequence, tokensMax: number): void {
    const length = Math.min(tokens.length, tokensMax);
    const kept = cut(spans, length);
    this.records.push(example, this.tokens, length, this.spans.length / 2, kept.length);
    for (const [from, to] of kept) this.spans.push(from, to);
    this.write(tokens.subarray(0, length));
    this.tokens += length;
  }

  end(): TokenFileSize {
    this.write(this.records.values());
    this.write(this.spans.values());
    this.flush();
    fsyncSync(this.file);
    closeSync(this.file);
    return { tokens: this.tokens, sequences: this.records.length / RECORD, spans: this.spans.length / 2 };
  }

  abort(): void {
    closeSync(this.file);
  }

  private write(values: Int32Array): void {
    for (let from = 0; from < values.length; ) {
      const part = values.subarray(from, from + BUFFER_TOKENS - this.filled);
      this.buffer.set(part, this.filled);
      this.filled += part.length;
      from += part.length;
      if (this.filled === BUFFER_TOKENS) this.flush();
    }
  }

  private flush(): void {
    const bytes = new Uint8Array(this.buffer.buffer, 0, this.filled * 4);
    for (let from = 0; from < bytes.byteLength; )
      from += writeSync(this.file, bytes, from, bytes.byteLength - from, this.at + from);
    this.at += bytes.byteLength;
    this.filled = 0;
  }
}

/** Spans within the first `length` tokens. */
export function cut(spans: readonly Span[], length: number): Span[] {
  return spans.filter(([from]) => from < length).map(([from, to]) => [from, Math.min(to, length)]);
}

export class TokenFile {
  readonly sequences: number;
  private readonly file: number;
  private readonly records: Int32Array;
  private readonly spanTable: Int32Array;

  /** @throws Error if the file is not the one that was written */
  constructor(path: string, size: TokenFileSize) {
    this.file = openSync(path, 'r');
    try {
      const expected = 4 * (size.tokens + RECORD * size.sequences + 2 * size.spans);
      if (fstatSync(this.file).size !== expected) throw new Error(`${path} has not the size that it was written with`);
      this.sequences = size.sequences;
      this.records = this.ints(size.tokens, RECORD * size.sequences);
      this.spanTable = this.ints(size.tokens + RECORD * size.sequences, 2 * size.spans);
    } catch (error) {
      closeSync(this.file);
      throw error;
    }
  }

  close(): void {
    closeSync(this.file);
  }

  example(sequence: number): number {
    return this.records[sequence * RECORD] as number;
  }

  /** Tokens, at most `tokensMax`. */
  length(sequence: number, tokensMax: number): number {
    return Math.min(this.records[sequence * RECORD + 2] as number, tokensMax);
  }

  spans(sequence: number, tokensMax: number): Span[] {
    const first = this.records[sequence * RECORD + 3] as number;
    const count = this.records[sequence * RECORD + 4] as number;
    const all = Array.from({ length: count }, (_, i): Span => {
      const at = (first + i) * 2;
      return [this.spanTable[at] as number, this.spanTable[at + 1] as number];
    });
    return cut(all, tokensMax);
  }

  /** Tokens that count in the loss. */
  trained(sequence: number, tokensMax: number): number {
    return this.spans(sequence, tokensMax).reduce((sum, [from, to]) => sum + to - from, 0);
  }

  /** These sequences one after the other, as the trainer takes them. */
  rows(sequences: readonly number[], tokensMax: number): TrainingRows {
    const lengths = sequences.map((sequence) => this.length(sequence, tokensMax));
    const total = lengths.reduce((sum, length) => sum + length, 0);
    const tokens = new Int32Array(total);
    const weights = new Float32Array(total);
    const starts = new Int32Array(sequences.length + 1);
    let at = 0;
    for (const [i, sequence] of sequences.entries()) {
      const length = lengths[i] as number;
      tokens.set(this.ints((this.records[sequence * RECORD + 1] as number) >>> 0, length), at);
      // The row before a token predicts it.
      for (const [from, to] of this.spans(sequence, tokensMax)) weights.fill(1, at + from - 1, at + to - 1);
      at += length;
      starts[i + 1] = at;
    }
    return { tokens, weights, starts };
  }

  private ints(first: number, count: number): Int32Array {
    const values = new Int32Array(count);
    const bytes = new Uint8Array(values.buffer);
    for (let got = 0; got < bytes.byteLength; ) {
      const read = readSync(this.file, bytes, got, bytes.byteLength - got, first * 4 + got);
      if (read === 0) throw new Error('the tokenised dataset became shorter while it was read');
      got += read;
    }
    return values;
  }
}

/** Grows as it is filled; a plain array of numbers would take twice the memory and more. */
class IntList {
  length = 0;
  private data = new Int32Array(1024);

  push(...values: number[]): void {
    if (this.length + values.length > this.data.length) {
      const larger = new Int32Array(this.data.length * 2);
      larger.set(this.data);
      this.data = larger;
    }
    for (const value of values) this.data[this.length++] = value;
  }

  values(): Int32Array {
    return this.data.subarray(0, this.length);
  }
}
