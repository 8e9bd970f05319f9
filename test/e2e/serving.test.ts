/** The whole product with the real default model, asked over HTTP with the official SDK. */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Ajv } from 'ajv';
import type OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { costMicrosOf, type Receipt } from '../../daemon/protocol.ts';
import { verifyFile, verifyText } from '../../daemon/receipts/verify.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import { writeAdapters } from './adapters.ts';
import { type Answer, difference, streamChat } from './answers.ts';
import { BASE, PRICE, Product, root, until } from './product.ts';

const QUESTIONS = [
  'What is the capital of France?',
  'Write one sentence about the sea.',
  'Why is the sky blue? Answer in a few words, then explain what scattering means to somebody who has never heard of it.',
  'List three fruits.',
  'Who wrote Hamlet?',
  'Give me advice for a job interview. I am nervous, I have not slept, and it begins in an hour.',
  'Translate "good morning" into Spanish.',
  'What is 2 + 2?',
];
const TOKENS = 40;
/** Adapters trained with PEFT on the E2E data set, which not every machine has. */
const TRAINED = join(root, '..', 'shared', 'fixtures', 'adapters');

let product: Product;
let client: OpenAI;
let paths: Map<string, string>;
let digests: Map<string, string>;
const model = await defaultModelPath();

const ask = (name: string, index: number, onToken?: (count: number) => void): Promise<Answer> =>
  streamChat(
    client,
    {
      model: name,
      messages: [{ role: 'user', content: QUESTIONS[index % QUESTIONS.length] as string }],
      max_tokens: TOKENS,
      ignore_eos: true,
    },
    onToken,
  );

/** Throws what was different and no near-tie. */
function expectSame(alone: Answer[], together: Answer[]): void {
  const differences = alone.map((answer, index) => difference(answer, together[index] as Answer));
  const real = differences.filter((one) => one !== null && !one.isNearTie);
  expect(real.map((one) => one?.why)).toEqual([]);
  // Near-ties are rare; where most answers part, something else is wrong.
  expect(differences.filter((one) => one !== null).length).toBeLessThanOrEqual(alone.length / 4);
}

describe.skipIf(model === null)(`serving${model === null ? ` (${SKIP_REASON})` : ''}`, { timeout: 120_000 }, () => {
  beforeAll(async () => {
    product = await Product.start();
    client = product.client();
    paths = writeAdapters(product.folder);
    digests = new Map();
    for (const [name, path] of paths) digests.set(name, (await product.addAdapter(name, path)).digest);
  });
  afterAll(() => product?.stop());

  it('gives eight clients with eight adapters at the same time what each gets alone, and a receipt that verifies', async () => {
    const names = [...paths.keys()];
    const checkpoint = await (await product.call('GET', '/log/checkpoint')).text();
    const alone: Answer[] = [];
    for (const [index, name] of names.entries()) alone.push(await ask(name, index));
    const base = await ask(BASE, 0);
    expect(new Set([...alone.map(({ text }) => text), base.text]).size).toBe(names.length + 1);

    const together = await Promise.all(names.map((name, index) => ask(name, index)));
    expectSame(alone, together);
    for (const answer of together) {
      expect(answer).toMatchObject({ finish: 'length', completionTokens: TOKENS });
      expect(answer.tokens).toHaveLength(TOKENS);
    }
    expect(new Set(together.map(({ receiptId }) => receiptId)).size).toBe(names.length);

    for (const [index, answer] of together.entries()) {
      const bundle = await product.receipt(answer.receiptId);
      const file = join(product.folder, `receipt-${index}.json`);
      writeFileSync(file, JSON.stringify(bundle));
      const report = await verifyFile(file, { vkey: product.vkey });
      expect(report).toMatchObject({ ok: true, pinned: true, kind: 'receipt' });
      expect(report.receipt).toMatchObject({
        adapterDigest: digests.get(names[index] as string),
        outputHash: createHash('sha256').update(answer.text).digest('hex'),
        completionTokens: TOKENS,
        promptTokens: answer.promptTokens,
        outcome: 'complete',
        costMicros: costMicrosOf(PRICE, answer.promptTokens, TOKENS),
      });
      expect(bundle.entry).not.toContain((QUESTIONS[index] as string).slice(0, 12));
      const last = answer.receiptId.slice(-1);
      const forged = readFileSync(file, 'utf8').replaceAll(
        answer.receiptId,
        answer.receiptId.slice(0, -1) + (last === '0' ? '1' : '0'),
      );
      expect(verifyText(forged, { vkey: product.vkey }).ok).toBe(false);
    }

    const sizes = [checkpoint, await (await product.call('GET', '/log/checkpoint')).text()].map(
      (note) => note.split('\n')[1],
    );
    const growth = await product.json<{ oldCheckpoint: string }>(
      'GET',
      `/log/consistency?from=${sizes[0]}&to=${sizes[1]}`,
    );
    expect(Number(sizes[1])).toBe(Number(sizes[0]) + 2 * names.length + 1);
    expect(verifyText(JSON.stringify(growth), { vkey: product.vkey })).toMatchObject({
      ok: true,
      kind: 'consistency',
      pinned: true,
    });
    const upToNow = await (await product.call('GET', `/log/consistency?from=${sizes[0]}`)).text();
    expect(verifyText(upToNow, { vkey: product.vkey })).toMatchObject({ ok: true, kind: 'consistency' });
    // Origin, size and root of the old tree are those that were signed then.
    expect(growth.oldCheckpoint.split('\n').slice(0, 3)).toEqual(checkpoint.split('\n').slice(0, 3));
  });

  it('loads, pins, adds, replaces and removes adapters while streams run, and none of them notices', async () => {
    const names = ['peft-r8', 'gguf-r8', BASE, 'peft-attention'];
    const alone: Answer[] = [];
    for (const [index, name] of names.entries()) alone.push(await ask(name, index));

    const act = (name: string, action: string) =>
      product.json<{ tier: string; pinned: boolean }>('POST', `/api/adapters/${name}/${action}`);
    let changes: Promise<void> | undefined;
    const change = async () => {
      expect((await act('gguf-r32', 'load')).tier).toBe('slot');
      expect((await act('gguf-r32', 'unload')).tier).toBe('disk');
      expect((await act('gguf-r3', 'pin')).pinned).toBe(true);
      await product.addAdapter('later', paths.get('gguf-r3') as string);
      // Those in flight finish on the weights that they began with.
      const replaced = await product.json<{ digest: string }>('POST', '/api/adapters', {
        name: 'peft-r8',
        source: paths.get('peft-r2-half'),
        replace: true,
      });
      expect(replaced.digest).toBe(digests.get('peft-r2-half'));
      await product.json('DELETE', '/api/adapters/gguf-r8');
    };
    const together = await Promise.all(
      names.map((name, index) =>
        ask(name, index, (count) => {
          if (count === 3) changes ??= change();
        }),
      ),
    );
    await changes;
    expect(changes).toBeDefined();
    expectSame(alone, together);

    const models = await client.models.list();
    const ids = models.data.map(({ id }) => id);
    expect(ids).toContain('later');
    expect(ids).not.toContain('gguf-r8');
    await expect(ask('gguf-r8', 0)).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
    expectSame([await ask('peft-r2-half', 1)], [await ask('peft-r8', 1)]);
    expect((await act('gguf-r3', 'unpin')).pinned).toBe(false);
    await product.json('DELETE', '/api/adapters/later');
  });

  it('tells in its metrics which adapters are where', async () => {
    await ask('gguf-r3', 0);
    await product.json('POST', '/api/adapters/gguf-r32/unload');
    const samples = (await product.metrics()).split('\n').filter((line) => line.startsWith('modelfactory_adapter'));
    const { data } = await product.json<{ data: { name: string; tier: string; digest: string }[] }>(
      'GET',
      '/api/adapters',
    );
    const inSlots = data.filter(({ tier }) => tier === 'slot');
    expect(inSlots.map(({ name }) => name)).toContain('gguf-r3');
    const loaded = (name: string) =>
      samples.filter((line) => line.startsWith('modelfactory_adapter_loaded') && line.includes(`"${name}"`));
    expect(loaded('gguf-r3')).toEqual([expect.stringMatching(/level="slot"\} 1$/)]);
    expect(loaded('gguf-r32')).toEqual([]);
    const value = (start: RegExp) =>
      Number(
        samples
          .find((line) => start.test(line))
          ?.split(' ')
          .at(-1),
      );
    // Versions that were replaced may still be there.
    expect(value(/^modelfactory_adapters_loaded\{.*level="slot"/)).toBeGreaterThanOrEqual(
      new Set(inSlots.map(({ digest }) => digest)).size,
    );
    expect(value(/^modelfactory_adapter_load_seconds_count/)).toBeGreaterThanOrEqual(paths.size);
    expect(value(/^modelfactory_adapter_tier_events\{.*event="slotHits"/)).toBeGreaterThan(0);
    expect(value(/^modelfactory_adapter_tier_events\{.*event="misses"/)).toBeGreaterThanOrEqual(paths.size);
  });

  it.skipIf(!existsSync(TRAINED))(
    'answers as an adapter was trained to (skipped without trained adapters)',
    async () => {
      for (const [name, file] of [
        ['trained', 'e2e'],
        ['trained-gguf', 'e2e.gguf'],
      ] as const) {
        await product.addAdapter(name, join(TRAINED, file));
        const content = 'Describe the restaurant: name[The Eagle], eatType[coffee shop], food[French], area[riverside]';
        const answer = await streamChat(client, { model: name, messages: [{ role: 'user', content }] });
        expect(answer).toMatchObject({
          text: 'The Eagle is a coffee shop located in the riverside area.',
          finish: 'stop',
        });
      }
    },
  );

  it('calls a tool whenever one is required, streamed or not, with arguments that fit its schema', async () => {
    const parameters = {
      type: 'object',
      properties: {
        city: { type: 'string', maxLength: 16 },
        unit: { type: 'string', enum: ['celsius', 'fahrenheit'] },
      },
      required: ['city', 'unit'],
      additionalProperties: false,
    };
    const tools: OpenAI.Chat.ChatCompletionTool[] = [
      { type: 'function', function: { name: 'get_weather', description: 'Weather of a city', parameters } },
      { type: 'function', function: { name: 'get_time', description: 'Time in a city', parameters } },
    ];
    const messages: OpenAI.Chat.ChatCompletionMessageParam[] = [
      { role: 'user', content: 'What is the weather in Paris?' },
    ];
    const fits = new Ajv().compile(parameters);
    const names = ['get_weather', 'get_time'];
    for (const name of [BASE, 'peft-attention']) {
      const whole = await client.chat.completions.create({
        model: name,
        messages,
        tools,
        tool_choice: 'required',
        max_tokens: 800,
        temperature: 0,
      });
      expect(whole.choices[0]?.finish_reason).toBe('tool_calls');
      const calls = whole.choices[0]?.message.tool_calls ?? [];
      expect(calls.length).toBeGreaterThan(0);
      for (const call of calls) {
        if (call.type !== 'function') throw new Error(`a call of type ${call.type}`);
        expect(names).toContain(call.function.name);
        expect(fits(JSON.parse(call.function.arguments)), call.function.arguments).toBe(true);
      }
    }
    // The SDK's own helper puts the pieces together, and refuses those that do not fit together.
    const streamed = await client.chat.completions
      .stream({
        model: BASE,
        messages,
        tools,
        tool_choice: 'required',
        parallel_tool_calls: false,
        max_tokens: 200,
        temperature: 0,
      })
      .finalChatCompletion();
    const calls = streamed.choices[0]?.message.tool_calls ?? [];
    expect(calls).toHaveLength(1);
    expect(names).toContain(calls[0]?.function.name);
    expect(fits(JSON.parse(calls[0]?.function.arguments ?? ''))).toBe(true);

    const named = await client.chat.completions.create({
      model: BASE,
      messages,
      tools,
      tool_choice: { type: 'function', function: { name: 'get_time' } },
      max_tokens: 200,
    });
    const forced = named.choices[0]?.message.tool_calls ?? [];
    expect(forced).toEqual([
      {
        id: expect.stringMatching(/./),
        type: 'function',
        function: { name: 'get_time', arguments: expect.any(String) },
      },
    ]);
  });

  it('answers with JSON that fits the schema at any temperature, with and without an adapter', async () => {
    const schema = {
      type: 'object',
      properties: {
        name: { type: 'string', minLength: 1, maxLength: 16 },
        age: { type: 'integer', minimum: 0, maximum: 150 },
        tags: { type: 'array', items: { type: 'string', enum: ['a', 'b', 'c'] }, minItems: 1, maxItems: 3 },
        parent: {
          anyOf: [
            { type: 'null' },
            { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'], additionalProperties: false },
          ],
        },
      },
      required: ['name', 'age', 'tags', 'parent'],
      additionalProperties: false,
    };
    const fits = new Ajv().compile(schema);
    const format = { type: 'json_schema' as const, json_schema: { name: 'person', strict: true, schema } };
    const cases = [BASE, 'peft-attention', 'gguf-r32'].flatMap((name) =>
      [0, 1, 2].map((temperature) => ({ name, temperature })),
    );
    await Promise.all(
      cases.map(async ({ name, temperature }, index) => {
        const answer = await streamChat(client, {
          model: name,
          messages: [
            {
              role: 'user',
              content: index % 2 === 0 ? 'Describe a person.' : 'Tell me a long story, in prose, no JSON!',
            },
          ],
          response_format: format,
          temperature,
          seed: index,
          max_tokens: 400,
        });
        expect(fits(JSON.parse(answer.text)), `${name} ${temperature}: ${answer.text}`).toBe(true);
        expect(answer.finish).toBe('stop');
      }),
    );
    const object = await client.chat.completions.create({
      model: BASE,
      messages: [{ role: 'user', content: 'Give me {"a": 1} as JSON.' }],
      response_format: { type: 'json_object' },
      logit_bias: {},
      temperature: 0,
      max_tokens: 300,
    });
    if (object.choices[0]?.finish_reason === 'stop')
      expect(JSON.parse(object.choices[0].message.content ?? '')).toBeTypeOf('object');
  });

  it('charges a key exactly what its receipts say, and says what is left', async () => {
    const key = await product.makeKey({ budget_micros: 2_000, models: [BASE, 'gguf-r3'] });
    const own = product.client(key.key);
    const messages: OpenAI.Chat.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Count to twenty.' }];
    const costs: number[] = [];
    const count = (usage: { prompt_tokens: number; completion_tokens?: number } | undefined) =>
      costs.push(costMicrosOf(PRICE, usage?.prompt_tokens ?? 0, usage?.completion_tokens ?? 0));

    const two = await own.chat.completions.create({ model: BASE, messages, n: 2, max_tokens: 9 });
    expect(two.choices).toHaveLength(2);
    expect(two.usage?.completion_tokens).toBeLessThanOrEqual(18);
    count(two.usage);
    const streamed = await streamChat(own, { model: 'gguf-r3', messages, max_tokens: 7, ignore_eos: true });
    count({ prompt_tokens: streamed.promptTokens, completion_tokens: streamed.completionTokens });
    count((await own.completions.create({ model: BASE, prompt: 'One, two,', max_tokens: 6 })).usage);
    count((await own.embeddings.create({ model: BASE, input: ['one', 'two three'] })).usage);

    // Abandoned after a few tokens: what was generated is charged, not what was asked for.
    const stop = new AbortController();
    const { data: stream, response } = await own.chat.completions
      .create(
        { model: BASE, messages, stream: true, max_tokens: 1_000, ...{ ignore_eos: true } },
        { signal: stop.signal },
      )
      .withResponse();
    let seen = 0;
    for await (const _ of stream) {
      seen += 1;
      if (seen === 5) stop.abort();
    }
    const id = response.headers.get('x-receipt-id') as string;
    const bundle = await until('the abandoned answer has its receipt', () => product.receipt(id));
    const abandoned = JSON.parse(bundle.entry) as Receipt;
    expect(abandoned.outcome).toBe('cancelled');
    expect(abandoned.completionTokens).toBeLessThan(100);
    costs.push(abandoned.costMicros);

    const total = costs.reduce((sum, cost) => sum + cost, 0);
    const settled = await until('nothing is reserved', async () => {
      const now = await product.key(key.id);
      return now.reserved_micros === 0 ? now : null;
    });
    expect(settled.spent_micros).toBe(total);

    await expect(own.chat.completions.create({ model: BASE, messages, max_tokens: 6_000 })).rejects.toMatchObject({
      status: 429,
      code: 'insufficient_quota',
    });
    await expect(own.chat.completions.create({ model: 'peft-attention', messages })).rejects.toMatchObject({
      status: 404,
    });
    expect((await product.key(key.id)).spent_micros).toBe(total);
  });

  it('refuses a revoked key at once', async () => {
    const key = await product.makeKey();
    const own = product.client(key.key);
    await own.models.list();
    await product.json('DELETE', `/api/keys/${key.id}`);
    await expect(own.models.list()).rejects.toMatchObject({ status: 401, code: 'invalid_api_key' });
  });
});
