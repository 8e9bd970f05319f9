import { randomBytes } from 'node:crypto';
import { deflateRawSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { documentFolder } from './folder.ts';
import { documentXml, docxOf, paragraph, STYLES, type ZipPart, zipOf } from './zip-maker.ts';

const { read, refusal } = documentFolder();
const GOOD = documentXml(paragraph('Bees make honey.'));

describe('Word documents', () => {
  test('text, headings by style, lists, tables and breaks are read as they are printed', async () => {
    const cell = (text: string) => `<w:tc>${paragraph(text)}</w:tc>`;
    const chunks = await read(
      'a.docx',
      docxOf(
        documentXml(
          [
            paragraph('Bees', 'berschrift1'),
            '<w:p><w:r><w:t>Bees fly </w:t></w:r><w:r><w:t>&amp; hum</w:t><w:br/><w:t>all</w:t><w:tab/><w:t>day.</w:t></w:r></w:p>',
            paragraph('Wax', 'Mine'),
            '<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>soft</w:t></w:r></w:p>',
            `<w:tbl><w:tr>${cell('a')}${cell('b')}</w:tr><w:tr>${cell('1')}${cell('')}</w:tr></w:tbl>`,
            '<w:p><w:pPr><w:outlineLvl w:val="0"/></w:pPr><w:r><w:t>Wasps</w:t></w:r></w:p>',
            paragraph('They sting.'),
          ].join(''),
        ),
      ),
    );
    expect(chunks).toEqual(
      [
        { text: 'Bees fly & hum\nall\tday.', heading: 'Bees', page: null },
        { text: '- soft\n\na | b\n1 | ', heading: 'Bees › Wax', page: null },
        { text: 'They sting.', heading: 'Wasps', page: null },
      ].map((chunk) => ({ ...chunk, text: chunk.text.trim() })),
    );
  });

  test('what was deleted, moved away, hidden or is another form of the same is left out', async () => {
    const chunks = await read(
      'a.docx',
      docxOf(
        documentXml(
          [
            '<w:p><w:r><w:t>Kept</w:t></w:r><w:del><w:r><w:delText>deleted</w:delText><w:t>deleted too</w:t></w:r></w:del>',
            '<w:ins><w:r><w:t> and inserted</w:t></w:r></w:ins>',
            '<w:moveFrom><w:r><w:t>moved away</w:t></w:r></w:moveFrom>',
            '<w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r><w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t>, shown</w:t></w:r>',
            '<w:r><w:instrText>PAGEREF</w:instrText></w:r>',
            '<w:r><mc:AlternateContent><mc:Choice Requires="wps"><w:t>, chosen</w:t></mc:Choice><mc:Fallback><w:t>fallback</w:t></mc:Fallback></mc:AlternateContent></w:r>',
            '<w:r><w:t>.</w:t></w:r></w:p>',
          ].join(''),
        ),
      ),
    );
    expect(chunks.map((chunk) => chunk.text)).toEqual(['Kept and inserted, shown, chosen.']);
  });

  test('a large honest document is read, table and all', async () => {
    const rows = Array.from(
      { length: 4000 },
      (_, index) =>
        `<w:tr><w:tc>${paragraph(`row ${index}`)}</w:tc><w:tc>${paragraph(randomBytes(12).toString('hex'))}</w:tc></w:tr>`,
    );
    const chunks = await read(
      'a.docx',
      docxOf(documentXml(`${paragraph('Before')}<w:tbl>${rows.join('')}</w:tbl>${paragraph('After')}`)),
    );
    const text = chunks.map((chunk) => chunk.text).join('\n');
    expect(text.match(/row \d+/g)).toEqual(Array.from({ length: 4000 }, (_, index) => `row ${index}`));
    expect(text.startsWith('Before') && text.endsWith('After')).toBe(true);
  });
});

/** Megabytes of nothing, a thousandth as large. */
function spaces(megabytes: number): Buffer {
  return deflateRawSync(Buffer.alloc(megabytes * 1024 * 1024, 0x20));
}

const lying = (lies: ZipPart['lies'], data = GOOD) => docxOf({ data, lies: lies ?? {} });
const nested = (depth: number) =>
  documentXml(`${'<w:sdt>'.repeat(depth)}${paragraph('deep')}${'</w:sdt>'.repeat(depth)}`);
const LAUGHS = `<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">${Array.from({ length: 9 }, (_, index) => `<!ENTITY lol${index + 1} "${`&lol${index === 0 ? '' : index};`.repeat(10)}">`).join('')}]>${documentXml(paragraph('&lol9;')).replace(/^<\?xml[^>]*\?>/, '')}`;

describe('archives that lie, burst or are something else are refused with a reason', () => {
  test.each<[string, () => Buffer, string, RegExp]>([
    [
      'a part that says it unpacks to 300 times its size',
      () => docxOf({ data: '', deflated: { bytes: spaces(64), length: 64 << 20, crc: 0 } }),
      'too_large',
      /times its size/,
    ],
    [
      'a part that unpacks to more than it says',
      () => docxOf({ data: '', deflated: { bytes: spaces(256), length: 900_000, crc: 0 } }),
      'unreadable',
      /too many bytes|size/i,
    ],
    ['a part that unpacks to less than it says', () => lying({ uncompressed: 900_000 }), 'unreadable', /bytes|size/i],
    [
      'parts that unpack to more than 512 MB together',
      () =>
        docxOf(
          GOOD,
          Array.from({ length: 9 }, (_, index) => ({
            name: `media/${index}`,
            data: randomBytes(8),
            lies: { uncompressed: 64 << 20, compressed: 8 << 20 },
          })),
        ),
      'too_large',
      /unpacks to more than/,
    ],
    [
      'parts that overlap',
      () => docxOf(GOOD, [{ name: 'media/1', data: 'x', lies: { offset: 0 } }]),
      'unreadable',
      /overlap/,
    ],
    [
      'parts of one name',
      () => docxOf(GOOD, [{ name: 'WORD/document.xml', data: GOOD }]),
      'unreadable',
      /two parts of one name/,
    ],
    ['a local header of another name', () => lying({ localName: 'word/documenx.xml' }), 'unreadable', /disagree/],
    ['a wrong checksum', () => lying({ crc: 12345 }), 'unreadable', /checksum/],
    [
      'names that climb out',
      () => docxOf(GOOD, [{ name: '../../etc/passwd', data: 'x' }]),
      'unreadable',
      /relative path/,
    ],
    ['absolute names', () => docxOf(GOOD, [{ name: '/etc/passwd', data: 'x' }]), 'unreadable', /absolute path/],
    [
      'names with backslashes',
      () => docxOf(GOOD, [{ name: 'word\\document.xml', data: 'x' }]),
      'unreadable',
      /characters/,
    ],
    [
      'zip64 sizes without zip64',
      () => lying({ uncompressed: 0xffffffff, compressed: 0xffffffff }),
      'too_large',
      /unpacks to more than/,
    ],
    [
      'an entity from outside',
      () => docxOf(GOOD.replace('<w:document', '<!DOCTYPE x SYSTEM "file:///etc/passwd"><w:document')),
      'unreadable',
      /document type/,
    ],
    ['an encrypted part', () => lying({ flags: 1 }), 'encrypted', /password/],
    ['an unknown compression', () => lying({ method: 93 }), 'unreadable', /compression method 93/],
    [
      '3,000 parts',
      () =>
        docxOf(
          GOOD,
          Array.from({ length: 3000 }, (_, index) => ({ name: `media/${index}`, data: '' })),
        ),
      'too_large',
      /3004 parts/,
    ],
    [
      'a directory that is longer than it says',
      () => zipOf([{ name: 'a', data: 'x' }], { entries: 9 }),
      'unreadable',
      /sound/,
    ],
    ['billion laughs', () => docxOf(LAUGHS), 'unreadable', /document type/],
    ['an entity that nobody declared', () => docxOf(documentXml(paragraph('&xxe;'))), 'unreadable', /XML is damaged/],
    ['elements 100,000 deep', () => docxOf({ data: nested(100_000), stored: true }), 'too_large', /deep/],
    [
      'one tag of megabytes',
      () => docxOf({ data: documentXml(`<w:p ${'x'.repeat(3e6)}="">`), stored: true }),
      'too_large',
      /tag or text/,
    ],
    ['XML that breaks off', () => docxOf(GOOD.slice(0, -20)), 'unreadable', /XML is damaged/],
    [
      'XML in a wrong encoding',
      () => docxOf({ data: Buffer.from(GOOD.replace('Bees', 'Bées'), 'latin1') }),
      'unreadable',
      /encoding/,
    ],
    ['a file that breaks off', () => docxOf(GOOD).subarray(0, -300), 'unreadable', /sound/],
    ['a spreadsheet', () => zipOf([{ name: 'xl/workbook.xml', data: 'x' }]), 'unreadable', /no Word document/],
    [
      'an old or encrypted Office file',
      () => Buffer.concat([Buffer.from('d0cf11e0a1b11ae1', 'hex'), Buffer.alloc(2000)]),
      'encrypted',
      /old Word document or an encrypted one/,
    ],
    ['random bytes', () => randomBytes(5000), 'unreadable', /sound/],
    ['text', () => Buffer.from('Just text.'), 'unreadable', /sound/],
  ])('%s', async (_name, make, code, message) => {
    const error = await refusal('a.docx', make());
    expect(error.message).toMatch(message);
    expect(error.code).toBe(code);
  });

  test('styles that go round in circles end', async () => {
    const circle = STYLES.replace(
      '</w:styles>',
      '<w:style w:styleId="x"><w:basedOn w:val="y"/></w:style><w:style w:styleId="y"><w:basedOn w:val="x"/></w:style></w:styles>',
    );
    const parts = [
      { name: 'word/document.xml', data: documentXml(paragraph('Round and round.', 'x')) },
      { name: 'word/styles.xml', data: circle },
    ];
    expect(await read('a.docx', zipOf(parts))).toEqual([{ text: 'Round and round.', heading: null, page: null }]);
  });
});
