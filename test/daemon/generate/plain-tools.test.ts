import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ChatStream } from '../../../daemon/generate/chat-stream.ts';
import { plainTools, plainToolsReader } from '../../../daemon/generate/plain-tools.ts';
import { asDocument, normaliseSchema } from '../../../daemon/generate/schema/normalise.ts';

const inWords = { always: true, parse: plainToolsReader({ json: false }) };

/** Feeds a text character by character, as a model writes it; what was sent, put together. */
function streamed(text: string, end: 'cut' | 'whole', reader = inWords) {
  const stream = new ChatStream(reader);
  const calls: { id: string; name: string; arguments: string }[] = [];
  let content = '';
  let deltas = 0;
  const take = (delta: ReturnType<ChatStream['update']>) => {
    if (delta === null) return;
    deltas += 1;
    content += delta.content;
    for (const call of delta.toolCalls) {
      calls[call.index] ??= { id: call.id ?? '', name: call.name ?? '', arguments: '' };
      (calls[call.index] as { arguments: string }).arguments += call.arguments;
    }
  };
  for (let length = 1; length <= text.length; length++) take(stream.update(text.slice(0, length), 'growing'));
  take(stream.update(text, end));
  return { content, calls, deltas };
}

describe('tool calls of templates that know no tools', () => {
  it('arguments come as they are written, call after call', () => {
    const text = '{ "tool_calls" : [ {"name":"a","arguments":{"x": [1, "}]\\""]}}, {"name":"b", "arguments": {} } ] }';
    const { calls, content, deltas } = streamed(text, 'whole');
    expect(calls.map(({ name, arguments: given }) => [name, given])).toEqual([
      ['a', '{"x": [1, "}]\\""]}'],
      ['b', '{}'],
    ]);
    expect(new Set(calls.map(({ id }) => id)).size).toBe(2);
    expect(content).toBe('');
    expect(deltas).toBeGreaterThan(15);
  });

  it('a call that the token limit cuts off is a call with the arguments so far, never text', () => {
    const text = '{"tool_calls": [{"name": "weather", "arguments": {"city": "Par';
    expect(streamed(text, 'cut')).toMatchObject({
      content: '',
      calls: [{ name: 'weather', arguments: '{"city": "Par' }],
    });
    expect(streamed('{"tool_calls": [{"name": "wea', 'cut')).toMatchObject({ content: '', calls: [] });
  });

  it('any answer in words arrives whole, in pieces that never take anything back', () => {
    const escaped = fc.constantFrom(
      (text: string) => JSON.stringify(text),
      (text: string) =>
        `"${[...text]
          .map(
            (c) =>
              [...c].length &&
              c
                .split('')
                .map((u) => `\\u${u.charCodeAt(0).toString(16).padStart(4, '0')}`)
                .join(''),
          )
          .join('')}"`,
    );
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), escaped, (text, write) => {
        expect(streamed(`{"response": ${write(text)}}`, 'whole').content).toBe(text);
      }),
    );
  });

  it('any arguments arrive whole', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue()), fc.constantFrom(0, 1), (value, indent) => {
        const given = JSON.stringify(value, null, indent);
        const { calls } = streamed(`{"tool_calls":[{"name":"f","arguments":${given}}]}`, 'whole');
        expect(calls).toMatchObject([{ name: 'f', arguments: given }]);
      }),
    );
  });

  it('with a response format the answer in words is its JSON', () => {
    const reader = { always: true, parse: plainToolsReader({ json: true }) };
    expect(streamed('{"response": {"a": "x"}}', 'whole', reader).content).toBe('{"a": "x"}');
    expect(streamed('{"response": "x"}', 'whole', reader).content).toBe('"x"');
    expect(streamed('{"response": -1.5e3}', 'whole', reader).content).toBe('-1.5e3');
  });

  it('what is in no such form is given as it is', () => {
    expect(streamed('Hello', 'whole').content).toBe('Hello');
    expect(streamed('Hel', 'cut').content).toBe('Hel');
  });

  it('parameters keep their references inside the one schema of the answer', () => {
    const parameters = ['integer', 'boolean'].map((type, index) =>
      normaliseSchema(
        { type: 'object', properties: { x: { $ref: '#/$defs/a' } }, $defs: { a: { type } } },
        { strict: true, prefix: `t${index}` },
      ),
    );
    const tools = parameters.map((one, index) => ({ function: { name: `f${index}`, parameters: asDocument(one) } }));
    const { schema } = plainTools({
      messages: [],
      tools,
      parameters,
      required: true,
      responseSchema: null,
      parallel: true,
    });
    const { $defs } = JSON.parse(schema);
    expect($defs).toEqual({ t0d0: { type: 'integer' }, t1d0: { type: 'boolean' } });
    for (const name of Object.keys($defs)) expect(schema).toContain(`"#/$defs/${name}"`);
  });
});
