/** Names: what is shown can be seen, and what looks the same is the same. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { displayName, displayNameOf, NAME_CHARACTERS_MAX, nameKey } from '../../../gateway/http/names.ts';

const anyText = fc.string({ unit: 'binary', maxLength: 100 });

describe('the form that is shown', () => {
  test.each([
    ['  Contract   Law ', 'Contract Law'],
    ['Ｆｕｌｌ　ｗｉｄｔｈ', 'Full width'],
    ['Ünïcode – Größe №1', 'Ünïcode – Größe No1'],
    ['日本の法律', '日本の法律'],
    ['قانون', 'قانون'],
    ['হাসপাতাল', 'হাসপাতাল'],
    ['x'.repeat(80), 'x'.repeat(80)],
    ['A\u00a0B', 'A B'],
    ['🧪 labs', '🧪 labs'],
  ])('%j is kept as %j', (given, expected) => expect(displayNameOf(given)).toBe(expected));

  test.each([
    ['nothing', ''],
    ['spaces', '   '],
    ['too long', 'x'.repeat(81)],
    ['too long once normalised', '\ufdfa'.repeat(5)],
    ['a million characters', 'x'.repeat(1e6)],
    ['zero-width space', 'Con\u200btract'],
    ['zero-width joiner', 'Con\u200dtract'],
    ['byte order mark', '\ufeffContract'],
    ['soft hyphen', 'Con\u00adtract'],
    ['right-to-left override', 'law\u202egnp.exe'],
    ['isolate', '\u2066law\u2069'],
    ['Arabic letter mark', 'law\u061c'],
    ['new line', 'Contract\nLaw'],
    ['tab', 'Contract\tLaw'],
    ['NUL', 'Contract\0'],
    ['C1 control', 'Contract\u0085Law'],
    ['line separator', 'Contract\u2028Law'],
    ['lone surrogate', 'Contract\ud800'],
    ['tag characters', 'law\u{e0041}'],
    ['variation selector', 'law\ufe0f'],
    ['Hangul filler', 'law\u3164'],
    ['braille blank', '\u2800'],
    ['private use', 'law\ue000'],
    ['leading mark', '\u0301law'],
    ['heap of marks', `l${'\u0301\u0302\u0303\u0304\u0305\u0306'}aw`],
    ['nothing but punctuation', '--- !!'],
  ])('%s is refused', (_, given) => {
    expect(displayNameOf(given)).toBeNull();
    expect(() => displayName(given)).toThrow(/Invalid 'name'/);
  });

  test('whatever is given, what comes out is short, seen, and stays as it is', () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const name = displayNameOf(text);
        if (name === null) return;
        expect(displayNameOf(name)).toBe(name);
        expect([...name].length).toBeLessThanOrEqual(NAME_CHARACTERS_MAX);
        expect(name).not.toMatch(/[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]|^\s|\s$|\s\s/u);
        // Throws at half a surrogate pair.
        expect(encodeURIComponent(name)).toBeTypeOf('string');
      }),
      { numRuns: 2000 },
    );
  });
});

describe('the form that must be unique', () => {
  test.each([
    ['Contract Law', 'CONTRACT  law'],
    ['Contract Law', 'Ｃｏｎｔｒａｃｔ Ｌａｗ'],
    ['paypal', 'раураl'],
    ['PAYPAL', 'РАУРАL'],
    ['Google', 'G00gle'],
    ['AI lab', 'Al lab'],
    ['Straße', 'STRASSE'],
    ['İstanbul', 'istanbul'],
    ['Οδός', 'ΟΔΌΣ'],
    ['E2E—NLG', 'E2E-NLG'],
    ['Kelvin', '\u212aelvin'],
    ["O'Neill", 'O’Neill'],
  ])('%j and %j are one name', (a, b) => expect(nameKey(a)).toBe(nameKey(b)));

  test.each([
    ['cafe', 'café'],
    ['Law 2', 'Law 3'],
    ['contract law', 'contractlaw'],
    ['法律', '法津'],
  ])('%j and %j are two', (a, b) => expect(nameKey(a)).not.toBe(nameKey(b)));

  test('case, width and the shown form make no difference to it', () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const name = displayNameOf(text);
        if (name === null) return;
        const key = nameKey(name);
        expect(nameKey(key)).toBe(key);
        for (const same of [name.toUpperCase(), name.toLowerCase(), name.normalize('NFD'), ` ${name} `])
          expect(nameKey(same)).toBe(key);
      }),
      { numRuns: 2000 },
    );
  });
});
