/** A document of any kind as chunks, within this process: for the reader's own one, which is bounded. */
import type { ArrayGuard } from './array-guard.ts';
import type { Block } from './blocks.ts';
import { Chunker } from './chunks.ts';
import type { Chunk, DocumentKind } from './document.ts';
import { docxBlocks } from './docx.ts';
import { markdownBlocks, textBlocks } from './markdown.ts';
import { pdfBlocks } from './pdf.ts';
import { textLines } from './text-reader.ts';

function blocksOf(path: string, kind: DocumentKind, guard: ArrayGuard): AsyncGenerator<Block> {
  switch (kind) {
    case 'txt':
      return textBlocks(textLines(path));
    case 'md':
      return markdownBlocks(textLines(path));
    case 'docx':
      return docxBlocks(path);
    case 'pdf':
      return pdfBlocks(path, guard);
  }
}

/** @throws DocumentError */
export async function* chunksOf(
  path: string,
  kind: DocumentKind,
  characters: number,
  guard: ArrayGuard,
): AsyncGenerator<Chunk> {
  const chunker = new Chunker(characters);
  for await (const block of blocksOf(path, kind, guard)) yield* chunker.add(block);
  yield* chunker.end();
}
