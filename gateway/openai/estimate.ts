/** Token counts before tokenising: an upper bound for money, a plain guess for rate limits. */
import type { GenerateRequestInput } from '../../daemon/protocol.ts';

type Prompt = GenerateRequestInput['prompt'];

const encoder = new TextEncoder();

/** What a chat template adds around a message, and once around the whole (a default system message, tool instructions). */
const TOKENS_PER_MESSAGE = 16;
const TOKENS_PER_PROMPT = 512;

function bytesOf(prompt: Prompt): number {
  if (prompt.kind === 'tokens') return prompt.tokens.length;
  if (prompt.kind === 'text') return utf8Length(prompt.text);
  return (
    utf8Length(JSON.stringify(prompt.messages)) +
    (prompt.tools === undefined ? 0 : utf8Length(JSON.stringify(prompt.tools))) +
    // Templates may write their arguments into the prompt.
    (prompt.templateArguments === undefined ? 0 : utf8Length(JSON.stringify(prompt.templateArguments)))
  );
}

function utf8Length(text: string): number {
  return encoder.encode(text).byteLength;
}

/** No tokenizer makes more tokens than there are bytes; nor does a prompt longer than the context run. */
export function promptTokensBound(prompt: Prompt, contextTokens: number): number {
  const extra = prompt.kind === 'chat' ? TOKENS_PER_PROMPT + TOKENS_PER_MESSAGE * prompt.messages.length : 1;
  return Math.min(contextTokens, bytesOf(prompt) + extra);
}

/** About four bytes a token, plus the tokens asked for; the difference to the truth is made good when the answer ends. */
export function tokensEstimate(prompt: Prompt, maxTokens: number | undefined, n: number): number {
  const promptTokens = prompt.kind === 'tokens' ? prompt.tokens.length : Math.ceil(bytesOf(prompt) / 4);
  return promptTokens + (maxTokens ?? 0) * n;
}
