/** The E2E restaurant data as tokens of our own tokenizer, for both sides alike. */
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { ModelInfo, Vocabulary } from '../../../addon/index.ts';
import { TARGETS } from '../../../addon/index.ts';
import { seededRandom } from '../random.ts';
import { projectFolder } from '../report.ts';

export interface Example {
  tokens: number[];
  /** The first so many tokens are the prompt. */
  prompt: number;
}

export interface TrainingData {
  examples: Example[];
  validation: Example[];
}

/** One meaning representation and all that people wrote for it. */
export interface Task {
  meaning: string;
  references: string[];
}

/** RFC 4180, with a header line; columns by name. */
export function parseCsv(text: string): Record<string, string>[] {
  const lines: string[][] = [[]];
  const cell = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/gy;
  for (let match = cell.exec(text); match !== null; match = cell.exec(text)) {
    (lines.at(-1) as string[]).push(match[1]?.replaceAll('""', '"') ?? match[2] ?? '');
    if (match[3] === '') break;
    if (match[3] !== ',') lines.push([]);
  }
  const [header = [], ...rows] = lines.filter((line) => line.length > 1 || line[0] !== '');
  return rows.map((row) => Object.fromEntries(header.map((name, i) => [name, row[i] ?? ''])));
}

/** Where the E2E files lie, or undefined with the sentence to print. */
export function dataFolder(given?: string): string {
  return given ?? process.env.MODELFACTORY_BENCH_DATA ?? path.join(projectFolder, '..', 'shared', 'data');
}

export function readPairs(file: string): { meaning: string; reference: string }[] {
  return parseCsv(readFileSync(file, 'utf8')).map((row) => ({ meaning: row.mr ?? '', reference: row.ref ?? '' }));
}

export function tasksOf(pairs: readonly { meaning: string; reference: string }[]): Task[] {
  const tasks = new Map<string, string[]>();
  for (const { meaning, reference } of pairs) {
    const known = tasks.get(meaning);
    if (known) known.push(reference);
    else tasks.set(meaning, [reference]);
  }
  return [...tasks].map(([meaning, references]) => ({ meaning, references }));
}

export function promptTokens(vocabulary: Vocabulary, meaning: string): Int32Array {
  const { prompt } = vocabulary.chatPrompt({
    messagesJson: JSON.stringify([{ role: 'user', content: `Describe the restaurant: ${meaning}` }]),
    toolsJson: '',
    toolChoice: 'none',
    parallelToolCalls: false,
    jsonSchema: '',
  });
  return vocabulary.tokenize(prompt, { special: true, addBos: vocabulary.addBos });
}

export function encode(vocabulary: Vocabulary, meaning: string, reference: string): Example {
  const prompt = promptTokens(vocabulary, meaning);
  const answer = vocabulary.tokenize(reference, { special: false, addBos: false });
  return { tokens: [...prompt, ...answer, vocabulary.eos], prompt: prompt.length };
}

export function shuffled<T>(items: readonly T[], seed: number): T[] {
  const random = seededRandom(seed);
  const list = [...items];
  for (let i = list.length - 1; i > 0; i--) {
    const k = random.integer(0, i + 1);
    [list[i], list[k]] = [list[k] as T, list[i] as T];
  }
  return list;
}

/** Every A as PEFT makes it (Kaiming-uniform with a = √5, that is U(−1/√in, 1/√in)), in a float32 file. B is 0. */
export function writeInitialA(file: string, info: ModelInfo, rank: number, seed: number): void {
  const random = seededRandom(seed);
  const parts: Buffer[] = [];
  for (let layer = 0; layer < info.layers; layer++) {
    for (const target of TARGETS) {
      const width = info.targets[target].in;
      const bound = 1 / Math.sqrt(width);
      const a = Float32Array.from({ length: rank * width }, () => (2 * random.next() - 1) * bound);
      parts.push(Buffer.from(a.buffer, a.byteOffset, a.byteLength));
    }
  }
  writeFileSync(file, Buffer.concat(parts));
}
