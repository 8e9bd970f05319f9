import { randomBytes } from 'node:crypto';
import type { ParsedMessage } from '../../addon/types.ts';

/**
 * Tool calls for models whose chat template knows nothing of tools: the tools are described in the system message, and the
 * answer is one JSON object, either `{"tool_calls": [{"name", "arguments"}]}` or `{"response": text}`, which a grammar enforces.
 */
export interface PlainTools {
  messages: Record<string, unknown>[];
  /** JSON schema of the whole answer. */
  schema: string;
}

/** Calls of one answer at most, so that a small model ends at all. */
const CALLS_MAX = 8;

export interface PlainToolsInput {
  messages: Record<string, unknown>[];
  tools: Record<string, unknown>[];
  required: boolean;
  /** JSON schema of an answer in words; '' = any text. */
  responseSchema: string;
  parallel: boolean;
}

export function plainTools({ messages, tools, required, parallel, responseSchema }: PlainToolsInput): PlainTools {
  const functions = tools.map(functionOf);
  const call = (name: string, parameters: unknown) => ({
    type: 'object',
    properties: { name: { const: name }, arguments: parameters },
    required: ['name', 'arguments'],
    additionalProperties: false,
  });
  const calls = {
    type: 'object',
    properties: {
      tool_calls: {
        type: 'array',
        items: { anyOf: functions.map(({ name, parameters }) => call(name, parameters)) },
        minItems: 1,
        maxItems: parallel ? CALLS_MAX : 1,
      },
    },
    required: ['tool_calls'],
    additionalProperties: false,
  };
  const response = {
    type: 'object',
    properties: { response: responseSchema === '' ? { type: 'string' } : (JSON.parse(responseSchema) as unknown) },
    required: ['response'],
    additionalProperties: false,
  };
  const choice = required
    ? 'Answer with {"tool_calls": [{"name": …, "arguments": {…}}]}.'
    : 'Answer with {"tool_calls": [{"name": …, "arguments": {…}}]} to call functions, or with {"response": "…"} to answer in words.';
  const text = `You can call these functions:\n${functions.map((f) => JSON.stringify(f)).join('\n')}\n${choice}`;
  return {
    messages: withSystem(messages.map(spoken), text),
    schema: JSON.stringify(required ? calls : { anyOf: [calls, response] }),
  };
}

/** What an answer in that form says; null while it is not complete. */
export function parsePlainTools(text: string): ParsedMessage | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  const { tool_calls: calls, response } = (value ?? {}) as {
    tool_calls?: { name: string; arguments: unknown }[];
    response?: unknown;
  };
  if (response !== undefined) {
    const content = typeof response === 'string' ? response : JSON.stringify(response);
    return { content, reasoningContent: '', toolCalls: [] };
  }
  if (!Array.isArray(calls)) return null;
  const toolCalls = calls.map((call) => ({
    id: `call_${randomBytes(12).toString('hex')}`,
    name: call.name,
    arguments: JSON.stringify(call.arguments),
  }));
  return { content: '', reasoningContent: '', toolCalls };
}

function functionOf(tool: Record<string, unknown>): { name: string; description: string; parameters: unknown } {
  const f = (tool.function ?? {}) as { name?: string; description?: string; parameters?: unknown };
  return {
    name: f.name ?? '',
    description: f.description ?? '',
    parameters: f.parameters ?? { type: 'object', properties: {} },
  };
}

/** Calls and results of earlier turns in words that any template can render. */
function spoken(message: Record<string, unknown>): Record<string, unknown> {
  if (message.role === 'tool')
    return { role: 'user', content: `Result of the function: ${String(message.content ?? '')}` };
  if (!Array.isArray(message.tool_calls)) return message;
  const calls = (message.tool_calls as { function?: { name?: string; arguments?: string } }[]).map(
    ({ function: f }) => ({
      name: f?.name,
      arguments: readJson(f?.arguments ?? '{}'),
    }),
  );
  return { role: 'assistant', content: JSON.stringify({ tool_calls: calls }) };
}

function readJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function withSystem(messages: Record<string, unknown>[], text: string): Record<string, unknown>[] {
  const [first, ...rest] = messages;
  if (first !== undefined && (first.role === 'system' || first.role === 'developer')) {
    return [{ role: 'system', content: `${String(first.content ?? '')}\n\n${text}` }, ...rest];
  }
  return [{ role: 'system', content: text }, ...messages];
}
