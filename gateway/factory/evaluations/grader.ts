/** Grader objects as OpenAI's API takes them, and what the daemon is told of them. */
import { z } from '@hono/zod-openapi';
import {
  GRADER_CHARACTERS_MAX,
  type Grader,
  scoreModelGrader,
  stringCheckGrader,
  textSimilarityGrader,
} from '../../../daemon/protocol.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { integer, parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';

const text = z.string().max(GRADER_CHARACTERS_MAX);
const part = z.looseObject({ type: z.string(), text: text.optional() });
const content = z.union([
  text,
  part,
  z
    .array(z.union([text, part]))
    .min(1)
    .max(limits.contentPartsMax),
]);

/** Other types than these three are answered by name, below. */
export const graderObject = z
  .looseObject({ type: z.string().max(64), name: z.string().max(128).optional() })
  .openapi('Grader');

/** As the daemon has them, but that what a judge is asked may be in parts, and more may be null. */
const known = z.discriminatedUnion('type', [
  stringCheckGrader,
  textSimilarityGrader,
  scoreModelGrader.extend({
    input: z
      .array(z.looseObject({ role: z.enum(['user', 'assistant', 'system', 'developer']), content }))
      .min(1)
      .max(32),
    range: scoreModelGrader.shape.range.unwrap().nullish(),
    sampling_params: z
      .looseObject({
        seed: z.number().int().nullish(),
        top_p: z.number().min(0).max(1).nullish(),
        temperature: z.number().min(0).max(2).nullish(),
        max_completions_tokens: integer(1, limits.tokensMax).nullish(),
      })
      .nullish(),
  }),
]);

/** The object as the daemon takes it. @throws ApiError 400 that names the field. */
export function readGrader(value: z.output<typeof graderObject>, param: string): Grader {
  if (['multi', 'python', 'label_model', 'endpoint'].includes(value.type)) {
    const message = `Invalid '${param}.type': graders of the type ${value.type} are not run here; there are string_check, text_similarity and score_model.`;
    throw badRequest(`${param}.type`, 'unsupported_value', message);
  }
  const grader = parseInside(value, param);
  if (grader.type !== 'score_model') return grader;
  const { type, name, model, input, range, sampling_params } = grader;
  const params = Object.entries(sampling_params ?? {}).filter(([, given]) => given !== null && given !== undefined);
  return {
    type,
    name,
    model,
    input: input.map((message, index) => ({
      role: message.role,
      content: textOf(message.content, `${param}.input[${index}].content`),
    })),
    range: range ?? [0, 1],
    ...(params.length === 0 ? {} : { sampling_params: Object.fromEntries(params) }),
  };
}

/** Issues are told with the whole path. */
function parseInside(value: unknown, param: string): z.output<typeof known> {
  try {
    return parseWith(known, value);
  } catch (error) {
    if (!(error instanceof ApiError) || error.param === null) throw error;
    const path = `${param}.${error.param}`;
    throw badRequest(path, error.code, error.message.replace(`'${error.param}'`, `'${path}'`));
  }
}

function textOf(value: z.output<typeof content>, at: string): string {
  const parts = Array.isArray(value) ? value : [value];
  return parts
    .map((one) => {
      if (typeof one === 'string') return one;
      if ((one.type === 'input_text' || one.type === 'output_text' || one.type === 'text') && one.text !== undefined)
        return one.text;
      throw badRequest(
        at,
        'unsupported_value',
        `Invalid '${at}': only text can be judged here, not ${one.type.slice(0, 64)}.`,
      );
    })
    .join('');
}
