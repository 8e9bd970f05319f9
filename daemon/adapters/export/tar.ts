/** A tar of files whose lengths are known, so that its own length is known before the first byte (POSIX ustar). */
import { pipeline } from 'node:stream/promises';
import { pack } from 'tar-stream';

const BLOCK = 512;
/** Two empty blocks end a tar. */
const END_BYTES = 2 * BLOCK;

export interface TarEntry {
  /** A path of at most 255 bytes with a part of at most 100 at its end; then no extended header is needed. */
  name: string;
  bytes: number;
  chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

export function packTar(entries: readonly TarEntry[]): { bytes: number; chunks: AsyncIterable<Uint8Array> } {
  const bytes = entries.reduce((sum, entry) => sum + BLOCK + Math.ceil(entry.bytes / BLOCK) * BLOCK, END_BYTES);
  return { bytes, chunks: write() };

  async function* write(): AsyncGenerator<Uint8Array> {
    const tar = pack();
    const filled = fill();
    // Its failure arrives through the stream.
    filled.catch((error: Error) => tar.destroy(error));
    try {
      for await (const chunk of tar) yield chunk as Uint8Array;
    } finally {
      tar.destroy();
    }

    async function fill(): Promise<void> {
      for (const { name, bytes: size, chunks } of entries) {
        // The same bytes for the same adapter: no time of packing, no user.
        await new Promise<void>((resolve, reject) => {
          const entry = tar.entry({ name, size, mode: 0o644, mtime: new Date(0) }, (error) =>
            error ? reject(error) : resolve(),
          );
          pipeline(chunks, entry).catch(reject);
        });
      }
      tar.finalize();
    }
  }
}
