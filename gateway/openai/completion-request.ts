/** POST /v1/completions (legacy): the body's schema, and one engine request per prompt. */
import { z } from '@hono/zod-openapi';
import { badRequest } from '../errors.ts';
import { integer } from '../http/validate.ts';
import { limits } from '../limits.ts';
import type { EngineRequest } from './chat-request.ts';
import { checkStreamOptions, commonFields, samplingOf, stopsOf } from './sampling.ts';

const tokens = z.array(integer(0, 0x7fffffff)).min(1).max(limits.tokensMax);

export const completionRequest = z
  .looseObject({
    ...commonFields,
    prompt: z
      .union([
        z.string(),
        z.array(z.string()).min(1).max(limits.promptsMax),
        tokens,
        z.array(tokens).min(1).max(limits.promptsMax),
      ])
      .nullable(),
    max_tokens: integer(1, limits.tokensMax).nullish(),
    logprobs: integer(0, limits.completionLogprobsMax).nullish(),
    echo: z.boolean().nullish(),
    best_of: integer(1, limits.choicesMax).nullish(),
    suffix: z.string().nullish(),
  })
  .openapi('CreateCompletionRequest');
export type CompletionRequest = z.output<typeof completionRequest>;

/** OpenAI's default of the legacy endpoint. */
const TOKENS_DEFAULT = 16;

export function translateCompletion(body: CompletionRequest): {
  engines: EngineRequest[];
  maxTokens: number;
  choicesPerPrompt: number;
} {
  checkStreamOptions(body);
  if (body.suffix != null && body.suffix !== '') {
    throw badRequest(
      'suffix',
      'unsupported_parameter',
      "Unsupported parameter: 'suffix'. This model cannot fill in the middle.",
    );
  }
  const n = body.n ?? 1;
  if (body.best_of != null && body.best_of !== n) {
    throw badRequest('best_of', 'unsupported_value', "Invalid 'best_of': only the value of `n` is supported.");
  }
  if (body.echo === true && body.logprobs != null) {
    throw badRequest(
      'echo',
      'unsupported_value',
      "Invalid 'echo': log-probabilities of the prompt are not available, so `echo` and `logprobs` exclude each other.",
    );
  }
  const prompts = promptsOf(body.prompt);
  if (prompts.length * n > limits.choiceIndexesMax) {
    throw badRequest(
      'n',
      'integer_above_max_value',
      `Invalid 'n': prompts × n must be at most ${limits.choiceIndexesMax}.`,
    );
  }
  const maxTokens = body.max_tokens ?? TOKENS_DEFAULT;
  const sampling = samplingOf(body);
  const engines = prompts.map((prompt) => ({
    prompt,
    sampling,
    maxTokens,
    n,
    stop: stopsOf(body.stop),
    topLogprobs: body.logprobs ?? null,
  }));
  return { engines, maxTokens, choicesPerPrompt: n };
}

function promptsOf(
  prompt: CompletionRequest['prompt'],
): ({ kind: 'text'; text: string } | { kind: 'tokens'; tokens: number[] })[] {
  // OpenAI reads a missing prompt as the start of a new document.
  if (prompt === null || typeof prompt === 'string') return [{ kind: 'text', text: prompt ?? '' }];
  if (typeof prompt[0] === 'number') return [{ kind: 'tokens', tokens: prompt as number[] }];
  return (prompt as (string | number[])[]).map((one) =>
    typeof one === 'string' ? { kind: 'text', text: one } : { kind: 'tokens', tokens: one },
  );
}
