/** Reads a document as chunks. */
import { readFile } from 'node:fs/promises';
import { type Chunk, DocumentError, type DocumentKind } from './document.ts';

export { type Chunk, DocumentError, type DocumentKind, documentKindOf } from './document.ts';

export const CHUNK_CHARACTERS_DEFAULT = 1200;

/** @throws DocumentError */
export async function* readDocument(
  path: string,
  kind: DocumentKind,
  options: { chunkCharacters: number; signal?: AbortSignal },
): AsyncGenerator<Chunk> {
  if (kind === 'pdf' || kind === 'docx')
    throw new DocumentError('unreadable', `Documents of kind ${kind} cannot be read yet.`);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(await readFile(path));
  } catch {
    throw new DocumentError('encoding', 'The document is not UTF-8; save it as UTF-8 and send it again.');
  }
  for (const paragraph of text.split(/\n\s*\n/)) {
    options.signal?.throwIfAborted();
    if (paragraph.trim() !== '') yield { text: paragraph.trim(), heading: null, page: null };
  }
}
