/** POST /v1/fine_tuning/alpha/graders/run and /validate. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { Grader } from '../../../daemon/protocol.ts';
import { EvaluationClient } from '../../daemons/evaluation.ts';
import type { ResolvedModel } from '../../daemons/pool.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { randomId } from '../../http/ids.ts';
import { parseWith } from '../../http/validate.ts';
import { tokensEstimate } from '../../openai/estimate.ts';
import { reserve } from '../../openai/reserve.ts';
import { resolveFor } from '../../openai/run.ts';
import type { AppEnv, Services } from '../../services.ts';
import { graderObject, readGrader } from './grader.ts';

export const graderRunBody = z
  .looseObject({
    grader: graderObject,
    item: z.record(z.string(), z.unknown()).nullish(),
    model_sample: z.string().max(1_048_576),
  })
  .openapi('RunGraderRequest');
export const graderValidateBody = z.looseObject({ grader: graderObject }).openapi('ValidateGraderRequest');

export const graderRunAnswer = z
  .looseObject({ reward: z.number(), metadata: z.looseObject({ name: z.string(), type: z.string() }) })
  .openapi('RunGraderResponse');
export const graderValidateAnswer = z.object({ grader: graderObject }).openapi('ValidateGraderResponse');

export async function validateGrader(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(graderValidateBody, await readJsonObject(c.req.raw));
  const grader = readGrader(body.grader, 'grader');
  if (grader.type === 'score_model') await judgeOf(services, c, grader);
  checkTemplates(grader);
  return c.json({ grader: body.grader });
}

export async function runGrader(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(graderRunBody, await readJsonObject(c.req.raw));
  const read = readGrader(body.grader, 'grader');
  checkTemplates(read);
  const principal = c.get('principal');
  const judge = read.type === 'score_model' ? await judgeOf(services, c, read) : await anyBase(services);
  const grader = read.type === 'score_model' ? { ...read, model: judge.id } : read;
  const requestId = randomId();
  const record = c.get('record');
  record.model = judge.id;
  // What the judge reads is at most the templates, filled from this body.
  const size = JSON.stringify(body).length;
  const prompt = { kind: 'text' as const, text: 'x'.repeat(Math.min(size, 4 * judge.base.contextTokens)) };
  const admission = services.limiter.admit(principal, tokensEstimate(prompt, 0, 1));
  let used = 0;
  try {
    const { price } = services;
    const most = Math.ceil(
      (judge.base.contextTokens * (price.inputMicrosPerMillion + price.outputMicrosPerMillion)) / 1_000_000,
    );
    await reserve(services, { requestId, principal, amountMicros: most });
    const candidates = services.pool.route(judge, requestId);
    const request = {
      requestId,
      callerHash: principal.callerHash,
      price,
      grader,
      item: body.item ?? {},
      sample: body.model_sample,
    };
    let client = candidates[0];
    const { value: result } = await services.pool
      .firstReachable(candidates, (candidate) => {
        client = candidate;
        return new EvaluationClient(candidate).grade(request, c.req.raw.signal);
      })
      .catch(async (error: unknown) => {
        if (error instanceof ApiError && !error.outcomeUnknown && error.status !== 499)
          await services.ledger.void(requestId);
        else if (client !== undefined) services.settler.settle(requestId, judge.id, client);
        throw error;
      });
    used = result.usage.promptTokens + result.usage.completionTokens;
    if (used === 0) await services.ledger.void(requestId);
    else await services.ledger.post(requestId, { costMicros: result.costMicros, usage: result.usage, model: judge.id });
    Object.assign(record, {
      promptTokens: result.usage.promptTokens,
      completionTokens: result.usage.completionTokens,
      costMicros: result.costMicros,
    });
    const { failure } = result;
    const asked = grader.type === 'score_model';
    return c.json({
      reward: result.score,
      metadata: {
        name: grader.name,
        type: grader.type,
        errors: {
          formula_parse_error: false,
          sample_parse_error: false,
          truncated_observation_error: false,
          unresponsive_reward_error: false,
          invalid_variable_error: failure?.kind === 'invalid_variable',
          other_error: false,
          python_grader_server_error: false,
          python_grader_server_error_type: null,
          python_grader_runtime_error: false,
          python_grader_runtime_error_details: null,
          model_grader_server_error: failure?.kind === 'model_server',
          model_grader_refusal_error: false,
          model_grader_parse_error: failure?.kind === 'model_parse',
          model_grader_server_error_details: failure?.kind === 'model_server' ? failure.message : null,
        },
        execution_time: result.seconds,
        scores: {},
        token_usage: asked ? used : null,
        sampled_model_name: asked ? judge.id : null,
      },
      sub_rewards: {},
      model_grader_token_usage_per_model: asked
        ? {
            [judge.id]: {
              prompt_tokens: result.usage.promptTokens,
              completion_tokens: result.usage.completionTokens,
              total_tokens: used,
              cached_tokens: result.usage.cachedTokens,
            },
          }
        : {},
    });
  } finally {
    admission.release(used);
  }
}

async function judgeOf(services: Services, c: Context<AppEnv>, grader: Extract<Grader, { type: 'score_model' }>) {
  return resolveFor(services, c.get('principal'), grader.model);
}

async function anyBase(services: Services): Promise<ResolvedModel> {
  const base = (await services.pool.models()).find(({ adapter }) => adapter === null);
  if (base === undefined) throw badRequest('grader', 'model_not_found', 'No model is served.');
  return base;
}

const PLACE = /\{\{([^{}]*)\}\}/g;
const PATH = /^(item|sample)((?:\.[A-Za-z_$][\w$-]*|\[\d{1,6}\])*)$/;

/** The daemon says the same; `validate` asks no daemon. */
function checkTemplates(grader: Grader): void {
  const texts =
    grader.type === 'score_model' ? grader.input.map(({ content }) => content) : [grader.input, grader.reference];
  for (const text of texts) {
    const bad = [...text.matchAll(PLACE)].find(([, inner = '']) => !PATH.test(inner.trim()));
    if (bad !== undefined || /\{\{|\}\}/.test(text.replace(PLACE, ''))) {
      const shown = bad === undefined ? 'a {{ without its }}' : bad[0].slice(0, 64);
      throw badRequest(
        'grader',
        'invalid_template',
        `Invalid 'grader': ${shown} is no variable; use {{ item.… }} or {{ sample.… }}.`,
      );
    }
  }
}
