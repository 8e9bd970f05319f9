import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Block } from '../../../../gateway/datanets/documents/blocks.ts';
import { Chunker, piecesOf } from '../../../../gateway/datanets/documents/chunks.ts';
import type { Chunk } from '../../../../gateway/datanets/documents/document.ts';
import { GROWTH_MAX, growth } from '../../../support/cost.ts';

function chunksOf(blocks: readonly Block[], characters: number): Chunk[] {
  const chunker = new Chunker(characters);
  return [...blocks.flatMap((block) => [...chunker.add(block)]), ...chunker.end()];
}
const plain = (text: string): Block => ({ text, level: null, page: null });
const words = (text: string) => text.split(/\s+/u).filter((word) => word !== '');

/** Of any script in which words are not cut. */
const word = fc
  .string({ unit: 'grapheme', minLength: 1, maxLength: 12 })
  .filter((text) => !/[\s\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]/u.test(text));
const sentence = fc.array(word, { minLength: 1, maxLength: 40 }).map((list) => `${list.join(' ')}.`);
const block: fc.Arbitrary<Block> = fc.record({
  text: fc.array(sentence, { minLength: 1, maxLength: 12 }).map((list) => list.join(' ')),
  level: fc.oneof(
    { weight: 4, arbitrary: fc.constant(null) },
    { weight: 1, arbitrary: fc.integer({ min: 1, max: 6 }) },
  ),
  page: fc.option(fc.integer({ min: 1, max: 9 })),
});

describe('Chunker', () => {
  test('keeps every word, in order, whole, and the sizes asked for', () => {
    fc.assert(
      fc.property(fc.array(block, { maxLength: 20 }), fc.integer({ min: 200, max: 2000 }), (blocks, characters) => {
        const chunks = chunksOf(blocks, characters);
        const text = blocks.filter((one) => one.level === null).map((one) => one.text);
        expect(chunks.flatMap((chunk) => words(chunk.text))).toEqual(text.flatMap(words));
        for (const chunk of chunks) {
          expect(chunk.text.length).toBeGreaterThan(0);
          expect(chunk.text.length).toBeLessThanOrEqual(characters * 1.25 + 2);
          expect(chunk.text).toBe(chunk.text.trim());
        }
      }),
    );
  });

  test('a chunk is of one section and knows the headings above it', () => {
    const chunks = chunksOf(
      [
        plain('Before everything.'),
        { text: 'Bees', level: 1, page: 1 },
        plain('About bees.'),
        { text: 'Hives', level: 2, page: 1 },
        plain('About hives.'),
        { text: 'Honey', level: 2, page: 2 },
        { text: 'Wasps', level: 1, page: 2 },
        { text: 'About wasps.', level: null, page: 2 },
      ],
      1000,
    );
    expect(chunks).toEqual([
      { text: 'Before everything.', heading: null, page: null },
      { text: 'About bees.', heading: 'Bees', page: null },
      { text: 'About hives.', heading: 'Bees › Hives', page: null },
      { text: 'About wasps.', heading: 'Wasps', page: 2 },
    ]);
  });

  test('paragraphs stay whole where they fit, and a short rest joins what is before it', () => {
    const long = `${'Many words are here. '.repeat(40)}`.trim();
    const chunks = chunksOf([plain(long), plain(long), plain('The end.')], 900);
    expect(chunks.map((chunk) => chunk.text)).toEqual([long, `${long}\n\nThe end.`]);
  });

  test('cuts after lines and sentences before it cuts after words', () => {
    const [first] = piecesOf('One sentence ends here. Another one goes on and on and on and on and does not end', 40);
    expect(first).toBe('One sentence ends here.');
    const [row] = piecesOf('a | b | c | d | e\n1 | 2 | 3 | 4 | 5\n6 | 7 | 8', 38);
    expect(row).toBe('a | b | c | d | e\n1 | 2 | 3 | 4 | 5');
    expect([...piecesOf('我们应该去山上散步。'.repeat(6), 25)].every((piece) => piece.endsWith('。'))).toBe(true);
  });

  test('a word of any length is cut only when it is several chunks long, and never within a character', () => {
    const pieces = [...piecesOf('x'.repeat(1000), 300)];
    expect(pieces).toEqual(['x'.repeat(1000)]);
    for (const emoji of ['😀', '👩🏽', 'e\u0301']) {
      const cut = [...piecesOf(emoji.repeat(2000), 201)];
      expect(cut.join('')).toBe(emoji.repeat(2000));
      for (const piece of cut) {
        expect(piece).not.toMatch(/\p{Cs}/u);
        expect(piece).not.toMatch(/^\p{M}/u);
        expect(piece.length).toBeLessThanOrEqual(804);
      }
    }
  });

  test('a megabyte without spaces or ends is cut in no time', () => {
    for (const unit of ['x', '。', 'a ', '.', '\n']) {
      const cost = growth((share) => void chunksOf([plain(unit.repeat((1e6 * share) / unit.length))], 200));
      expect(cost, JSON.stringify(unit)).toBeLessThan(GROWTH_MAX);
    }
  });
});
