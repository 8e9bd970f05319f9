/**
 * A ZIP archive that was sent by a stranger: everything its directory says is checked before anything is unpacked, and what is unpacked is
 * counted and compared with what was said (APPNOTE 6.3.10; for overlapping entries: Fifield, "A better zip bomb", 2019).
 */
import { open } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { crc32 } from 'node:zlib';
import yauzl, { type Entry, type ZipFile } from 'yauzl';
import { DocumentError } from './document.ts';
import { documentLimits } from './document-limits.ts';

/** Bytes of a local file header without its name and extra field. */
const LOCAL_HEADER_BYTES = 30;

const damaged = (why: string) =>
  new DocumentError(
    'unreadable',
    `The file is not a sound .docx archive: ${why}. Open it in a word processor, save it again and send that.`,
  );
const bomb = (why: string) => new DocumentError('too_large', `The document ${why}; it is not unpacked.`);

export class Archive {
  readonly #zip: ZipFile;
  readonly #entries: ReadonlyMap<string, Entry>;

  private constructor(zip: ZipFile, entries: Map<string, Entry>) {
    this.#zip = zip;
    this.#entries = entries;
  }

  /** @throws DocumentError `unreadable`, `encrypted`, `too_large` */
  static async open(path: string): Promise<Archive> {
    await refuseOld(path);
    let zip: ZipFile;
    try {
      zip = await yauzl.openPromise(path, {
        lazyEntries: true,
        autoClose: false,
        strictFileNames: true,
        validateEntrySizes: true,
      });
    } catch (error) {
      throw damaged(said(error));
    }
    try {
      if (zip.entryCount > documentLimits.zipEntriesMax)
        throw bomb(`has ${zip.entryCount} parts, more than ${documentLimits.zipEntriesMax}`);
      return new Archive(zip, await entriesOf(zip));
    } catch (error) {
      zip.close();
      throw error instanceof DocumentError ? error : damaged(said(error));
    }
  }

  has(name: string): boolean {
    return this.#entries.has(name);
  }

  /** The part's bytes as they unpack. @throws DocumentError, also half-way: then what came before is worth nothing. */
  async *read(name: string): AsyncGenerator<Uint8Array> {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw damaged(`it has no part ${name}`);
    if (entry.uncompressedSize > documentLimits.xmlBytesMax)
      throw bomb(`has a part of ${entry.uncompressedSize} bytes, more than ${documentLimits.xmlBytesMax}`);
    let bytes = 0;
    let sum = 0;
    try {
      // A local header that names something else means two readers would see two documents.
      const local = await this.#zip.readLocalFileHeaderPromise(entry);
      if (!local.fileName.equals(entry.fileNameRaw) || local.compressionMethod !== entry.compressionMethod)
        throw damaged(`its directory and its part ${name} disagree`);
      const stream: Readable = await this.#zip.openReadStreamPromise(entry);
      for await (const piece of stream as AsyncIterable<Buffer>) {
        bytes += piece.byteLength;
        if (bytes > documentLimits.xmlBytesMax)
          throw bomb(`has a part of more than ${documentLimits.xmlBytesMax} bytes`);
        sum = crc32(piece, sum);
        yield piece;
      }
    } catch (error) {
      throw error instanceof DocumentError ? error : damaged(said(error));
    }
    if (bytes !== entry.uncompressedSize || sum !== entry.crc32)
      throw damaged(`the checksum of its part ${name} is wrong`);
  }

  close(): void {
    this.#zip.close();
  }
}

/** Encrypted documents and those of before 2007 are compound files (MS-CFB 2.2). */
async function refuseOld(path: string): Promise<void> {
  const file = await open(path);
  try {
    const { buffer } = await file.read(Buffer.alloc(8), 0, 8, 0);
    if (buffer.toString('hex') === 'd0cf11e0a1b11ae1')
      throw new DocumentError(
        'encrypted',
        'The file is an old Word document or an encrypted one; save it as .docx without a password and send that.',
      );
  } finally {
    await file.close();
  }
}

function said(error: unknown): string {
  // The library's messages are short; none quotes the file but for names.
  return error instanceof Error ? error.message.slice(0, 200).replace(/\.$/, '') : 'it cannot be read';
}

async function entriesOf(zip: ZipFile): Promise<Map<string, Entry>> {
  const entries = new Map<string, Entry>();
  const spans: { start: number; end: number }[] = [];
  let total = 0;
  for await (const entry of zip.eachEntry()) {
    const { fileName, compressedSize, uncompressedSize } = entry;
    if (entry.isEncrypted())
      throw new DocumentError('encrypted', 'The document is encrypted; remove its password and send it again.');
    if (entry.compressionMethod !== 0 && entry.compressionMethod !== 8)
      throw damaged(`it uses compression method ${entry.compressionMethod}`);
    // Names that differ by case only are one name to Office.
    const name = fileName.toLowerCase();
    if (entries.has(name)) throw damaged('it has two parts of one name');
    total += uncompressedSize;
    if (total > documentLimits.zipBytesMax) throw bomb(`unpacks to more than ${documentLimits.zipBytesMax} bytes`);
    if (
      uncompressedSize > documentLimits.zipRatioFromBytes &&
      uncompressedSize > documentLimits.zipRatioMax * compressedSize
    )
      throw bomb(
        `has a part that unpacks to ${Math.floor(uncompressedSize / Math.max(1, compressedSize))} times its size`,
      );
    const start = entry.relativeOffsetOfLocalHeader;
    spans.push({ start, end: start + LOCAL_HEADER_BYTES + entry.fileNameLength + compressedSize });
    entries.set(name, entry);
  }
  spans.sort((a, b) => a.start - b.start);
  for (let at = 1; at < spans.length; at += 1)
    if ((spans[at] as { start: number }).start < (spans[at - 1] as { end: number }).end)
      throw damaged('its parts overlap');
  return entries;
}
