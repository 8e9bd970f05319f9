/** The rules for chat messages of a training example, and the messages as the daemon takes them: content reduced to text. */
import type { TrainingMessage } from '../../../daemon/protocol.ts';
import { isRecord } from './json-records.ts';
import { type LineProblems, quoted, typeName } from './problems.ts';

const ROLES = ['system', 'developer', 'user', 'assistant', 'tool', 'function'] as const;
const KNOWN = new Set([
  'role',
  'content',
  'name',
  'weight',
  'function_call',
  'tool_calls',
  'tool_call_id',
  'refusal',
  'reasoning_content',
]);

function textOf(content: unknown, field: string, at: LineProblems): string | null | undefined {
  if (content === null || content === undefined) return null;
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) {
    at.error(
      field,
      'invalid_content',
      `\`${field}\` must be a string or a list of text parts, found ${typeName(content)}.`,
    );
    return undefined;
  }
  let text = '';
  for (const [index, part] of content.entries()) {
    const where = `${field}[${index}]`;
    if (!isRecord(part) || typeof part.type !== 'string') {
      at.error(where, 'invalid_content', `\`${where}\` must be an object with a \`type\`.`);
      return undefined;
    }
    if (part.type === 'refusal' && typeof part.refusal === 'string') text += part.refusal;
    else if (part.type !== 'text') {
      at.error(
        where,
        'unsupported_content',
        `\`${where}\` is of type ${quoted(part.type)}; only text can be trained on.`,
      );
      return undefined;
    } else if (typeof part.text !== 'string') {
      at.error(where, 'invalid_content', `\`${where}.text\` must be a string, found ${typeName(part.text)}.`);
      return undefined;
    } else text += part.text;
  }
  return text;
}

function checkToolCalls(calls: unknown, field: string, at: LineProblems, ids: Set<string>): void {
  if (!Array.isArray(calls) || calls.length === 0) {
    at.error(field, 'invalid_tool_calls', `\`${field}\` must be a list of tool calls that is not empty.`);
    return;
  }
  for (const [index, call] of calls.entries()) {
    const where = `${field}[${index}]`;
    const called = isRecord(call) ? call.function : undefined;
    if (!isRecord(called) || typeof called.name !== 'string' || typeof called.arguments !== 'string') {
      const message = `\`${where}\` must be {"id", "type": "function", "function": {"name", "arguments"}} with \`arguments\` as a string of JSON.`;
      at.error(where, 'invalid_tool_calls', message);
      continue;
    }
    if (isRecord(call) && typeof call.id === 'string') ids.add(call.id);
    try {
      JSON.parse(called.arguments);
    } catch {
      at.warn(
        `${where}.function.arguments`,
        'arguments_not_json',
        `\`${where}.function.arguments\` is not valid JSON.`,
      );
    }
  }
}

/** One message. null: it cannot be used. */
export function messageOf(
  value: unknown,
  field: string,
  at: LineProblems,
  toolCallIds: Set<string> = new Set(),
): TrainingMessage | null {
  if (!isRecord(value)) {
    at.error(field, 'data_type', `\`${field}\` must be an object, found ${typeName(value)}.`);
    return null;
  }
  const { role } = value;
  if (role === undefined) {
    at.error(`${field}.role`, 'message_missing_key', `\`${field}\` lacks \`role\`.`);
    return null;
  }
  const known = ROLES.find((one) => one === role);
  if (known === undefined) {
    const message = `\`${field}.role\` is ${quoted(role)}; it must be one of ${ROLES.join(', ')}.`;
    at.error(`${field}.role`, 'unrecognized_role', message);
    return null;
  }
  for (const key of Object.keys(value)) {
    if (!KNOWN.has(key)) {
      at.warn(
        `${field}.${key.slice(0, 64)}`,
        'message_unrecognized_key',
        `\`${field}\` has the unknown key ${quoted(key)}, which is left out.`,
      );
    }
  }
  const content = textOf(value.content, `${field}.content`, at);
  if (content === undefined) return null;
  const calls = value.tool_calls !== undefined && value.tool_calls !== null;
  const calling = calls || isRecord(value.function_call);
  if (content === null && !(known === 'assistant' && (calling || typeof value.refusal === 'string'))) {
    const rule = 'content' in value ? 'missing_content' : 'message_missing_key';
    at.error(
      `${field}.content`,
      rule,
      `\`${field}\` lacks \`content\`${known === 'assistant' ? ' and calls no tool' : ''}.`,
    );
    return null;
  }
  if (content === '' && known === 'assistant' && !calling) {
    at.error(
      `${field}.content`,
      'missing_content',
      `\`${field}.content\` is empty; there is nothing to learn from it.`,
    );
    return null;
  }
  if (calls) checkToolCalls(value.tool_calls, `${field}.tool_calls`, at, toolCallIds);
  if (known === 'tool') {
    if (typeof value.tool_call_id !== 'string')
      at.error(
        `${field}.tool_call_id`,
        'message_missing_key',
        `\`${field}\` lacks \`tool_call_id\`, which names the call it answers.`,
      );
    else if (!toolCallIds.has(value.tool_call_id))
      at.warn(
        `${field}.tool_call_id`,
        'unknown_tool_call',
        `\`${field}.tool_call_id\` is ${quoted(value.tool_call_id)}, which no earlier message calls.`,
      );
  }
  let weight: 0 | 1 | undefined;
  if (value.weight !== undefined && value.weight !== null) {
    if (value.weight !== 0 && value.weight !== 1)
      at.error(
        `${field}.weight`,
        'invalid_weight',
        `\`${field}.weight\` must be 0 or 1, found ${quoted(String(value.weight))}.`,
      );
    else if (known !== 'assistant')
      at.error(
        `${field}.weight`,
        'invalid_weight',
        `\`${field}\` is no assistant message, so it cannot have a \`weight\`.`,
      );
    else weight = value.weight;
  }
  const kept: Record<string, unknown> = {};
  for (const key of ['name', 'tool_call_id', 'reasoning_content']) {
    if (typeof value[key] === 'string') kept[key] = value[key];
  }
  if (calls) kept.tool_calls = value.tool_calls;
  if (isRecord(value.function_call)) kept.function_call = value.function_call;
  return {
    role: known,
    content: content ?? (typeof value.refusal === 'string' ? value.refusal : null),
    ...(weight === undefined ? {} : { weight }),
    ...kept,
  };
}

/** A list of messages. null: it cannot be used. */
export function messagesOf(value: unknown, field: string, at: LineProblems): TrainingMessage[] | null {
  if (value === undefined || value === null) {
    at.error(field, 'missing_messages_list', `\`${field}\` is missing.`);
    return null;
  }
  if (!Array.isArray(value)) {
    at.error(field, 'missing_messages_list', `\`${field}\` must be a list, found ${typeName(value)}.`);
    return null;
  }
  if (value.length === 0) {
    at.error(field, 'missing_messages_list', `\`${field}\` must not be empty.`);
    return null;
  }
  const toolCallIds = new Set<string>();
  const messages = value.map((message, index) => messageOf(message, `${field}[${index}]`, at, toolCallIds));
  for (const [index, message] of messages.entries()) {
    if (message?.role === 'system' && index > 0)
      at.warn(
        `${field}[${index}].role`,
        'system_not_first',
        `\`${field}[${index}]\` is a system message, but not the first.`,
      );
  }
  return messages.includes(null) ? null : (messages as TrainingMessage[]);
}

/** `tools`, or the deprecated `functions` as tools. */
export function toolsOf(
  record: Record<string, unknown>,
  field: string,
  at: LineProblems,
): Record<string, unknown>[] | undefined {
  const { tools, functions } = record;
  const name = tools === undefined || tools === null ? 'functions' : 'tools';
  const given = name === 'tools' ? tools : functions;
  if (given === undefined || given === null) return undefined;
  const where = `${field}${name}`;
  if (!Array.isArray(given) || given.length > 128) {
    at.error(where, 'invalid_tools', `\`${where}\` must be a list of at most 128.`);
    return undefined;
  }
  if (given.length === 0) return undefined;
  const list =
    name === 'functions' ? given.map((one) => ({ type: 'function', function: one as unknown })) : (given as unknown[]);
  for (const [index, tool] of list.entries()) {
    if (!isRecord(tool) || !isRecord(tool.function) || typeof tool.function.name !== 'string') {
      at.error(
        `${where}[${index}]`,
        'invalid_tools',
        `\`${where}[${index}]\` must be {"type": "function", "function": {"name", …}}.`,
      );
      return undefined;
    }
  }
  return list as Record<string, unknown>[];
}
