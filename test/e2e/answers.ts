/** Answers of the product as a client with the official SDK sees them, and when two of them count as the same. */
import type OpenAI from 'openai';

export interface Token {
  token: string;
  /** Log-probability of the best token and of the second best. */
  top: { token: string; logprob: number }[];
}

export interface Answer {
  text: string;
  tokens: Token[];
  finish: string | null;
  receiptId: string;
  promptTokens: number;
  completionTokens: number;
  /** Longest silence between two chunks, in milliseconds. */
  gapMaxMs: number;
}

type ChatParameters = Omit<OpenAI.Chat.ChatCompletionCreateParamsStreaming, 'stream'>;

/** Streams a chat to its end, greedily and with log-probabilities. `onToken` may do something else meanwhile. */
export async function streamChat(
  client: OpenAI,
  parameters: ChatParameters & Record<string, unknown>,
  onToken: (count: number) => void = () => {},
): Promise<Answer> {
  const { data: stream, response } = await client.chat.completions
    .create({
      temperature: 0,
      logprobs: true,
      top_logprobs: 2,
      ...parameters,
      stream: true,
      stream_options: { include_usage: true },
    })
    .withResponse();
  const answer: Answer = {
    text: '',
    tokens: [],
    finish: null,
    receiptId: response.headers.get('x-receipt-id') ?? '',
    promptTokens: 0,
    completionTokens: 0,
    gapMaxMs: 0,
  };
  let at = 0;
  for await (const chunk of stream) {
    const now = performance.now();
    if (at > 0) answer.gapMaxMs = Math.max(answer.gapMaxMs, now - at);
    at = now;
    const choice = chunk.choices[0];
    answer.text += choice?.delta.content ?? '';
    answer.finish = choice?.finish_reason ?? answer.finish;
    for (const { token, top_logprobs } of choice?.logprobs?.content ?? []) {
      answer.tokens.push({ token, top: top_logprobs });
      onToken(answer.tokens.length);
    }
    answer.promptTokens = chunk.usage?.prompt_tokens ?? answer.promptTokens;
    answer.completionTokens = chunk.usage?.completion_tokens ?? answer.completionTokens;
  }
  return answer;
}

/** Kernels round differently by batch size, so two tokens that are about as likely may change places. */
const NEAR_TIE = 0.05;

/**
 * null if `together` is what the request gives alone; else why not. They may part where the two best tokens are less than NEAR_TIE
 * apart and the other one was taken; what comes after that has another beginning and is not compared.
 */
export function difference(alone: Answer, together: Answer): { isNearTie: boolean; why: string } | null {
  if (alone.text === together.text && alone.finish === together.finish) return null;
  const at = alone.tokens.findIndex(({ token }, index) => token !== together.tokens[index]?.token);
  const [first, second] = alone.tokens[at]?.top ?? [];
  const other = together.tokens[at]?.token;
  const margin = first && second ? first.logprob - second.logprob : Number.POSITIVE_INFINITY;
  const isNearTie = margin < NEAR_TIE && (other === second?.token || other === first?.token);
  const why = `token ${at}: ${JSON.stringify(first?.token)} alone, ${JSON.stringify(other)} together, margin ${margin}`;
  return { isNearTie, why };
}
