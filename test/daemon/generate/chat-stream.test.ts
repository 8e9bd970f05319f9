import { describe, expect, it } from 'vitest';
import type { ParsedMessage } from '../../../addon/types.ts';
import { beginsReasoning, ChatStream } from '../../../daemon/generate/chat-stream.ts';

/** A stream whose parser gives these answers one after the other; null: it can't parse that yet. */
function streamOf(answers: (Partial<ParsedMessage> | null)[]): ChatStream {
  const left = [...answers];
  return new ChatStream({
    always: true,
    parse() {
      const answer = left.shift();
      if (answer === null || answer === undefined) throw new Error('not parsable');
      return { content: '', reasoningContent: '', toolCalls: [], ...answer };
    },
  });
}

describe('deltas of a parsed answer', () => {
  it('sends each piece of content, reasoning and arguments once', () => {
    const call = (text: string) => [{ id: 'c1', name: 'f', arguments: text }];
    const stream = streamOf([
      { reasoningContent: 'hm' },
      { reasoningContent: 'hmm', content: 'A' },
      { reasoningContent: 'hmm', content: 'AB', toolCalls: call('{"a"') },
      { reasoningContent: 'hmm', content: 'AB', toolCalls: call('{"a":1}') },
    ]);
    expect(stream.update('', 'growing')).toEqual({ content: '', reasoning: 'hm', toolCalls: [] });
    expect(stream.update('', 'growing')).toEqual({ content: 'A', reasoning: 'm', toolCalls: [] });
    expect(stream.update('', 'growing')).toEqual({
      content: 'B',
      reasoning: '',
      toolCalls: [{ index: 0, id: 'c1', name: 'f', arguments: '{"a"' }],
    });
    expect(stream.update('', 'whole')).toEqual({
      content: '',
      reasoning: '',
      toolCalls: [{ index: 0, arguments: ':1}' }],
    });
    expect(stream.hasToolCalls).toBe(true);
  });

  it('never contradicts what was sent when the parser changes its mind', () => {
    const stream = streamOf([{ content: 'Hello {' }, { content: 'Hello' }, { content: 'Hello { x' }]);
    expect(stream.update('', 'growing')?.content).toBe('Hello {');
    expect(stream.update('', 'growing')).toBeNull();
    expect(stream.update('', 'whole')?.content).toBe(' x');
  });

  it('gives a call without an id one that stays', () => {
    const stream = streamOf([
      { toolCalls: [{ id: '', name: 'f', arguments: '{' }] },
      { toolCalls: [{ id: '', name: 'f', arguments: '{}' }] },
    ]);
    expect(stream.update('', 'growing')?.toolCalls[0]?.id).toMatch(/^call_[0-9a-f]{24}$/);
    expect(stream.update('', 'whole')?.toolCalls).toEqual([{ index: 0, arguments: '}' }]);
  });

  it('gives the text as it is when a whole answer can not be parsed, and waits while it is only begun', () => {
    const stream = streamOf([null, null]);
    expect(stream.update('{"na', 'growing')).toBeNull();
    expect(stream.update('{"na', 'whole')?.content).toBe('{"na');
  });

  it('tells reasoning from text as soon as that can be told', () => {
    expect(beginsReasoning('')).toBeNull();
    expect(beginsReasoning(' <th')).toBeNull();
    expect(beginsReasoning('<think>so')).toBe(true);
    expect(beginsReasoning('<thanks')).toBe(false);
    expect(beginsReasoning('Paris')).toBe(false);
  });
});
