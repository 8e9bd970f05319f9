/** What is wrong with a data set is told by line, field and rule, all at once; and whatever the bytes, there is a report. */
import fc from 'fast-check';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { describe, expect, test } from 'vitest';
import { type TrainingExample, trainingExample } from '../../../daemon/protocol.ts';
import { checkDataset, type DatasetReport, examplesOf } from '../../../gateway/factory/datasets/dataset.ts';
import type { Columns, Format } from '../../../gateway/factory/datasets/formats.ts';
import { parquetRecords } from '../../../gateway/factory/datasets/parquet-records.ts';
import { CONTAINERS, type Container, sourceOf } from '../../../gateway/factory/datasets/source.ts';
import { limits } from '../../../gateway/limits.ts';
import { chatLines, preferenceLines } from './rig.ts';

type Options = { format?: Format; columns?: Columns; chunkBytes?: number; against?: Set<number> };

function fileOf(container: Container, content: string | Uint8Array, options: Options = {}) {
  const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content;
  return {
    source: sourceOf(bytes, options.chunkBytes ?? 13),
    container,
    format: options.format ?? null,
    columns: options.columns ?? null,
  };
}

async function check(
  container: Container,
  content: string | Uint8Array,
  options: Options = {},
): Promise<DatasetReport> {
  return (await checkDataset(fileOf(container, content, options), options.against ? { against: options.against } : {}))
    .report;
}

async function examples(container: Container, content: string | Uint8Array, options: Options = {}) {
  let text = '';
  for await (const chunk of examplesOf(fileOf(container, content, options))) text += new TextDecoder().decode(chunk);
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => trainingExample.parse(JSON.parse(line)));
}

const user = { role: 'user', content: 'q' };
const assistant = { role: 'assistant', content: 'a' };
const line = (value: unknown) => `${JSON.stringify(value)}\n`;
const chat = (...messages: unknown[]) => line({ messages });
const call = { id: 'call_1', type: 'function', function: { name: 'f', arguments: '{"x":1}' } };

describe('bad lines: line, field and rule', () => {
  const table: [name: string, content: string | Uint8Array, line: number | null, field: string | null, rule: string][] =
    [
      ['empty file', '', null, null, 'empty'],
      ['blank lines only', '\n \n\t\n', null, null, 'empty'],
      ['not JSON', `${chat(user, assistant)}hello\n`, 2, null, 'not_a_dictionary'],
      ['an array', '[1, 2]\n', 1, null, 'not_a_dictionary'],
      ['half a line', '{"messages": [', 1, null, 'not_a_dictionary'],
      [
        'not UTF-8',
        Buffer.concat([Buffer.from('{"prompt":"'), Buffer.from([0xe9]), Buffer.from('","completion":"b"}')]),
        1,
        null,
        'not_utf8',
      ],
      ['UTF-16', Buffer.from(`\ufeff${chat(user, assistant)}`, 'utf16le'), 1, null, 'not_utf8'],
      ['unknown fields', line({ text: 'x' }), 1, null, 'unknown_format'],
      ['mixed formats', chat(user, assistant) + line({ prompt: 'a', completion: 'b' }), 2, null, 'mixed_formats'],
      ['messages no list', line({ messages: 'x' }), 1, 'messages', 'missing_messages_list'],
      ['messages empty', line({ messages: [] }), 1, 'messages', 'missing_messages_list'],
      ['a message that is a string', chat('x', assistant), 1, 'messages[0]', 'data_type'],
      ['no role', chat({ content: 'x' }, assistant), 1, 'messages[0].role', 'message_missing_key'],
      ['unknown role', chat({ role: 'bot', content: 'x' }, assistant), 1, 'messages[0].role', 'unrecognized_role'],
      ['no content', chat({ role: 'user' }, assistant), 1, 'messages[0].content', 'message_missing_key'],
      ['content null', chat({ role: 'user', content: null }, assistant), 1, 'messages[0].content', 'missing_content'],
      ['content a number', chat({ role: 'user', content: 5 }, assistant), 1, 'messages[0].content', 'invalid_content'],
      [
        'an image',
        chat({ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }, assistant),
        1,
        'messages[0].content[0]',
        'unsupported_content',
      ],
      ['an empty answer', chat(user, { role: 'assistant', content: '' }), 1, 'messages[1].content', 'missing_content'],
      ['no assistant', chat(user), 1, 'messages', 'example_missing_assistant_message'],
      ['weight 2', chat(user, { ...assistant, weight: 2 }), 1, 'messages[1].weight', 'invalid_weight'],
      ['weight of a user', chat({ ...user, weight: 1 }, assistant), 1, 'messages[0].weight', 'invalid_weight'],
      ['all weights 0', chat(user, { ...assistant, weight: 0 }), 1, 'messages', 'no_trained_message'],
      [
        'tool calls no list',
        chat(user, { role: 'assistant', tool_calls: {} }),
        1,
        'messages[1].tool_calls',
        'invalid_tool_calls',
      ],
      [
        'tool call without a name',
        chat(user, { role: 'assistant', tool_calls: [{ function: { arguments: '' } }] }),
        1,
        'messages[1].tool_calls[0]',
        'invalid_tool_calls',
      ],
      [
        'tool answer without its call',
        chat(user, { role: 'tool', content: '1' }, assistant),
        1,
        'messages[1].tool_call_id',
        'message_missing_key',
      ],
      ['tools no list', line({ messages: [user, assistant], tools: 5 }), 1, 'tools', 'invalid_tools'],
      ['completion missing', line({ prompt: 'a', completion: null }), 1, 'completion', 'missing_field'],
      ['completion empty', line({ prompt: 'a', completion: ' ' }), 1, 'completion', 'missing_content'],
      [
        'preference without input',
        line({ input: 'x', preferred_output: [assistant], non_preferred_output: [assistant] }),
        1,
        'input',
        'invalid_preference',
      ],
      [
        'two preferred answers',
        line({
          input: { messages: [user] },
          preferred_output: [assistant, assistant],
          non_preferred_output: [assistant],
        }),
        1,
        'preferred_output',
        'invalid_preference',
      ],
      [
        'the same answer twice',
        line({ input: { messages: [user] }, preferred_output: [assistant], non_preferred_output: [assistant] }),
        1,
        'preferred_output',
        'invalid_preference',
      ],
      [
        'a dialogue that ends with the assistant',
        line({
          input: { messages: [user, assistant] },
          preferred_output: [{ ...assistant, content: 'b' }],
          non_preferred_output: [assistant],
        }),
        1,
        'input.messages',
        'invalid_preference',
      ],
      [
        'ShareGPT with an unknown speaker',
        line({ conversations: [{ from: 'function_call', value: 'x' }] }),
        1,
        'conversations[0].from',
        'unrecognized_role',
      ],
      ['alpaca without an output', line({ instruction: 'x', output: '' }), 1, 'output', 'missing_content'],
      ['deep JSON', `{"messages":${'['.repeat(100)}${']'.repeat(100)}}`, 1, null, 'too_deep'],
      ['very deep JSON', `{"messages":${'['.repeat(200_000)}${']'.repeat(200_000)}}`, 1, null, 'too_deep'],
      [
        'a giant line',
        `${chat(user, assistant)}{"x":"${'x'.repeat(limits.datasetLineBytesMax)}"}\n`,
        2,
        null,
        'line_too_long',
      ],
    ];
  test.each(table)('%s', async (_, content, at, field, rule) => {
    const report = await check('jsonl', content, { chunkBytes: 64 * 1024 });
    expect(report.ok).toBe(false);
    expect(report.problems[0]).toMatchObject({ line: at, field, rule, severity: 'error' });
    expect(report.problems[0]?.message).toMatch(/^[\s\S]{15,400}$/);
  });

  test('OpenAI’s own words where the form of a line is wrong', async () => {
    const report = await check('jsonl', '{"prompt": "unfinished, so it is no dictionary');
    expect(report.problems[0]?.message).toBe(
      'Expected file to have JSONL format, where every line is a JSON dictionary. Line 1 is not a dictionary (HINT: line starts with: "{"prompt": "unfinish...").',
    );
  });

  test('all problems at once: the first hundred in full, the rest counted', async () => {
    const report = await check('jsonl', chat(user).repeat(250) + chat(user, { ...assistant, weight: 3 }), {
      chunkBytes: 4096,
    });
    expect(report).toMatchObject({ ok: false, bad: 251, errors: 251 });
    expect(report.problems).toHaveLength(100);
    expect(report.rules).toEqual({ example_missing_assistant_message: 250, invalid_weight: 1 });
    const several = await check('jsonl', chat({ role: 'bot' }, { role: 'user' }, { ...assistant, weight: 7 }));
    expect(several.problems.map(({ field }) => field)).toEqual([
      'messages[0].role',
      'messages[1].content',
      'messages[2].weight',
    ]);
  });

  test('duplicates and repetitions of the training file are warnings; only repetitions are an error', async () => {
    const twice = await check('jsonl', `${chatLines(5)}\n${chatLines(3)}`);
    expect(twice).toMatchObject({ ok: true, examples: 8, duplicates: 3, warnings: 3 });
    expect(twice.problems[0]).toMatchObject({ line: 6, rule: 'duplicate', severity: 'warning' });
    const { hashes } = await checkDataset(fileOf('jsonl', chatLines(10)));
    expect(await check('jsonl', `${chatLines(2)}\n${chatLines(8, 'b')}`, { against: hashes })).toMatchObject({
      ok: true,
      rules: { overlap: 2 },
    });
    expect((await check('jsonl', chatLines(10), { against: hashes })).ok).toBe(false);
  });
});

describe('good data, in every form', () => {
  const answer = (list: TrainingExample[]) =>
    list.map((one) => (one.kind === 'chat' ? one.messages.at(-1)?.content : one));

  test('a byte order mark, CRLF, blank lines and a last line without its end', async () => {
    const text = `\ufeff${chatLines(3).replaceAll('\n', '\r\n\r\n')}`;
    expect(await check('jsonl', text)).toMatchObject({ ok: true, examples: 3, kind: 'chat' });
  });

  test('several turns with tools, weights, parts and the deprecated functions', async () => {
    const content = [
      {
        messages: [
          {
            role: 'developer',
            content: [
              { type: 'text', text: 'Be ' },
              { type: 'text', text: 'brief.' },
            ],
          },
          user,
          { role: 'assistant', content: null, tool_calls: [call], weight: 0 },
          { role: 'tool', tool_call_id: 'call_1', content: '2' },
          { ...assistant, weight: 1 },
        ],
        tools: [{ type: 'function', function: { name: 'f', parameters: {} } }],
        parallel_tool_calls: false,
      },
      {
        messages: [user, { role: 'assistant', function_call: { name: 'f', arguments: '{}' } }],
        functions: [{ name: 'f', parameters: {} }],
      },
    ];
    const [first, second] = await examples('jsonl', content.map(line).join(''));
    expect(first).toMatchObject({
      kind: 'chat',
      parallelToolCalls: false,
      messages: [{ content: 'Be brief.' }, {}, { weight: 0, content: null }, { role: 'tool' }, { weight: 1 }],
    });
    expect(second).toMatchObject({ tools: [{ type: 'function', function: { name: 'f' } }] });
    expect((await check('jsonl', content.map(line).join(''))).problems).toEqual([]);
  });

  test('preferences under both of their names', async () => {
    const renamed = preferenceLines(4)
      .replaceAll('"preferred_output"', '"preferred_completion"')
      .replaceAll('non_preferred_output', 'non_preferred_completion');
    const both = await examples('jsonl', `${preferenceLines(4)}\n${renamed}`);
    expect(both.slice(0, 4)).toEqual(both.slice(4));
    expect(both[0]).toMatchObject({
      kind: 'preference',
      preferred: { content: 'good 0' },
      rejected: { content: 'bad 0' },
    });
  });

  test('alpaca as a JSON array, ShareGPT, prompt and completion', async () => {
    const alpaca = [
      { instruction: 'Add', input: '1, 2', output: '[3]' },
      { instruction: 'Say "}"', input: '', output: '}', system: 'S', history: [['q', 'a']] },
    ];
    for (const text of [JSON.stringify(alpaca), JSON.stringify(alpaca, null, 2), alpaca.map(line).join('')]) {
      const made = await examples('json', text);
      expect(made).toEqual([
        {
          kind: 'chat',
          messages: [
            { role: 'user', content: 'Add\n\n1, 2' },
            { role: 'assistant', content: '[3]' },
          ],
        },
        {
          kind: 'chat',
          messages: [
            { role: 'system', content: 'S' },
            { role: 'user', content: 'q' },
            { role: 'assistant', content: 'a' },
            { role: 'user', content: 'Say "}"' },
            { role: 'assistant', content: '}' },
          ],
        },
      ]);
    }
    const turns = [
      { from: 'human', value: 'q' },
      { from: 'gpt', value: 'a' },
    ];
    expect(answer(await examples('jsonl', line({ conversations: turns, system: 'S' })))).toEqual(['a']);
    expect(await examples('jsonl', line({ prompt: '', completion: 'b' }))).toEqual([
      { kind: 'completion', prompt: '', completion: 'b' },
    ]);
  });

  test('tables: quotes, delimiters, line breaks, encodings, mapped columns', async () => {
    const columns = { prompt: 'mr', completion: 'ref' };
    const text = 'id,mr,ref\r\n1,"a ""quoted"", b","two\nlines"\r\n\r\n2,c,"d"\n';
    const [first, second] = await examples('csv', text, { columns });
    expect(first).toMatchObject({ messages: [{ content: 'a "quoted", b' }, { content: 'two\nlines' }] });
    expect(second).toMatchObject({ messages: [{ content: 'c' }, { content: 'd' }] });
    expect(await examples('csv', text, { columns, format: 'completion' })).toMatchObject([
      { kind: 'completion', prompt: 'a "quoted", b', completion: 'two\nlines' },
      {},
    ]);
    const semicolons = text.replaceAll(',', ';').replace('; b', ', b');
    expect(await examples('csv', semicolons, { columns })).toEqual(await examples('csv', text, { columns }));
    const tabs = 'question\tanswer\nq\ta "b"\n';
    expect(answer(await examples('tsv', tabs))).toEqual(['a "b"']);
    expect(answer(await examples('csv', Buffer.from(`\ufeff${tabs}`, 'utf16le'), { chunkBytes: 3 }))).toEqual([
      'a "b"',
    ]);
    expect(answer(await examples('csv', `\ufeffquestion,answer\nq,ä\n`, { chunkBytes: 1 }))).toEqual(['ä']);
  });

  test('bad tables: the line of the row, and what to do', async () => {
    const of = async (text: string | Uint8Array, options: Options = {}) =>
      (await check('csv', text, options)).problems.map(({ line: at, rule }) => `${at} ${rule}`);
    expect(await of('question,answer\n1,2\n"3\n4",5,6\n7,8\n')).toEqual(['3 column_count']);
    expect(await of('question,answer\n1,2\n"never closed,5\n')).toEqual(['3 incomplete']);
    expect(await of('a,a\n1,2\n')).toEqual(['1 bad_header']);
    expect(await of('question,answer\n')).toEqual(['null empty']);
    expect(await of(Buffer.from('question,answer\ncaf\xe9,x\n', 'latin1'))).toContain('2 not_utf8');
    expect(await of('mr,ref\na,b\n', { columns: { prompt: 'mr', completion: 'answer' } })).toEqual([
      '2 missing_column',
    ]);
  });

  test('Parquet: rows of any form; damaged files are told of', async () => {
    const rows = 5000;
    const buffer = parquetWriteBuffer({
      columnData: [
        { name: 'question', data: Array.from({ length: rows }, (_, i) => `q${i}`), type: 'STRING' },
        { name: 'answer', data: Array.from({ length: rows }, (_, i) => `a${i}`), type: 'STRING' },
        { name: 'n', data: Array.from({ length: rows }, (_, i) => BigInt(i)), type: 'INT64' },
      ],
    });
    const bytes = new Uint8Array(buffer);
    expect(await check('parquet', bytes)).toMatchObject({ ok: true, examples: rows, kind: 'chat', format: 'table' });
    expect(answer(await examples('parquet', bytes)).at(-1)).toBe(`a${rows - 1}`);
    const columns = { prompt: 'n', completion: 'answer' };
    expect((await examples('parquet', bytes, { columns }))[7]).toMatchObject({ messages: [{ content: '7' }, {}] });
    const lists = parquetWriteBuffer({
      columnData: [
        {
          name: 'messages',
          data: [
            [user, assistant],
            [user, { ...assistant, content: 'b' }],
          ],
          type: 'JSON',
        },
      ],
    });
    expect(answer(await examples('parquet', new Uint8Array(lists)))).toEqual(['a', 'b']);
    for (const damaged of [
      bytes.subarray(0, 100),
      bytes.subarray(1),
      new Uint8Array(50),
      new TextEncoder().encode('PAR1'),
    ]) {
      const report = await check('parquet', damaged);
      expect(report.problems[0]).toMatchObject({ rule: 'unreadable', severity: 'error' });
    }
  });
});

describe('whatever the bytes', () => {
  const json = fc.oneof(
    fc.json(),
    fc
      .record({
        messages: fc.oneof(
          fc.jsonValue(),
          fc.array(fc.record({ role: fc.constantFrom('user', 'assistant', 'tool', 'x'), content: fc.jsonValue() })),
        ),
      })
      .map((value) => JSON.stringify(value)),
    fc
      .record({ input: fc.jsonValue(), preferred_output: fc.jsonValue(), non_preferred_output: fc.jsonValue() })
      .map((value) => JSON.stringify(value)),
    fc.record({ conversations: fc.jsonValue(), system: fc.jsonValue() }).map((value) => JSON.stringify(value)),
    fc
      .record({ instruction: fc.jsonValue(), output: fc.jsonValue(), history: fc.jsonValue() })
      .map((value) => JSON.stringify(value)),
    fc.string(),
  );
  const content = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc.array(json, { maxLength: 6 }).map((lines) => new TextEncoder().encode(lines.join('\n'))),
    fc.array(json, { maxLength: 6 }).map((lines) => new TextEncoder().encode(`[${lines.join(',')}]`)),
    fc
      .string({ unit: fc.constantFrom('a', 'b', ',', ';', '"', '\n', '\r', '\t') })
      .map((text) => new TextEncoder().encode(`question,answer\n${text}`)),
  );

  test('there is a report; what it calls good, the protocol takes; and chunks make no difference', async () => {
    await fc.assert(
      fc.asyncProperty(
        content,
        fc.constantFrom(...CONTAINERS.filter((one) => one !== 'parquet')),
        fc.integer({ min: 1, max: 64 }),
        async (bytes, container, chunkBytes) => {
          const report = await check(container, bytes, { chunkBytes });
          expect(report.ok).toBe(report.errors === 0);
          expect(report.problems.length > 0 || report.examples > 0).toBe(true);
          for (const { message } of report.problems) expect(message.length).toBeLessThan(700);
          expect((await examples(container, bytes, { chunkBytes })).length).toBe(report.examples);
          expect(await check(container, bytes, { chunkBytes: 100_000 })).toEqual(report);
        },
      ),
      { numRuns: 500 },
    );
  });

  test('a damaged Parquet file never does more than be refused', async () => {
    const whole = new Uint8Array(
      parquetWriteBuffer({
        columnData: [
          { name: 'prompt', data: ['a', 'b', 'c'], type: 'STRING' },
          { name: 'completion', data: ['1', '2', '3'], type: 'STRING' },
        ],
      }),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        async (changes) => {
          const bytes = whole.slice();
          for (const [at, value] of changes) bytes[at] = value;
          let records = 0;
          // Some of them would keep the library busy for ever.
          for await (const batch of parquetRecords(sourceOf(bytes), 2_000)) {
            records += batch.length;
            for (const record of batch) if ('rule' in record) expect(record.message.length).toBeGreaterThan(20);
            if (records > 1000) break;
          }
        },
      ),
      { numRuns: 12 },
    );
  });

  test('CSV that is written as RFC 4180 says is read as it was', async () => {
    const cell = fc
      .string({ unit: fc.constantFrom('a', 'é', ',', '"', '\n', ';', ' ', '\t') })
      .map((text) => `x${text}x`);
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(cell, cell), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 1, max: 9 }),
        async (rows, chunkBytes) => {
          const quote = (text: string) => `"${text.replaceAll('"', '""')}"`;
          const text = `prompt,completion\n${rows.map((row) => row.map(quote).join(',')).join('\r\n')}`;
          const made = await examples('csv', text, { chunkBytes });
          expect(made).toEqual(rows.map(([prompt, completion]) => ({ kind: 'completion', prompt, completion })));
        },
      ),
      { numRuns: 200 },
    );
  });
});
