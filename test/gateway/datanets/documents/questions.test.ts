import { describe, expect, test } from 'vitest';
import type { Chunk } from '../../../../gateway/datanets/documents/document.ts';
import { pairsOf, type QuestionRequest, questionsOf } from '../../../../gateway/datanets/documents/questions.ts';

const CHUNK: Chunk = {
  text: 'A honey bee visits about 100 flowers on one flight. Bees live in hives of up to 60,000 workers, and one queen lays the eggs.',
  heading: 'Keeping bees',
  page: 3,
};
const json = (...pairs: [string, string][]) =>
  JSON.stringify({ pairs: pairs.map(([question, answer]) => ({ question, answer })) });

/** A model that says these things in turn, and what it was asked. */
function model(...answers: string[]) {
  const requests: QuestionRequest[] = [];
  const generate = async (request: QuestionRequest) => {
    requests.push(request);
    return answers[requests.length - 1] ?? json();
  };
  return { requests, generate };
}

const FLOWERS: [string, string] = ['How many flowers does a honey bee visit on a flight?', 'About 100 flowers.'];
const QUEEN: [string, string] = ['Who lays the eggs in a hive?', 'One queen lays the eggs.'];
const asObject = ([question, answer]: [string, string]) => ({ question, answer });

describe('questionsOf', () => {
  test('asks for JSON by a schema, with the chunk and its heading, and gives what it got', async () => {
    const { requests, generate } = model(json(FLOWERS, QUEEN));
    expect(await questionsOf(CHUNK, { perChunk: 2, generate })).toEqual([FLOWERS, QUEEN].map(asObject));
    expect(requests).toHaveLength(1);
    const [request] = requests;
    expect(request?.responseFormat).toMatchObject({
      type: 'json_schema',
      json_schema: { strict: true, schema: { required: ['pairs'] } },
    });
    expect(request?.messages.at(-1)?.content).toContain(CHUNK.text);
    expect(request?.messages.at(-1)?.content).toContain('Keeping bees');
    expect(request?.maxTokens).toBeLessThan(1000);
  });

  test('asks again, with another seed and for what is still missing, three times at most', async () => {
    const { requests, generate } = model('not JSON', json(FLOWERS), json());
    expect(await questionsOf(CHUNK, { perChunk: 2, generate })).toEqual([asObject(FLOWERS)]);
    expect(requests).toHaveLength(3);
    expect(new Set(requests.map((request) => request.seed)).size).toBe(3);
    expect(requests[2]?.messages.at(-1)?.content).toContain('Write 1 question');
    expect(requests[2]?.messages.at(-1)?.content).toContain(FLOWERS[0]);
    // The same chunk asks with the same seeds.
    const again = model('not JSON');
    await questionsOf(CHUNK, { perChunk: 2, generate: again.generate });
    expect(again.requests.map((request) => request.seed)).toEqual(requests.map((request) => request.seed));
  });

  test.each<[string, [string, string]]>([
    ['an empty answer', ['How many flowers does a bee visit?', ' ']],
    ['an empty question', ['', 'About 100 flowers.']],
    [
      'an answer that the chunk does not have',
      ['Where do honey bees come from?', 'They evolved from wasps in the Cretaceous period.'],
    ],
    [
      'a number that the chunk does not have',
      ['How many flowers does a honey bee visit on a flight?', 'About 1000 flowers.'],
    ],
    ['a question about something else', ['What is the capital of France?', 'About 100 flowers.']],
    [
      'a question that needs the text beside it',
      ['What does the passage say about flowers?', 'A honey bee visits about 100 flowers.'],
    ],
    ['a question that is its answer', ['Bees live in hives?', 'bees live in hives?']],
    ['a sentence instead of a question', ['A honey bee visits about 100 flowers on one flight.', 'About 100 flowers.']],
    ['an answer without end', ['Where do bees live?', 'bees live in hives '.repeat(200)]],
  ])('%s is dropped', async (_name, pair) => {
    const { generate } = model(json(pair, QUEEN));
    expect(await questionsOf(CHUNK, { perChunk: 1, generate })).toEqual([asObject(QUEEN)]);
  });

  test('the same question twice is one', async () => {
    const { generate } = model(
      json(FLOWERS, ['How many flowers does one honey bee visit on a flight?', '100 flowers'], QUEEN),
    );
    expect(await questionsOf(CHUNK, { perChunk: 3, generate })).toEqual([FLOWERS, QUEEN].map(asObject));
  });

  test('the same long answer to another question is left out', async () => {
    const answer = 'A honey bee visits about 100 flowers on one flight.';
    const { generate } = model(json([FLOWERS[0], answer], ['What do flowers have to do with bees?', answer], QUEEN));
    expect(await questionsOf(CHUNK, { perChunk: 3, generate })).toEqual([
      asObject([FLOWERS[0], answer]),
      asObject(QUEEN),
    ]);
  });

  test('inflected words and languages without spaces are grounded too', async () => {
    const bend = model(json(['Where does a honey bee live?', 'Honey bees are living in a hive.']));
    expect(await questionsOf(CHUNK, { perChunk: 1, generate: bend.generate })).toHaveLength(1);
    const chinese: Chunk = { text: '蜜蜂住在蜂箱里，每天采集大约一百朵花的花蜜。', heading: null, page: null };
    const { generate } = model(json(['蜜蜂住在哪里？', '蜜蜂住在蜂箱里。']));
    expect(await questionsOf(chinese, { perChunk: 1, generate })).toHaveLength(1);
    const wrong = model(json(['蜜蜂住在哪里？', '熊猫吃竹子和苹果。']));
    expect(await questionsOf(chinese, { perChunk: 1, generate: wrong.generate })).toEqual([]);
  });

  test('never gives more than was asked for, and never asks about nothing', async () => {
    const { generate } = model(json(FLOWERS, QUEEN));
    expect(await questionsOf(CHUNK, { perChunk: 1, generate })).toHaveLength(1);
    const none = model();
    expect(
      await questionsOf({ text: '*** --- ***', heading: null, page: null }, { perChunk: 3, generate: none.generate }),
    ).toEqual([]);
    expect(none.requests).toHaveLength(0);
  });

  test('what the model’s failure throws is passed on', async () => {
    const generate = () => Promise.reject(new Error('over budget'));
    await expect(questionsOf(CHUNK, { perChunk: 1, generate })).rejects.toThrow('over budget');
  });
});

describe('pairsOf', () => {
  test('is strict, but keeps the whole pairs of an answer that was cut off', () => {
    const whole = json(FLOWERS, QUEEN);
    expect(pairsOf(whole)).toHaveLength(2);
    expect(pairsOf(whole.slice(0, -20))).toEqual([asObject(FLOWERS)]);
    for (const wrong of [
      '',
      '[]',
      '{}',
      'null',
      '{"pairs":[1]}',
      '{"pairs":[{"question":"a"}]}',
      `Sure! ${whole}`,
      '{"pairs":[{"question":1,"answer":"b"}]}',
      '{"pairs": [], "more": 1}',
    ])
      expect(pairsOf(wrong)).toBeNull();
  });
});
