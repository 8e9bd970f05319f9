import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { canonicalJson } from '../../../../daemon/evidence.ts';
import type { TrainingExample } from '../../../../daemon/protocol.ts';
import { csvHeader, csvLine, isFormula } from '../../../../gateway/datanets/exports/csv.ts';
import { attachment } from '../../../../gateway/datanets/exports/filename.ts';
import { jsonLine } from '../../../../gateway/datanets/exports/records.ts';
import type { ContentRow } from '../../../../gateway/datanets/versions/version-rows.ts';
import type { DatanetKind } from '../../../../gateway/db/datanet-schema.ts';
import { CsvParser } from '../../../../gateway/factory/datasets/csv-records.ts';
import { examplesOf } from '../../../../gateway/factory/datasets/dataset.ts';
import { type Container, sourceOf } from '../../../../gateway/factory/datasets/source.ts';
import { errorOf, type TestUser } from '../../rig.ts';
import { chatRows, type DatanetRig, sentence, startDatanetRig, type View } from '../rig.ts';

function rowOf(example: TrainingExample, seq: number): ContentRow {
  const content = canonicalJson(example) as string;
  return {
    seq,
    contributor: 'user_ann',
    contributionId: 'con_1',
    licence: 'CC-BY-4.0 OR MIT',
    content,
    contentHash: createHash('sha256').update(content).digest('hex'),
    leafHash: new Uint8Array(32),
  };
}

/** As an upload would read it. */
async function readBack(text: string, container: Container): Promise<TrainingExample[]> {
  const file = { source: sourceOf(new TextEncoder().encode(text)), container, format: null, columns: null };
  const decoder = new TextDecoder();
  let lines = '';
  for await (const bytes of examplesOf(file)) lines += decoder.decode(bytes, { stream: true });
  return lines
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as TrainingExample);
}

/** Everything that CSV, JSON and spreadsheets stumble over. */
const nasty = fc.oneof(
  fc.string({ unit: 'grapheme', minLength: 1 }),
  fc
    .array(
      fc.constantFrom(
        '=',
        '+',
        '-',
        '@',
        '\t',
        '\r',
        '\n',
        '\r\n',
        '"',
        '""',
        ',',
        ';',
        "'",
        ' ',
        '\u00a0',
        '\ufeff',
        '＝',
        '\u202e',
        'x',
        '=1+1',
        "=cmd|'/C calc'!A0",
        '{',
        '[',
        'true',
        '_guarded',
      ),
      { minLength: 1, maxLength: 6 },
    )
    .map((parts) => parts.join('')),
);
const spoken = nasty.map((text) => `${text}.`);
const words = fc.oneof(
  spoken,
  nasty.filter((text) => text.trim() !== ''),
);
const tools = fc.option(
  fc.constant([{ type: 'function', function: { name: 'look', parameters: { type: 'object', properties: {} } } }]),
  { nil: undefined },
);
const parallel = fc.option(fc.boolean(), { nil: undefined });
const user = words.map((content) => ({ role: 'user' as const, content }));
const assistant = words.map((content) => ({ role: 'assistant' as const, content }));
const weighted = fc
  .tuple(words, fc.constantFrom(0 as const, 1 as const))
  .map(([content, weight]) => ({ role: 'assistant' as const, content, weight }));
const calling = fc.constant([
  {
    role: 'assistant' as const,
    content: null,
    tool_calls: [{ id: 'c1', type: 'function', function: { name: 'look', arguments: '{"a":"=1"}' } }],
  },
  { role: 'tool' as const, content: '@found', tool_call_id: 'c1' },
]);

function without<T extends object>(value: T): T {
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined)) as T;
}

const EXAMPLES: Record<DatanetKind, fc.Arbitrary<TrainingExample>> = {
  chat: fc
    .record({
      messages: fc
        .tuple(fc.array(fc.oneof(user, weighted), { maxLength: 2 }), fc.oneof(calling, fc.constant([])), assistant)
        .map(([before, calls, last]) => [...before, ...calls, last]),
      tools,
      parallelToolCalls: parallel,
    })
    .map((rest) => without({ kind: 'chat' as const, ...rest }) as TrainingExample),
  completion: fc
    .tuple(fc.oneof(nasty, fc.constant('')), words)
    .map(([prompt, completion]) => ({ kind: 'completion' as const, prompt, completion })),
  preference: fc
    .record({
      messages: fc.array(user, { minLength: 1, maxLength: 2 }),
      preferred: assistant,
      tools,
      parallelToolCalls: parallel,
    })
    .map(
      ({ preferred, ...rest }) =>
        without({
          kind: 'preference' as const,
          ...rest,
          preferred,
          rejected: { role: 'assistant' as const, content: `${preferred.content} not` },
        }) as TrainingExample,
    ),
};

describe.each(['chat', 'completion', 'preference'] as const)('%s rows', (kind) => {
  const examples = fc.array(EXAMPLES[kind], { minLength: 1, maxLength: 8 });
  const same = (read: TrainingExample[], written: TrainingExample[]) =>
    expect(read.map((one) => canonicalJson(one))).toEqual(written.map((one) => canonicalJson(one)));

  test.each([false, true])('come back from JSONL as they were (provenance: %s)', async (provenance) => {
    await fc.assert(
      fc.asyncProperty(examples, async (rows) => {
        const text = rows.map((row, index) => jsonLine(rowOf(row, index + 1), { provenance })).join('');
        expect(text.split('\n')).toHaveLength(rows.length + 1);
        same(await readBack(text, 'jsonl'), rows);
      }),
      { numRuns: 150 },
    );
  });

  test.each([false, true])(
    'come back from CSV as they were, and no cell of it is a formula (provenance: %s)',
    async (provenance) => {
      await fc.assert(
        fc.asyncProperty(examples, async (rows) => {
          const options = { provenance };
          const text =
            csvHeader(kind, options) + rows.map((row, at) => csvLine(kind, rowOf(row, at + 1), options)).join('');
          const parser = new CsvParser(',');
          const parsed = [...parser.push(text), ...parser.end()];
          expect(parsed).toHaveLength(rows.length + 1);
          for (const record of parsed) {
            for (const cell of 'cells' in record ? record.cells : ['=']) expect(isFormula(cell)).toBe(false);
          }
          same(await readBack(text, 'csv'), rows);
        }),
        { numRuns: 300 },
      );
    },
  );
});

test('an apostrophe of the text is not taken for one of ours', async () => {
  const rows: TrainingExample[] = [
    { kind: 'completion', prompt: "'tis", completion: "'=not a formula" },
    { kind: 'completion', prompt: '=SUM(A1)', completion: "it's" },
  ];
  const text =
    csvHeader('completion', { provenance: false }) +
    rows.map((row) => csvLine('completion', rowOf(row, 1), { provenance: false })).join('');
  expect(text).toBe("prompt,completion,_guarded\r\n'tis,'=not a formula,\r\n'=SUM(A1),it's,prompt\r\n");
  expect(await readBack(text, 'csv')).toEqual(rows);
  // Files that are not ours are read as they are.
  expect(await readBack("prompt,completion\n'=1,'x\n", 'csv')).toEqual([
    { kind: 'completion', prompt: "'=1", completion: "'x" },
  ]);
});

test.each(['=1', '+1', '-1', '@a', '\t=1', '\r1', '\n1', ' =1', '\u00a0=1', '\u200b=1', '＝1', '＠a'])(
  '%j is a formula to some spreadsheet',
  (cell) => {
    expect(isFormula(cell)).toBe(true);
  },
);
test.each(['a=1', '1-2', '', 'x@y', "'=1", '[', '{'])('%j is none', (cell) => {
  expect(isFormula(cell)).toBe(false);
});

describe('names of files', () => {
  test.each([
    ['Recipes of the sea', 'attachment; filename="Recipes-of-the-sea-v1.csv"'],
    [
      'a"; filename="evil.exe',
      'attachment; filename="a-filename-evil.exe-v1.csv"; filename*=UTF-8\'\'a-filename%3D-evil.exe-v1.csv',
    ],
    [
      'a\r\nset-cookie: x=1',
      'attachment; filename="aset-cookie-x-1-v1.csv"; filename*=UTF-8\'\'a-set-cookie-x%3D1-v1.csv',
    ],
    ['../../etc/passwd', 'attachment; filename="etc-passwd-v1.csv"'],
    ['...', 'attachment; filename="datanet-v1.csv"'],
    ['наука', 'attachment; filename="datanet-v1.csv"; filename*=UTF-8\'\'%D0%BD%D0%B0%D1%83%D0%BA%D0%B0-v1.csv'],
  ])('%j becomes %j', (name, expected) => {
    expect(attachment(name, '-v1.csv')).toBe(expected);
  });

  test('whatever the name, the header is one line of ASCII with two parameters at most, and the name stays in its folder', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }), fc.string()), (name) => {
        const value = attachment(name, '-v1.csv');
        expect(value).toMatch(
          /^attachment; filename="[A-Za-z0-9_][A-Za-z0-9._-]*"(?:; filename\*=UTF-8''[A-Za-z0-9%._~-]+)?$/,
        );
        expect(() => new Headers({ 'content-disposition': value })).not.toThrow();
        const [, encoded] = /UTF-8''(.+)$/.exec(value) ?? [];
        if (encoded !== undefined) expect(decodeURIComponent(encoded)).not.toMatch(/[\p{C}/\\]|^\.|^-/u);
      }),
      { numRuns: 500 },
    );
  });
});

describe('over HTTP', () => {
  let rig: DatanetRig;
  let ann: TestUser;
  let bob: TestUser;
  let net: View;
  const path = (version: number, query: string) => `/api/datanets/${net.id}/versions/${version}/export?${query}`;
  const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

  beforeAll(async () => {
    rig = await startDatanetRig();
    ann = await rig.person('Ann "the" {owner}\\');
    bob = await rig.person('Bob', 'contributor');
    net = await rig.datanet(ann, {
      name: 'Über "das" Meer; x=1',
      description: '# About\n\nThe sea.',
      tags: ['sea', 'stories'],
      terms: 'Be kind.',
    });
    await rig.contribute(ann, net, chatRows(4));
    await rig.approveAll(ann, net);
    await rig.publish(ann, net);
    await rig.contribute(bob, net, chatRows(300, 500));
    await rig.approveAll(ann, net);
    await rig.publish(ann, net);
  });
  afterAll(() => rig.close());

  test('the JSONL of a version is the same bytes every time, also after later versions, and uploads take it back', async () => {
    const first = await ann.call('GET', path(1, 'format=jsonl'));
    expect(first.headers.get('content-type')).toBe('application/jsonl');
    expect(first.headers.get('content-disposition')).toContain('filename="Uber-das-Meer-x-1-v1.jsonl"');
    expect(first.headers.get('cache-control')).toBe('no-store');
    const text = await first.text();
    expect(text.trim().split('\n')).toHaveLength(4);
    const whole = await (await bob.call('GET', path(2, 'format=jsonl&provenance=true'))).text();
    expect(await (await ann.call('GET', path(2, 'format=jsonl&provenance=true'))).text()).toBe(whole);
    expect(await (await ann.call('GET', path(1, ''))).text()).toBe(text);
    expect(await readBack(whole, 'jsonl')).toHaveLength(304);
    const last = JSON.parse(whole.trim().split('\n').at(-1) as string) as Record<string, unknown>;
    expect(last).toMatchObject({
      _row: expect.stringMatching(/^row_\d+$/),
      _contributor: bob.id,
      _licence: 'CC-BY-4.0',
    });
    const content = canonicalJson((await readBack(JSON.stringify(last), 'jsonl'))[0]) as string;
    expect(last._content_sha256).toBe(sha256(content));
    const file = await rig
      .client(ann.credential)
      .files.create({ file: new File([whole], 'back.jsonl'), purpose: 'fine-tune' });
    expect(file.status).toBe('processed');
  });

  test('the CSV holds the same rows', async () => {
    const answer = await ann.call('GET', path(2, 'format=csv'));
    expect(answer.headers.get('content-type')).toBe('text/csv; charset=utf-8; header=present');
    const rows = await readBack(await answer.text(), 'csv');
    expect(rows).toEqual(await readBack(await (await ann.call('GET', path(2, 'format=jsonl'))).text(), 'jsonl'));
  });

  test('a digest that waits too long for its turn is refused with when to come again, and made the next time', async () => {
    const { turns } = rig.app.services.factory;
    let free = () => {};
    const held = new Promise<void>((resolve) => {
      free = resolve;
    });
    const busy = [0, 1].map(() => turns.take(new AbortController().signal, () => held));
    const after = AbortSignal.timeout.bind(AbortSignal);
    const shorter = vi.spyOn(AbortSignal, 'timeout').mockImplementation(() => after(20));
    const refused = await ann.call('GET', path(2, 'format=croissant'));
    shorter.mockRestore();
    free();
    await Promise.all(busy);
    expect(refused.status).toBe(503);
    expect(refused.headers.get('retry-after')).not.toBeNull();
    expect((await errorOf(refused)).code).toBe('overloaded');
  });

  test('Croissant 1.1 tells of fields, file, licence and people; the digest is that of the file', async () => {
    const answer = await ann.call('GET', path(2, 'format=croissant'));
    expect(answer.headers.get('content-type')).toBe(
      'application/ld+json; profile="http://mlcommons.org/croissant/1.1"',
    );
    const document = (await answer.json()) as {
      distribution: [object];
      recordSet: [object];
      citeAs: string;
    };
    const file = document.distribution[0] as { '@id': string; contentUrl: string; sha256: string; contentSize: string };
    const { pathname, search } = new URL(file.contentUrl);
    const text = await (await ann.call('GET', `${pathname}${search}`)).text();
    expect(file.sha256).toBe(sha256(text));
    expect(file.contentSize).toBe(`${Buffer.byteLength(text)} B`);
    interface Field {
      '@id': string;
      source?: { extract: { column: string }; fileObject: { '@id': string } };
      subField?: Field[];
    }
    const records = document.recordSet[0] as { key: { '@id': string }; field: Field[] };
    const all = records.field.flatMap((field) => [field, ...(field.subField ?? [])]);
    const line = JSON.parse(text.split('\n')[0] as string) as object;
    // Every field is in every line, and every part of a line is a field.
    const sources = records.field.map((field) => (field.source ?? field.subField?.[0]?.source)?.extract.column);
    expect(sources).toEqual(Object.keys(line));
    // Names are used once, and what is referred to is there.
    expect(new Set(all.map((field) => field['@id'])).size).toBe(all.length);
    expect(all.map((field) => field['@id'])).toContain(records.key['@id']);
    for (const { source } of all) if (source !== undefined) expect(source.fileObject['@id']).toBe(file['@id']);
    expect(document).toMatchObject({
      '@type': 'sc:Dataset',
      conformsTo: 'http://mlcommons.org/croissant/1.1',
      name: 'Über "das" Meer; x=1',
      version: '2.0.0',
      license: {
        '@type': 'sc:CreativeWork',
        name: 'CC-BY-4.0',
        url: 'https://spdx.org/licenses/CC-BY-4.0',
        text: 'Be kind.',
      },
      keywords: ['sea', 'stories'],
      publisher: { '@type': 'sc:Person', identifier: ann.id },
      'prov:wasAttributedTo': [
        { 'prov:label': bob.id, additionalProperty: [{ name: 'rows', value: 300 }, { value: 0 }] },
        { 'prov:label': ann.id, additionalProperty: [{ name: 'rows', value: 4 }, { value: 0 }] },
      ],
      'prov:wasDerivedFrom': { '@id': `http://gateway.test/api/datanets/${net.id}/versions/1` },
      'prov:wasGeneratedBy': {
        '@type': 'prov:Activity',
        'prov:label': 'publish',
        'prov:endedAtTime': expect.stringMatching(/Z$/),
      },
    });
    // BibTeX: braces are balanced, and none is anybody's name.
    const cited = document.citeAs;
    expect(cited).toContain('author = {Ann the owner}');
    expect(cited.split('{').length).toBe(cited.split('}').length);
    const first = (await (await ann.call('GET', path(1, 'format=croissant'))).json()) as object;
    expect(first).not.toHaveProperty('prov:wasDerivedFrom');
    expect(first).toMatchObject({ version: '1.0.0' });
  });

  test('erased rows are in no export any more, and the digest in Croissant follows', async () => {
    const rows = (await (await bob.call('GET', `/api/datanets/${net.id}/versions/2/rows?limit=6`)).json()) as {
      data: View[];
    };
    const gone = rows.data.at(-1) as View & { content: { messages: { content: string }[] } };
    const secret = gone.content.messages[1]?.content as string;
    expect(await (await ann.call('GET', path(2, 'format=jsonl'))).text()).toContain(secret);
    await rig.json(
      await bob.call('POST', `/api/datanets/${net.id}/withdrawals`, {
        rows: [gone.id],
        reason: 'private',
        erase: true,
      }),
      200,
    );
    for (const version of [2, 3]) {
      for (const format of ['jsonl', 'csv']) {
        const text = await (await ann.call('GET', path(version, `format=${format}`))).text();
        expect(text).not.toContain(secret);
        expect(text.trim().split('\n').length).toBe(303 + (format === 'csv' ? 1 : 0));
      }
      const document = (await (await ann.call('GET', path(version, 'format=croissant'))).json()) as {
        distribution: { sha256: string }[];
      };
      const text = await (await ann.call('GET', path(version, 'format=jsonl&provenance=true'))).text();
      expect(document.distribution[0]?.sha256).toBe(sha256(text));
    }
  });

  test('a client who takes nothing holds nothing: the next rows are read when they are asked for', async () => {
    const large = await rig.datanet(ann, { kind: 'completion' });
    const rows = Array.from({ length: 40 }, (_, index) => ({
      prompt: '',
      completion: sentence(index + 9_000, 4_000),
    }));
    await rig.contribute(ann, large, rows);
    await rig.json(await ann.call('POST', `/api/datanets/${large.id}/review`, { action: 'approve', filter: {} }), 200);
    const { rows: count } = (await rig.publish(ann, large)) as unknown as { rows: number };
    expect(count).toBeGreaterThan(35);
    const { versions } = rig.app.services.datanets;
    let portions = 0;
    const original = versions.contents.bind(versions);
    let ended = false;
    versions.contents = async function* (...args: Parameters<typeof original>) {
      try {
        for await (const page of original(...args)) {
          portions += 1;
          yield page;
        }
      } finally {
        ended = true;
      }
    } as typeof original;
    try {
      const answer = await ann.call('GET', `/api/datanets/${large.id}/versions/1/export`);
      const reader = (answer.body as ReadableStream<Uint8Array>).getReader();
      expect(portions).toBe(0);
      const { value } = await reader.read();
      expect(portions).toBe(1);
      expect(value?.byteLength).toBeLessThan(1.2 * 1024 * 1024);
      await new Promise((resolve) => setTimeout(resolve, 30));
      expect(portions).toBe(1);
      await reader.cancel();
      expect(ended).toBe(true);
      expect(portions).toBe(1);
    } finally {
      versions.contents = original;
    }
  });

  test('formats that are not there are refused', async () => {
    expect((await ann.call('GET', path(1, 'format=exe'))).status).toBe(400);
    expect((await ann.call('GET', path(1, 'provenance=maybe'))).status).toBe(400);
  });
});
