import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, truncateSync } from 'node:fs';
import { deflateSync } from 'node:zlib';
import { beforeEach, describe, expect, test } from 'vitest';
import { documentLimits } from '../../../../gateway/datanets/documents/document-limits.ts';
import { type Chunk, readDocument } from '../../../../gateway/datanets/documents/read.ts';
import { documentFolder } from './folder.ts';
import { pdfOf, textPdf } from './pdf-maker.ts';
import { documentXml, docxOf, paragraph } from './zip-maker.ts';

const { write } = documentFolder();

async function all(source: AsyncGenerator<Chunk>): Promise<Chunk[]> {
  const chunks: Chunk[] = [];
  for await (const chunk of source) chunks.push(chunk);
  return chunks;
}

/** Forms that draw each other ten times, twelve deep: 10^12 words. */
const LAUGHS = pdfOf([
  { body: '<< /Type /Catalog /Pages 2 0 R >>' },
  { body: '<< /Type /Pages /Kids [3 0 R] /Count 1 >>' },
  {
    body: '<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources << /XObject << /F0 6 0 R >> >> /Contents 5 0 R >>',
  },
  { body: '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>' },
  { body: '/Filter /FlateDecode', stream: deflateSync(Buffer.from('/F0 Do')) },
  ...Array.from({ length: 12 }, (_, index) => ({
    body: `/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /Font << /F1 4 0 R >> /XObject << /F${index + 1} ${index + 7} 0 R >> >>`,
    stream: Buffer.from(index === 11 ? 'BT /F1 9 Tf (laugh) Tj ET' : `/F${index + 1} Do\n`.repeat(10)),
  })),
]);

/** Processes that this one started and that still run; the test runner may have one of its own. */
const children = () => process.getActiveResourcesInfo().filter((name) => name === 'ProcessWrap').length;
let others = 0;
beforeEach(() => {
  others = children();
});
/** A handle is let go in the turn after its process has ended. */
const expectNoReader = () => expect.poll(children).toBe(others);

/** The environments of this process's readers (Linux). */
function environments(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const isOurs = new RegExp(`^PPid:\\s*${process.pid}$`, 'm').test(readFileSync(`/proc/${pid}/status`, 'latin1'));
        const isReader = readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('documents/reader.ts');
        return isOurs && isReader ? [readFileSync(`/proc/${pid}/environ`, 'latin1')] : [];
      } catch {
        // It ended meanwhile.
        return [];
      }
    });
}

describe('a document is read by a process that may do only so much', () => {
  test('what it reads arrives whole and in order, however much it is', async () => {
    const paragraphs = Array.from(
      { length: 3000 },
      (_, index) => `Paragraph ${index} says ${randomBytes(40).toString('hex')}.`,
    );
    const chunks = await all(readDocument(write('a.md', paragraphs.join('\n\n')), 'md', { chunkCharacters: 300 }));
    expect(chunks.map((chunk) => chunk.text).join('\n\n')).toBe(paragraphs.join('\n\n'));
    const [docx] = await all(
      readDocument(write('a.docx', docxOf(documentXml(paragraph('Honey.')))), 'docx', { chunkCharacters: 300 }),
    );
    expect(docx?.text).toBe('Honey.');
  });

  test('one that works without an end is ended in time', async () => {
    const reading = all(
      readDocument(write('a.pdf', LAUGHS), 'pdf', { chunkCharacters: 1200, bounds: { workMs: 1500 } }),
    );
    await expect(reading).rejects.toMatchObject({ name: 'DocumentError', code: 'timeout' });
    await expectNoReader();
  });

  test.runIf(process.platform === 'linux')(
    'one that takes too much memory is ended, and this process has not grown',
    async () => {
      const before = process.memoryUsage.rss();
      const bounds = { residentBytesMax: 90 * 1024 * 1024 };
      const reading = all(readDocument(write('a.pdf', LAUGHS), 'pdf', { chunkCharacters: 1200, bounds }));
      await expect(reading).rejects.toMatchObject({ name: 'DocumentError', code: 'too_large' });
      expect(process.memoryUsage.rss() - before).toBeLessThan(64 * 1024 * 1024);
      await expectNoReader();
    },
  );

  test('whoever takes no more chunks, or aborts, leaves no process behind', async () => {
    const path = write('a.txt', 'Some words stand here.\n\n'.repeat(50_000));
    for await (const chunk of readDocument(path, 'txt', { chunkCharacters: 300 })) {
      expect(chunk.text).toContain('words');
      break;
    }
    await expectNoReader();
    const abort = new AbortController();
    const reading = all(readDocument(write('b.pdf', LAUGHS), 'pdf', { chunkCharacters: 300, signal: abort.signal }));
    setTimeout(() => abort.abort(new Error('taken back')), 300);
    await expect(reading).rejects.toThrow('taken back');
    await expectNoReader();
    await expect(all(readDocument(path, 'txt', { chunkCharacters: 300, signal: abort.signal }))).rejects.toThrow(
      'taken back',
    );
  });

  test('two are read at the same time', async () => {
    const pages = Array.from({ length: 40 }, (_, index) => [{ text: `Page ${index} of a book that two people read.` }]);
    const path = write('a.pdf', textPdf(pages));
    const [one, two] = await Promise.all([0, 1].map(() => all(readDocument(path, 'pdf', { chunkCharacters: 300 }))));
    expect(one).toEqual(two);
    expect(one?.length).toBeGreaterThan(3);
  });

  test.runIf(process.platform === 'linux')('its secrets are not in the reader’s environment', async () => {
    process.env.DOCUMENT_TEST_SECRET = 'kept here';
    try {
      const chunks = readDocument(write('a.txt', 'Some words stand here.\n\n'.repeat(50_000)), 'txt', {
        chunkCharacters: 300,
      });
      await chunks.next();
      const found = environments();
      await chunks.return(undefined);
      expect(found).toHaveLength(1);
      expect(found[0]).not.toContain('kept here');
    } finally {
      Reflect.deleteProperty(process.env, 'DOCUMENT_TEST_SECRET');
    }
  });

  test('files that are empty, hold only white space or are too large are refused before or after reading', async () => {
    const refused = async (path: string, code: string) =>
      expect(all(readDocument(path, 'txt', { chunkCharacters: 300 }))).rejects.toMatchObject({
        name: 'DocumentError',
        code,
      });
    await refused(write('a.txt', ''), 'no_text');
    await refused(write('a.txt', ' \n\n\t'), 'no_text');
    const large = write('a.txt', 'x');
    truncateSync(large, documentLimits.fileBytesMax + 1);
    await refused(large, 'too_large');
    await expect(all(readDocument(`${large}.not-there`, 'txt', { chunkCharacters: 300 }))).rejects.toThrow(/ENOENT/);
  });
});
