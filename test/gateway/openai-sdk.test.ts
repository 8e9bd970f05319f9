import type OpenAI from 'openai';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { sayHello } from '../support/scripted-daemon.ts';
import { CHAT, type Rig, sseEvents, startRig } from './rig.ts';

let rig: Rig;
let client: OpenAI;

beforeAll(async () => {
  rig = await startRig({ adapters: ['legal'], webOnly: true });
  client = rig.client();
});
afterAll(() => rig.close());
beforeEach(() => {
  rig.daemon.script = sayHello;
  rig.daemon.requests.length = 0;
});

describe('the OpenAI SDK, unchanged, against the gateway', () => {
  test('a chat answer with request id, receipt and rate-limit headers', async () => {
    const { data, response } = await client.chat.completions.create(CHAT as never).withResponse();
    const answer = data as OpenAI.ChatCompletion;
    expect(answer.choices[0]?.message).toMatchObject({ role: 'assistant', content: 'Hello world', refusal: null });
    expect(answer.choices[0]?.finish_reason).toBe('stop');
    expect(answer.usage).toMatchObject({ prompt_tokens: 9, completion_tokens: 3, total_tokens: 12 });
    const [request] = rig.daemon.requests;
    expect(response.headers.get('x-receipt-id')).toBe(`rcpt_${request?.requestId}`);
    expect(answer.id).toBe(`chatcmpl-${request?.requestId}`);
    expect(response.headers.get('x-request-id')).toMatch(/^req_/);
    for (const name of ['limit', 'remaining', 'reset']) {
      for (const kind of ['requests', 'tokens'])
        expect(response.headers.get(`x-ratelimit-${name}-${kind}`)).toBeTruthy();
    }
    expect(response.headers.get('openai-processing-ms')).toMatch(/^\d+$/);
    expect(request?.sampling).toMatchObject({ temperature: 1, topP: 1, topK: 0 });
    expect(request?.adapter).toBeNull();
  });

  test('a stream through the SDK helper ends with the same message, usage and finish reason', async () => {
    const stream = client.chat.completions.stream({ ...CHAT, stream_options: { include_usage: true } } as never);
    const final = await stream.finalChatCompletion();
    expect(final.choices[0]?.message.content).toBe('Hello world');
    expect(final.choices[0]?.finish_reason).toBe('stop');
    expect((await stream.totalUsage()).total_tokens).toBe(12);
  });

  test('an adapter is a model: its name goes to the daemon and comes back', async () => {
    const answer = await client.chat.completions.create({ ...CHAT, model: 'legal' } as never);
    expect((answer as OpenAI.ChatCompletion).model).toBe('legal');
    expect(rig.daemon.requests[0]?.adapter).toBe('legal');
  });

  test('n choices, streamed, each with a role first and a finish reason last', async () => {
    const chunks: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of (await client.chat.completions.create({
      ...CHAT,
      n: 3,
      stream: true,
    } as never)) as unknown as AsyncIterable<OpenAI.ChatCompletionChunk>)
      chunks.push(chunk);
    for (const index of [0, 1, 2]) {
      const own = chunks.filter((chunk) => chunk.choices[0]?.index === index).map((chunk) => chunk.choices[0]);
      expect(own[0]?.delta.role).toBe('assistant');
      expect(own.at(-1)?.finish_reason).toBe('stop');
      expect(own.map((choice) => choice?.delta.content ?? '').join('')).toBe('Hello world');
    }
    expect(chunks.every((chunk) => chunk.usage === undefined && chunk.choices.length === 1)).toBe(true);
  });

  test('without include_usage there is no usage key and no chunk without choices; [DONE] is last', async () => {
    const events = await sseEvents(await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }));
    expect(events.at(-1)?.data).toBe('[DONE]');
    for (const { json } of events.slice(0, -1)) {
      expect(json).not.toHaveProperty('usage');
      expect(json?.choices).toHaveLength(1);
    }
  });

  test('with include_usage every other chunk says usage null', async () => {
    const response = await rig.call('POST', '/v1/chat/completions', {
      ...CHAT,
      stream: true,
      stream_options: { include_usage: true },
    });
    expect(response.headers.get('content-type')).toMatch(/^text\/event-stream/);
    expect(response.headers.get('x-receipt-id')).toBe(`rcpt_${rig.daemon.requests[0]?.requestId}`);
    const events = (await sseEvents(response)).slice(0, -1);
    const last = events.pop();
    expect(last?.json).toMatchObject({ choices: [], usage: { total_tokens: 12 } });
    for (const { json } of events) expect(json?.usage).toBeNull();
    expect(new Set(events.map(({ json }) => `${json?.id} ${json?.created} ${json?.model}`)).size).toBe(1);
  });

  const tools = [
    {
      type: 'function',
      function: { name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } },
    },
  ];
  const callWeather = async (_: unknown, line: Parameters<typeof sayHello>[1]) => {
    line.start();
    line.emit({
      type: 'delta',
      choice: 0,
      toolCalls: [{ index: 0, id: 'call_1', name: 'get_weather', arguments: '' }],
    });
    line.emit({ type: 'delta', choice: 0, toolCalls: [{ index: 0, arguments: '{"city":' }] });
    line.emit({ type: 'delta', choice: 0, toolCalls: [{ index: 0, arguments: '"Paris"}' }] });
    line.emit({ type: 'finish', choice: 0, reason: 'tool_calls' });
    line.end(7);
  };

  test.each([
    ['auto', undefined, 'auto', 'tool_calls'],
    ['required', 'required', 'required', 'tool_calls'],
    ['named', { type: 'function', function: { name: 'get_weather' } }, 'required', 'stop'],
  ])('tool choice %s: whole and streamed tell the same', async (_, choice, sent, finish) => {
    rig.daemon.script = callWeather;
    const body = { ...CHAT, tools, ...(choice === undefined ? {} : { tool_choice: choice }) };
    const whole = (await client.chat.completions.create(body as never)) as OpenAI.ChatCompletion;
    const streamed = await client.chat.completions.stream(body as never).finalChatCompletion();
    for (const answer of [whole, streamed]) {
      expect(answer.choices[0]?.finish_reason).toBe(finish);
      expect(answer.choices[0]?.message.content).toBeNull();
      expect(answer.choices[0]?.message.tool_calls?.[0]).toMatchObject({
        id: 'call_1',
        type: 'function',
        function: { name: 'get_weather', arguments: '{"city":"Paris"}' },
      });
    }
    const prompt = rig.daemon.requests[0]?.prompt;
    expect(prompt).toMatchObject({ toolChoice: sent, tools: [{ function: { name: 'get_weather' } }] });
  });

  test('legacy functions: function_call in the answer, whole and streamed', async () => {
    rig.daemon.script = callWeather;
    const body = { ...CHAT, functions: [tools[0]?.function] };
    const whole = (await client.chat.completions.create(body as never)) as OpenAI.ChatCompletion;
    expect(whole.choices[0]).toMatchObject({
      finish_reason: 'function_call',
      message: { content: null, function_call: { name: 'get_weather', arguments: '{"city":"Paris"}' } },
    });
    const streamed = await client.chat.completions.stream(body as never).finalChatCompletion();
    expect(streamed.choices[0]).toMatchObject({
      finish_reason: 'function_call',
      message: { function_call: { name: 'get_weather', arguments: '{"city":"Paris"}' } },
    });
  });

  test('logprobs, chat shape', async () => {
    const answer = (await client.chat.completions.create({
      ...CHAT,
      logprobs: true,
      top_logprobs: 2,
    } as never)) as OpenAI.ChatCompletion;
    expect(answer.choices[0]?.logprobs?.content?.[0]).toMatchObject({
      token: 'Hel',
      logprob: -0.5,
      bytes: [72, 101, 108],
    });
    expect(answer.choices[0]?.logprobs?.content?.[0]?.top_logprobs).toHaveLength(2);
    expect(answer.choices[0]?.logprobs?.refusal).toBeNull();
  });

  test('legacy completions: several prompts × n, echo, logprobs', async () => {
    const many = await client.completions.create({
      model: 'tiny-base',
      prompt: ['A', 'B'],
      n: 2,
      echo: true,
      max_tokens: 5,
    });
    expect(many.choices.map(({ index, text }) => [index, text])).toEqual([
      [0, 'AHello world'],
      [1, 'AHello world'],
      [2, 'BHello world'],
      [3, 'BHello world'],
    ]);
    expect(many.usage?.completion_tokens).toBe(12);
    expect(rig.daemon.requests.map((request) => request.requestId.slice(-2)).sort()).toEqual(['-0', '-1']);
    const tokens = await client.completions.create({ model: 'tiny-base', prompt: [5, 6], echo: true });
    expect(tokens.choices[0]?.text).toBe('<5><6>Hello world');
    expect(rig.daemon.requests.at(-1)?.maxTokens).toBe(16);
    const scored = await client.completions.create({ model: 'tiny-base', prompt: 'A', logprobs: 2 });
    expect(scored.choices[0]?.logprobs).toMatchObject({
      tokens: ['Hel', 'lo', ' world'],
      text_offset: [0, 3, 5],
      token_logprobs: [-0.5, -0.5, -0.5],
    });
    expect(Object.keys(scored.choices[0]?.logprobs?.top_logprobs?.[0] ?? {})).toEqual(['Hel', 'Hel1']);
  });

  test('legacy completions stream as text_completion chunks', async () => {
    let text = '';
    let finish = '';
    for await (const chunk of await client.completions.create({ model: 'tiny-base', prompt: 'A', stream: true })) {
      expect(chunk.object).toBe('text_completion');
      text += chunk.choices[0]?.text ?? '';
      finish = chunk.choices[0]?.finish_reason ?? finish;
    }
    expect([text, finish]).toEqual(['Hello world', 'stop']);
  });

  test('models: the base, the adapters, one, and an unknown one', async () => {
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(['tiny-base', 'legal']);
    expect((await client.models.retrieve('legal')).owned_by).toBe('modelfactory');
    await expect(client.models.retrieve('none')).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
    await expect(client.models.delete('tiny-base')).rejects.toMatchObject({ status: 400, code: 'model_not_deletable' });
  });

  test('embeddings arrive as base64 by default and decode to the same numbers as floats', async () => {
    const packed = await client.embeddings.create({ model: 'tiny-base', input: ['a', 'b'] });
    const plain = await client.embeddings.create({
      model: 'tiny-base',
      input: [[1, 2], [3]],
      encoding_format: 'float',
    });
    expect(Array.from(packed.data[0]?.embedding ?? [])).toEqual([0.5, 0.5, -0.5, 0.5]);
    expect(plain.data.map(({ embedding }) => embedding)).toEqual([
      [0.5, 0.5, -0.5, 0.5],
      [0.5, 0.5, -0.5, 0.5],
    ]);
    const short = await client.embeddings.create({ model: 'tiny-base', input: 'a', dimensions: 2 });
    expect(Math.hypot(...Array.from(short.data[0]?.embedding ?? []))).toBeCloseTo(1, 6);
  });

  test('a receipt is found under the id in the header', async () => {
    const response = await rig.call('POST', '/v1/chat/completions', CHAT);
    const bundle = await (await rig.call('GET', `/v1/receipts/${response.headers.get('x-receipt-id')}`)).json();
    expect(bundle).toMatchObject({ leafIndex: 0, inclusionProof: [] });
    expect((await rig.call('GET', '/v1/receipts/rcpt_none')).status).toBe(404);
  });

  test('every request field that has an effect reaches the daemon; nulls and unknown fields do not disturb', async () => {
    await rig.call('POST', '/v1/chat/completions', {
      model: 'tiny-base',
      messages: [
        {
          role: 'developer',
          content: [
            { type: 'text', text: 'Be ' },
            { type: 'text', text: 'brief.' },
          ],
        },
        { role: 'user', content: 'Hi', name: null },
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'c', type: 'function', function: { name: 'f', arguments: '{}' } }],
        },
        { role: 'tool', content: 'done', tool_call_id: 'c' },
      ],
      temperature: 0.5,
      top_p: 0.9,
      top_k: -1,
      min_p: 0.1,
      repetition_penalty: 1.1,
      frequency_penalty: 0.2,
      presence_penalty: -0.2,
      logit_bias: { 42: -100 },
      seed: -1,
      ignore_eos: true,
      max_tokens: 7,
      max_completion_tokens: 5,
      stop: ['a', 'b'],
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'object' } } },
      tools: null,
      tool_choice: null,
      user: null,
      metadata: { a: 'b' },
      store: true,
      something_new: { deep: [1] },
    });
    expect(rig.daemon.requests[0]).toMatchObject({
      prompt: {
        messages: [
          { role: 'system', content: 'Be brief.' },
          { role: 'user', content: 'Hi' },
          {
            role: 'assistant',
            content: '',
            tool_calls: [{ id: 'c', type: 'function', function: { name: 'f', arguments: '{}' } }],
          },
          { role: 'tool', content: 'done', tool_call_id: 'c' },
        ],
        toolChoice: 'none',
      },
      sampling: {
        temperature: 0.5,
        topP: 0.9,
        topK: 0,
        minP: 0.1,
        repeatPenalty: 1.1,
        frequencyPenalty: 0.2,
        presencePenalty: -0.2,
        logitBias: [{ token: 42, bias: -100 }],
        seed: 0xffffffff,
        ignoreEos: true,
      },
      maxTokens: 5,
      stop: ['a', 'b'],
      responseFormat: { type: 'json_schema', schema: { type: 'object' } },
    });
  });

  test('every field the API lets be null may be null', async () => {
    const nulls = Object.fromEntries(
      'temperature top_p n stream stream_options stop seed frequency_penalty presence_penalty logit_bias user max_tokens max_completion_tokens logprobs top_logprobs response_format tools tool_choice parallel_tool_calls functions function_call metadata store service_tier reasoning_effort verbosity prediction modalities audio safety_identifier'
        .split(' ')
        .map((name) => [name, null]),
    );
    expect((await rig.call('POST', '/v1/chat/completions', { ...CHAT, ...nulls })).status).toBe(200);
    const legacy = Object.fromEntries(
      'temperature top_p n stream stop seed logit_bias max_tokens logprobs echo best_of suffix user'
        .split(' ')
        .map((name) => [name, null]),
    );
    expect((await rig.call('POST', '/v1/completions', { model: 'tiny-base', prompt: null, ...legacy })).status).toBe(
      200,
    );
  });
});
