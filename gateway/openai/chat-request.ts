/** POST /v1/chat/completions: the body's schema, and what becomes of it for the engine. */
import { z } from '@hono/zod-openapi';
import type { GenerateRequestInput } from '../../daemon/protocol.ts';
import { badRequest } from '../errors.ts';
import { integer } from '../http/validate.ts';
import { limits } from '../limits.ts';
import { checkStreamOptions, commonFields, samplingOf, stopsOf } from './sampling.ts';

const functionName = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'use a-z, A-Z, 0-9, _ and -, at most 64');

/** Parts of any type pass the schema; those that are not text are refused below, by name. */
const contentPart = z.looseObject({ type: z.string() });
const content = z.union([z.string(), z.array(contentPart).min(1).max(limits.contentPartsMax)]);

const toolCall = z.looseObject({
  id: z.string(),
  type: z.literal('function').optional(),
  function: z.looseObject({ name: z.string(), arguments: z.string() }),
});

const name = z.string().max(256).nullish();
const message = z.discriminatedUnion('role', [
  z.looseObject({ role: z.enum(['system', 'developer', 'user']), content, name }),
  z.looseObject({
    role: z.literal('assistant'),
    content: content.nullish(),
    refusal: z.string().nullish(),
    reasoning_content: z.string().nullish(),
    name,
    tool_calls: z.array(toolCall).max(limits.toolsMax).nullish(),
    function_call: z.looseObject({ name: z.string(), arguments: z.string() }).nullish(),
  }),
  z.looseObject({ role: z.literal('tool'), content, tool_call_id: z.string() }),
  z.looseObject({ role: z.literal('function'), content: content.nullable(), name: z.string() }),
]);

const functionDefinition = z.looseObject({
  name: functionName,
  description: z.string().nullish(),
  parameters: z.record(z.string(), z.unknown()).nullish(),
  strict: z.boolean().nullish(),
});
const tool = z.looseObject({ type: z.string(), function: functionDefinition.optional() });

const namedTool = z.looseObject({ type: z.string(), function: z.looseObject({ name: z.string() }).optional() });
const allowedTools = z.looseObject({
  type: z.literal('allowed_tools'),
  allowed_tools: z.looseObject({ mode: z.enum(['auto', 'required']), tools: z.array(namedTool) }),
});

const responseFormat = z.discriminatedUnion('type', [
  z.looseObject({ type: z.literal('text') }),
  z.looseObject({ type: z.literal('json_object') }),
  z.looseObject({
    type: z.literal('json_schema'),
    json_schema: z.looseObject({
      name: functionName,
      description: z.string().nullish(),
      schema: z.record(z.string(), z.unknown()),
      strict: z.boolean().nullish(),
    }),
  }),
]);

export const chatRequest = z
  .looseObject({
    ...commonFields,
    messages: z.array(message).min(1).max(limits.messagesMax),
    max_completion_tokens: integer(1, limits.tokensMax).nullish(),
    max_tokens: integer(1, limits.tokensMax).nullish(),
    logprobs: z.boolean().nullish(),
    top_logprobs: integer(0, limits.topLogprobsMax).nullish(),
    response_format: responseFormat.nullish(),
    tools: z.array(tool).max(limits.toolsMax).nullish(),
    tool_choice: z.union([z.enum(['none', 'auto', 'required']), allowedTools, namedTool]).nullish(),
    parallel_tool_calls: z.boolean().nullish(),
    functions: z.array(functionDefinition).min(1).max(limits.toolsMax).nullish(),
    function_call: z.union([z.enum(['none', 'auto']), z.looseObject({ name: z.string() })]).nullish(),
    chat_template_kwargs: z.record(z.string(), z.unknown()).nullish(),
    modalities: z.array(z.string()).nullish(),
    audio: z.unknown().optional(),
    // Accepted and without effect here.
    metadata: z
      .record(z.string().max(64), z.string().max(512))
      .refine(
        (pairs) => Object.keys(pairs).length <= limits.metadataPairsMax,
        `at most ${limits.metadataPairsMax} pairs`,
      )
      .nullish(),
    store: z.boolean().nullish(),
    service_tier: z.string().nullish(),
    reasoning_effort: z.string().nullish(),
    verbosity: z.string().nullish(),
    safety_identifier: z.string().max(64).nullish(),
    prompt_cache_key: z.string().nullish(),
    prediction: z.unknown().optional(),
  })
  .openapi('CreateChatCompletionRequest');
export type ChatRequest = z.output<typeof chatRequest>;

/** How tool calls are to be told to this client. */
export interface ToolStyle {
  /** Legacy `function_call` instead of `tool_calls`. */
  legacy: boolean;
  /** The client forced one function by name; OpenAI then finishes with `stop`. */
  forced: boolean;
}

export type EngineRequest = Omit<GenerateRequestInput, 'requestId' | 'callerHash' | 'adapter' | 'price'>;

export interface TranslatedChat {
  engine: EngineRequest;
  style: ToolStyle;
  /** Name and value of the token limit the client gave. */
  tokens: { param: string; value: number | undefined };
}

export function translateChat(body: ChatRequest): TranslatedChat {
  checkStreamOptions(body);
  if (body.modalities?.some((modality) => modality !== 'text')) {
    throw badRequest('modalities', 'unsupported_value', "Invalid 'modalities': this server answers with text only.");
  }
  if (body.audio != null)
    throw badRequest(
      'audio',
      'unsupported_parameter',
      "Unsupported parameter: 'audio'. This server answers with text only.",
    );
  if (body.top_logprobs != null && body.logprobs !== true) {
    throw badRequest('top_logprobs', 'invalid_value', "Invalid 'top_logprobs': it requires `logprobs: true`.");
  }
  const { tools, toolChoice, style } = toolsOf(body);
  const format = body.response_format;
  const maxTokens = body.max_completion_tokens ?? body.max_tokens ?? undefined;
  return {
    style,
    tokens: { param: body.max_completion_tokens != null ? 'max_completion_tokens' : 'max_tokens', value: maxTokens },
    engine: {
      prompt: {
        kind: 'chat',
        messages: body.messages.map(messageOf),
        tools,
        toolChoice,
        // The legacy form has room for one call, and who names a function wants that one called.
        parallelToolCalls: style.legacy || style.forced ? false : (body.parallel_tool_calls ?? true),
        templateArguments: body.chat_template_kwargs ?? {},
      },
      sampling: samplingOf(body),
      n: body.n ?? 1,
      stop: stopsOf(body.stop),
      topLogprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : null,
      ...(maxTokens === undefined ? {} : { maxTokens }),
      ...(format == null
        ? {}
        : {
            responseFormat:
              format.type === 'json_schema'
                ? {
                    type: 'json_schema',
                    schema: format.json_schema.schema,
                    // Held to the schema unless the client says that trying is enough.
                    strict: format.json_schema.strict ?? true,
                  }
                : { type: format.type },
          }),
    },
  };
}

function messageOf(message: ChatRequest['messages'][number], index: number): Record<string, unknown> {
  const at = `messages[${index}]`;
  switch (message.role) {
    case 'tool':
      return { role: 'tool', content: textOf(message.content, at), tool_call_id: message.tool_call_id };
    case 'function':
      return { role: 'tool', content: textOf(message.content ?? '', at), name: message.name };
    case 'assistant': {
      const calls =
        message.tool_calls ??
        (message.function_call == null ? [] : [{ id: 'call_0', function: message.function_call }]);
      if (message.content == null && calls.length === 0 && message.refusal == null) {
        throw badRequest(
          `${at}.content`,
          'missing_required_parameter',
          `Missing required parameter: '${at}.content' (only tool calls may stand without it).`,
        );
      }
      return {
        role: 'assistant',
        content: textOf(message.content ?? message.refusal ?? '', at),
        ...(message.name == null ? {} : { name: message.name }),
        ...(message.reasoning_content == null ? {} : { reasoning_content: message.reasoning_content }),
        ...(calls.length === 0
          ? {}
          : {
              tool_calls: calls.map((call) => ({
                id: call.id,
                type: 'function',
                function: { name: call.function.name, arguments: call.function.arguments },
              })),
            }),
      };
    }
    default: {
      // Chat templates know `system`; `developer` is its newer name.
      const role = message.role === 'developer' ? 'system' : message.role;
      return { role, content: textOf(message.content, at), ...(message.name == null ? {} : { name: message.name }) };
    }
  }
}

function textOf(value: z.output<typeof content>, at: string): string {
  if (typeof value === 'string') return value;
  return value
    .map((part, index) => {
      const param = `${at}.content[${index}]`;
      const text = part.type === 'text' ? part.text : part.type === 'refusal' ? part.refusal : undefined;
      if (part.type !== 'text' && part.type !== 'refusal') {
        throw badRequest(
          `${param}.type`,
          'unsupported_content',
          `Invalid '${param}.type': this model reads text only, not '${part.type.slice(0, 64)}'.`,
        );
      }
      if (typeof text !== 'string')
        throw badRequest(
          `${param}.${part.type}`,
          'invalid_type',
          `Invalid '${param}.${part.type}': expected a string.`,
        );
      return text;
    })
    .join('');
}

type Tools = { tools: Record<string, unknown>[]; toolChoice: 'auto' | 'none' | 'required'; style: ToolStyle };

function toolsOf(body: ChatRequest): Tools {
  if (body.functions != null) {
    if (body.tools != null)
      throw badRequest(
        'functions',
        'invalid_value',
        "Invalid 'functions': give either `tools` or the older `functions`.",
      );
    return legacyFunctionsOf(body.functions, body.function_call);
  }
  if (body.function_call != null)
    throw badRequest('function_call', 'invalid_value', "Invalid 'function_call': it requires `functions`.");
  const tools = (body.tools ?? []).map((entry, index) => {
    if (entry.type !== 'function') {
      throw badRequest(
        `tools[${index}].type`,
        'unsupported_value',
        `Invalid 'tools[${index}].type': only 'function' tools are supported.`,
      );
    }
    if (entry.function === undefined) {
      throw badRequest(
        `tools[${index}].function`,
        'missing_required_parameter',
        `Missing required parameter: 'tools[${index}].function'.`,
      );
    }
    return { type: 'function', function: definitionOf(entry.function) };
  });
  const style: ToolStyle = { legacy: false, forced: false };
  const choice = body.tool_choice ?? (tools.length === 0 ? 'none' : 'auto');
  if (typeof choice === 'string') {
    if (choice === 'required' && tools.length === 0)
      throw badRequest('tool_choice', 'invalid_value', "Invalid 'tool_choice': it requires `tools`.");
    return { tools, toolChoice: tools.length === 0 ? 'none' : choice, style };
  }
  const pick = (wanted: string | undefined, param: string) => {
    const found = tools.find((entry) => entry.function.name === wanted);
    if (found === undefined)
      throw badRequest(param, 'invalid_value', `Invalid '${param}': no function of that name is among 'tools'.`);
    return found;
  };
  if (choice.type === 'allowed_tools') {
    const allowed = (choice as z.output<typeof allowedTools>).allowed_tools;
    const chosen = allowed.tools.map((entry, index) =>
      pick(entry.function?.name, `tool_choice.allowed_tools.tools[${index}].function.name`),
    );
    if (chosen.length === 0)
      throw badRequest(
        'tool_choice.allowed_tools.tools',
        'empty_array',
        "Invalid 'tool_choice.allowed_tools.tools': at least 1 long.",
      );
    return { tools: chosen, toolChoice: allowed.mode, style };
  }
  if (choice.type !== 'function')
    throw badRequest(
      'tool_choice.type',
      'unsupported_value',
      "Invalid 'tool_choice.type': only 'function' is supported.",
    );
  const named = pick((choice as z.output<typeof namedTool>).function?.name, 'tool_choice.function.name');
  return { tools: [named], toolChoice: 'required', style: { legacy: false, forced: true } };
}

function legacyFunctionsOf(
  functions: z.output<typeof functionDefinition>[],
  call: ChatRequest['function_call'],
): Tools {
  const tools = functions.map((entry) => ({ type: 'function', function: definitionOf(entry) }));
  if (call == null || typeof call === 'string')
    return { tools, toolChoice: call ?? 'auto', style: { legacy: true, forced: false } };
  const named = tools.find((entry) => entry.function.name === call.name);
  if (named === undefined)
    throw badRequest(
      'function_call.name',
      'invalid_value',
      "Invalid 'function_call.name': no function of that name is among 'functions'.",
    );
  return { tools: [named], toolChoice: 'required', style: { legacy: true, forced: true } };
}

/** A function without parameters takes an empty object. */
function definitionOf(definition: z.output<typeof functionDefinition>) {
  return {
    name: definition.name,
    description: definition.description ?? '',
    parameters: definition.parameters ?? { type: 'object', properties: {} },
    ...(definition.strict === true ? { strict: true } : {}),
  };
}
