import { describe, expect, test } from 'vitest';
import { documentKindOf } from '../../../../gateway/datanets/documents/read.ts';
import { documentFolder } from './folder.ts';

const { read, refusal } = documentFolder();

test('a document is known by its extension', () => {
  expect(['a.md', 'b.MARKDOWN', 'c.txt', 'd.Pdf', 'e.docx', 'f.tar.docx'].map(documentKindOf)).toEqual([
    'md',
    'md',
    'txt',
    'pdf',
    'docx',
    'docx',
  ]);
  expect(
    ['a.doc', 'b', 'pdf', 'c.pdf.exe', 'd.constructor', 'e.pdf/', 'f.pdf ', 'g.jsonl'].map(documentKindOf),
  ).toEqual(Array(8).fill(null));
});

describe('Markdown', () => {
  test('headings are context; code, lists and tables stay whole; comments and front matter go', async () => {
    const chunks = await read(
      'a.md',
      [
        '---',
        'title: Bees',
        '---',
        'Preface.',
        '',
        '# Bees #',
        '<!-- not for',
        '',
        'readers --> Bees fly.',
        '',
        'Honey',
        '-----',
        '- is sweet',
        '- is yellow',
        '',
        '```sh',
        '# no heading',
        '',
        'ls',
        '```',
        '',
        '***',
        '### Wax',
        '',
        '| a | b |',
        '| --- | --- |',
        '| 1 | 2 |',
      ].join('\n'),
    );
    expect(chunks).toEqual([
      { text: 'Preface.', heading: null, page: null },
      { text: 'Bees fly.', heading: 'Bees', page: null },
      { text: '- is sweet\n- is yellow\n\n```sh\n# no heading\n\nls\n```', heading: 'Bees › Honey', page: null },
      { text: '| a | b |\n| --- | --- |\n| 1 | 2 |', heading: 'Bees › Honey › Wax', page: null },
    ]);
  });
});

describe('plain text', () => {
  test('paragraphs become chunks of about the size asked for', async () => {
    const paragraph = 'A sentence of some length stands here. '.repeat(10).trim();
    const chunks = await read('a.txt', Array(12).fill(paragraph).join('\r\n\r\n'), 900);
    expect(chunks.map((chunk) => chunk.text.length)).toEqual(Array(6).fill(2 * paragraph.length + 2));
  });

  test.each<[string, Buffer]>([
    ['UTF-8 with a byte order mark', Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), Buffer.from('Grüße, 世界 😀')])],
    ['UTF-16 LE', Buffer.concat([Buffer.from([0xff, 0xfe]), Buffer.from('Grüße, 世界 😀', 'utf16le')])],
    ['UTF-16 BE', Buffer.concat([Buffer.from([0xfe, 0xff]), Buffer.from('Grüße, 世界 😀', 'utf16le').swap16()])],
  ])('%s is read', async (_name, bytes) => {
    expect(await read('a.txt', bytes)).toEqual([{ text: 'Grüße, 世界 😀', heading: null, page: null }]);
  });

  test('characters and line ends on the border of two reads stay whole', async () => {
    const line = `${'é😀'.repeat(50)}\r\n`;
    const text = `x${line.repeat(3000)}`;
    const chunks = await read('a.txt', text);
    expect(chunks.map((chunk) => chunk.text).join('\n')).toBe(text.replaceAll('\r\n', '\n').trim());
  });

  test.each<[string, Buffer | string, string, RegExp]>([
    ['invalid UTF-8', Buffer.from([0x48, 0x69, 0xff, 0xfe, 0x21]), 'encoding', /not valid UTF-8.*Save it as UTF-8/s],
    ['Latin-1', Buffer.from('Grüße', 'latin1'), 'encoding', /not valid UTF-8/],
    ['UTF-8 that breaks off', Buffer.from('Grüße 世').subarray(0, -1), 'encoding', /not valid UTF-8/],
    ['UTF-16 that breaks off', Buffer.from([0xff, 0xfe, 0x48]), 'encoding', /not valid UTF-16/],
    ['half a character in UTF-16', Buffer.from([0xff, 0xfe, 0x3d, 0xd8, 0x41, 0x00]), 'encoding', /not valid UTF-16/],
    ['UTF-16 without a byte order mark', Buffer.from('Hello', 'utf16le'), 'unreadable', /byte order mark/],
    ['a PDF by another name', '%PDF-1.7 …', 'unreadable', /is a PDF/],
    ['an archive by another name', 'PK\x03\x04…', 'unreadable', /ZIP/],
  ])('%s is refused with a reason', async (_name, bytes, code, message) => {
    const error = await refusal('a.txt', bytes);
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });
});
