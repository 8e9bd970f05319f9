/**
 * The reader's own process: reads one document and hands its chunks over when asked. Started and, when it misbehaves, ended by read.ts, so
 * that a document can take nothing but this process.
 */
import { ArrayGuard } from './array-guard.ts';
import { type Chunk, DocumentError, type DocumentKind, type DocumentProblem } from './document.ts';
import { documentLimits } from './document-limits.ts';
import { chunksOf } from './formats.ts';

export interface ToReader {
  /** With the first request only. */
  open?: { path: string; kind: DocumentKind; chunkCharacters: number };
}
export type FromReader =
  | { type: 'ready' }
  | { type: 'chunks'; chunks: Chunk[]; done: boolean }
  | { type: 'refused'; code: DocumentProblem; message: string };

function refusalOf(error: unknown, guard: ArrayGuard): FromReader {
  if (error instanceof DocumentError) return { type: 'refused', code: error.code, message: error.message };
  if (guard.exceeded || error instanceof RangeError)
    return {
      type: 'refused',
      code: 'too_large',
      message: 'The document needs more memory than may be used for it; split it.',
    };
  return { type: 'refused', code: 'unreadable', message: 'The document is damaged and cannot be read.' };
}

const guard = new ArrayGuard();
let chunks: AsyncGenerator<Chunk> | null = null;

async function answer(request: ToReader): Promise<FromReader> {
  if (request.open !== undefined) {
    const { path, kind, chunkCharacters } = request.open;
    chunks = chunksOf(path, kind, chunkCharacters, guard);
  }
  const batch: Chunk[] = [];
  let characters = 0;
  while (chunks !== null && characters < documentLimits.batchCharacters) {
    const next = await chunks.next();
    if (next.done === true) return { type: 'chunks', chunks: batch, done: true };
    batch.push(next.value);
    characters += next.value.text.length;
  }
  return { type: 'chunks', chunks: batch, done: false };
}

const say = (message: FromReader) => process.send?.(message);
// A library's promise that nobody waits for is no reason to die before the document is refused in words.
process.on('unhandledRejection', () => {});
process.on('message', (request: ToReader) => {
  answer(request).then(say, (error) => say(refusalOf(error, guard)));
});
// Whoever asked is gone.
process.on('disconnect', () => process.exit(0));
say({ type: 'ready' });
