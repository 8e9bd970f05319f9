/** PDFs of our own making: good ones to read and bad ones to refuse. */
import { deflateSync } from 'node:zlib';

export interface PdfObject {
  /** The dictionary's inside, without << >>; or a whole object where there is no stream. */
  body: string;
  stream?: Buffer;
}

/** Objects from number 1 on, a cross-reference table and a trailer. @param root number of the catalogue. */
export function pdfOf(objects: readonly PdfObject[], root = 1, trailer = ''): Buffer {
  const parts: Buffer[] = [Buffer.from('%PDF-1.7\n%\xe2\xe3\xcf\xd3\n', 'latin1')];
  const offsets: number[] = [];
  let length = (parts[0] as Buffer).length;
  const push = (part: Buffer) => {
    parts.push(part);
    length += part.length;
  };
  objects.forEach(({ body, stream }, index) => {
    offsets.push(length);
    if (stream === undefined) push(Buffer.from(`${index + 1} 0 obj\n${body}\nendobj\n`, 'latin1'));
    else {
      push(Buffer.from(`${index + 1} 0 obj\n<< ${body} /Length ${stream.length} >>\nstream\n`, 'latin1'));
      push(stream);
      push(Buffer.from('\nendstream\nendobj\n', 'latin1'));
    }
  });
  const start = length;
  const rows = offsets.map((offset) => `${String(offset).padStart(10, '0')} 00000 n \n`).join('');
  push(Buffer.from(`xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${rows}`, 'latin1'));
  push(
    Buffer.from(
      `trailer\n<< /Size ${objects.length + 1} /Root ${root} 0 R ${trailer} >>\nstartxref\n${start}\n%%EOF\n`,
      'latin1',
    ),
  );
  return Buffer.concat(parts);
}

export interface PdfLine {
  text: string;
  /** Points. */
  size?: number;
  /** Lines of the page's grid above it that stay empty. */
  skip?: number;
}

function escaped(text: string): string {
  return text.replace(/[\\()]/g, (character) => `\\${character}`);
}

/** Pages of lines in Helvetica. */
export function textPdf(pages: readonly (readonly PdfLine[])[], options: { compress?: boolean } = {}): Buffer {
  const first = 4;
  const kids = pages.map((_, index) => `${first + 2 * index} 0 R`).join(' ');
  const objects: PdfObject[] = [
    { body: '<< /Type /Catalog /Pages 2 0 R >>' },
    { body: `<< /Type /Pages /Kids [${kids}] /Count ${pages.length} >>` },
    { body: '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>' },
  ];
  pages.forEach((lines, index) => {
    let y = 780;
    const shown = lines.map(({ text, size = 11, skip = 0 }) => {
      y -= (skip + 1) * Math.max(14, size * 1.3);
      return `BT /F1 ${size} Tf 1 0 0 1 60 ${y} Tm (${escaped(text)}) Tj ET`;
    });
    const content = Buffer.from(shown.join('\n'), 'latin1');
    const page = `/Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents ${first + 2 * index + 1} 0 R`;
    objects.push({ body: `<< ${page} /Resources << /Font << /F1 3 0 R >> >> >>` });
    objects.push(
      options.compress === false
        ? { body: '', stream: content }
        : { body: '/Filter /FlateDecode', stream: deflateSync(content) },
    );
  });
  return pdfOf(objects);
}
