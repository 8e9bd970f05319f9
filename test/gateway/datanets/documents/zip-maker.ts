/** ZIP archives of our own making, honest ones and liars; and Word documents in them. */
import { crc32, deflateRawSync } from 'node:zlib';

export interface ZipPart {
  name: string;
  data: Buffer | string;
  /** As it is; else deflated. */
  stored?: boolean;
  /** What the directory says instead of the truth. */
  lies?: {
    compressed?: number;
    uncompressed?: number;
    crc?: number;
    flags?: number;
    method?: number;
    offset?: number;
    localName?: string;
  };
  /** Ready-made deflate stream of `data`'s place, with the length that it unpacks to. */
  deflated?: { bytes: Buffer; length: number; crc: number };
}

export function zipOf(parts: readonly ZipPart[], options: { entries?: number } = {}): Buffer {
  const files: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, data, stored = false, lies = {}, deflated } of parts) {
    const raw = Buffer.from(data);
    const bytes = deflated?.bytes ?? (stored ? raw : deflateRawSync(raw));
    const crc = lies.crc ?? deflated?.crc ?? crc32(raw);
    const uncompressed = lies.uncompressed ?? deflated?.length ?? raw.length;
    const compressed = lies.compressed ?? bytes.length;
    const method = lies.method ?? (stored && deflated === undefined ? 0 : 8);
    const localName = Buffer.from(lies.localName ?? name);
    const centralName = Buffer.from(name);
    const shared = Buffer.alloc(26);
    shared.writeUInt16LE(20, 0);
    shared.writeUInt16LE((lies.flags ?? 0) | 0x800, 2);
    shared.writeUInt16LE(method, 4);
    shared.writeUInt32LE(crc >>> 0, 10);
    shared.writeUInt32LE(compressed, 14);
    shared.writeUInt32LE(uncompressed, 18);
    shared.writeUInt16LE(localName.length, 22);
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), shared, localName, bytes]);
    const central = Buffer.alloc(46);
    central.write('PK\x01\x02', 0, 'latin1');
    central.writeUInt16LE(20, 4);
    shared.copy(central, 6);
    central.writeUInt16LE(centralName.length, 28);
    central.writeUInt32LE(lies.offset ?? offset, 42);
    files.push(local);
    directory.push(Buffer.concat([central, centralName]));
    offset += local.length;
  }
  const central = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 0, 'latin1');
  end.writeUInt16LE(options.entries ?? parts.length, 8);
  end.writeUInt16LE(options.entries ?? parts.length, 10);
  end.writeUInt32LE(central.length, 12);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...files, central, end]);
}

const SPACE = 'http://schemas.openxmlformats.org/wordprocessingml/2006/main';
const COMPATIBILITY = 'http://schemas.openxmlformats.org/markup-compatibility/2006';

export const STYLES = `<?xml version="1.0" encoding="UTF-8"?><w:styles xmlns:w="${SPACE}">
<w:style w:type="paragraph" w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
<w:style w:type="paragraph" w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>
<w:style w:type="paragraph" w:styleId="Mine"><w:name w:val="My own"/><w:basedOn w:val="berschrift2"/></w:style>
</w:styles>`;

const RELATIONSHIPS =
  '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>';

export function documentXml(body: string): string {
  return `<?xml version="1.0" encoding="UTF-8" standalone="yes"?><w:document xmlns:w="${SPACE}" xmlns:mc="${COMPATIBILITY}"><w:body>${body}</w:body></w:document>`;
}

/** @param document the whole of word/document.xml, or how it lies in the archive. */
export function docxOf(document: string | Omit<ZipPart, 'name'>, more: readonly ZipPart[] = []): Buffer {
  const part = typeof document === 'string' ? { data: document } : document;
  return zipOf([
    {
      name: '[Content_Types].xml',
      data: '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
    },
    { name: '_rels/.rels', data: RELATIONSHIPS },
    { name: 'word/document.xml', ...part },
    { name: 'word/styles.xml', data: STYLES },
    ...more,
  ]);
}

export const paragraph = (text: string, style?: string) =>
  `<w:p>${style === undefined ? '' : `<w:pPr><w:pStyle w:val="${style}"/></w:pPr>`}<w:r><w:t xml:space="preserve">${text}</w:t></w:r></w:p>`;
