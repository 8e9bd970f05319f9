/** What a caller can get wrong, and what it is told: status, type, code, param. Always OpenAI's shape, never a word about our insides. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CHAT, errorOf, type Rig, startRig } from './rig.ts';

let rig: Rig;
beforeAll(async () => {
  rig = await startRig({ adapters: ['legal'] });
});
afterAll(() => rig.close());

const IR = 'invalid_request_error';
type Row = [name: string, body: unknown, status: number, code: string | null, param: string | null];

const chat = (extra: object) => ({ ...CHAT, ...extra });
const user = (content: unknown) => chat({ messages: [{ role: 'user', content }] });
const tool = { type: 'function', function: { name: 'f' } };
const nested = (depth: number) => `{"model":"tiny-base","messages":${'['.repeat(depth)}${']'.repeat(depth)}}`;

const CHAT_ROWS: Row[] = [
  ['an empty body', '', 400, 'invalid_json', null],
  ['malformed JSON', '{"model": ', 400, 'invalid_json', null],
  ['a trailing comma', '{"model":"tiny-base",}', 400, 'invalid_json', null],
  ['broken UTF-8', new Uint8Array([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d]), 400, 'invalid_utf8', null],
  ['an overlong UTF-8 form', new Uint8Array([0x22, 0xc0, 0xaf, 0x22]), 400, 'invalid_utf8', null],
  ['an array', '[]', 400, 'invalid_type', null],
  ['a string', '"x"', 400, 'invalid_type', null],
  ['null', 'null', 400, 'invalid_type', null],
  ['deep nesting', nested(5000), 400, 'invalid_json', null],
  ['nesting that breaks recursive parsers', nested(200_000), 400, 'invalid_json', null],
  ['no model', { messages: CHAT.messages }, 400, 'missing_required_parameter', 'model'],
  ['model of a wrong type', chat({ model: 5 }), 400, 'invalid_type', 'model'],
  ['model null', chat({ model: null }), 400, 'invalid_type', 'model'],
  ['an empty model', chat({ model: '' }), 400, 'string_below_min_length', 'model'],
  ['an unknown model', chat({ model: 'gpt-9' }), 404, 'model_not_found', 'model'],
  ['a path as model', chat({ model: '../../etc/passwd' }), 404, 'model_not_found', 'model'],
  ['a prototype name as model', chat({ model: '__proto__' }), 404, 'model_not_found', 'model'],
  ['no messages', { model: 'tiny-base' }, 400, 'missing_required_parameter', 'messages'],
  ['messages empty', chat({ messages: [] }), 400, 'empty_array', 'messages'],
  ['messages of a wrong type', chat({ messages: 'Hi' }), 400, 'invalid_type', 'messages'],
  [
    'too many messages',
    chat({ messages: Array.from({ length: 2049 }, () => ({ role: 'user', content: 'x' })) }),
    400,
    'array_above_max_length',
    'messages',
  ],
  ['a message that is no object', chat({ messages: ['Hi'] }), 400, 'invalid_type', 'messages[0]'],
  ['an unknown role', chat({ messages: [{ role: 'wizard', content: 'x' }] }), 400, 'invalid_value', 'messages[0].role'],
  ['no role', chat({ messages: [{ content: 'x' }] }), 400, 'missing_required_parameter', 'messages[0].role'],
  ['no content', chat({ messages: [{ role: 'user' }] }), 400, 'missing_required_parameter', 'messages[0].content'],
  ['content null from a user', user(null), 400, 'invalid_type', 'messages[0].content'],
  ['content a number', user(5), 400, 'invalid_type', 'messages[0].content'],
  ['content an empty array', user([]), 400, 'empty_array', 'messages[0].content'],
  [
    'an image',
    user([
      { type: 'text', text: 'x' },
      { type: 'image_url', image_url: { url: 'http://x' } },
    ]),
    400,
    'unsupported_content',
    'messages[0].content[1].type',
  ],
  [
    'audio',
    user([{ type: 'input_audio', input_audio: {} }]),
    400,
    'unsupported_content',
    'messages[0].content[0].type',
  ],
  ['a text part without text', user([{ type: 'text' }]), 400, 'invalid_type', 'messages[0].content[0].text'],
  ['a part without type', user([{ text: 'x' }]), 400, 'missing_required_parameter', 'messages[0].content[0].type'],
  [
    'an assistant that says nothing',
    chat({ messages: [{ role: 'assistant' }] }),
    400,
    'missing_required_parameter',
    'messages[0].content',
  ],
  [
    'a tool answer without id',
    chat({ messages: [{ role: 'tool', content: 'x' }] }),
    400,
    'missing_required_parameter',
    'messages[0].tool_call_id',
  ],
  ['temperature a string', chat({ temperature: '1' }), 400, 'invalid_type', 'temperature'],
  ['temperature negative', chat({ temperature: -0.1 }), 400, 'decimal_below_min_value', 'temperature'],
  ['temperature too high', chat({ temperature: 2.1 }), 400, 'decimal_above_max_value', 'temperature'],
  [
    'temperature infinite',
    '{"model":"tiny-base","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    400,
    'invalid_type',
    'temperature',
  ],
  ['top_p too high', chat({ top_p: 1.5 }), 400, 'decimal_above_max_value', 'top_p'],
  ['top_k negative', chat({ top_k: -2 }), 400, 'integer_below_min_value', 'top_k'],
  ['min_p too high', chat({ min_p: 2 }), 400, 'decimal_above_max_value', 'min_p'],
  ['repeat_penalty zero', chat({ repeat_penalty: 0 }), 400, 'decimal_below_min_value', 'repeat_penalty'],
  ['n zero', chat({ n: 0 }), 400, 'integer_below_min_value', 'n'],
  ['n beyond the limit', chat({ n: 17 }), 400, 'integer_above_max_value', 'n'],
  ['n fractional', chat({ n: 1.5 }), 400, 'invalid_type', 'n'],
  ['max_tokens zero', chat({ max_tokens: 0 }), 400, 'integer_below_min_value', 'max_tokens'],
  ['max_tokens negative', chat({ max_tokens: -1 }), 400, 'integer_below_min_value', 'max_tokens'],
  ['max_tokens huge', chat({ max_tokens: 1e15 }), 400, 'integer_above_max_value', 'max_tokens'],
  ['max_tokens beyond the context', chat({ max_tokens: 2049 }), 400, 'invalid_value', 'max_tokens'],
  [
    'max_completion_tokens beyond the context',
    chat({ max_completion_tokens: 2049 }),
    400,
    'invalid_value',
    'max_completion_tokens',
  ],
  ['stop with an empty string', chat({ stop: '' }), 400, 'string_below_min_length', 'stop'],
  ['too many stops', chat({ stop: ['a', 'b', 'c', 'd', 'e'] }), 400, 'array_above_max_length', 'stop'],
  ['a stop of a wrong type', chat({ stop: ['a', 5] }), 400, 'invalid_type', 'stop[1]'],
  ['seed fractional', chat({ seed: 1.5 }), 400, 'invalid_value', 'seed'],
  ['seed a string', chat({ seed: '1' }), 400, 'invalid_type', 'seed'],
  ['frequency_penalty too high', chat({ frequency_penalty: 3 }), 400, 'decimal_above_max_value', 'frequency_penalty'],
  ['presence_penalty too low', chat({ presence_penalty: -3 }), 400, 'decimal_below_min_value', 'presence_penalty'],
  ['logit_bias with a word as key', chat({ logit_bias: { hello: 1 } }), 400, 'invalid_value', 'logit_bias.hello'],
  ['logit_bias too strong', chat({ logit_bias: { 5: 101 } }), 400, 'decimal_above_max_value', 'logit_bias.5'],
  ['logit_bias an array', chat({ logit_bias: [] }), 400, 'invalid_type', 'logit_bias'],
  ['top_logprobs without logprobs', chat({ top_logprobs: 2 }), 400, 'invalid_value', 'top_logprobs'],
  [
    'top_logprobs beyond the limit',
    chat({ logprobs: true, top_logprobs: 21 }),
    400,
    'integer_above_max_value',
    'top_logprobs',
  ],
  ['logprobs a number in chat', chat({ logprobs: 1 }), 400, 'invalid_type', 'logprobs'],
  ['stream a string', chat({ stream: 'yes' }), 400, 'invalid_type', 'stream'],
  [
    'stream_options without stream',
    chat({ stream_options: { include_usage: true } }),
    400,
    'invalid_value',
    'stream_options',
  ],
  ['response_format unknown', chat({ response_format: { type: 'xml' } }), 400, 'invalid_value', 'response_format.type'],
  [
    'json_schema without a schema',
    chat({ response_format: { type: 'json_schema', json_schema: { name: 'x' } } }),
    400,
    'missing_required_parameter',
    'response_format.json_schema.schema',
  ],
  [
    'json_schema with a bad name',
    chat({ response_format: { type: 'json_schema', json_schema: { name: 'a b', schema: {} } } }),
    400,
    'invalid_value',
    'response_format.json_schema.name',
  ],
  ['tools of a wrong type', chat({ tools: {} }), 400, 'invalid_type', 'tools'],
  [
    'a custom tool',
    chat({ tools: [{ type: 'custom', custom: { name: 'x' } }] }),
    400,
    'unsupported_value',
    'tools[0].type',
  ],
  [
    'a tool without function',
    chat({ tools: [{ type: 'function' }] }),
    400,
    'missing_required_parameter',
    'tools[0].function',
  ],
  [
    'a tool with a bad name',
    chat({ tools: [{ type: 'function', function: { name: 'a b' } }] }),
    400,
    'invalid_value',
    'tools[0].function.name',
  ],
  [
    'parameters of a wrong type',
    chat({ tools: [{ type: 'function', function: { name: 'f', parameters: 'x' } }] }),
    400,
    'invalid_type',
    'tools[0].function.parameters',
  ],
  ['tool_choice required without tools', chat({ tool_choice: 'required' }), 400, 'invalid_value', 'tool_choice'],
  [
    'tool_choice of an unknown function',
    chat({ tools: [tool], tool_choice: { type: 'function', function: { name: 'g' } } }),
    400,
    'invalid_value',
    'tool_choice.function.name',
  ],
  ['tool_choice unknown', chat({ tools: [tool], tool_choice: 'maybe' }), 400, 'invalid_value', 'tool_choice'],
  ['functions beside tools', chat({ tools: [tool], functions: [{ name: 'f' }] }), 400, 'invalid_value', 'functions'],
  ['function_call without functions', chat({ function_call: 'auto' }), 400, 'invalid_value', 'function_call'],
  ['modalities audio', chat({ modalities: ['text', 'audio'] }), 400, 'unsupported_value', 'modalities'],
  ['metadata of a wrong type', chat({ metadata: { a: 1 } }), 400, 'invalid_type', 'metadata.a'],
];

const COMPLETION_ROWS: Row[] = [
  ['no prompt', { model: 'tiny-base' }, 400, 'missing_required_parameter', 'prompt'],
  ['prompt a number', { model: 'tiny-base', prompt: 5 }, 400, 'invalid_type', 'prompt'],
  ['prompt of mixed kinds', { model: 'tiny-base', prompt: ['a', 5] }, 400, 'invalid_type', 'prompt[1]'],
  ['negative tokens', { model: 'tiny-base', prompt: [1, -5] }, 400, 'integer_below_min_value', 'prompt[1]'],
  ['no tokens', { model: 'tiny-base', prompt: [] }, 400, 'empty_array', 'prompt'],
  [
    'too many prompts',
    { model: 'tiny-base', prompt: Array.from({ length: 65 }, () => 'a') },
    400,
    'array_above_max_length',
    'prompt',
  ],
  [
    'prompts × n too many',
    { model: 'tiny-base', prompt: Array.from({ length: 64 }, () => 'a'), n: 3 },
    400,
    'integer_above_max_value',
    'n',
  ],
  ['suffix', { model: 'tiny-base', prompt: 'a', suffix: 'b' }, 400, 'unsupported_parameter', 'suffix'],
  ['best_of', { model: 'tiny-base', prompt: 'a', best_of: 3 }, 400, 'unsupported_value', 'best_of'],
  [
    'echo with logprobs',
    { model: 'tiny-base', prompt: 'a', echo: true, logprobs: 1 },
    400,
    'unsupported_value',
    'echo',
  ],
  [
    'logprobs beyond the limit',
    { model: 'tiny-base', prompt: 'a', logprobs: 6 },
    400,
    'integer_above_max_value',
    'logprobs',
  ],
];

const EMBEDDING_ROWS: Row[] = [
  ['no input', { model: 'tiny-base' }, 400, 'missing_required_parameter', 'input'],
  ['an empty string', { model: 'tiny-base', input: '' }, 400, 'string_below_min_length', 'input'],
  ['an empty array', { model: 'tiny-base', input: [] }, 400, 'empty_array', 'input'],
  ['an empty string in an array', { model: 'tiny-base', input: ['a', ''] }, 400, 'string_below_min_length', 'input[1]'],
  [
    'encoding_format unknown',
    { model: 'tiny-base', input: 'a', encoding_format: 'hex' },
    400,
    'invalid_value',
    'encoding_format',
  ],
  ['dimensions zero', { model: 'tiny-base', input: 'a', dimensions: 0 }, 400, 'integer_below_min_value', 'dimensions'],
  [
    'dimensions beyond the model',
    { model: 'tiny-base', input: 'a', dimensions: 5 },
    400,
    'integer_above_max_value',
    'dimensions',
  ],
  [
    'too many inputs',
    { model: 'tiny-base', input: Array.from({ length: 2049 }, () => 'a') },
    400,
    'array_above_max_length',
    'input',
  ],
];

const KEY_ROWS: Row[] = [
  ['no name', {}, 400, 'missing_required_parameter', 'name'],
  ['an unknown scope', { name: 'x', scopes: ['root'] }, 400, 'invalid_value', 'scopes[0]'],
  ['a negative budget', { name: 'x', budget_micros: -1 }, 400, 'integer_below_min_value', 'budget_micros'],
  ['a fractional budget', { name: 'x', budget_micros: 0.5 }, 400, 'invalid_type', 'budget_micros'],
  ['an expiry in the past', { name: 'x', expires_at: 1 }, 400, 'invalid_value', 'expires_at'],
];

const ADAPTER_ROWS: Row[] = [
  ['no source', { name: 'x' }, 400, 'missing_required_parameter', 'source'],
  ['a name that climbs', { name: '../x', source: 'hf:a/b' }, 400, 'invalid_value', 'name'],
  ["the base model's name", { name: 'tiny-base', source: 'hf:a/b' }, 409, 'name_taken', 'name'],
];

function check(path: string, rows: Row[]): void {
  describe(path, () => {
    test.each(rows)('%s', async (_, body, status, code, param) => {
      const before = rig.daemon.requests.length;
      const response = await rig.call('POST', path, body);
      const error = await errorOf(response);
      expect({ status: response.status, ...error, message: '' }).toEqual({
        status,
        type: IR,
        code,
        param,
        message: '',
      });
      expect(error.message.length).toBeGreaterThan(10);
      expect(error.message).not.toMatch(/node_modules|\.ts:|at .*\(|zod|Zod/);
      expect(response.headers.get('x-request-id')).toBeTruthy();
      expect(rig.daemon.requests.length).toBe(before);
    });
  });
}
check('/v1/chat/completions', CHAT_ROWS);
check('/v1/completions', COMPLETION_ROWS);
check('/v1/embeddings', EMBEDDING_ROWS);
check('/api/keys', KEY_ROWS);
check('/api/adapters', ADAPTER_ROWS);

describe('bodies, addresses and methods', () => {
  const big = (bytes: number) => `{"model":"tiny-base","messages":[{"role":"user","content":"${'x'.repeat(bytes)}"}]}`;

  test('a body over 10 MB is 413, declared or not', async () => {
    const body = big(10 * 1024 * 1024);
    const declared = await rig.call('POST', '/v1/chat/completions', body, { 'content-length': String(body.length) });
    const streamed = await rig.app.fetch(
      new Request('http://gateway.test/v1/chat/completions', {
        method: 'POST',
        headers: { authorization: `Bearer ${rig.admin}`, 'content-type': 'application/json' },
        body: new Blob([body]).stream(),
        duplex: 'half',
      } as RequestInit),
    );
    for (const response of [declared, streamed]) {
      expect(response.status).toBe(413);
      expect(await errorOf(response)).toMatchObject({ type: IR, code: 'request_too_large', param: null });
    }
  });

  test('a body just under 10 MB is taken', async () => {
    expect((await rig.call('POST', '/v1/chat/completions', big(10 * 1024 * 1024 - 200))).status).toBe(200);
  });

  test('another media type is 415', async () => {
    const response = await rig.call('POST', '/v1/chat/completions', 'a=b', {
      'content-type': 'application/x-www-form-urlencoded',
    });
    expect([response.status, (await errorOf(response)).code]).toEqual([415, 'unsupported_media_type']);
  });

  test.each([
    '/',
    '/nowhere',
    '/v1',
    '/v1/chat',
    '/v1/chat/completions/',
    '//v1/models',
    '/v1/models%2Fx/y',
    '/%2e%2e/admin.key',
    '/data/admin.key',
  ])('GET %s never shows a file', async (path) => {
    const response = await rig.call('GET', path);
    if (path === '/') {
      expect(response.headers.get('content-type')).toMatch('text/html');
      return;
    }
    expect(response.status).toBe(404);
    expect((await errorOf(response)).code).toMatch(/unknown_url|model_not_found/);
  });

  test.each([
    ['GET', '/v1/chat/completions', 'POST'],
    ['POST', '/v1/models', 'GET'],
    ['PUT', '/api/keys', 'GET, POST'],
    ['PATCH', '/v1/models/tiny-base', 'GET, DELETE'],
    ['OPTIONS', '/v1/embeddings', 'POST'],
  ])('%s %s is 405 and says what is allowed', async (method, path, allow) => {
    const response = await rig.call(method, path);
    expect([response.status, response.headers.get('allow'), (await errorOf(response)).code]).toEqual([
      405,
      allow,
      'method_not_allowed',
    ]);
  });

  test('headers over 32 KB are 431', async () => {
    const response = await rig.call('GET', '/v1/models', undefined, { 'x-padding': 'x'.repeat(33 * 1024) });
    expect([response.status, (await errorOf(response)).code]).toEqual([431, 'headers_too_large']);
  });

  test('a prompt longer than the context is what the daemon says: 400 context_length_exceeded', async () => {
    rig.daemon.promptTokens = 5000;
    const response = await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true });
    rig.daemon.promptTokens = 9;
    expect([response.status, await errorOf(response)]).toMatchObject([
      400,
      { code: 'context_length_exceeded', param: 'messages' },
    ]);
  });

  test.each(['../../health', '0/x001', 'entries/../../x', '64/000', '0/000.p/256', '0/000.p/0', '%2e%2e/x', '0/00a'])(
    'log tile %s is refused here',
    async (tile) => {
      const before = rig.daemon.log.length;
      const response = await rig.call('GET', `/log/tile/${tile}`);
      // An address that climbs is folded by the URL itself; then it is another route, or none.
      if (new URL(`http://x/log/tile/${tile}`).pathname.startsWith('/log/tile/')) expect(response.status).toBe(404);
      expect(rig.daemon.log.slice(before).filter((line) => line.includes('/log/'))).toEqual([]);
    },
  );

  test.each(['0/000', '0/x001/234', '5/000.p/17', 'entries/x001/x234/067.p/255'])(
    'log tile %s reaches the daemon',
    async (tile) => {
      expect(await (await rig.call('GET', `/log/tile/${tile}`)).text()).toBe(`/log/tile/${tile}`);
    },
  );
});
