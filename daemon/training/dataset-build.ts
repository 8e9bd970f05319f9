/** Reads a dataset once, in a worker: checks each line, tokenises it, writes `tokens.bin`, and counts. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import type { Vocabulary } from '../../addon/types.ts';
import { DaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { type Dataset, type TrainingExample, trainingExample } from './protocol.ts';
import { type TokenFileSize, TokenFileWriter } from './token-file.ts';
import { ExampleError, tokeniseExample } from './tokenise.ts';

export interface BuiltDataset {
  dataset: Omit<Dataset, 'digest'>;
  size: TokenFileSize;
}

export interface BuildOptions {
  /** NDJSON of TrainingExample. */
  source: string;
  /** `tokens.bin`, which must not be there. */
  target: string;
  vocabulary: Vocabulary;
  contextTokens: number;
}

/** @throws DaemonError `dataset_invalid`, naming line and field */
export async function buildDataset({ source, target, vocabulary, contextTokens }: BuildOptions): Promise<BuiltDataset> {
  const writer = new TokenFileWriter(target);
  const lengths: number[] = [];
  const seen = new Set<string>();
  const problems: Dataset['problems'] = [];
  const counts = { bytes: 0, examples: 0, tokens: 0, trainedTokens: 0, truncated: 0, duplicates: 0 };
  let kind: TrainingExample['kind'] | null = null;
  try {
    for await (const { text, line, bytes } of linesOf(source)) {
      counts.bytes += bytes;
      if (text.trim() === '') continue;
      const example = readExample(text, line);
      kind ??= example.kind;
      if (example.kind !== kind)
        throw invalid(
          `line ${line} is of kind ${example.kind}, but the lines before are of kind ${kind}; send one kind at a time`,
        );
      const number = counts.examples++;
      if (counts.examples > TRAINING_LIMITS.examplesMax)
        throw invalid(`it has more than ${TRAINING_LIMITS.examplesMax} examples; train on a part of them`);
      try {
        const hash = createHash('sha256').update(JSON.stringify(example)).digest('base64').slice(0, 16);
        if (seen.has(hash)) counts.duplicates += 1;
        else seen.add(hash);
        const sequences = tokeniseExample(example, vocabulary);
        const longest = Math.max(...sequences.map(({ tokens }) => tokens.length));
        lengths.push(longest);
        if (longest > contextTokens) counts.truncated += 1;
        for (const sequence of sequences) {
          counts.tokens += sequence.tokens.length;
          for (const [from, to] of sequence.spans) counts.trainedTokens += to - from;
          writer.add(number, sequence, contextTokens);
        }
        const within = sequences.filter(({ spans }) => spans.some(([from]) => from < contextTokens));
        if (within.length < (kind === 'preference' ? 2 : 1))
          throw new ExampleError(
            `it has ${longest} tokens, and what there is to learn comes after the ${contextTokens} that fit the model's context; shorten its prompt`,
          );
      } catch (error) {
        // JSON that is nested beyond the stack.
        const deep = error instanceof RangeError ? 'it is nested too deeply' : null;
        if (deep === null && !(error instanceof ExampleError)) throw error;
        if (problems.length < TRAINING_LIMITS.problemsMax)
          problems.push({ example: number + 1, message: deep ?? (error as Error).message });
      }
    }
    if (kind === null) throw invalid('it has no examples');
    const size = writer.end();
    return { dataset: { ...counts, kind, ...histogramOf(lengths), problems }, size };
  } catch (error) {
    try {
      writer.abort();
    } catch {
      // It was closed already.
    }
    throw error;
  }
}

function readExample(text: string, line: number): TrainingExample {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw invalid(`line ${line} is not JSON`);
  }
  const parsed = trainingExample.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw invalid(`line ${line}: ${issue?.path.join('.') || 'the example'}: ${issue?.message}`);
}

function histogramOf(lengths: readonly number[]): Pick<Dataset, 'longest' | 'histogram'> {
  const longest = lengths.reduce((most, length) => Math.max(most, length), 0);
  const width = Math.max(1, Math.ceil((longest + 1) / TRAINING_LIMITS.histogramBins));
  const counts = new Array<number>(Math.floor(longest / width) + 1).fill(0);
  for (const length of lengths) counts[Math.floor(length / width)]! += 1;
  return { longest, histogram: { width, counts } };
}

async function* linesOf(path: string): AsyncGenerator<{ text: string; line: number; bytes: number }> {
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const decode = (bytes: Uint8Array, line: number): string => {
    try {
      return decoder.decode(bytes);
    } catch {
      throw invalid(`line ${line} is not valid UTF-8`);
    }
  };
  let parts: Buffer[] = [];
  let held = 0;
  let line = 1;
  const hold = (part: Buffer) => {
    parts.push(part);
    held += part.byteLength;
    if (held > TRAINING_LIMITS.lineBytesMax)
      throw invalid(`line ${line} has more than ${TRAINING_LIMITS.lineBytesMax} bytes`);
  };
  for await (const chunk of createReadStream(path, { highWaterMark: 256 * 1024 }) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, from)) {
      hold(chunk.subarray(from, at));
      yield { text: decode(Buffer.concat(parts), line), line, bytes: held + 1 };
      parts = [];
      held = 0;
      line += 1;
      from = at + 1;
    }
    if (from < chunk.byteLength) hold(chunk.subarray(from));
  }
  if (held > 0) yield { text: decode(Buffer.concat(parts), line), line, bytes: held };
}

function invalid(message: string): DaemonError {
  return new DaemonError('dataset_invalid', `the dataset cannot be used: ${message}`);
}
