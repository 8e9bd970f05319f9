/** What a document is: its kind by its name, the chunks it is cut into, and what may be wrong with it. */

export const DOCUMENT_KINDS = ['md', 'txt', 'pdf', 'docx'] as const;
export type DocumentKind = (typeof DOCUMENT_KINDS)[number];

const EXTENSIONS: Readonly<Record<string, DocumentKind>> = {
  md: 'md',
  markdown: 'md',
  txt: 'txt',
  text: 'txt',
  pdf: 'pdf',
  docx: 'docx',
};

/** By the name's extension; null: no document. */
export function documentKindOf(filename: string): DocumentKind | null {
  const extension = /\.([A-Za-z0-9]+)$/.exec(filename)?.[1]?.toLowerCase();
  return extension !== undefined && Object.hasOwn(EXTENSIONS, extension) ? (EXTENSIONS[extension] ?? null) : null;
}

/** A piece of a document that makes a row. */
export interface Chunk {
  text: string;
  /** Headings above it, outermost first, joined by ` › `. */
  heading: string | null;
  /** From 1; null: the format has no pages. */
  page: number | null;
}

export type DocumentProblem =
  /** Its bytes are not what its name says, or are damaged. */
  | 'unreadable'
  | 'encoding'
  | 'encrypted'
  | 'no_text'
  /** Larger, longer, deeper or more compressed than is taken. */
  | 'too_large'
  | 'timeout';

/** The message is for the person who sent the document: what is wrong, and what to do. */
export class DocumentError extends Error {
  readonly code: DocumentProblem;
  constructor(code: DocumentProblem, message: string) {
    super(message);
    this.name = 'DocumentError';
    this.code = code;
  }
}
