/** Input that once ended the process inside libllama or ggml: each is an error now, and the process goes on. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, openVocabulary, type Vocabulary } from '../../addon/index.ts';
import { answerDepth, JSON_DEPTH_MAX, jsonDepth } from '../../addon/json-bounds.ts';
import { cpuMs } from '../support/cost.ts';
import { writeTinyModel } from '../support/tiny-models.ts';
import { errorCode, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
let vocabulary: Vocabulary;
const nested = (levels: number): string => '['.repeat(levels) + ']'.repeat(levels);
const chat = {
  messagesJson: '[{"role":"user","content":"hi"}]',
  toolsJson: '',
  toolChoice: 'auto' as const,
  parallelToolCalls: false,
  jsonSchema: '',
};

beforeAll(() => {
  vocabulary = openVocabulary(writeTinyModel('llama', join(folder.path, 'tiny.gguf')).path);
});
afterAll(() => {
  vocabulary.close();
  folder.remove();
});

describe('JSON that is nested beyond any stack is refused', () => {
  const schema = ['{"type":"array","items":'.repeat(100_000), '{}', '}'.repeat(100_000)].join('');
  it('as a schema', () => {
    expect(errorCode(() => vocabulary.schemaToGrammar(schema))).toBe('grammar_invalid');
    expect(errorCode(() => vocabulary.chatPrompt({ ...chat, jsonSchema: schema }))).toBe('grammar_invalid');
  });
  it('in tools, in template arguments, and in the arguments of earlier tool calls', () => {
    const toolsJson = `[{"type":"function","function":{"name":"f","parameters":${schema}}}]`;
    expect(errorCode(() => vocabulary.chatPrompt({ ...chat, toolsJson }))).toBe('template_invalid');
    expect(errorCode(() => vocabulary.chatPrompt({ ...chat, templateArguments: { a: nested(100_000) } }))).toBe(
      'argument_invalid',
    );
    const call = { id: '1', type: 'function', function: { name: 'f', arguments: nested(100_000) } };
    const messagesJson = JSON.stringify([{ role: 'assistant', content: '', tool_calls: [call] }]);
    expect(errorCode(() => vocabulary.chatPrompt({ ...chat, messagesJson }))).toBe('template_invalid');
  });
  it('in what the model wrote', () => {
    const prompt = vocabulary.chatPrompt(chat);
    expect(errorCode(() => vocabulary.parseChat(nested(100_000), prompt, true))).toBe('template_invalid');
  });
  it('while brackets in ordinary text are no nesting', () => {
    const messagesJson = JSON.stringify([{ role: 'user', content: '['.repeat(1000) }]);
    expect(vocabulary.chatPrompt({ ...chat, messagesJson }).prompt).toContain('['.repeat(1000));
  });
});

describe('the measures of nesting', () => {
  it('count levels, not brackets, and skip strings', () => {
    expect(jsonDepth('{"a":[{},[]],"b":"[[[[\\"[["}')).toBe(3);
    expect(jsonDepth('[]'.repeat(500))).toBe(1);
  });
  it.each(['', '"', '\\"', '"\\', 'say "hi" \\', '"a\\\\"'])('see JSON after the text %j', (before) => {
    const levels = JSON_DEPTH_MAX + 1;
    expect(answerDepth(`${before}{"a":${'["]]]",'.repeat(levels)}`)).toBeGreaterThan(levels);
  });
});

it('a schema whose conversion would take minutes is refused at once', () => {
  const properties = Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`p${i}`, { type: 'string' }]));
  const schema = JSON.stringify({ type: 'object', properties });
  const cost = cpuMs(() => expect(errorCode(() => vocabulary.schemaToGrammar(schema))).toBe('grammar_invalid'));
  expect(cost).toBeLessThan(5_000);
});

it.each(['token_embd', 'output', 'blk.0.attn_q', 'blk.0.ffn_down'])(
  'a model whose %s is of integers is refused',
  (name) => {
    const { path } = writeTinyModel('llama', join(folder.path, `${name}.gguf`), { layers: 1 });
    const file = readFileSync(path);
    const at = file.indexOf(`${name}.weight`) + `${name}.weight`.length;
    // number of dimensions, the dimensions, the type: 26 is int32, as wide as float32
    file.writeUInt32LE(26, at + 4 + 8 * file.readUInt32LE(at));
    writeFileSync(path, file);
    expect(errorCode(() => loadModel({ path, device: 'cpu', threads: 1 }))).toBe('architecture_unsupported');
  },
);
