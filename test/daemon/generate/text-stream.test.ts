import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TextStream } from '../../../daemon/generate/text-stream.ts';
import type { TokenLogprob } from '../../../daemon/protocol.ts';

/** Cuts bytes into tokens and feeds them; a token is the index of its bytes. */
function feed(tokens: Uint8Array[], stops: string[], logprobs = false) {
  const stream = new TextStream({ stops, bytesOf: (token) => tokens[token] as Uint8Array });
  const pieces: string[] = [];
  const entries: TokenLogprob[] = [];
  let stopped = -1;
  const take = () => {
    const piece = stream.take();
    if (piece === null) return;
    pieces.push(piece.text);
    entries.push(...piece.logprobs);
  };
  for (let token = 0; token < tokens.length; token += 1) {
    const done = stream.push(token, logprobs ? { token: String(token), logprob: -token, bytes: [], top: [] } : null);
    take();
    if (done) {
      stopped = token;
      break;
    }
  }
  stream.end();
  take();
  return { pieces, entries, stopped, text: stream.text };
}

function cut(bytes: Uint8Array, sizes: number[]): Uint8Array[] {
  const tokens: Uint8Array[] = [];
  for (let at = 0, i = 0; at < bytes.length; i += 1) {
    const size = Math.max(1, sizes[i % sizes.length] as number);
    tokens.push(bytes.subarray(at, at + size));
    at += size;
  }
  return tokens;
}

/** The definition: read one character after the other and end as soon as what was read ends with a stop string. */
function readCharacterwise(text: string, stops: string[]): [stopped: boolean, text: string] {
  for (let end = 1; end <= text.length; end += 1) {
    const read = text.slice(0, end);
    const lengths = stops.filter((stop) => read.endsWith(stop)).map((stop) => stop.length);
    if (lengths.length > 0) return [true, read.slice(0, end - Math.max(...lengths))];
  }
  return [false, text];
}

const sizes = fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 6 });

describe('text of a token stream', () => {
  it('puts characters together that are spread over tokens, and never sends half of one', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), sizes, (text, by) => {
        const { pieces, text: whole } = feed(cut(Buffer.from(text), by), []);
        expect(pieces.join('')).toBe(text);
        expect(whole).toBe(text);
        for (const piece of pieces) expect(piece).not.toContain('\ufffd'.repeat(text.includes('\ufffd') ? 99 : 1));
      }),
      { numRuns: 500 },
    );
  });

  it('ends at the first stop string wherever tokens are cut, and never shows a part of it', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom('a', 'b', '€', '😀'), maxLength: 40 }),
        fc.array(fc.string({ unit: fc.constantFrom('a', 'b', '€'), minLength: 1, maxLength: 4 }), { maxLength: 3 }),
        sizes,
        (text, stops, by) => {
          const [cutAt, expected] = readCharacterwise(text, stops);
          const { pieces, stopped } = feed(cut(Buffer.from(text), by), stops);
          expect(pieces.join('')).toBe(expected);
          expect(stopped >= 0).toBe(cutAt);
        },
      ),
      {
        numRuns: 2000,
        examples: [
          ['€b€', ['b', '€b€'], [1]],
          ['€b€', ['b', '€b€'], [7]],
          ['aab', ['b', 'ab'], [5]],
        ],
      },
    );
  });

  it('of overlapping stop strings the one complete first ends the text, of those ending together the longest', () => {
    const whole = [Buffer.from('xabcd')];
    expect(feed(whole, ['abcd', 'bc']).text).toBe('xa');
    expect(feed(whole, ['c', 'abc']).text).toBe('x');
    expect(feed(cut(whole[0] as Buffer, [1]), ['abcd', 'bc']).text).toBe('xa');
  });

  it('gives out what was held back when it turns out to be no stop string', () => {
    const tokens = ['x', 'ST', 'O', 'y'].map((s) => Buffer.from(s));
    expect(feed(tokens, ['STOP']).pieces).toEqual(['x', 'STOy']);
  });

  it('turns half a character at the end into one replacement character', () => {
    expect(feed([Buffer.from('a'), Buffer.from([0xe2, 0x82])], []).text).toBe('a\ufffd');
  });

  it('keeps a byte-order mark', () => {
    expect(feed([Buffer.from('\ufeffa')], []).text).toBe('\ufeffa');
  });

  it('gives the log-probability of each token with its text, none for tokens of the stop string', () => {
    const tokens = ['Hi', ' S', 'T', 'x', ' ST', 'OP', 'never'].map((s) => Buffer.from(s));
    const { entries, text } = feed(tokens, ['STOP'], true);
    expect(text).toBe('Hi STx ');
    expect(entries.map((e) => e.token)).toEqual(['0', '1', '2', '3', '4']);
  });
});
