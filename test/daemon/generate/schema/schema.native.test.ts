import { Ajv2020 } from 'ajv/dist/2020.js';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openVocabulary, type Vocabulary } from '../../../../addon/index.ts';
import { SchemaRefused } from '../../../../daemon/generate/schema/merge.ts';
import { asDocument, normaliseSchema } from '../../../../daemon/generate/schema/normalise.ts';
import { uniform } from '../../../../daemon/training/random.ts';
import { defaultModelPath, SKIP_REASON } from '../../../support/model.ts';
import { Grammar } from './gbnf.ts';

const path = await defaultModelPath();
type Schema = Record<string, unknown>;

const object = (properties: Schema, extra: Schema = {}): Schema => ({
  type: 'object',
  properties,
  required: Object.keys(properties),
  additionalProperties: false,
  ...extra,
});
const text = (extra: Schema) => object({ a: { type: 'string', ...extra } });

/** Schemas that a model must not be able to break. */
const HELD: Record<string, unknown> = {
  'a pattern with a dot': text({ pattern: '^.{5,30}$' }),
  'a pattern with a class of everything else': text({ pattern: '^[^a]{20}$' }),
  'a pattern with a range over quote and backslash': text({ pattern: '^[ -~]{30}$' }),
  'digits and words': text({ pattern: '^\\d{3}-\\w+\\s\\S$' }),
  'a pattern that is searched for': text({ pattern: 'abc' }),
  'alternatives with anchors of their own': text({ pattern: '^a|b$|c' }),
  'quotes, backslashes and line ends in a pattern': text({ pattern: '^"\\\\\\n\\t/(x|"|)\\u00e9\\u{1F389}$' }),
  'an escape that is repeated': text({ pattern: '^a\\.*b\\+{2}$' }),
  'a lazy pattern with groups': text({ pattern: '^(?:ab|(?<n>c))+?d??$' }),
  'a pattern of nothing': text({ pattern: '^$' }),
  'a pattern and lengths': text({ pattern: '^[a-z]+$', minLength: 3, maxLength: 5 }),
  'recursion by #': object({ v: { type: 'integer' }, next: { anyOf: [{ $ref: '#' }, { type: 'null' }] } }),
  'recursion by definitions': {
    $defs: { node: object({ kids: { type: 'array', items: { $ref: '#/$defs/node' }, maxItems: 2 } }) },
    $ref: '#/$defs/node',
  },
  'names of definitions that differ by a sign': {
    ...object({ x: { $ref: '#/$defs/a-b' }, y: { $ref: '#/$defs/a_b' }, z: { $ref: '#/$defs/a~1b' } }),
    $defs: { 'a-b': { type: 'integer' }, a_b: { type: 'boolean' }, 'a/b': { type: 'null' } },
  },
  'a reference with words beside it': {
    ...object({ x: { $ref: '#/$defs/s', description: 'short' } }),
    $defs: { s: { type: 'string', maxLength: 5 } },
  },
  'a reference with more beside it': {
    ...object({ x: { $ref: '#/$defs/s', minLength: 2 } }),
    $defs: { s: { type: 'string', maxLength: 5 } },
  },
  'allOf around a string': {
    ...object({ x: { allOf: [{ $ref: '#/$defs/s' }], default: '' } }),
    $defs: { s: { type: 'string', maxLength: 5 } },
  },
  'allOf of objects': {
    allOf: [
      { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'] },
      { properties: { b: { enum: ['x'] } }, required: ['b'] },
    ],
  },
  'alternatives beside properties': {
    type: 'object',
    properties: { a: { type: 'integer' } },
    required: ['a'],
    anyOf: [
      { properties: { b: { type: 'boolean' } }, required: ['b'] },
      { properties: { c: { type: 'null' } }, required: ['c'] },
    ],
  },
  'oneOf with a mark in each': object({
    x: { oneOf: [object({ kind: { const: 'cat' }, lives: { type: 'integer' } }), object({ kind: { const: 'dog' } })] },
  }),
  'oneOf of types': object({ x: { oneOf: [{ type: 'integer' }, { type: 'string', maxLength: 3 }] } }),
  'a list of types': object({ x: { type: ['string', 'null', 'integer'], maxLength: 4, minimum: 0 } }),
  'values of any kind': object({ x: { enum: ['a"b\\', 1, null, { k: [1] }, 'é\n'] }, y: { const: { z: '"' } } }),
  'values and a type': object({ x: { type: 'string', enum: ['a', 1] } }),
  'a required property that is not described': {
    type: 'object',
    properties: { a: { type: 'integer' } },
    required: ['a', 'b'],
  },
  'any further properties': {
    type: 'object',
    properties: { a: { type: 'integer' } },
    required: ['a'],
    additionalProperties: true,
  },
  'further properties of a kind': {
    type: 'object',
    properties: { 'a]': { type: 'null' } },
    additionalProperties: { type: 'integer' },
  },
  'only further properties': { type: 'object', additionalProperties: { type: 'integer' } },
  'a schema that is true': object({ x: true, y: {} }),
  'a property that must not be there': {
    type: 'object',
    properties: { a: { type: 'null' }, b: false },
    required: ['a'],
  },
  'a tuple that is closed': object({
    x: { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'boolean' }], items: false },
  }),
  'a tuple with a rest': object({
    x: { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'boolean' }], items: { type: 'null' }, minItems: 4 },
  }),
  'a tuple that is cut': object({
    x: { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'boolean' }], maxItems: 1 },
  }),
  'lists in lists': object({
    x: { type: 'array', minItems: 2, maxItems: 3, items: { type: 'array', maxItems: 2, items: { enum: [0, 1] } } },
  }),
  'a list of nothing': object({ x: { type: 'array', maxItems: 0 }, y: { items: false, type: 'array' } }),
  'bounds of whole numbers': object({
    x: { type: 'integer', minimum: -12, exclusiveMinimum: -11.5, maximum: 100.5, exclusiveMaximum: 100 },
  }),
  'strings by length alone': object({
    x: { minLength: 2, maxLength: 3, type: 'string' },
    y: { type: 'string', maxLength: 0 },
  }),
  formats: object({ u: { type: 'string', format: 'uuid' }, t: { type: 'string', format: 'date-time' } }),
  'names with signs': object({
    'a"b\\c\n€': { type: 'integer' },
    'a-b': { type: 'boolean' },
    a_b: { type: 'null' },
    'a b': { enum: [1] },
    ']^-': { type: 'null' },
  }),
  'anything at all': {},
  'a text alone': { type: 'string', maxLength: 5 },
};

/** What no grammar keeps to, or what makes no sense, with a word of the reason. */
const REFUSED: Record<string, [schema: unknown, why: RegExp]> = {
  'looking ahead': [text({ pattern: '^(?=a).*$' }), /looks ahead/],
  'a reference to a group': [text({ pattern: '^(a)\\1$' }), /\\1/],
  'the edge of a word': [text({ pattern: '\\bword\\b' }), /\\b/],
  'an anchor in the middle': [text({ pattern: '^a(^b)$' }), /middle/],
  'a pattern with open lengths beside it': [text({ pattern: '^a+b+$', maxLength: 9 }), /maxLength/],
  'a broken pattern': [text({ pattern: '^(a$' }), /middle|does not end/],
  'a brace that is no quantifier': [text({ pattern: '^a{x}$' }), /brace/],
  'bounds of fractions': [object({ x: { type: 'number', minimum: 0 } }), /integer/],
  multiples: [object({ x: { type: 'integer', multipleOf: 7 } }), /multipleOf/],
  'different items': [object({ x: { type: 'array', items: { type: 'integer' }, uniqueItems: true } }), /uniqueItems/],
  'names by pattern': [{ type: 'object', patternProperties: { '^a$': {} } }, /patternProperties/],
  'counted properties': [{ type: 'object', minProperties: 3 }, /minProperties/],
  'alternatives that overlap': [object({ x: { oneOf: [{ type: 'integer' }, { type: 'number' }] } }), /anyOf/],
  not: [object({ x: { type: 'string', not: { const: 'a' } } }), /not/],
  conditions: [{ type: 'object', if: {}, else: {} }, /if/],
  'a definition that is itself': [
    { $defs: { a: { $ref: '#/$defs/a' } }, ...object({ x: { $ref: '#/$defs/a' } }) },
    /itself/,
  ],
  'an alternative that is the whole': [
    { anyOf: [{ $ref: '#/$defs/a' }], $defs: { a: { anyOf: [{ type: 'null' }, { $ref: '#/$defs/a' }] } } },
    /itself/,
  ],
  'a reference elsewhere': [object({ x: { $ref: 'https://example.org/s' } }), /same schema/],
  'a reference to nothing': [object({ x: { $ref: '#/$defs/none' } }), /points to nothing/],
  'a required property that is shut out': [{ ...object({ a: {} }), required: ['a', 'b'] }, /"b"/],
  'no number between the bounds': [object({ x: { type: 'integer', minimum: 10, maximum: 5 } }), /between/],
  'numbers beyond numbers': [object({ x: { type: 'integer', minimum: 1e30 } }), /53 bits/],
  'an unknown type': [object({ x: { type: 'strng' } }), /strng/],
  'a schema that is false': [object({ x: false }), /false/],
  'a value of another type': [object({ x: { type: 'string', enum: [1] } }), /type/],
  'depth without end': [
    Array.from({ length: 100 }).reduce<Schema>((inner) => ({ type: 'array', items: inner }), { type: 'null' }),
    /deeper/,
  ],
};

describe.skipIf(path === null)(`an answer held to a JSON schema${path === null ? ` (${SKIP_REASON})` : ''}`, () => {
  let vocabulary: Vocabulary;
  beforeAll(() => {
    vocabulary = openVocabulary(path as string);
  });
  afterAll(() => vocabulary?.close());

  it.each(Object.entries(HELD))('%s: whatever the grammar admits is valid', (_, schema) => {
    const grammar = new Grammar(
      vocabulary.schemaToGrammar(JSON.stringify(asDocument(normaliseSchema(schema, { strict: true })))),
    );
    const valid = new Ajv2020({ strict: false, formats: { uuid: true, 'date-time': true } }).compile(schema as Schema);
    const random = uniform(1);
    const seen = new Set<string>();
    for (let i = 0; i < 60; i++) {
      const answer = grammar.write(random);
      seen.add(answer);
      expect(() => JSON.parse(answer), answer).not.toThrow();
      expect(valid(JSON.parse(answer)), `${answer} ${JSON.stringify(valid.errors)}`).toBe(true);
    }
    expect(seen.size).toBeGreaterThan(1);
  });

  it.each(Object.entries(REFUSED))('%s: refused with the reason', (_, [schema, why]) => {
    expect(() => normaliseSchema(schema, { strict: true })).toThrow(SchemaRefused);
    expect(() => normaliseSchema(schema, { strict: true })).toThrow(why);
  });

  it('without `strict`, what cannot be kept to is left out and the rest is kept', () => {
    const schema = object({
      a: { type: 'string', pattern: '^(?=x)', maxLength: 3 },
      b: { type: 'number', minimum: 0 },
      c: { oneOf: [{ type: 'integer' }, { type: 'number' }] },
      d: { type: 'array', uniqueItems: true, items: { type: 'null' } },
    });
    const { schema: kept } = normaliseSchema(schema, { strict: false });
    expect(kept.properties).toEqual({
      a: { type: 'string', maxLength: 3 },
      b: { type: 'number' },
      c: { anyOf: [{ type: 'integer' }, { type: 'number' }] },
      d: { type: 'array', items: { type: 'null' } },
    });
    expect(() => normaliseSchema({ $ref: '#/none' }, { strict: false })).toThrow(/points to nothing/);
  });

  it('words for the reader are kept, and schemas go together by their prefixes', () => {
    const schema = {
      description: 'whole',
      ...object({ x: { $ref: '#/$defs/a' } }),
      $defs: { a: { type: 'null', description: 'part' } },
    };
    const { schema: kept, definitions } = normaliseSchema(schema, { strict: true, prefix: 't7' });
    expect(kept.description).toBe('whole');
    expect(kept.properties).toEqual({ x: { $ref: '#/$defs/t7d0' } });
    expect(definitions).toEqual({ t7d0: { type: 'null', description: 'part' } });
  });

  it('a schema of the largest size is turned into a grammar in a moment', () => {
    const many = Object.fromEntries(Array.from({ length: 128 }, (_, i) => [`p${i}`, { type: 'integer' }]));
    const schema = asDocument(normaliseSchema({ type: 'object', properties: many }, { strict: true }));
    const grammar = vocabulary.schemaToGrammar(JSON.stringify(schema));
    expect(grammar.length).toBeLessThan(2_000_000);
    expect(() => normaliseSchema({ type: 'object', properties: { ...many, more: {} } }, { strict: true })).toThrow(
      /optional/,
    );
  });
});
