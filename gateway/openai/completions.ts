/** POST /v1/completions (legacy) */
import type { Context } from 'hono';
import { readJsonObject } from '../http/body.ts';
import { parseWith } from '../http/validate.ts';
import type { AppEnv, Services } from '../services.ts';
import type { EngineRequest } from './chat-request.ts';
import { CompletionAnswerBuilder, CompletionChunkEncoder } from './completion-answer.ts';
import { completionRequest, translateCompletion } from './completion-request.ts';
import { answer, resolveFor } from './run.ts';
import { checkTokens } from './sampling.ts';

export async function createCompletion(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(completionRequest, await readJsonObject(c.req.raw));
  const { engines, maxTokens, choicesPerPrompt: n } = translateCompletion(body);
  const model = await resolveFor(services, c.get('principal'), body.model);
  checkTokens('max_tokens', maxTokens, model.base.contextTokens);
  const echoes = body.echo === true ? await Promise.all(engines.map((engine) => promptText(services, engine))) : [];
  const includeUsage = body.stream_options?.include_usage === true;
  const plan = {
    operation: 'text_completion' as const,
    idPrefix: 'cmpl',
    model,
    engines,
    stream: body.stream === true,
  };
  return answer(services, c, plan, {
    stream: (head) => {
      const encoder = new CompletionChunkEncoder(head, { includeUsage, n });
      return {
        begin: () => echoes.map((text, prompt) => encoder.echo(prompt, text)).join(''),
        encode: (prompt, event) => encoder.encode(prompt, event),
        get finished() {
          return encoder.finished;
        },
        end: (usage) => encoder.end(usage),
      };
    },
    whole: (head) => {
      const builder = new CompletionAnswerBuilder(engines.length, { n, logprobs: body.logprobs != null });
      for (const [prompt, text] of echoes.entries()) builder.echo(prompt, text);
      return {
        add: (prompt, event) => builder.add(prompt, event),
        get finished() {
          return builder.finished;
        },
        build: (usage) => builder.build(head, usage),
      };
    },
  });
}

/** What `echo` repeats: the text, or what the tokens stand for. */
async function promptText(services: Services, { prompt }: EngineRequest): Promise<string> {
  if (prompt.kind === 'text') return prompt.text;
  if (prompt.kind === 'chat') return '';
  const { value } = await services.pool.firstReachable([...services.pool.clients], (client) =>
    client.detokenize(prompt.tokens),
  );
  return value.text;
}
