import { createHash } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openVocabulary, type Vocabulary } from '../../../addon/index.ts';
import { EngineClient } from '../../../daemon/engine/client.ts';
import { Generation, type GenerationContext } from '../../../daemon/generate/generation.ts';
import { prepareGeneration } from '../../../daemon/generate/prepare.ts';
import { ENGINE_LIMITS } from '../../../daemon/limits.ts';
import { type GenerateEvent, generateRequest, type ToolCallDelta } from '../../../daemon/protocol.ts';
import { defaultModelPath, SKIP_REASON } from '../../support/model.ts';
import { DoubleReceipts, PRICE } from '../engine/rig.ts';

const path = await defaultModelPath();
let engine: EngineClient;
let vocabulary: Vocabulary;
let context: GenerationContext;
const receipts = new DoubleReceipts();
let ids = 0;

async function generate(extra: object): Promise<{ events: GenerateEvent[]; text: string }> {
  ids += 1;
  const request = generateRequest.parse({
    requestId: `chat${ids}`,
    callerHash: 'e'.repeat(64),
    adapter: null,
    prompt: { kind: 'chat', messages: [{ role: 'user', content: 'What is the capital of France?' }] },
    sampling: { temperature: 0 },
    maxTokens: 60,
    price: PRICE,
    ...extra,
  });
  const prepared = await prepareGeneration(request, {
    vocabulary,
    contextTokens: 2048,
    resolveAdapter: () => Promise.reject(new Error('none')),
  });
  const events: GenerateEvent[] = [];
  await new Generation(request, prepared, context, (batch) => events.push(...batch)).done;
  const text = events.map((e) => (e.type === 'delta' ? (e.content ?? '') : '')).join('');
  return { events, text };
}

describe.skipIf(path === null)(`chat with the default model${path === null ? ` (${SKIP_REASON})` : ''}`, () => {
  beforeAll(async () => {
    const modelPath = path as string;
    const scheduler = { ...ENGINE_LIMITS };
    const settings = {
      modelPath,
      device: 'cpu' as const,
      threads: null,
      kvCells: 4096,
      slots: 2,
      slotRankMax: 16,
      hostBytesMax: 1e8,
      scheduler,
    };
    engine = (await EngineClient.start(settings, ENGINE_LIMITS)).client;
    vocabulary = openVocabulary(modelPath);
    context = { engine, vocabulary, receipts, baseDigest: 'b'.repeat(64), engineVersion: 'test' };
  });
  afterAll(async () => {
    await engine?.close();
    vocabulary?.close();
  });

  it('answers, ends at the end token, and hashes exactly the text it gave', async () => {
    const messages = [{ role: 'user', content: 'Say hello in one short sentence.' }];
    const { events, text } = await generate({ prompt: { kind: 'chat', messages }, maxTokens: 200 });
    expect(text.length).toBeGreaterThan(3);
    expect(text).not.toContain('<|im_end|>');
    expect(events.find((e) => e.type === 'finish')).toMatchObject({ reason: 'stop' });
    const receipt = receipts.receipts.get(`rcpt_chat${ids}`);
    expect(receipt?.outputHash).toBe(createHash('sha256').update(text).digest('hex'));
    expect(receipt?.promptTokens).toBeGreaterThan(10);
  });

  it('always gives JSON that fits the schema, whatever the model would rather say', async () => {
    const schema = {
      type: 'object',
      properties: { city: { type: 'string', maxLength: 20 }, millions: { type: 'integer' } },
      required: ['city', 'millions'],
      additionalProperties: false,
    };
    for (const temperature of [0, 1.5]) {
      const { text } = await generate({
        responseFormat: { type: 'json_schema', schema },
        sampling: { temperature, seed: 3 },
        maxTokens: 200,
      });
      const value = JSON.parse(text) as { city: string; millions: number };
      expect(Object.keys(value).sort()).toEqual(['city', 'millions']);
      expect(Number.isInteger(value.millions)).toBe(true);
    }
  });

  it('calls a required tool: name first, arguments in pieces that together are JSON', async () => {
    const tool = {
      type: 'function',
      function: {
        name: 'get_weather',
        description: 'Weather of a city',
        parameters: {
          type: 'object',
          properties: { city: { type: 'string', maxLength: 12 } },
          required: ['city'],
          additionalProperties: false,
        },
      },
    };
    const prompt = {
      kind: 'chat',
      messages: [{ role: 'user', content: 'What is the weather in Paris?' }],
      tools: [tool],
      toolChoice: 'required',
    };
    const { events } = await generate({ prompt, maxTokens: 120, sampling: { temperature: 0 } });
    const deltas = events.flatMap((e) => (e.type === 'delta' ? (e.toolCalls ?? []) : []));
    const calls = new Map<number, { id: string; name: string; arguments: string }>();
    for (const delta of deltas) collect(calls, delta);
    expect(calls.size).toBeGreaterThan(0);
    for (const call of calls.values()) {
      expect(call.name).toBe('get_weather');
      expect(call.id).not.toBe('');
      expect(JSON.parse(call.arguments)).toEqual({ city: expect.any(String) });
    }
    expect(events.find((e) => e.type === 'finish')).toMatchObject({ reason: 'tool_calls' });
  });

  it('gives the same answer with the same seed', async () => {
    const ask = () => generate({ sampling: { temperature: 1, seed: 11 }, maxTokens: 20 });
    const [first, second] = [await ask(), await ask()];
    expect(second.text).toBe(first.text);
  });
});

function collect(calls: Map<number, { id: string; name: string; arguments: string }>, delta: ToolCallDelta): void {
  const known = calls.get(delta.index);
  if (known === undefined)
    calls.set(delta.index, { id: delta.id ?? '', name: delta.name ?? '', arguments: delta.arguments });
  else known.arguments += delta.arguments;
}
