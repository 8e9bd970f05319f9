/** A folder for a test file's documents, and what reading one of them gives. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import { ArrayGuard } from '../../../../gateway/datanets/documents/array-guard.ts';
import { chunksOf } from '../../../../gateway/datanets/documents/formats.ts';
import {
  type Chunk,
  DocumentError,
  documentKindOf,
  readDocument,
} from '../../../../gateway/datanets/documents/read.ts';

export function documentFolder() {
  const folder = mkdtempSync(join(tmpdir(), 'documents-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  let count = 0;
  const write = (name: string, content: Buffer | string): string => {
    count += 1;
    const path = join(folder, `${count}-${name}`);
    writeFileSync(path, content);
    return path;
  };
  /** PDFs in a process of their own, as always; the others here, which is quicker. */
  const read = async (name: string, content: Buffer | string, chunkCharacters = 1200): Promise<Chunk[]> => {
    const kind = documentKindOf(name);
    if (kind === null) throw new Error(`${name} is no document`);
    const path = write(name, content);
    const source =
      kind === 'pdf'
        ? readDocument(path, kind, { chunkCharacters })
        : chunksOf(path, kind, chunkCharacters, new ArrayGuard());
    const chunks: Chunk[] = [];
    for await (const chunk of source) chunks.push(chunk);
    return chunks;
  };
  /** The error that it is refused with. */
  const refusal = async (name: string, content: Buffer | string): Promise<DocumentError> => {
    const error = await read(name, content).then(
      (chunks) => new Error(`it was read: ${JSON.stringify(chunks).slice(0, 200)}`),
      (error: unknown) => error,
    );
    if (!(error instanceof DocumentError)) throw error;
    return error;
  };
  return { write, read, refusal };
}
