import { randomBytes } from 'node:crypto';
import type { ParsedMessage } from '../../addon/types.ts';
import { JsonScan } from './json-scan.ts';
import type { NormalisedSchema } from './schema/normalise.ts';

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
  /** What the arguments of each tool are held to, in the order of `tools`. */
  parameters: NormalisedSchema[];
  required: boolean;
  /** What an answer in words is held to; null = any text. */
  responseSchema: NormalisedSchema | null;
  parallel: boolean;
}

export function plainTools(input: PlainToolsInput): PlainTools {
  const { messages, tools, parameters, required, parallel, responseSchema } = input;
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
        items: {
          anyOf: functions.map(({ name }, index) => call(name, parameters[index]?.schema ?? { type: 'object' })),
        },
        minItems: 1,
        maxItems: parallel ? CALLS_MAX : 1,
      },
    },
    required: ['tool_calls'],
    additionalProperties: false,
  };
  const response = {
    type: 'object',
    properties: { response: responseSchema?.schema ?? { type: 'string' } },
    required: ['response'],
    additionalProperties: false,
  };
  const choice = required
    ? 'Answer with {"tool_calls": [{"name": …, "arguments": {…}}]}.'
    : 'Answer with {"tool_calls": [{"name": …, "arguments": {…}}]} to call functions, or with {"response": "…"} to answer in words.';
  const text = `You can call these functions:\n${functions.map((f) => JSON.stringify(f)).join('\n')}\n${choice}`;
  return {
    messages: withSystem(messages.map(spoken), text),
    schema: JSON.stringify({
      ...(required ? calls : { anyOf: [calls, response] }),
      $defs: Object.assign({}, responseSchema?.definitions, ...parameters.map(({ definitions }) => definitions)),
    }),
  };
}

/**
 * Reads an answer in that form, whole or as far as it has come: a call is known once its name is, its arguments are given
 * as the model writes them. Null while nothing can be said, and for what is not in that form.
 * @param json the answer in words is JSON too (a response format was asked for), not a text in a JSON string
 */
export function plainToolsReader({ json }: { json: boolean }): (text: string) => ParsedMessage | null {
  return (text) => {
    const scan = new JsonScan(text);
    if (!scan.take('{')) return null;
    const key = scan.string();
    if (key === null || !key.whole || !scan.take(':')) return null;
    const nothing: ParsedMessage = { content: '', reasoningContent: '', toolCalls: [] };
    if (key.value === 'response') {
      const content = json ? scan.raw() : (scan.string()?.value ?? '');
      return { ...nothing, content };
    }
    if (key.value !== 'tool_calls' || !scan.take('[')) return null;
    do {
      const name = scan.take('{') && scan.string()?.value === 'name' && scan.take(':') ? scan.string() : null;
      if (name === null || !name.whole) break;
      const given = scan.take(',') && scan.string()?.value === 'arguments' && scan.take(':');
      const id = `call_${randomBytes(12).toString('hex')}`;
      nothing.toolCalls.push({ id, name: name.value, arguments: given ? scan.raw() : '' });
    } while (scan.take('}') && scan.take(','));
    return nothing;
  };
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
