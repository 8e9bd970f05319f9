import { describe, expect, it } from 'vitest';
import type { GenerateEvent, TokenLogprob } from '../../../daemon/protocol.ts';
import { CompletionAnswerBuilder, CompletionChunkEncoder } from '../../../gateway/openai/completion-answer.ts';

/** As the daemon tells tokens: text of the bytes, bytes, the token itself as its only alternative. */
function tokens(...parts: number[][]): TokenLogprob[] {
  return parts.map((bytes) => {
    const token = Buffer.from(bytes).toString('utf8');
    return { token, logprob: -1, bytes, top: [{ token, logprob: -1, bytes }] };
  });
}

const party = [...Buffer.from('🎉')];
const SPLIT = tokens([0x61], party.slice(0, 2), party.slice(2), [...Buffer.from(' é')], [...Buffer.from('\ufffd')]);
const TEXT = 'a🎉 é\ufffd';
const usage = { promptTokens: 1, cachedTokens: 0, completionTokens: 5 };
const head = { id: 'cmpl-1', created: 1, model: 'm', systemFingerprint: 'fp' };

describe('log-probabilities of the legacy endpoint', () => {
  it('text_offset is where a token begins in the text, also when characters are spread over tokens', () => {
    const builder = new CompletionAnswerBuilder(1, { n: 1, logprobs: true });
    builder.echo(0, 'Hi ');
    const delta: GenerateEvent = { type: 'delta', choice: 0, content: TEXT, logprobs: SPLIT };
    builder.add(0, delta);
    builder.add(0, { type: 'finish', choice: 0, reason: 'length' });
    const [choice] = builder.build(head, usage).choices;
    expect(choice?.text).toBe(`Hi ${TEXT}`);
    expect(choice?.logprobs?.text_offset).toEqual([3, 4, 4, 6, 8]);
    expect(choice?.logprobs?.tokens).toEqual(['a', 'bytes:\\xf0\\x9f', 'bytes:\\x8e\\x89', ' é', '\ufffd']);
  });

  it('is the same when each token is streamed by itself', () => {
    const encoder = new CompletionChunkEncoder(head, { includeUsage: false, n: 1 });
    const offsets = SPLIT.flatMap((token) => {
      const chunk = encoder.encode(0, { type: 'delta', choice: 0, logprobs: [token] });
      return JSON.parse(chunk.slice('data: '.length)).choices[0].logprobs.text_offset as number[];
    });
    expect(offsets).toEqual([0, 1, 1, 3, 5]);
  });

  it('parts of different characters stay different alternatives', () => {
    const builder = new CompletionAnswerBuilder(1, { n: 1, logprobs: true });
    const [first] = tokens([0xf0, 0x9f]);
    const top = tokens([0xf0, 0x9f], [0xe2, 0x80]).map(({ token, bytes }, i) => ({ token, bytes, logprob: -1 - i }));
    builder.add(0, { type: 'delta', choice: 0, logprobs: [{ ...(first as TokenLogprob), top }] });
    const best = builder.build(head, usage).choices[0]?.logprobs?.top_logprobs[0];
    expect(best).toEqual({ 'bytes:\\xf0\\x9f': -1, 'bytes:\\xe2\\x80': -2 });
  });
});
