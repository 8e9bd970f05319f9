import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openVocabulary } from '../../../addon/index.ts';
import type { ChatPrompt, ChatPromptInput, Vocabulary } from '../../../addon/types.ts';
import { tokenizePrompt } from '../../../daemon/generate/prepare.ts';
import { buildDataset } from '../../../daemon/training/dataset-build.ts';
import { type TrainingExample, trainingExample } from '../../../daemon/training/protocol.ts';
import { TokenFile } from '../../../daemon/training/token-file.ts';
import { ExampleError, type Sequence, tokeniseExample } from '../../../daemon/training/tokenise.ts';
import { writeTinyModel } from '../../support/tiny-models.ts';
import { temporaryFolder } from './support.ts';

let root: ReturnType<typeof temporaryFolder>;
let vocabulary: Vocabulary;
beforeAll(() => {
  root = temporaryFolder();
  const path = join(root.path, 'tiny.gguf');
  writeTinyModel('llama', path);
  vocabulary = openVocabulary(path);
});
afterAll(() => {
  vocabulary.close();
  root.remove();
});

const example = (value: unknown): TrainingExample => trainingExample.parse(value);
const text = (tokens: Int32Array) =>
  Buffer.concat([...tokens].map((token) => vocabulary.tokenBytes(token, true))).toString();
const trained = ({ tokens, spans }: Sequence) => spans.map(([from, to]) => text(tokens.subarray(from, to)));

const tools = [
  {
    type: 'function',
    function: {
      name: 'weather',
      description: 'of a place',
      parameters: { type: 'object', properties: { place: { type: 'string' } } },
    },
  },
];
const call = { id: 'c1', type: 'function', function: { name: 'weather', arguments: '{"place":"Ulm"}' } };

describe('tokenising examples', () => {
  it('trains every answer of a conversation, with the end of its turn, and nothing else', () => {
    const messages = [
      { role: 'system', content: 'Be short.' },
      { role: 'user', content: 'the hat' },
      { role: 'assistant', content: 'on the head' },
      { role: 'user', content: 'the shoe' },
      { role: 'assistant', content: 'on the foot' },
      { role: 'user', content: 'left over' },
    ];
    const [sequence, ...others] = tokeniseExample(example({ kind: 'chat', messages }), vocabulary);
    expect(others).toEqual([]);
    expect(trained(sequence as Sequence)).toEqual(['on the head<|im_end|>\n', 'on the foot<|im_end|>\n']);
    // The last user message is no prompt of anything that is learnt.
    expect(text((sequence as Sequence).tokens).endsWith('on the foot<|im_end|>\n')).toBe(true);
  });

  it('has before each answer the very tokens that serving would send', () => {
    const messages = [
      { role: 'user', content: 'in the inn  ' },
      { role: 'assistant', content: ' thin ' },
      { role: 'user', content: 'and <|im_end|> then?' },
      { role: 'assistant', content: 'ended' },
    ];
    const [{ tokens, spans }] = tokeniseExample(example({ kind: 'chat', messages }), vocabulary) as [Sequence];
    for (const [i, [from]] of spans.entries()) {
      const served = tokenizePrompt(
        {
          kind: 'chat',
          messages: messages.slice(0, 2 * i + 1),
          tools: [],
          toolChoice: 'auto',
          parallelToolCalls: true,
          templateArguments: {},
        },
        vocabulary,
      );
      expect([...tokens.subarray(0, from)]).toEqual([...served]);
    }
  });

  it('leaves answers with weight 0 as context', () => {
    const messages = [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: 'wrong', weight: 0 },
      { role: 'user', content: 'b' },
      { role: 'assistant', content: 'right', weight: 1 },
    ];
    const [sequence] = tokeniseExample(example({ kind: 'chat', messages }), vocabulary) as [Sequence];
    expect(trained(sequence)).toEqual(['right<|im_end|>\n']);
    expect(text(sequence.tokens)).toContain('wrong<|im_end|>');
    const none = messages.map((message) => (message.role === 'assistant' ? { ...message, weight: 0 } : message));
    expect(() => tokeniseExample(example({ kind: 'chat', messages: none }), vocabulary)).toThrow(ExampleError);
    expect(() => tokeniseExample(example({ kind: 'chat', messages: messages.slice(0, 1) }), vocabulary)).toThrow(
      'no assistant message',
    );
    expect(() => tokeniseExample(example({ kind: 'chat', messages: messages.slice(3) }), vocabulary)).toThrow(
      'the first message',
    );
  });

  it('ends completions with the end token, and reads marks in them as text', () => {
    const [sequence] = tokeniseExample(
      example({ kind: 'completion', prompt: 'in the', completion: ' end <|im_end|>' }),
      vocabulary,
    ) as [Sequence];
    expect(sequence.tokens.at(-1)).toBe(vocabulary.eos);
    expect(sequence.tokens.filter((token) => token === vocabulary.eos)).toHaveLength(1);
    expect(trained(sequence)).toEqual([` end <|im_end|>${text(Int32Array.of(vocabulary.eos))}`]);
    const [empty] = tokeniseExample(example({ kind: 'completion', prompt: '', completion: 'x' }), vocabulary) as [
      Sequence,
    ];
    expect(empty.spans[0]?.[0]).toBe(1);
  });

  it('makes two sequences of a preference, the preferred first', () => {
    const pair = {
      kind: 'preference',
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
        { role: 'user', content: 'c' },
      ],
      preferred: { role: 'assistant', content: 'good' },
      rejected: { role: 'assistant', content: 'bad' },
    };
    const sequences = tokeniseExample(example(pair), vocabulary);
    expect(sequences.map(trained)).toEqual([['good<|im_end|>\n'], ['bad<|im_end|>\n']]);
    const [good, bad] = sequences as [Sequence, Sequence];
    const from = good.spans[0]?.[0] as number;
    expect(good.tokens.subarray(0, from)).toEqual(bad.tokens.subarray(0, from));
  });

  it('trains tool calls in the form that serving reads where the template knows no tools', () => {
    const messages = [
      { role: 'user', content: 'How is it in Ulm?' },
      { role: 'assistant', content: null, tool_calls: [call] },
      { role: 'tool', tool_call_id: 'c1', content: 'rain' },
      { role: 'assistant', content: 'It rains.' },
    ];
    const sequences = tokeniseExample(example({ kind: 'chat', messages, tools }), vocabulary);
    const answers = sequences.flatMap(trained);
    expect(answers).toEqual([
      '{"tool_calls":[{"name":"weather","arguments":{"place":"Ulm"}}]}<|im_end|>\n',
      '{"response":"It rains."}<|im_end|>\n',
    ]);
    const prompt = tokenizePrompt(
      {
        kind: 'chat',
        messages: messages.slice(0, 1),
        tools,
        toolChoice: 'auto',
        parallelToolCalls: true,
        templateArguments: {},
      },
      vocabulary,
    );
    const [first] = sequences as [Sequence];
    expect([...first.tokens.subarray(0, first.spans[0]?.[0])]).toEqual([...prompt]);
    const old = messages.map((message) =>
      'tool_calls' in message ? { role: 'assistant', content: null, function_call: call.function } : message,
    );
    expect(tokeniseExample(example({ kind: 'chat', messages: old, tools }), vocabulary).flatMap(trained)).toEqual(
      answers,
    );
  });

  it('learns each answer behind its own prompt where the template rewrites earlier turns', () => {
    // As Qwen3's: a thought before the last answer only.
    const rewriting: Vocabulary = {
      ...vocabulary,
      chatPrompt(input: ChatPromptInput): ChatPrompt {
        const messages = JSON.parse(input.messagesJson) as { role: string; content: string }[];
        const last = messages.length - 1;
        const render = messages.map(
          ({ role, content }, i) =>
            `<|im_start|>${role}\n${role === 'assistant' && i === last ? '(thought)' : ''}${content}<|im_end|>\n`,
        );
        const opening = input.addGenerationPrompt === false ? '' : '<|im_start|>assistant\n';
        return { ...vocabulary.chatPrompt(input), prompt: render.join('') + opening, generationPrompt: opening };
      },
    };
    const messages = ['a', 'b', 'c', 'd'].map((content, i) => ({ role: i % 2 === 0 ? 'user' : 'assistant', content }));
    const sequences = tokeniseExample(example({ kind: 'chat', messages }), rewriting);
    expect(sequences.map(trained)).toEqual([['(thought)b<|im_end|>\n'], ['(thought)d<|im_end|>\n']]);
    expect(text((sequences[1] as Sequence).tokens)).toContain('assistant\nb<|im_end|>');
  });

  it('follows a generation prompt that says more than the template writes before a finished answer', () => {
    const opening = '<|im_start|>assistant\n<think>\n\n</think>\n\n';
    const empty: Vocabulary = {
      ...vocabulary,
      chatPrompt(input: ChatPromptInput): ChatPrompt {
        const plain = vocabulary.chatPrompt({ ...input, addGenerationPrompt: false });
        const ends = input.addGenerationPrompt !== false;
        return { ...plain, prompt: plain.prompt + (ends ? opening : ''), generationPrompt: opening };
      },
    };
    const messages = [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: 'b' },
    ];
    const [sequence] = tokeniseExample(example({ kind: 'chat', messages }), empty) as [Sequence];
    expect(trained(sequence)).toEqual(['b<|im_end|>\n']);
    expect(text(sequence.tokens)).toContain(`${opening}b`);
  });
});

describe('building a dataset', () => {
  const build = async (name: string, content: string | Buffer, contextTokens = 64) => {
    const source = join(root.path, `${name}.ndjson`);
    writeFileSync(source, content);
    const target = join(root.path, `${name}.bin`);
    const built = await buildDataset({ source, target, vocabulary, contextTokens });
    return { ...built, file: new TokenFile(target, built.size) };
  };
  const line = (question: string, answer: string) =>
    JSON.stringify({
      kind: 'chat',
      messages: [
        { role: 'user', content: question },
        { role: 'assistant', content: answer },
      ],
    });

  it('counts, finds what is twice, and keeps tokens that come back as they were', async () => {
    const lines = [line('the hat', 'on'), line('the shoe', 'under the table'), line('the hat', 'on')];
    const { dataset, file } = await build('counts', `${lines.join('\n')}\n\n`);
    expect(dataset).toMatchObject({ kind: 'chat', examples: 3, duplicates: 1, truncated: 0, problems: [] });
    expect(dataset.histogram.counts.reduce((a, b) => a + b, 0)).toBe(3);
    const sequences = lines.map((text) => tokeniseExample(example(JSON.parse(text)), vocabulary)[0] as Sequence);
    expect(dataset.tokens).toBe(sequences.reduce((sum, { tokens }) => sum + tokens.length, 0));
    expect(dataset.longest).toBe(Math.max(...sequences.map(({ tokens }) => tokens.length)));
    const rows = file.rows([1, 0], 64);
    const [first, second] = [sequences[1] as Sequence, sequences[0] as Sequence];
    expect([...rows.tokens]).toEqual([...first.tokens, ...second.tokens]);
    expect([...rows.starts]).toEqual([0, first.tokens.length, first.tokens.length + second.tokens.length]);
    // The weight stands where the token is predicted: one row before it.
    const weights = [first, second].flatMap(({ tokens, spans }) =>
      [...tokens].map((_, i) => (spans.some(([from, to]) => i + 1 >= from && i + 1 < to) ? 1 : 0)),
    );
    expect([...rows.weights]).toEqual(weights);
    expect(weights[first.tokens.length - 1]).toBe(0);
    file.close();
  });

  it('cuts what is too long, and says of which examples nothing is left to learn', async () => {
    const long = 'the hat and the shoe '.repeat(30);
    const { dataset, file } = await build('long', [line('a', long), line(long, 'b'), line('a', 'b')].join('\n'));
    expect(dataset).toMatchObject({ examples: 3, truncated: 2 });
    expect(dataset.problems).toEqual([{ example: 2, message: expect.stringContaining('shorten its prompt') }]);
    expect([0, 1, 2].map((sequence) => file.length(sequence, 1000) <= 64)).toEqual([true, true, true]);
    expect(file.trained(0, 1000)).toBeGreaterThan(0);
    expect(file.trained(1, 1000)).toBe(0);
    file.close();
  });

  it('survives JSON that is nested beyond reason', async () => {
    const deep = (levels: number) =>
      line('a', 'b').replace('"kind"', `"tools":[{"x":${'['.repeat(levels)}${']'.repeat(levels)}}],"kind"`);
    const { dataset, file } = await build('deep', [deep(1_000), deep(200_000), line('a', 'b')].join('\n'));
    expect(dataset.examples).toBe(3);
    expect(dataset.problems.map(({ example }) => example)).toEqual([1, 2]);
    file.close();
  });

  it('names the line and the field of what is no example', async () => {
    const bad = async (content: string | Buffer) =>
      build(`bad-${Math.random()}`, content).then(
        () => '',
        (error: Error) => error.message,
      );
    expect(await bad(`${line('a', 'b')}\nnot json`)).toContain('line 2 is not JSON');
    expect(await bad(`${line('a', 'b')}\n{"kind":"chat","messages":[{"role":"boss","content":"x"}]}`)).toMatch(
      /line 2: messages\.0\.role/,
    );
    expect(await bad(`${line('a', 'b')}\n{"kind":"completion","prompt":"x","completion":"y"}`)).toContain(
      'line 2 is of kind completion',
    );
    expect(await bad(Buffer.concat([Buffer.from(line('a', 'b')), Buffer.from([10, 0xff, 0xfe])]))).toContain(
      'line 2 is not valid UTF-8',
    );
    expect(await bad('\n \n')).toContain('it has no examples');
    expect(await bad('')).toContain('it has no examples');
    expect(await bad('x'.repeat(9 * 1024 * 1024))).toContain('line 1 has more than');
  });
});
