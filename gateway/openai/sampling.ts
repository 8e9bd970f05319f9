/** The request fields that chat and legacy completions share, and how they reach the engine. Every optional field may be null. */
import { z } from '@hono/zod-openapi';
import type { GenerateRequestInput } from '../../daemon/protocol.ts';
import { badRequest } from '../errors.ts';
import { integer } from '../http/validate.ts';
import { limits } from '../limits.ts';

const stopString = z.string().min(1).max(limits.stopCharactersMax);

export const commonFields = {
  model: z.string().min(1).max(256),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  n: integer(1, limits.choicesMax).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z
    .looseObject({ include_usage: z.boolean().nullish(), include_obfuscation: z.boolean().nullish() })
    .nullish(),
  stop: z.union([stopString, z.array(stopString).max(limits.stopsMax)]).nullish(),
  seed: z
    .number()
    .min(-(2 ** 63))
    .max(2 ** 63)
    .refine(Number.isInteger, 'must be an integer')
    .nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z
    .record(z.string().regex(/^\d{1,9}$/, 'keys must be token ids'), z.number().min(-100).max(100))
    .refine((bias) => Object.keys(bias).length <= limits.logitBiasMax, `at most ${limits.logitBiasMax} tokens`)
    .nullish(),
  user: z.string().nullish(),
  // Extensions, named as vLLM and llama-server name them.
  top_k: integer(-1, 100_000).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repeat_penalty: z.number().min(0.1).max(10).nullish(),
  repetition_penalty: z.number().min(0.1).max(10).nullish(),
  ignore_eos: z.boolean().nullish(),
};

const common = z.looseObject(commonFields);
type Common = z.output<typeof common>;

export function samplingOf(body: Common): NonNullable<GenerateRequestInput['sampling']> {
  return {
    temperature: body.temperature ?? 1,
    topP: body.top_p ?? 1,
    // vLLM says -1 for "off", the engine 0.
    topK: Math.max(0, body.top_k ?? 0),
    minP: body.min_p ?? 0,
    repeatPenalty: body.repeat_penalty ?? body.repetition_penalty ?? 1,
    frequencyPenalty: body.frequency_penalty ?? 0,
    presencePenalty: body.presence_penalty ?? 0,
    logitBias: Object.entries(body.logit_bias ?? {}).map(([token, bias]) => ({ token: Number(token), bias })),
    ignoreEos: body.ignore_eos ?? false,
    ...(body.seed == null ? {} : { seed: seedOf(body.seed) }),
  };
}

/** Any 64-bit integer becomes the engine's 32-bit seed, the same one every time. */
function seedOf(seed: number): number {
  return Number(BigInt.asUintN(32, BigInt(seed)));
}

export function stopsOf(stop: string | string[] | null | undefined): string[] {
  if (stop == null) return [];
  return typeof stop === 'string' ? [stop] : stop;
}

export function checkStreamOptions(body: Common): void {
  if (body.stream_options != null && body.stream !== true) {
    throw badRequest(
      'stream_options',
      'invalid_value',
      "Invalid 'stream_options': only allowed together with `stream: true`.",
    );
  }
}

/** @throws ApiError 400 naming `param` if more tokens are asked for than the context has. */
export function checkTokens(param: string, tokens: number | undefined, contextTokens: number): void {
  if (tokens !== undefined && tokens > contextTokens) {
    const message = `${param} is too large: ${tokens}. This model has a context of ${contextTokens} tokens, prompt included.`;
    throw badRequest(param, 'invalid_value', message);
  }
}
