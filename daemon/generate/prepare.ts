import { randomInt } from 'node:crypto';
import { AddonError, type ChatPrompt, type SamplerOptions, type Vocabulary } from '../../addon/types.ts';
import type { AdapterHandle } from '../engine/slots.ts';
import { DaemonError } from '../errors.ts';
import { ENGINE_LIMITS, SERVER_LIMITS } from '../limits.ts';
import type { EmbedRequest, GenerateRequest } from '../protocol.ts';
import { textPromptHash, tokensPromptHash } from './bill.ts';
import { type ChatReader, reasons } from './chat-stream.ts';
import { plainTools, plainToolsReader } from './plain-tools.ts';
import { SchemaRefused } from './schema/merge.ts';
import { asDocument, type NormalisedSchema, normaliseSchema } from './schema/normalise.ts';

export interface AdapterVersion {
  handle: AdapterHandle;
  /** Digest of its attribution statement, if there is one. */
  fingerprint: string | null;
}

/** What requests are checked against. */
export interface PrepareContext {
  vocabulary: Vocabulary;
  contextTokens: number;
  /** Rejects with `model_not_found`, or with why the adapter can't be served. */
  resolveAdapter(name: string): Promise<AdapterVersion>;
}

/** A request that is known to be computable: nothing in it can be refused any more but by the engine's queue and grammar. */
export interface PreparedGeneration {
  tokens: Int32Array;
  promptHash: string;
  adapter: AdapterVersion | null;
  sampler: SamplerOptions;
  maxTokens: number;
  stops: string[];
  /** How the answer is read; null: it is text and nothing else. */
  reader: ChatReader | null;
  /** Special tokens whose text stays in the output because the parser reads it. */
  preserved: Set<number>;
}

/** Rejects with DaemonError, with the status that a caller should see. */
export async function prepareGeneration(
  request: GenerateRequest,
  context: PrepareContext,
): Promise<PreparedGeneration> {
  const adapter = request.adapter === null ? null : await context.resolveAdapter(request.adapter);
  for (const stop of request.stop) checkText(stop, 'stop');
  const { vocabulary } = context;
  const schema = responseSchema(request);
  if (schema !== null && request.sampling.ignoreEos) {
    throw new DaemonError(
      'invalid_request_error',
      'ignore_eos with a response format would never end: leave one of them out',
      'ignore_eos',
    );
  }
  const plan = request.prompt.kind === 'chat' ? planChat(request.prompt, schema, vocabulary) : null;
  const chat = plan?.chat ?? null;
  const { tokens, promptHash } =
    request.prompt.kind === 'chat' && chat !== null
      ? {
          tokens: vocabulary.tokenize(checkSize(checkText(chat.prompt, 'messages'), 'messages', context), {
            special: true,
            addBos: vocabulary.addBos,
          }),
          promptHash: textPromptHash(chat.prompt),
        }
      : readPrompt(request.prompt as Exclude<GenerateRequest['prompt'], { kind: 'chat' }>, vocabulary, context);
  const maxTokens = roomFor(
    tokens.length,
    request.maxTokens ?? null,
    context.contextTokens,
    chat === null ? 'prompt' : 'messages',
  );
  const grammar = plan !== null ? plan.grammar : schema === null ? '' : schemaGrammar(schema, vocabulary);
  const sampler: SamplerOptions = {
    ...request.sampling,
    logitBias: checkBias(request.sampling.logitBias, vocabulary.size),
    penaltyLast: ENGINE_LIMITS.penaltyLast,
    seed: request.sampling.seed ?? randomInt(2 ** 32),
    topLogprobs: request.topLogprobs ?? -1,
    grammar,
    grammarLazy: chat?.grammarLazy ?? false,
    grammarTriggers: chat?.grammarTriggers ?? [],
    grammarPrefill: plan?.grammarPrefill ?? '',
  };
  return {
    tokens,
    promptHash,
    adapter,
    sampler,
    maxTokens,
    stops: [...new Set([...request.stop, ...(chat?.stops ?? [])])].filter((stop) => stop !== ''),
    reader: plan?.reader ?? null,
    preserved: preservedTokens(chat?.preservedTokens ?? [], vocabulary),
  };
}

export interface PreparedEmbedding {
  inputs: Int32Array[];
  hashes: string[];
  adapter: AdapterVersion | null;
  promptTokens: number;
}

export async function prepareEmbedding(
  request: EmbedRequest,
  context: PrepareContext,
  tokensMax: number,
): Promise<PreparedEmbedding> {
  const adapter = request.adapter === null ? null : await context.resolveAdapter(request.adapter);
  const inputs: Int32Array[] = [];
  const hashes: string[] = [];
  let promptTokens = 0;
  for (const input of request.inputs) {
    const { tokens, promptHash } = readPrompt(input, context.vocabulary, context, 'input');
    if (tokens.length > context.contextTokens) {
      throw new DaemonError(
        'context_length_exceeded',
        `This model's maximum context length is ${context.contextTokens} tokens, but input ${inputs.length} has ${tokens.length} tokens. Please shorten it.`,
        'input',
      );
    }
    promptTokens += tokens.length;
    if (promptTokens > tokensMax) {
      throw new DaemonError(
        'invalid_request_error',
        `the inputs have more than ${tokensMax} tokens together; send them in several requests`,
        'input',
      );
    }
    inputs.push(tokens);
    hashes.push(promptHash);
  }
  return { inputs, hashes, adapter, promptTokens };
}

/** Tokens of a prompt as `/generate` would read it. */
export function tokenizePrompt(prompt: GenerateRequest['prompt'], vocabulary: Vocabulary): Int32Array {
  if (prompt.kind !== 'chat') return readPrompt(prompt, vocabulary).tokens;
  const { chat } = planChat(prompt, null, vocabulary);
  return vocabulary.tokenize(chat.prompt, { special: true, addBos: vocabulary.addBos });
}

/** Text of tokens, special ones included; bytes that are no UTF-8 become U+FFFD. */
export function detokenize(tokens: number[], vocabulary: Vocabulary): string {
  const bytes = tokens.map((token) => {
    if (token < vocabulary.size) return vocabulary.tokenBytes(token, true);
    throw new DaemonError(
      'invalid_request_error',
      `token ${token} is not in the vocabulary, which has ${vocabulary.size} tokens`,
      'tokens',
    );
  });
  return Buffer.concat(bytes).toString('utf8');
}

/** How a chat is asked and how its answer is read. */
interface ChatPlan {
  chat: ChatPrompt;
  grammar: string;
  grammarPrefill: string;
  reader: ChatReader;
}

type ChatInput = Extract<GenerateRequest['prompt'], { kind: 'chat' }>;

function planChat(prompt: ChatInput, schema: NormalisedSchema | null, vocabulary: Vocabulary): ChatPlan {
  const parameters = toolParameters(prompt);
  const tools = prompt.tools.length > 0 && prompt.toolChoice !== 'none';
  // Asked for by itself first: what is wrong with a schema must not be told as if the messages were wrong.
  if (schema !== null) schemaGrammar(schema, vocabulary);
  const held = prompt.tools.map((tool, index) =>
    withParameters(tool, asDocument(parameters[index] as NormalisedSchema)),
  );
  const jsonSchema = schema === null ? '' : JSON.stringify(asDocument(schema));
  const chat = renderChat({ ...prompt, tools: held }, jsonSchema, vocabulary);
  if (!tools || chat.grammar !== '' || chat.grammarTriggers.length > 0 || knowsTools(chat, prompt)) {
    const always = tools || schema !== null || reasons(chat);
    const parse = (text: string, partial: boolean) => vocabulary.parseChat(text, chat, partial);
    return { chat, grammar: chat.grammar, grammarPrefill: chat.generationPrompt, reader: { always, parse } };
  }
  const plain = plainTools({
    messages: prompt.messages,
    tools: prompt.tools,
    parameters,
    required: prompt.toolChoice === 'required',
    parallel: prompt.parallelToolCalls,
    responseSchema: schema,
  });
  const asked = renderChat({ ...prompt, messages: plain.messages, tools: [] }, '', vocabulary);
  const grammar = grammarOf(plain.schema, vocabulary, 'tools');
  const parse = plainToolsReader({ json: schema !== null });
  return { chat: asked, grammar, grammarPrefill: '', reader: { always: true, parse } };
}

type Tool = { function?: { parameters?: unknown; strict?: unknown } };

/** What the arguments of each tool are held to; definitions get names that differ between tools. */
function toolParameters({ tools }: ChatInput): NormalisedSchema[] {
  return (tools as Tool[]).map(({ function: f }, index) => {
    const parameters = f?.parameters ?? { type: 'object', properties: {} };
    return normalised(parameters, parametersOf(index), { strict: f?.strict === true, prefix: `t${index}` });
  });
}

function parametersOf(index: number): string {
  return `tools[${index}].function.parameters`;
}

function withParameters(tool: Record<string, unknown>, parameters: unknown): Record<string, unknown> {
  const { strict: _, ...definition } = (tool.function ?? {}) as Record<string, unknown>;
  return { ...tool, function: { ...definition, parameters } };
}

/** @throws DaemonError grammar_invalid that names what cannot be kept to. */
function normalised(schema: unknown, param: string, options: { strict: boolean; prefix?: string }): NormalisedSchema {
  if (Buffer.byteLength(JSON.stringify(schema)) > SERVER_LIMITS.schemaBytesMax) {
    throw new DaemonError(
      'invalid_request_error',
      `the JSON schema has more than ${SERVER_LIMITS.schemaBytesMax} bytes; simplify it`,
      param,
    );
  }
  try {
    return normaliseSchema(schema, options);
  } catch (error) {
    if (error instanceof SchemaRefused)
      throw new DaemonError('grammar_invalid', `the JSON schema is refused at ${error.message}`, param);
    throw error;
  }
}

/** A template that knows tools writes their names into the prompt. */
function knowsTools(chat: ChatPrompt, prompt: ChatInput): boolean {
  const [first] = prompt.tools as { function?: { name?: string } }[];
  const name = first?.function?.name ?? '';
  return (
    name !== '' &&
    chat.prompt.includes(JSON.stringify(name).slice(1, -1)) &&
    !JSON.stringify(prompt.messages).includes(name)
  );
}

function renderChat(
  prompt: Extract<GenerateRequest['prompt'], { kind: 'chat' }>,
  schema: string,
  vocabulary: Vocabulary,
): ChatPrompt {
  const templateArguments: Record<string, string> = {};
  for (const [key, value] of Object.entries(prompt.templateArguments)) templateArguments[key] = JSON.stringify(value);
  const messagesJson = checkJson(prompt.messages, 'messages');
  const toolsJson = prompt.tools.length === 0 ? '' : checkJson(prompt.tools, 'tools');
  try {
    return vocabulary.chatPrompt({
      messagesJson,
      toolsJson,
      toolChoice: prompt.tools.length === 0 ? 'none' : prompt.toolChoice,
      parallelToolCalls: prompt.parallelToolCalls,
      jsonSchema: schema,
      templateArguments,
    });
  } catch (error) {
    throw addonRefusal(
      error,
      `the model's chat template can't render these messages`,
      schema !== '' ? null : error instanceof AddonError && error.code === 'grammar_invalid' ? 'tools' : 'messages',
    );
  }
}

function readPrompt(
  prompt: { kind: 'text'; text: string } | { kind: 'tokens'; tokens: number[] },
  vocabulary: Vocabulary,
  context: PrepareContext | null = null,
  param = 'prompt',
): { tokens: Int32Array; promptHash: string } {
  if (prompt.kind === 'tokens') {
    const bad = prompt.tokens.find((token) => token >= vocabulary.size);
    if (bad !== undefined) {
      throw new DaemonError(
        'invalid_request_error',
        `token ${bad} is not in the vocabulary, which has ${vocabulary.size} tokens`,
        param,
      );
    }
    const tokens = Int32Array.from(prompt.tokens);
    return { tokens, promptHash: tokensPromptHash(tokens) };
  }
  const text = checkText(prompt.text, param);
  if (context !== null) checkSize(text, param, context);
  let tokens = vocabulary.tokenize(text, { special: false, addBos: vocabulary.addBos });
  if (tokens.length === 0) {
    // As with OpenAI, an empty prompt is the beginning of a document.
    const first = vocabulary.bos >= 0 ? vocabulary.bos : vocabulary.eos;
    if (first < 0)
      throw new DaemonError(
        'invalid_request_error',
        'the prompt is empty and this model has no token to begin a text with',
        param,
      );
    tokens = Int32Array.of(first);
  }
  return { tokens, promptHash: textPromptHash(text) };
}

const tokenBytesMax = new WeakMap<Vocabulary, number>();

/** Refuses what cannot fit by its size alone: tokenising megabytes takes seconds, in which nobody else gets an answer. */
function checkSize(text: string, param: string, { vocabulary, contextTokens }: PrepareContext): string {
  // Nearly all prompts end here; the longest token is not looked for before it matters.
  if (text.length <= contextTokens) return text;
  let longest = tokenBytesMax.get(vocabulary);
  if (longest === undefined) {
    longest = 1;
    for (let token = 0; token < vocabulary.size; token++)
      longest = Math.max(longest, vocabulary.tokenBytes(token, true).length);
    tokenBytesMax.set(vocabulary, longest);
  }
  const bytes = Buffer.byteLength(text);
  if (bytes <= longest * contextTokens) return text;
  throw new DaemonError(
    'context_length_exceeded',
    `This model's maximum context length is ${contextTokens} tokens. However, your prompt has ${bytes} bytes, and no token of this model stands for more than ${longest}. Please reduce the length of the prompt.`,
    param,
  );
}

/** JSON.stringify escapes surrogates only where they have no partner, and a backslash of the text itself is doubled. */
const LONE_SURROGATE = /(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F][0-9a-fA-F]{2}/;

function checkJson(value: unknown, param: string): string {
  const json = JSON.stringify(value);
  if (LONE_SURROGATE.test(json)) throw notUnicode(param);
  return json;
}

function notUnicode(param: string): DaemonError {
  return new DaemonError(
    'invalid_request_error',
    'the text is not valid Unicode: it has half of a surrogate pair',
    param,
  );
}

function checkText(text: string, param: string): string {
  if (text.length > SERVER_LIMITS.promptCharactersMax) {
    throw new DaemonError(
      'context_length_exceeded',
      `the text has ${text.length} characters, more than any context holds; please shorten it`,
      param,
    );
  }
  if (/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/.test(text)) {
    throw notUnicode(param);
  }
  return text;
}

/** Tokens that may be generated; the error gives the numbers, as OpenAI's does. */
function roomFor(promptTokens: number, asked: number | null, contextTokens: number, param: string): number {
  const wanted = asked ?? 1;
  if (promptTokens + wanted > contextTokens) {
    throw new DaemonError(
      'context_length_exceeded',
      `This model's maximum context length is ${contextTokens} tokens. However, you requested ${promptTokens + wanted} tokens (${promptTokens} in the prompt, ${wanted} in the completion). Please reduce the length of the prompt or the completion.`,
      asked !== null && promptTokens < contextTokens ? 'max_tokens' : param,
    );
  }
  return asked ?? contextTokens - promptTokens;
}

function responseSchema(request: GenerateRequest): NormalisedSchema | null {
  const format = request.responseFormat;
  if (format.type === 'text') return null;
  if (format.type === 'json_object') return { schema: { type: 'object' }, definitions: {} };
  return normalised(format.schema, 'response_format', { strict: format.strict });
}

function schemaGrammar(schema: NormalisedSchema, vocabulary: Vocabulary): string {
  return grammarOf(JSON.stringify(asDocument(schema)), vocabulary, 'response_format');
}

function grammarOf(schema: string, vocabulary: Vocabulary, param: string): string {
  try {
    return vocabulary.schemaToGrammar(schema);
  } catch (error) {
    throw addonRefusal(error, `the JSON schema can't be turned into a grammar`, param);
  }
}

function checkBias(bias: SamplerOptions['logitBias'], size: number): SamplerOptions['logitBias'] {
  const bad = bias.find(({ token }) => token >= size);
  if (bad !== undefined) {
    throw new DaemonError(
      'invalid_request_error',
      `token ${bad.token} is not in the vocabulary, which has ${size} tokens`,
      'logit_bias',
    );
  }
  return bias;
}

function preservedTokens(texts: string[], vocabulary: Vocabulary): Set<number> {
  const tokens = new Set<number>();
  for (const text of texts) {
    const found = vocabulary.tokenize(text, { special: true, addBos: false });
    if (found.length === 1) tokens.add(found[0] as number);
  }
  return tokens;
}

/** The addon refuses input with a typed error; anything else it throws is our fault. */
function addonRefusal(error: unknown, what: string, param: string | null): Error {
  if (!(error instanceof AddonError)) return error instanceof Error ? error : new Error(String(error));
  if (error.code === 'grammar_invalid')
    return new DaemonError('grammar_invalid', `${what}: ${error.message}`, param ?? 'response_format');
  if (error.code === 'template_invalid' || error.code === 'argument_invalid') {
    return new DaemonError('invalid_request_error', `${what}: ${error.message}`, param);
  }
  return error;
}
