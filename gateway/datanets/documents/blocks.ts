/** What readers of all formats make of a document: headings and paragraphs, in order. */
export interface Block {
  /** A paragraph, a list, a table, a block of code; without blank lines at its ends. */
  text: string;
  /** 1 to 9: a heading of this level; null: text below the last heading. */
  level: number | null;
  page: number | null;
}

/** The headings that stand above what comes next. */
export class Headings {
  #open: { level: number; text: string }[] = [];

  /** A heading closes those of its level and below. */
  enter(level: number, text: string): void {
    this.#open = this.#open.filter((heading) => heading.level < level);
    this.#open.push({ level, text: text.replace(/\s+/g, ' ').trim().slice(0, HEADING_CHARACTERS_MAX) });
  }

  /** Outermost first; null: none. */
  path(): string | null {
    const texts = this.#open.map((heading) => heading.text).filter((text) => text !== '');
    return texts.length === 0 ? null : texts.join(' › ');
  }
}

const HEADING_CHARACTERS_MAX = 200;
