/** Word documents (ECMA-376, WordprocessingML) as blocks: what a reader of the printed document would see of its text. */
import { Archive } from './archive.ts';
import type { Block } from './blocks.ts';
import { DocumentError } from './document.ts';
import { documentLimits } from './document-limits.ts';
import { parseXml, type XmlElement, type XmlHandler } from './xml.ts';

/** Transitional and strict. */
const WORD = new Set([
  'http://schemas.openxmlformats.org/wordprocessingml/2006/main',
  'http://purl.oclc.org/ooxml/wordprocessingml/main',
]);
const COMPATIBILITY = 'http://schemas.openxmlformats.org/markup-compatibility/2006';
/** Text that was deleted or moved away, and what stands for another version of the same. */
const LEFT_OUT = new Set(['del', 'moveFrom', 'delText', 'instrText', 'delInstrText']);
/** A title stands above headings of level 1. */
const TITLE_LEVEL = 0;
/** Rows of a table that are handed over at once. */
const TABLE_CHARACTERS = 32 * 1024;

/** @throws DocumentError */
export async function* docxBlocks(path: string): AsyncGenerator<Block> {
  const archive = await Archive.open(path);
  try {
    const main = await mainPart(archive);
    const folder = main.slice(0, main.lastIndexOf('/') + 1);
    const styles = archive.has(`${folder}styles.xml`) ? await headingStyles(archive, `${folder}styles.xml`) : new Map();
    const reader = new DocumentReader(styles);
    for await (const _ of parseXml(archive.read(main), reader)) yield* reader.take();
    if (!reader.sawBody) throw new DocumentError('unreadable', 'The file has no Word document in it.');
  } finally {
    archive.close();
  }
}

async function mainPart(archive: Archive): Promise<string> {
  let target: string | null = null;
  if (archive.has('_rels/.rels')) {
    const handler: XmlHandler = {
      open: ({ name, attribute }) => {
        if (name === 'Relationship' && attribute('Type')?.endsWith('/officeDocument'))
          target ??= attribute('Target') ?? null;
      },
      close: () => {},
      text: () => {},
    };
    for await (const _ of parseXml(archive.read('_rels/.rels'), handler));
  }
  const name = ((target as string | null) ?? 'word/document.xml').replace(/^\//, '').toLowerCase();
  if (name.startsWith('xl/') || name.startsWith('ppt/'))
    throw new DocumentError(
      'unreadable',
      'The file is a spreadsheet or presentation, not a Word document; save its text as .docx or .txt.',
    );
  if (!archive.has(name))
    throw new DocumentError('unreadable', 'The file is a ZIP archive, but has no Word document in it.');
  return name;
}

/** Levels of headings by the id of their style; a style may be based on another. */
async function headingStyles(archive: Archive, part: string): Promise<Map<string, number>> {
  const levels = new Map<string, number>();
  const bases = new Map<string, string>();
  let id: string | null = null;
  const handler: XmlHandler = {
    open: ({ space, name, attribute }) => {
      if (!WORD.has(space)) return;
      const value = attribute('val') ?? '';
      if (name === 'style') id = attribute('styleId') ?? null;
      else if (id === null || levels.size + bases.size > documentLimits.stylesMax) return;
      else if (name === 'name') {
        const level = /^heading ([1-9])$/i.exec(value)?.[1];
        if (level !== undefined) levels.set(id, Number(level));
        else if (/^title$/i.test(value)) levels.set(id, TITLE_LEVEL);
      } else if (name === 'basedOn') bases.set(id, value);
      else if (name === 'outlineLvl' && /^[0-8]$/.test(value) && !levels.has(id)) levels.set(id, Number(value) + 1);
    },
    close: (space, name) => {
      if (name === 'style' && WORD.has(space)) id = null;
    },
    text: () => {},
  };
  for await (const _ of parseXml(archive.read(part), handler));
  for (const style of bases.keys()) {
    let base: string | undefined = style;
    for (let steps = 0; base !== undefined && steps < 16 && !levels.has(style); steps += 1) {
      const level = levels.get(base);
      if (level !== undefined) levels.set(style, level);
      base = bases.get(base);
    }
  }
  return levels;
}

interface Paragraph {
  text: string[];
  level: number | null;
  listed: boolean;
}
interface Table {
  rows: string[];
  characters: number;
  row: string[];
  /** null: between cells. */
  cell: string[] | null;
}

class DocumentReader implements XmlHandler {
  sawBody = false;
  readonly #styles: ReadonlyMap<string, number>;
  readonly #open: string[] = [];
  readonly #paragraphs: Paragraph[] = [];
  readonly #tables: Table[] = [];
  /** For each open run, whether its text is hidden. */
  readonly #runs: boolean[] = [];
  #done: Block[] = [];
  /** Depth at which something that is left out began. */
  #skippedAt: number | null = null;
  #characters = 0;

  constructor(styles: ReadonlyMap<string, number>) {
    this.#styles = styles;
  }

  take(): Block[] {
    const done = this.#done;
    this.#done = [];
    return done;
  }

  open(element: XmlElement): void {
    const { space, name } = element;
    const isWord = WORD.has(space);
    this.#open.push(isWord ? name : '');
    if (this.#skippedAt !== null) return;
    if ((isWord && LEFT_OUT.has(name)) || (space === COMPATIBILITY && name === 'Fallback')) {
      this.#skippedAt = this.#open.length;
      return;
    }
    if (!isWord) return;
    const paragraph = this.#paragraphs.at(-1);
    switch (name) {
      case 'body':
        this.sawBody = true;
        break;
      case 'p':
        this.#paragraphs.push({ text: [], level: null, listed: false });
        break;
      case 'r':
        this.#runs.push(false);
        break;
      case 'vanish':
        if (this.#within('rPr', 'r') && !isOff(element)) this.#runs[this.#runs.length - 1] = true;
        break;
      case 'pStyle':
        if (paragraph !== undefined) paragraph.level ??= this.#styles.get(element.attribute('val') ?? '') ?? null;
        break;
      case 'outlineLvl': {
        const value = element.attribute('val') ?? '';
        if (paragraph !== undefined && this.#within('pPr', 'p') && /^[0-9]$/.test(value))
          paragraph.level = value === '9' ? null : Number(value) + 1;
        break;
      }
      case 'numId':
        if (paragraph !== undefined && element.attribute('val') !== '0') paragraph.listed = true;
        break;
      case 'tab':
        if (this.#within('r')) this.#say('\t');
        break;
      case 'br':
      case 'cr':
        this.#say('\n');
        break;
      case 'noBreakHyphen':
        this.#say('-');
        break;
      case 'tbl':
        this.#tables.push({ rows: [], characters: 0, row: [], cell: null });
        break;
      case 'tc': {
        const table = this.#tables.at(-1);
        if (table !== undefined) table.cell = [];
        break;
      }
    }
  }

  close(space: string, name: string): void {
    const depth = this.#open.length;
    this.#open.pop();
    if (this.#skippedAt !== null) {
      if (depth === this.#skippedAt) this.#skippedAt = null;
      return;
    }
    if (!WORD.has(space)) return;
    if (name === 'p') this.#endParagraph();
    else if (name === 'r') this.#runs.pop();
    else if (name === 'tc') this.#endCell();
    else if (name === 'tr') this.#endRow();
    else if (name === 'tbl') this.#endTable();
  }

  text(text: string): void {
    if (this.#open.at(-1) === 't') this.#say(text);
  }

  /** Whether the open element stands in these, innermost first. */
  #within(...names: string[]): boolean {
    return names.every((name, index) => this.#open[this.#open.length - 2 - index] === name);
  }

  #say(text: string): void {
    if (this.#skippedAt !== null || this.#runs.at(-1) === true) return;
    this.#characters += text.length;
    if (this.#characters > documentLimits.textCharactersMax)
      throw new DocumentError(
        'too_large',
        `The document has more than ${documentLimits.textCharactersMax} characters; split it.`,
      );
    this.#paragraphs.at(-1)?.text.push(text);
  }

  #endParagraph(): void {
    const paragraph = this.#paragraphs.pop();
    const text = paragraph?.text.join('').trim() ?? '';
    if (paragraph === undefined || text === '') return;
    const cell = this.#tables.at(-1)?.cell;
    if (cell !== undefined && cell !== null) cell.push(text.replace(/\s+/g, ' '));
    else
      this.#done.push({
        text: paragraph.listed && paragraph.level === null ? `- ${text}` : text,
        level: paragraph.level,
        page: null,
      });
  }

  #endCell(): void {
    const table = this.#tables.at(-1);
    if (table?.cell === undefined || table.cell === null) return;
    table.row.push(table.cell.join(' '));
    table.cell = null;
  }

  #endRow(): void {
    const table = this.#tables.at(-1);
    if (table === undefined) return;
    const row = table.row.join(' | ');
    table.row = [];
    if (row.replace(/[ |]/g, '') === '') return;
    table.rows.push(row);
    table.characters += row.length;
    if (table.characters > TABLE_CHARACTERS && this.#tables.length === 1) this.#hand(table);
  }

  #endTable(): void {
    const table = this.#tables.pop();
    if (table !== undefined) this.#hand(table);
  }

  #hand(table: Table): void {
    const outer = this.#tables.at(-1);
    const text = table.rows.join('\n');
    table.rows = [];
    table.characters = 0;
    if (text === '') return;
    // A table within a cell is text of that cell.
    if (outer !== undefined && outer !== table && outer.cell !== null) outer.cell.push(text.replace(/\n/g, ' / '));
    else this.#done.push({ text, level: null, page: null });
  }
}

/** OOXML's on/off: absent means on. */
function isOff(element: XmlElement): boolean {
  return ['0', 'false', 'off'].includes(element.attribute('val') ?? '');
}
