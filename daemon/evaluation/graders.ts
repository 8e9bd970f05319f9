/**
 * OpenAI's grader objects (string_check, text_similarity, score_model) over this daemon's own models. A judge is held to a
 * number by a grammar, so that even a small one answers with a score.
 */
import { DaemonError } from '../errors.ts';
import type { Grader, GraderRunResponse, Usage } from '../protocol.ts';
import type { Inference } from './inference.ts';
import { EVALUATION_LIMITS } from './limits.ts';
import { type TextMetric, textSimilarity } from './scores.ts';
import { fillTemplate, type TemplateValues, templateProblem, VariableError } from './template.ts';

export type Grade = Pick<GraderRunResponse, 'score' | 'failure' | 'judged' | 'usage' | 'costMicros'>;

const NOTHING: Usage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };

/** Asks a model, so that it takes time and leaves a receipt. */
export function isCostly(grader: Grader): boolean {
  return grader.type === 'score_model' || (grader.type === 'text_similarity' && grader.evaluation_metric === 'cosine');
}

/** @throws DaemonError `invalid_request_error` for what no answer could ever pass. */
export function checkGraders(graders: readonly Grader[]): void {
  const names = new Set<string>();
  for (const [index, grader] of graders.entries()) {
    const refuse = (message: string, field: string) => {
      throw new DaemonError('invalid_request_error', message, `graders.${index}.${field}`);
    };
    if (names.has(grader.name))
      refuse(`two graders are called ${JSON.stringify(grader.name)}; give each its own name`, 'name');
    names.add(grader.name);
    const texts: [string, string][] =
      grader.type === 'score_model'
        ? grader.input.map(({ content }, i) => [`input.${i}.content`, content])
        : [
            ['input', grader.input],
            ['reference', grader.reference],
          ];
    for (const [field, text] of texts) {
      const problem = templateProblem(text);
      if (problem !== null) refuse(problem, field);
    }
    if (grader.type === 'score_model' && !(grader.range[0] < grader.range[1]))
      refuse('the lower end of the range must be below the upper', 'range');
  }
}

/** One answer judged. Rejects only if the whole evaluation has to end (cancelled, engine gone, receipts not stored). */
export async function grade(grader: Grader, values: TemplateValues, ask: Inference, requestId: string): Promise<Grade> {
  const lowest = grader.type === 'score_model' ? grader.range[0] : 0;
  const fail = (kind: NonNullable<Grade['failure']>['kind'], message: string, part: Partial<Grade> = {}): Grade => {
    return { score: lowest, judged: null, usage: NOTHING, costMicros: 0, ...part, failure: { kind, message } };
  };
  try {
    if (grader.type === 'score_model') return await judge(grader, values, ask, requestId, fail);
    const input = fillTemplate(grader.input, values);
    const reference = fillTemplate(grader.reference, values);
    const plain = (score: number): Grade => ({ score, failure: null, judged: null, usage: NOTHING, costMicros: 0 });
    if (grader.type === 'string_check') return plain(stringCheck(grader.operation, input, reference) ? 1 : 0);
    const [a, r] = [cut(input), cut(reference)];
    if (grader.evaluation_metric !== 'cosine')
      return plain(textSimilarity(grader.evaluation_metric as TextMetric, r, a));
    const { vectors, usage, costMicros } = await ask.embed(requestId, [a, r]);
    return { ...plain(cosine(vectors[0] as Float32Array, vectors[1] as Float32Array)), usage, costMicros };
  } catch (error) {
    if (error instanceof VariableError) return fail('invalid_variable', error.message);
    // What this one text is to blame for is told of it; all else ends everything.
    if (error instanceof DaemonError && error.status === 400) return fail('model_server', error.message);
    throw error;
  }
}

export function stringCheck(operation: 'eq' | 'ne' | 'like' | 'ilike', input: string, reference: string): boolean {
  switch (operation) {
    case 'eq':
      return input === reference;
    case 'ne':
      return input !== reference;
    case 'like':
      return input.includes(reference);
    case 'ilike':
      return input.toLowerCase().includes(reference.toLowerCase());
  }
}

async function judge(
  grader: Extract<Grader, { type: 'score_model' }>,
  values: TemplateValues,
  ask: Inference,
  requestId: string,
  fail: (kind: 'model_parse', message: string, part: Partial<Grade>) => Grade,
): Promise<Grade> {
  const messages = grader.input.map(({ role, content }) => ({ role, content: fillTemplate(content, values) }));
  const params = grader.sampling_params ?? {};
  const number = (key: string, fallback: number) => (typeof params[key] === 'number' ? params[key] : fallback);
  const { text, usage, costMicros } = await ask.generate({
    requestId,
    adapter: ask.adapterOf(grader.model),
    prompt: { kind: 'chat', messages },
    maxTokens: Math.max(
      1,
      Math.min(number('max_completions_tokens', EVALUATION_LIMITS.judgeTokensMax), EVALUATION_LIMITS.judgeTokensMax),
    ),
    // Judging twice gives the same score unless the caller wants otherwise.
    sampling: {
      temperature: Math.min(2, Math.max(0, number('temperature', 0))),
      topP: Math.min(1, Math.max(0, number('top_p', 1))),
      seed: Math.floor(Math.abs(number('seed', 0))) % 0x1_0000_0000,
    },
    responseFormat: { type: 'json_schema', schema: { type: 'number' } },
  });
  const paid = { usage, costMicros, judged: text };
  const score = Number.parseFloat(text);
  const [low, high] = grader.range;
  if (!Number.isFinite(score)) return fail('model_parse', 'the judge wrote no number', paid);
  if (score < low || score > high) {
    return fail('model_parse', `the judge wrote ${score}, which is not between ${low} and ${high}`, paid);
  }
  return { score, failure: null, ...paid };
}

function cut(text: string): string {
  return text.slice(0, EVALUATION_LIMITS.comparedCharactersMax);
}

/** Of vectors of length 1. */
function cosine(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (const [i, x] of a.entries()) sum += x * (b[i] as number);
  return Math.max(-1, Math.min(1, sum));
}
