/**
 * The text of a PDF as blocks, by pdf.js (in unpdf's build for servers: no canvas, no fonts, no network). Lines become paragraphs by the space between
 * them, and larger letters make headings: a PDF says where letters stand, not what they are.
 */
import { readFile } from 'node:fs/promises';
import type { ArrayGuard } from './array-guard.ts';
import type { Block } from './blocks.ts';
import { DocumentError } from './document.ts';
import { documentLimits } from './document-limits.ts';

const ADVICE = 'Open it in a PDF viewer, print it to a new PDF and send that, or send its text.';
const TOO_MUCH = new DocumentError(
  'too_large',
  'The PDF unpacks to more than may be read; split it, or send its text.',
);

/** The part of pdf.js's text items that is used. Heights and places in points. */
interface Item {
  str: string;
  /** [a, b, c, d, x, y] */
  transform: number[];
  width: number;
  height: number;
  hasEOL: boolean;
}
interface Line {
  text: string;
  height: number;
  x: number;
  y: number;
}

/** Below so many letters and digits a whole document has no text worth the name. */
const LETTERS_MIN = 10;
/** In units of the line's height: more space above begins a paragraph; higher letters than the body's make a heading. */
const PARAGRAPH_GAP = 1.7;
const HEADING_HEIGHT = 1.15;
const HEADING_CHARACTERS_MAX = 160;

/** @throws DocumentError */
export async function* pdfBlocks(path: string, guard: ArrayGuard): AsyncGenerator<Block> {
  const data = await readFile(path);
  // Readers look for the mark within the first 1024 bytes (ISO 32000-1, annex H.3).
  if (!data.subarray(0, 1024).includes('%PDF-'))
    throw new DocumentError('unreadable', `The file is not a PDF. ${ADVICE}`);
  // Pictures are not looked at, and nothing is fetched.
  for (const name of ['WebAssembly', 'fetch', 'WebSocket', 'XMLHttpRequest']) Reflect.deleteProperty(globalThis, name);
  const { getDocument } = await import('unpdf/pdfjs');
  guard.install();
  const task = getDocument({
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    isEvalSupported: false,
    useSystemFonts: false,
    disableFontFace: true,
    useWorkerFetch: false,
    useWasm: false,
    enableXfa: false,
    maxImageSize: 1,
    stopAtErrors: false,
    verbosity: 0,
  });
  let letters = 0;
  let pages = 0;
  let broken = 0;
  try {
    const document = await task.promise;
    pages = document.numPages;
    if (pages > documentLimits.pdfPagesMax)
      throw new DocumentError(
        'too_large',
        `The PDF says that it has ${pages} pages; at most ${documentLimits.pdfPagesMax} are read. Split it.`,
      );
    let characters = 0;
    const running = new RunningLines();
    for (let number = 1; number <= pages; number += 1) {
      const lines = await linesOf(document, number);
      if (guard.exceeded) throw TOO_MUCH;
      if (lines === null) {
        broken += 1;
        // A page tree that says much and holds nothing.
        if (broken > 32 && broken > number / 2)
          throw new DocumentError('unreadable', `The PDF is damaged: most of its pages cannot be read. ${ADVICE}`);
        continue;
      }
      for (const block of blocksOf(running.without(lines), number)) {
        characters += block.text.length;
        if (letters < LETTERS_MIN) letters += block.text.match(/[\p{L}\p{N}]/gu)?.length ?? 0;
        if (characters > documentLimits.textCharactersMax)
          throw new DocumentError(
            'too_large',
            `The PDF has more than ${documentLimits.textCharactersMax} characters; split it.`,
          );
        yield block;
      }
    }
  } catch (error) {
    throw refusalOf(error, guard);
  }
  if (pages === 0 || broken === pages)
    throw new DocumentError('unreadable', `The PDF has no pages that can be read. ${ADVICE}`);
  if (letters < LETTERS_MIN)
    throw new DocumentError(
      'no_text',
      'The PDF has no text in it: its pages are probably images. Run text recognition (OCR) over it and send the result.',
    );
}

function refusalOf(error: unknown, guard: ArrayGuard): unknown {
  if (error instanceof DocumentError) return error;
  if (guard.exceeded || error instanceof RangeError) return TOO_MUCH;
  const name = error instanceof Error ? error.name : '';
  if (name === 'PasswordException')
    return new DocumentError(
      'encrypted',
      'The PDF is encrypted with a password; remove the password and send it again.',
    );
  return new DocumentError('unreadable', `The PDF is damaged and cannot be read. ${ADVICE}`);
}

interface PdfDocument {
  getPage(number: number): Promise<{
    streamTextContent(options: object): ReadableStream<{ items: (Item | { type: string })[] }>;
    cleanup(): boolean;
  }>;
}

/** null: the page cannot be read. */
async function linesOf(document: PdfDocument, number: number): Promise<Line[] | null> {
  let page: Awaited<ReturnType<PdfDocument['getPage']>>;
  try {
    page = await document.getPage(number);
  } catch {
    return null;
  }
  const lines: Line[] = [];
  let open: Line | null = null;
  let items = 0;
  const reader = page.streamTextContent({ includeMarkedContent: false }).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      items += value.items.length;
      if (items > documentLimits.pdfItemsMax)
        throw new DocumentError(
          'too_large',
          `Page ${number} of the PDF has more than ${documentLimits.pdfItemsMax} pieces of text; it is not read.`,
        );
      for (const item of value.items) {
        if (!('str' in item)) continue;
        const [, , , , x = 0, y = 0] = item.transform;
        if (open === null && item.str.trim() !== '') open = { text: '', height: item.height, x, y };
        if (open !== null) {
          open.text += item.str;
          open.height = Math.max(open.height, item.height);
          if (item.hasEOL) {
            lines.push(open);
            open = null;
          }
        }
      }
    }
  } catch (error) {
    if (error instanceof DocumentError) throw error;
    if (lines.length === 0 && open === null) return null;
  }
  if (open !== null) lines.push(open);
  page.cleanup();
  return lines;
}

/** Running titles and page numbers: the same line (but for its numbers) at the same height of page after page. */
export class RunningLines {
  readonly #seen = new Map<string, number>();

  /** Without the lines that stood there on two pages before. */
  without(lines: readonly Line[]): Line[] {
    if (lines.length < PAGE_LINES_MIN) return [...lines];
    const byHeight = [...lines].sort((a, b) => b.y - a.y);
    const dropped = new Set<Line>();
    for (const line of [...byHeight.slice(0, EDGE_LINES), ...byHeight.slice(-EDGE_LINES)]) {
      const key = `${Math.round(line.y)} ${line.text.trim().replace(/\p{N}+/gu, '#')}`;
      const count = this.#seen.get(key) ?? 0;
      this.#seen.set(key, count + 1);
      if (count >= 2) dropped.add(line);
    }
    return lines.filter((line) => !dropped.has(line));
  }
}

/** Lines at the top and at the bottom of a page that may be running ones; and of a page that has enough others. */
const EDGE_LINES = 2;
const PAGE_LINES_MIN = 6;

/** The height that most characters of a page have. */
function bodyHeight(lines: readonly Line[]): number {
  const characters = new Map<number, number>();
  let most = 0;
  let height = 0;
  for (const line of lines) {
    const rounded = Math.round(line.height * 2) / 2;
    const count = (characters.get(rounded) ?? 0) + line.text.length;
    characters.set(rounded, count);
    if (count > most) [most, height] = [count, rounded];
  }
  return height;
}

export function* blocksOf(lines: readonly Line[], page: number): Generator<Block> {
  const body = bodyHeight(lines);
  let text = '';
  let before: Line | null = null;
  let wasHeading = false;
  const level = (line: Line) => (line.height >= 1.8 * body ? 1 : line.height >= 1.4 * body ? 2 : 3);
  const finish = (): Block[] => {
    const whole = text.trim();
    const asHeading = wasHeading && whole.length <= HEADING_CHARACTERS_MAX && before !== null;
    text = '';
    return whole === '' ? [] : [{ text: whole, level: asHeading ? level(before as Line) : null, page }];
  };
  for (const line of lines) {
    const words = line.text.replace(/\s+/g, ' ').trim();
    if (words === '') continue;
    const isHeading = body > 0 && line.height >= HEADING_HEIGHT * body && /\p{L}/u.test(words);
    const gap = before === null ? 0 : before.y - line.y;
    const apart =
      before !== null &&
      (isHeading !== wasHeading ||
        gap > PARAGRAPH_GAP * Math.max(before.height, 1) ||
        // A column further right, or a line above the last: another part of the page.
        gap < -0.5 * before.height);
    if (apart) yield* finish();
    text = joined(text, words);
    before = line;
    wasHeading = isHeading;
  }
  yield* finish();
}

/** Lines of a paragraph; a word that was divided at the line's end is one word again. */
function joined(text: string, line: string): string {
  if (text === '') return line;
  if (/\p{Ll}[-\u2010\u00ad]$/u.test(text) && /^\p{Ll}/u.test(line)) return text.slice(0, -1) + line;
  const together =
    /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\u3000-\u303f]$/u.test(text) &&
    /^[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}]/u.test(line);
  return together ? text + line : `${text} ${line}`;
}
