import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { sayHello } from '../support/scripted-daemon.ts';
import { assertOpenAi, hasOpenAiSchema } from './openai-schema.ts';
import { CHAT, type Rig, sseEvents, startRig } from './rig.ts';

describe.skipIf(!hasOpenAiSchema)(
  'every answer follows the schemas of OpenAI (skipped where their description is not at hand)',
  () => {
    let rig: Rig;
    beforeAll(async () => {
      rig = await startRig({ adapters: ['legal'] });
    });
    afterAll(() => rig?.close());

    const tools = [{ type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } }];
    const variants: Record<string, object> = {
      plain: {},
      'several choices': { n: 2 },
      logprobs: { logprobs: true, top_logprobs: 3 },
      'json mode': { response_format: { type: 'json_object' } },
      tools: { tools, tool_choice: 'required' },
      'legacy functions': { functions: [tools[0]?.function] },
      usage: { stream_options: { include_usage: true } },
    };

    test('the judge judges: an answer without a required key fails', () => {
      expect(() => assertOpenAi('CreateChatCompletionResponse', { id: 'x' })).toThrow(/required/);
      expect(() =>
        assertOpenAi('CreateChatCompletionStreamResponse', {
          id: 'x',
          object: 'chat.completion.chunk',
          created: 1,
          model: 'm',
          choices: [{ index: 0 }],
        }),
      ).toThrow(/required/);
    });

    test.each(Object.entries(variants))('chat, %s', async (name, extra) => {
      rig.daemon.script =
        name === 'tools' || name === 'legacy functions'
          ? (_, line) => {
              line.start();
              line.emit({
                type: 'delta',
                choice: 0,
                toolCalls: [{ index: 0, id: 'call_1', name: 'f', arguments: '{' }],
              });
              line.emit({ type: 'delta', choice: 0, toolCalls: [{ index: 0, arguments: '}' }] });
              line.emit({ type: 'finish', choice: 0, reason: 'tool_calls' });
              line.end(3);
            }
          : sayHello;
      if (name !== 'usage')
        assertOpenAi(
          'CreateChatCompletionResponse',
          await (await rig.call('POST', '/v1/chat/completions', { ...CHAT, ...extra })).json(),
        );
      const events = await sseEvents(
        await rig.call('POST', '/v1/chat/completions', { ...CHAT, ...extra, stream: true }),
      );
      expect(events.length).toBeGreaterThan(3);
      for (const { json } of events.slice(0, -1)) assertOpenAi('CreateChatCompletionStreamResponse', json);
    });

    test('legacy completions, models, embeddings, deletion, errors', async () => {
      rig.daemon.script = sayHello;
      const completion = { model: 'tiny-base', prompt: ['a', 'b'], n: 2, logprobs: 3 };
      assertOpenAi('CreateCompletionResponse', await (await rig.call('POST', '/v1/completions', completion)).json());
      assertOpenAi('ListModelsResponse', await (await rig.call('GET', '/v1/models')).json());
      assertOpenAi('Model', await (await rig.call('GET', '/v1/models/legal')).json());
      assertOpenAi(
        'CreateEmbeddingResponse',
        await (await rig.call('POST', '/v1/embeddings', { model: 'tiny-base', input: 'x' })).json(),
      );
      assertOpenAi('DeleteModelResponse', await (await rig.call('DELETE', '/v1/models/legal')).json());
      for (const response of [
        await rig.call('GET', '/v1/models/legal'),
        await rig.call('GET', '/nowhere'),
        await rig.call('POST', '/v1/chat/completions', '{'),
      ]) {
        expect(response.status).toBeGreaterThanOrEqual(400);
        assertOpenAi('ErrorResponse', await response.json());
      }
    });

    test('what OpenAI documents as a request is accepted: the fields of its schema that we validate have its types', async () => {
      rig.daemon.script = sayHello;
      const body = {
        ...CHAT,
        temperature: 2,
        top_p: 0,
        n: 1,
        stop: 'x',
        logit_bias: { 5: 1 },
        seed: 2 ** 53,
        metadata: { k: 'v' },
        tools,
        tool_choice: {
          type: 'allowed_tools',
          allowed_tools: { mode: 'auto', tools: [{ type: 'function', function: { name: 'f' } }] },
        },
      };
      assertOpenAi('CreateChatCompletionRequest', body);
      expect((await rig.call('POST', '/v1/chat/completions', body)).status).toBe(200);
    });
  },
);
