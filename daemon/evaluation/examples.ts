/** The examples of a data set as an evaluation uses them: a sample of the file's lines, and per example what is asked and what a good answer is. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { DaemonError } from '../errors.ts';
import { type GenerateRequestInput, type TrainingExample, type TrainingMessage, trainingExample } from '../protocol.ts';
import { seededSample } from './bootstrap.ts';
import { EVALUATION_LIMITS } from './limits.ts';

export interface Task {
  prompt: GenerateRequestInput['prompt'];
  /** What the people who made the data would have said. */
  reference: string;
  /** Namespace `item` of graders' templates. */
  item: Record<string, unknown>;
}

/**
 * Reads at most `examplesMax` examples of an NDJSON file of TrainingExample: all, or a seeded sample in the file's order.
 * @throws DaemonError if the file is empty, damaged, or has more than an evaluation takes.
 */
export async function readExamples(path: string, examplesMax: number | null, seed: number): Promise<TrainingExample[]> {
  let count = 0;
  for await (const line of linesOf(path)) if (line !== '') count += 1;
  if (count === 0) throw new DaemonError('invalid_request_error', 'the data set has no examples', 'dataset');
  const most = examplesMax ?? count;
  if (Math.min(most, count) > EVALUATION_LIMITS.examplesMax) {
    throw new DaemonError(
      'invalid_request_error',
      `the data set has ${count} examples, and an evaluation takes at most ${EVALUATION_LIMITS.examplesMax}; say how many to take`,
      'examplesMax',
    );
  }
  const chosen = new Set(seededSample(count, most, seed));
  const examples: TrainingExample[] = [];
  let index = -1;
  for await (const line of linesOf(path)) {
    if (line === '') continue;
    index += 1;
    if (chosen.has(index)) examples.push(parseLine(line, index));
  }
  return examples;
}

function linesOf(path: string): AsyncIterable<string> {
  return createInterface({ input: createReadStream(path, 'utf8'), crlfDelay: Number.POSITIVE_INFINITY });
}

function parseLine(line: string, index: number): TrainingExample {
  try {
    return trainingExample.parse(JSON.parse(line));
  } catch {
    throw new DaemonError('invalid_request_error', `example ${index + 1} of the data set is damaged`, 'dataset');
  }
}

/** What to ask, and what to compare the answer with; null where there is no answer to compare with. */
export function taskOf(example: TrainingExample): Task | null {
  if (example.kind === 'completion') {
    const { prompt, completion } = example;
    return {
      prompt: { kind: 'text', text: prompt },
      reference: completion.trim(),
      item: { prompt, completion, reference: completion.trim() },
    };
  }
  const last = lastAnswer(example);
  if (last === null) return null;
  const { messages, answer } = last;
  const reference = answerText(answer.content ?? '', callsOf(answer));
  const asked = messages.map(({ weight: _, ...message }) => message);
  const question = asked.findLast(({ role }) => role === 'user')?.content ?? '';
  const { tools, parallelToolCalls } = example;
  return {
    prompt: {
      kind: 'chat',
      messages: asked,
      ...(tools === undefined ? {} : { tools }),
      ...(parallelToolCalls === undefined ? {} : { parallelToolCalls }),
    },
    reference,
    item: {
      messages: asked,
      prompt: question,
      reference,
      ...(example.kind === 'preference' ? { rejected: example.rejected.content } : {}),
    },
  };
}

/** The last message that is trained against, and what comes before it. */
function lastAnswer(example: Exclude<TrainingExample, { kind: 'completion' }>) {
  if (example.kind === 'preference') return { messages: example.messages, answer: example.preferred };
  const at = example.messages.findLastIndex(({ role, weight }) => role === 'assistant' && weight !== 0);
  return at < 1 ? null : { messages: example.messages.slice(0, at), answer: example.messages[at] as TrainingMessage };
}

function callsOf(message: TrainingMessage): { name: string; arguments: string }[] {
  const calls = message.tool_calls;
  if (!Array.isArray(calls)) return [];
  return calls.map((call) => {
    const { name, arguments: given } = (call as { function?: { name?: unknown; arguments?: unknown } }).function ?? {};
    return { name: String(name ?? ''), arguments: typeof given === 'string' ? given : JSON.stringify(given ?? {}) };
  });
}

/** An answer as one text: what was said, then each tool call as a line of JSON with its arguments in one spelling. */
export function answerText(content: string, calls: { name: string; arguments: string }[]): string {
  const lines = calls.map((call) => JSON.stringify({ name: call.name, arguments: parsed(call.arguments) }));
  return [content.trim(), ...lines].filter((line) => line !== '').join('\n');
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
