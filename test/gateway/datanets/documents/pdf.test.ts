import { randomBytes } from 'node:crypto';
import { deflateSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { documentFolder } from './folder.ts';
import { type PdfObject, pdfOf, textPdf } from './pdf-maker.ts';

const { read, refusal } = documentFolder();

describe('PDF', () => {
  test('lines become paragraphs, larger letters headings, pages are told', async () => {
    const chunks = await read(
      'a.pdf',
      textPdf([
        [
          { text: 'Keeping bees', size: 20 },
          { text: 'Bees live in hives and make honey from the nectar of flow-', skip: 1 },
          { text: 'ers all summer long.' },
          { text: 'A second paragraph (with brackets).', skip: 2 },
          { text: 'Wax', size: 15, skip: 1 },
          { text: 'It is soft and it is yellow and it burns with a bright flame.', skip: 1 },
        ],
        [{ text: 'Page two has words too.' }],
      ]),
    );
    expect(chunks).toEqual([
      {
        text: 'Bees live in hives and make honey from the nectar of flowers all summer long.\n\nA second paragraph (with brackets).',
        heading: 'Keeping bees',
        page: 1,
      },
      {
        text: 'It is soft and it is yellow and it burns with a bright flame.\n\nPage two has words too.',
        heading: 'Keeping bees › Wax',
        page: 1,
      },
    ]);
  });

  test('a hundred pages are read in order', async () => {
    const pages = Array.from({ length: 100 }, (_, index) => [
      { text: `This is page number ${index + 1} of the book.` },
    ]);
    const chunks = await read('a.pdf', textPdf(pages), 400);
    expect(
      chunks
        .map((chunk) => chunk.text)
        .join(' ')
        .match(/number \d+/g),
    ).toEqual(pages.map((_, index) => `number ${index + 1}`));
    expect(chunks.at(-1)?.page).toBeGreaterThan(80);
  });

  test('running titles and page numbers are left out once they are known as such', async () => {
    const names = 'ant bee cat dog eel fox gnu hen ibis'.split(' ');
    const pages = names.map((name, page) => [
      { text: 'The Book of Bees' },
      ...Array.from({ length: 8 }, (_, line) => ({
        text: `Words of ${name} and ${names[line]} stand here.`,
        skip: line === 0 ? 1 : 0,
      })),
      { text: `Page ${page + 1} of 9`, skip: 20 },
    ]);
    const text = (await read('a.pdf', textPdf(pages))).map((chunk) => chunk.text).join('\n');
    expect(text.match(/The Book of Bees/g)).toHaveLength(2);
    expect(text.match(/Page \d of 9/g)).toHaveLength(2);
    expect(text.match(/stand here/g)).toHaveLength(72);
  });

  test('a damaged cross-reference table is found again', async () => {
    const bytes = textPdf([[{ text: 'Still here, after all that happened.' }]]);
    const broken = Buffer.from(bytes.toString('latin1').replace(/startxref\n\d+/, 'startxref\n7'), 'latin1');
    expect((await read('a.pdf', broken)).map((chunk) => chunk.text)).toEqual(['Still here, after all that happened.']);
  });
});

const CATALOGUE: PdfObject = { body: '<< /Type /Catalog /Pages 2 0 R >>' };
const FONT: PdfObject = { body: '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>' };
const page = (more: string) =>
  `<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 4 0 R >> ${more} >> /Contents 5 0 R >>`;
const onePage = (stream: PdfObject, more = '', others: PdfObject[] = []) =>
  pdfOf([
    CATALOGUE,
    { body: '<< /Type /Pages /Kids [3 0 R] /Count 1 >>' },
    { body: page(more) },
    FONT,
    stream,
    ...others,
  ]);

const flate = (bytes: Buffer): PdfObject => ({ body: '/Filter /FlateDecode', stream: deflateSync(bytes) });
/** Megabytes of the same, packed twice: 1,000,000 to 1. */
const twice = (megabytes: number): PdfObject => ({
  body: '/Filter [/FlateDecode /FlateDecode]',
  stream: deflateSync(deflateSync(Buffer.alloc(megabytes * 1024 * 1024, 0x20), { level: 9 }), { level: 9 }),
});

describe('PDFs that burst, loop or hold nothing are refused with a reason', () => {
  test.each<[string, () => Buffer, RegExp, RegExp]>([
    [
      'a page of 600 bytes that unpacks to 256 MB',
      () => onePage(twice(256)),
      /too_large/,
      /unpacks to more|more memory/,
    ],
    [
      'a page that shows text a million times',
      () => onePage(flate(Buffer.from(`BT /F1 9 Tf 60 400 Td ${'(A) Tj 0 -20 Td (B) Tj 0 20 Td '.repeat(5e5)}ET`))),
      /too_large/,
      /pieces of text|more memory|unpacks/,
    ],
    [
      'a billion pages that are not there',
      () => pdfOf([CATALOGUE, { body: '<< /Type /Pages /Kids [] /Count 1000000000 >>' }]),
      /too_large|unreadable/,
      /pages/,
    ],
    [
      '10,000 pages',
      () =>
        pdfOf([
          CATALOGUE,
          { body: `<< /Type /Pages /Kids [${'3 0 R '.repeat(10_000)}] /Count 10000 >>` },
          { body: page('') },
          FONT,
          flate(Buffer.from('')),
        ]),
      /too_large/,
      /10000 pages/,
    ],
    [
      'a page tree that contains itself',
      () => pdfOf([CATALOGUE, { body: '<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 4000 >>' }]),
      /unreadable/,
      /pages|damaged/,
    ],
    [
      'a page tree that is its own parent, deep',
      () =>
        pdfOf([
          CATALOGUE,
          ...Array.from({ length: 3000 }, (_, index) => ({
            body: `<< /Type /Pages /Kids [${index + 3} 0 R] /Count 1 >>`,
          })),
          { body: '<< /Type /Pages /Kids [2 0 R] /Count 1 >>' },
        ]),
      /unreadable|too_large/,
      /./,
    ],
    [
      'arrays in arrays, half a million deep',
      () =>
        pdfOf([
          { body: `<< /Type /Catalog /Pages 2 0 R /X ${'['.repeat(5e5)}${']'.repeat(5e5)} >>` },
          { body: '<< /Type /Pages /Kids [] /Count 0 >>' },
        ]),
      /unreadable|too_large/,
      /./,
    ],
    [
      'a form that draws itself',
      () =>
        onePage(flate(Buffer.from('/Me Do')), '/XObject << /Me 6 0 R >>', [
          {
            body: '/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /Me 6 0 R >> >>',
            stream: Buffer.from('/Me Do /Me Do'),
          },
        ]),
      /no_text/,
      /images/,
    ],
    [
      'pictures of pages',
      () =>
        onePage(flate(Buffer.from('q 595 0 0 842 0 0 cm /Im Do Q')), '/XObject << /Im 6 0 R >>', [
          {
            body: '/Type /XObject /Subtype /Image /Width 2 /Height 2 /ColorSpace /DeviceGray /BitsPerComponent 8',
            stream: Buffer.alloc(4),
          },
        ]),
      /no_text/,
      /text recognition/,
    ],
    [
      'no pages at all',
      () => pdfOf([CATALOGUE, { body: '<< /Type /Pages /Kids [] /Count 0 >>' }]),
      /unreadable/,
      /no pages/,
    ],
    [
      'encryption',
      () =>
        pdfOf(
          [
            CATALOGUE,
            { body: '<< /Type /Pages /Kids [3 0 R] /Count 1 >>' },
            { body: page('') },
            FONT,
            flate(Buffer.from('BT ET')),
            {
              body: `<< /Filter /Standard /V 2 /R 3 /Length 128 /P -44 /O <${'ab'.repeat(32)}> /U <${'cd'.repeat(32)}> >>`,
            },
          ],
          1,
          '/Encrypt 6 0 R /ID [<00112233445566778899aabbccddeeff> <00112233445566778899aabbccddeeff>]',
        ),
      /encrypted/,
      /password/,
    ],
    [
      'a file that breaks off',
      () => textPdf([[{ text: 'Nobody will read this.' }]]).subarray(0, 150),
      /unreadable/,
      /damaged|no pages/,
    ],
    [
      'random bytes after the mark',
      () => Buffer.concat([Buffer.from('%PDF-1.7\n'), randomBytes(50_000)]),
      /unreadable/,
      /damaged|no pages/,
    ],
    ['something else', () => Buffer.from('PK\x03\x04 not a PDF'), /unreadable/, /not a PDF/],
  ])('%s', async (_name, make, code, message) => {
    const error = await refusal('a.pdf', make());
    expect(error.message).toMatch(message);
    expect(error.code).toMatch(code);
    // What it said is for its sender: no paths, no traces.
    expect(error.message).not.toMatch(/\/|\bat \w+ \(|Error/);
  });
});
