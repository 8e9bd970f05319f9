/** Plain text and Markdown as blocks: Markdown's headings become context, the rest stays as it was written. */
import type { Block } from './blocks.ts';

/** A paragraph that goes on and on is handed over in parts. */
const BLOCK_CHARACTERS = 64 * 1024;

/** Paragraphs: what stands between blank lines. */
export async function* textBlocks(lines: AsyncIterable<string>): AsyncGenerator<Block> {
  const paragraph = new Paragraph();
  for await (const line of lines) {
    if (line.trim() === '') yield* paragraph.take();
    else yield* paragraph.add(line);
  }
  yield* paragraph.take();
}

const ATX = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;

/** Headings (ATX and setext), code fences whole, front matter and comments left out (CommonMark 0.31, sections 4.2, 4.3, 4.5). */
export async function* markdownBlocks(lines: AsyncIterable<string>): AsyncGenerator<Block> {
  const paragraph = new Paragraph();
  let fence: string | null = null;
  let comment = false;
  let front: 'perhaps' | 'inside' | 'no' = 'perhaps';
  for await (const raw of lines) {
    if (front === 'perhaps') {
      front = raw.trimEnd() === '---' ? 'inside' : 'no';
      if (front === 'inside') continue;
    } else if (front === 'inside') {
      if (/^(?:---|\.\.\.)\s*$/.test(raw)) front = 'no';
      continue;
    }
    if (fence !== null) {
      yield* paragraph.add(raw);
      const mark = FENCE.exec(raw)?.[1];
      if (mark?.startsWith(fence) && raw.trim() === mark) {
        fence = null;
        yield* paragraph.take();
      }
      continue;
    }
    let line = raw;
    if (comment || line.includes('<!--')) [line, comment] = withoutComments(line, comment);
    if (line.trim() === '') {
      // A blank line within a comment ends nothing.
      if (raw.trim() === '' || !comment) yield* paragraph.take();
      continue;
    }
    const opening = FENCE.exec(line)?.[1];
    if (opening !== undefined) {
      yield* paragraph.take();
      fence = opening;
      yield* paragraph.add(line);
      continue;
    }
    const atx = ATX.exec(line);
    if (atx !== null) {
      yield* paragraph.take();
      yield { text: atx[2] ?? '', level: (atx[1] as string).length, page: null };
    } else if (
      paragraph.lines === 1 &&
      /^ {0,3}(?:=+|-{2,})\s*$/.test(line) &&
      !/^\s*(?:[-*+>|]|\d+[.)])/.test(paragraph.text)
    ) {
      yield { text: paragraph.text.trim(), level: line.includes('=') ? 1 : 2, page: null };
      paragraph.drop();
    } else if (/^ {0,3}(?:[*_-][ \t]*){3,}$/.test(line)) yield* paragraph.take();
    else yield* paragraph.add(line);
  }
  yield* paragraph.take();
}

function withoutComments(line: string, inside: boolean): [string, boolean] {
  let rest = line;
  let kept = '';
  let open = inside;
  for (;;) {
    const at = rest.indexOf(open ? '-->' : '<!--');
    if (!open) kept += at === -1 ? rest : rest.slice(0, at);
    if (at === -1) return [kept, open];
    rest = rest.slice(at + (open ? 3 : 4));
    open = !open;
  }
}

class Paragraph {
  #lines: string[] = [];
  #length = 0;

  get lines(): number {
    return this.#lines.length;
  }

  get text(): string {
    return this.#lines.join('\n');
  }

  *add(line: string): Generator<Block> {
    this.#lines.push(line.trimEnd());
    this.#length += line.length + 1;
    if (this.#length > BLOCK_CHARACTERS) yield* this.take();
  }

  *take(): Generator<Block> {
    const { text } = this;
    this.drop();
    if (text.trim() !== '') yield { text, level: null, page: null };
  }

  drop(): void {
    this.#lines = [];
    this.#length = 0;
  }
}
