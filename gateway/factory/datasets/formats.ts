/**
 * What a record means. OpenAI's three formats (chat, prompt/completion, preference), and as imports alpaca, ShareGPT and tables, which
 * all become chat unless `format: completion` asks for plain text.
 */
import type { TrainingExample } from '../../../daemon/protocol.ts';
import { messageOf, messagesOf, toolsOf } from './messages.ts';
import { type LineProblems, quoted, typeName } from './problems.ts';

export const FORMATS = ['chat', 'completion', 'preference', 'alpaca', 'sharegpt', 'table'] as const;
export type Format = (typeof FORMATS)[number];

/** Which column holds what. `messages`, `conversations`: columns that hold lists. */
export const COLUMN_ROLES = [
  'system',
  'prompt',
  'completion',
  'messages',
  'conversations',
  'instruction',
  'input',
  'output',
  'preferred',
  'non_preferred',
] as const;
export type ColumnRole = (typeof COLUMN_ROLES)[number];
export type Columns = Partial<Record<ColumnRole, string>>;

type Row = Record<string, unknown>;
/** In these pairs a table says question and answer. */
const TABLES: [prompt: string, completion: string][] = [
  ['question', 'answer'],
  ['input', 'output'],
  ['prompt', 'response'],
  ['query', 'response'],
  ['source', 'target'],
];

/** The format whose fields a record has; null: none. */
export function detectFormat(row: Row): Format | null {
  if ('messages' in row) return 'chat';
  if ('preferred_output' in row || 'preferred_completion' in row) return 'preference';
  if ('conversations' in row || 'conversation' in row) return 'sharegpt';
  if ('prompt' in row && 'completion' in row) return 'completion';
  if ('instruction' in row && 'output' in row) return 'alpaca';
  if ('input' in row && ('non_preferred_output' in row || 'non_preferred_completion' in row)) return 'preference';
  if (TABLES.some(([prompt, completion]) => prompt in row && completion in row)) return 'table';
  return null;
}

/** The record with its columns under the names the formats know. */
export function renamed(row: Row, columns: Columns, format: Format | null): Row {
  const get = (role: ColumnRole) => {
    const name = columns[role];
    return name === undefined ? undefined : row[name];
  };
  const out: Row = { ...row };
  for (const role of COLUMN_ROLES) {
    if (columns[role] !== undefined) out[role] = get(role);
  }
  if (columns.preferred !== undefined || columns.non_preferred !== undefined) {
    const assistant = (value: unknown) => (typeof value === 'string' ? [{ role: 'assistant', content: value }] : value);
    const input = columns.messages === undefined ? [{ role: 'user', content: get('prompt') }] : get('messages');
    out.input = { messages: withSystem(get('system'), Array.isArray(input) ? input : [input]) };
    out.preferred_output = assistant(get('preferred'));
    out.non_preferred_output = assistant(get('non_preferred'));
  } else if (columns.prompt !== undefined && columns.completion !== undefined && format !== 'completion') {
    delete out.messages;
    return {
      question: get('prompt'),
      answer: get('completion'),
      ...(columns.system === undefined ? {} : { system: get('system') }),
    };
  }
  return out;
}

/** The format that mapped columns stand for. */
export function formatOfColumns(columns: Columns, format: Format | null): Format | null {
  if (format !== null && format !== 'table') return format;
  if (columns.preferred !== undefined) return 'preference';
  if (columns.messages !== undefined) return 'chat';
  if (columns.conversations !== undefined) return 'sharegpt';
  if (columns.instruction !== undefined) return 'alpaca';
  if (columns.prompt !== undefined) return 'table';
  return format;
}

function withSystem(system: unknown, messages: unknown[]): unknown[] {
  return typeof system === 'string' && system !== '' ? [{ role: 'system', content: system }, ...messages] : messages;
}

function text(row: Row, field: string, at: LineProblems, empty: 'allowed' | 'refused'): string | null {
  const value = row[field];
  if (value === undefined || value === null) {
    at.error(field, 'missing_field', `\`${field}\` is missing.`);
    return null;
  }
  if (typeof value === 'number' || typeof value === 'boolean') return String(value);
  if (typeof value !== 'string') {
    at.error(field, 'data_type', `\`${field}\` must be a string, found ${typeName(value)}.`);
    return null;
  }
  if (empty === 'refused' && value.trim() === '') {
    at.error(field, 'missing_content', `\`${field}\` is empty.`);
    return null;
  }
  return value;
}

/** Lists that came as a string of JSON, as in tables. */
function listOf(value: unknown): unknown {
  if (typeof value !== 'string') return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

/** A cell of a table for what need not be there; in JSON it is what it is. */
function optional(value: unknown): unknown {
  return value === '' ? undefined : listOf(value);
}

function chat(row: Row, at: LineProblems): TrainingExample | null {
  const messages = messagesOf(listOf(row.messages), 'messages', at);
  const tools = toolsOf({ tools: optional(row.tools), functions: optional(row.functions) }, '', at);
  const parallel = optional(row.parallel_tool_calls);
  if (parallel !== undefined && parallel !== null && typeof parallel !== 'boolean')
    at.error('parallel_tool_calls', 'data_type', '`parallel_tool_calls` must be true or false.');
  if (messages === null) return null;
  const answers = messages.filter(({ role }) => role === 'assistant');
  if (answers.length === 0) {
    const message = 'At least one message with the role assistant must be in the example; it is what is learned.';
    at.error('messages', 'example_missing_assistant_message', message);
  } else if (answers.every(({ weight }) => weight === 0)) {
    at.error('messages', 'no_trained_message', 'Every assistant message has weight 0, so nothing would be learned.');
  } else if (messages.at(-1)?.role !== 'assistant') {
    at.warn(
      'messages',
      'last_not_assistant',
      'The last message is not from the assistant; what follows the last answer is not learned.',
    );
  }
  return {
    kind: 'chat',
    messages,
    ...(tools === undefined ? {} : { tools }),
    ...(typeof parallel === 'boolean' ? { parallelToolCalls: parallel } : {}),
  };
}

function completion(row: Row, at: LineProblems): TrainingExample | null {
  const prompt = text(row, 'prompt', at, 'allowed');
  const answer = text(row, 'completion', at, 'refused');
  return prompt === null || answer === null ? null : { kind: 'completion', prompt, completion: answer };
}

function preferenceSide(row: Row, names: readonly string[], at: LineProblems) {
  const name = names.find((one) => one in row) ?? (names[0] as string);
  const value = listOf(row[name]);
  if (value === undefined || value === null) {
    at.error(name, 'missing_field', `\`${name}\` is missing.`);
    return null;
  }
  const list = Array.isArray(value) ? value : [value];
  if (list.length !== 1) {
    at.error(name, 'invalid_preference', `\`${name}\` must hold exactly one message, found ${list.length}.`);
    return null;
  }
  const message = messageOf(list[0], `${name}[0]`, at);
  if (message !== null && message.role !== 'assistant') {
    at.error(
      `${name}[0].role`,
      'invalid_preference',
      `\`${name}[0]\` must be from the assistant, found ${quoted(message.role)}.`,
    );
    return null;
  }
  return message;
}

function preference(row: Row, at: LineProblems): TrainingExample | null {
  const input = listOf(row.input);
  if (typeof input !== 'object' || input === null || Array.isArray(input)) {
    at.error('input', 'invalid_preference', `\`input\` must be an object with \`messages\`, found ${typeName(input)}.`);
    return null;
  }
  const given = input as Row;
  const messages = messagesOf(given.messages, 'input.messages', at);
  const tools = toolsOf(given, 'input.', at);
  const preferred = preferenceSide(row, ['preferred_output', 'preferred_completion'], at);
  const rejected = preferenceSide(row, ['non_preferred_output', 'non_preferred_completion'], at);
  if (messages === null || preferred === null || rejected === null) return null;
  if (messages.at(-1)?.role === 'assistant')
    at.error(
      'input.messages',
      'invalid_preference',
      'The last message of `input.messages` must not be from the assistant.',
    );
  if (JSON.stringify(preferred) === JSON.stringify(rejected))
    at.error('preferred_output', 'invalid_preference', 'Both answers are the same, so there is nothing to prefer.');
  const parallel = given.parallel_tool_calls;
  return {
    kind: 'preference',
    messages,
    preferred,
    rejected,
    ...(tools === undefined ? {} : { tools }),
    ...(typeof parallel === 'boolean' ? { parallelToolCalls: parallel } : {}),
  };
}

function alpaca(row: Row, at: LineProblems): TrainingExample | null {
  const instruction = text(row, 'instruction', at, 'refused');
  const output = text(row, 'output', at, 'refused');
  if (instruction === null || output === null) return null;
  const input = typeof row.input === 'string' && row.input.trim() !== '' ? `\n\n${row.input}` : '';
  const history = Array.isArray(row.history) ? row.history : [];
  const turns: unknown[] = [];
  for (const [index, turn] of history.entries()) {
    if (!Array.isArray(turn) || turn.length !== 2 || turn.some((part) => typeof part !== 'string')) {
      at.error(`history[${index}]`, 'data_type', `\`history[${index}]\` must be a question and an answer.`);
      return null;
    }
    turns.push({ role: 'user', content: turn[0] as string }, { role: 'assistant', content: turn[1] as string });
  }
  const messages = withSystem(row.system, [
    ...turns,
    { role: 'user', content: instruction + input },
    { role: 'assistant', content: output },
  ]);
  return chat({ messages }, at);
}

const SHAREGPT_ROLES: Record<string, string> = {
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  chatgpt: 'assistant',
  bot: 'assistant',
  bing: 'assistant',
  bard: 'assistant',
  assistant: 'assistant',
  system: 'system',
};

function sharegpt(row: Row, at: LineProblems): TrainingExample | null {
  const name = 'conversations' in row ? 'conversations' : 'conversation';
  const turns = listOf(row[name]);
  if (!Array.isArray(turns) || turns.length === 0) {
    at.error(name, 'missing_messages_list', `\`${name}\` must be a list that is not empty, found ${typeName(turns)}.`);
    return null;
  }
  const messages: unknown[] = [];
  for (const [index, turn] of turns.entries()) {
    const where = `${name}[${index}]`;
    const { from, role, value, content, weight } = (typeof turn === 'object' && turn !== null ? turn : {}) as Row;
    const said = from ?? role;
    const known = typeof said === 'string' ? SHAREGPT_ROLES[said.toLowerCase()] : undefined;
    if (known === undefined) {
      const message = `\`${where}.from\` is ${quoted(said)}; it must be one of ${Object.keys(SHAREGPT_ROLES).join(', ')}. For tool calls use the chat format.`;
      at.error(`${where}.from`, 'unrecognized_role', message);
      return null;
    }
    messages.push({ role: known, content: value ?? content, ...(weight === undefined ? {} : { weight }) });
  }
  const first = messages[0] as { role: string };
  return chat({ messages: first.role === 'system' ? messages : withSystem(row.system, messages) }, at);
}

function table(row: Row, at: LineProblems): TrainingExample | null {
  const pair = TABLES.find(([prompt, answer]) => prompt in row && answer in row) ?? ['prompt', 'completion'];
  const prompt = text(row, pair[0], at, 'refused');
  const answer = text(row, pair[1], at, 'refused');
  if (prompt === null || answer === null) return null;
  return chat(
    {
      messages: withSystem(row.system, [
        { role: 'user', content: prompt },
        { role: 'assistant', content: answer },
      ]),
    },
    at,
  );
}

const MAKE: Record<Format, (row: Row, at: LineProblems) => TrainingExample | null> = {
  chat,
  completion,
  preference,
  alpaca,
  sharegpt,
  table,
};

/** The example a record stands for; null where an error was told. */
export function exampleOf(row: Row, format: Format, at: LineProblems): TrainingExample | null {
  const example = MAKE[format](row, at);
  return at.bad ? null : example;
}
