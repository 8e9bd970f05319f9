import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { compilePattern, PatternError } from '../../../daemon/adapters/pattern.ts';
import { cpuMs } from '../../support/cost.ts';

const MODULE = 'model.layers.3.self_attn.q_proj';

describe('a module is matched by the end of its name, as PEFT does', () => {
  test.each([
    ['q_proj', true],
    ['self_attn.q_proj', true],
    ['model.layers.3.self_attn.q_proj', true],
    ['^model.layers.3.self_attn.q_proj', true],
    ['layers.3.self_attn.q_proj', true],
    ['proj', false],
    ['self_attn', false],
    ['k_proj', false],
    ['model.layers.30.self_attn.q_proj', false],
    ['(q|k)_proj', true],
    [String.raw`layers\.[0-3]\.self_attn\.[qk]_proj`, true],
    [String.raw`layers\.[4-9]\..*`, false],
    [String.raw`.*\.q_proj`, true],
    ['', false],
  ])('%s: %s', (pattern, matches) => {
    expect(compilePattern(pattern).matchesModule(MODULE)).toBe(matches);
  });
});

test('a whole name is matched from its beginning to its end', () => {
  expect(compilePattern(String.raw`.*\.(q|v)_proj`).matchesAll(MODULE)).toBe(true);
  expect(compilePattern('q_proj').matchesAll(MODULE)).toBe(false);
  // What a widely used training tool writes for the language layers of any model.
  const wide = String.raw`(?:.*?(?:language|text).*?(?:self_attn|attn|mlp).*?(?:q_proj|o_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))`;
  expect(compilePattern(wide).matchesAll(MODULE)).toBe(true);
  expect(compilePattern(wide).matchesAll('model.vision.3.fc1')).toBe(false);
});

describe('what is beyond the subset is refused', () => {
  test.each([
    '(?=a)',
    '(?<!a)b',
    String.raw`(a)\1`,
    '(?i)a',
    '[a',
    '(a',
    'a)',
    '*a',
    'a**',
    '[z-a]',
    String.raw`\p{L}`,
    'a{5,2}',
    '\\',
  ])('%s', (source) => {
    expect(() => compilePattern(source)).toThrow(PatternError);
  });
  test.each(['a'.repeat(2000), '('.repeat(100), '(((a{999}){999}){999})', '((((){999}){999}){999}){999}', 'a{0,9999}'])(
    'and so is what would grow beyond measure (%#)',
    (source) => {
      expect(cpuMs(() => expect(() => compilePattern(source)).toThrow(PatternError))).toBeLessThan(2_000);
    },
  );
});

test('patterns that hang a backtracking engine answer at once', () => {
  const text = `${'a'.repeat(500)}!`;
  const cost = cpuMs(() => {
    for (const evil of ['(a+)+$', '(a|aa)*b', '(.*a){20}b', '([a-z]+)*x', '(a?){200}a{200}b'])
      expect(compilePattern(evil).matchesModule(text)).toBe(false);
  });
  // A tenth of a second of work; in a backtracking engine it would not end in years.
  expect(cost).toBeLessThan(10_000);
});

test('agrees with the built-in engine on random patterns of the subset', () => {
  const atom = fc.constantFrom(
    'a',
    'b',
    '.',
    '[ab]',
    '[^a]',
    String.raw`\d`,
    String.raw`\w`,
    String.raw`\.`,
    '(?:a|b)',
    '(ab)',
    String.raw`\b`,
  );
  const piece = fc
    .tuple(atom, fc.constantFrom('', '*', '+', '?', '{2}', '{1,3}', '{0,}', '*?'))
    .map(([a, q]) => (a === String.raw`\b` ? a : a + q));
  const source = fc
    .array(
      fc.array(piece, { maxLength: 4 }).map((pieces) => pieces.join('')),
      { minLength: 1, maxLength: 3 },
    )
    .map((options) => options.join('|'));
  const text = fc.array(fc.constantFrom('a', 'b', '.', '1', '-'), { maxLength: 8 }).map((chars) => chars.join(''));
  fc.assert(
    fc.property(source, text, (pattern, subject) => {
      const ours = compilePattern(pattern);
      expect(ours.matchesAll(subject)).toBe(new RegExp(`^(?:${pattern})$`).test(subject));
      expect(ours.matchesModule(subject)).toBe(new RegExp(`^(?:.*\\.)?(?:${pattern})$`).test(subject));
    }),
    { numRuns: 3000 },
  );
});
