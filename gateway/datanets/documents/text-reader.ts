/** Lines of a text file, decoded strictly: what is not text, or not in the encoding that it says, is refused rather than guessed at. */
import { open } from 'node:fs/promises';
import { DocumentError } from './document.ts';
import { documentLimits } from './document-limits.ts';

const PIECE_BYTES = 256 * 1024;
/** A line longer than this is handed over in pieces. */
const LINE_CHARACTERS = 64 * 1024;

/** Formats that are often sent under a text's name. */
const MAGIC: readonly { bytes: string; name: string }[] = [
  { bytes: '%PDF-', name: 'a PDF' },
  { bytes: 'PK\x03\x04', name: 'a ZIP archive (perhaps a .docx)' },
  { bytes: '\xd0\xcf\x11\xe0', name: 'an old Office document' },
  { bytes: '{\\rtf', name: 'an RTF document' },
  { bytes: '\x1f\x8b', name: 'a gzip archive' },
];

type Encoding = 'utf-8' | 'utf-16le' | 'utf-16be';

/** By its byte order mark; UTF-8 without one. */
function encodingOf(head: Uint8Array): Encoding {
  if (head[0] === 0xff && head[1] === 0xfe) return 'utf-16le';
  if (head[0] === 0xfe && head[1] === 0xff) return 'utf-16be';
  return 'utf-8';
}

function refuseOther(head: Uint8Array): void {
  const start = Buffer.from(head.subarray(0, 8)).toString('latin1');
  const other = MAGIC.find((magic) => start.startsWith(magic.bytes));
  if (other !== undefined)
    throw new DocumentError(
      'unreadable',
      `The file is ${other.name}, not a text; give it the right extension, or send its text.`,
    );
}

/**
 * Lines without their ends (LF, CRLF or CR); a very long line in pieces, cut after a space where there is one.
 * @throws DocumentError `encoding`, `unreadable`, `too_large`
 */
export async function* textLines(path: string): AsyncGenerator<string> {
  const file = await open(path);
  try {
    const buffer = new Uint8Array(PIECE_BYTES);
    let decoder: InstanceType<typeof TextDecoder> | null = null;
    let encoding: Encoding = 'utf-8';
    let pending = '';
    let bytes = 0;
    let characters = 0;
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, PIECE_BYTES);
      const piece = buffer.subarray(0, bytesRead);
      if (decoder === null) {
        refuseOther(piece);
        encoding = encodingOf(piece);
        decoder = new TextDecoder(encoding, { fatal: true });
      }
      let text: string;
      try {
        text = bytesRead === 0 ? decoder.decode() : decoder.decode(piece, { stream: true });
      } catch {
        throw badEncoding(encoding, bytes, bytes + bytesRead);
      }
      bytes += bytesRead;
      characters += text.length;
      if (characters > documentLimits.textCharactersMax)
        throw new DocumentError(
          'too_large',
          `The document has more than ${documentLimits.textCharactersMax} characters; split it.`,
        );
      if (text.includes('\0'))
        throw new DocumentError(
          'unreadable',
          'The file has zero bytes, so it is no text; if it is UTF-16, save it with a byte order mark or as UTF-8.',
        );
      // A CR at the end may be half of a CRLF: it waits for what follows.
      const whole = pending + text;
      const upTo = bytesRead > 0 && whole.endsWith('\r') ? whole.length - 1 : whole.length;
      const lines = whole.slice(0, upTo).split(/\r\n|\n|\r/);
      pending = (lines.pop() ?? '') + whole.slice(upTo);
      yield* lines;
      while (pending.length > LINE_CHARACTERS) {
        const cut = cutOf(pending);
        yield pending.slice(0, cut);
        pending = pending.slice(cut);
      }
      if (bytesRead === 0) break;
    }
    if (pending !== '') yield pending;
  } finally {
    await file.close();
  }
}

function cutOf(text: string): number {
  const space = text.lastIndexOf(' ', LINE_CHARACTERS);
  if (space > LINE_CHARACTERS / 2) return space + 1;
  const low = text.charCodeAt(LINE_CHARACTERS);
  return low >= 0xdc00 && low <= 0xdfff ? LINE_CHARACTERS - 1 : LINE_CHARACTERS;
}

function badEncoding(encoding: Encoding, from: number, to: number): DocumentError {
  const name = encoding === 'utf-8' ? 'UTF-8' : 'UTF-16';
  const advice = 'Save it as UTF-8 and send it again.';
  return new DocumentError(
    'encoding',
    `The document is not valid ${name} (between bytes ${from} and ${to}). ${advice}`,
  );
}
