/** POST /v1/chat/completions */
import type { Context } from 'hono';
import { readJsonObject } from '../http/body.ts';
import { parseWith } from '../http/validate.ts';
import type { AppEnv, Services } from '../services.ts';
import { ChatAnswerBuilder } from './chat-answer.ts';
import { chatRequest, translateChat } from './chat-request.ts';
import { ChatChunkEncoder } from './chat-stream.ts';
import { answer, resolveFor } from './run.ts';
import { checkTokens } from './sampling.ts';

export async function createChatCompletion(services: Services, c: Context<AppEnv>): Promise<Response> {
  const body = parseWith(chatRequest, await readJsonObject(c.req.raw));
  const { engine, style, tokens } = translateChat(body);
  const model = await resolveFor(services, c.get('principal'), body.model);
  checkTokens(tokens.param, tokens.value, model.base.contextTokens);
  const includeUsage = body.stream_options?.include_usage === true;
  const plan = {
    operation: 'chat' as const,
    idPrefix: 'chatcmpl',
    model,
    engines: [engine],
    stream: body.stream === true,
  };
  return answer(services, c, plan, {
    stream: (head) => {
      const encoder = new ChatChunkEncoder(head, { style, includeUsage });
      return {
        begin: () => '',
        encode: (_, event) => encoder.encode(event),
        get finished() {
          return encoder.finished;
        },
        end: (usage) => encoder.end(usage),
      };
    },
    whole: (head) => {
      const builder = new ChatAnswerBuilder(engine.n ?? 1, { style, logprobs: body.logprobs === true });
      return {
        add: (_, event) => builder.add(event),
        get finished() {
          return builder.finished;
        },
        build: (usage) => builder.build(head, usage),
      };
    },
  });
}
