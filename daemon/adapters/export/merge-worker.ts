/** The thread in which a merge computes: it hands out one piece for each `next`, so nothing piles up before a slow reader. */
import { constants, setPriority } from 'node:os';
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { AddonError } from '../../../addon/types.ts';
import type { PlainError } from '../../errors.ts';
import { DaemonError } from '../../errors.ts';
import { ModelFileError } from '../../models/gguf-errors.ts';
import { type MergeJob, openMerge } from './merged.ts';

export type MergeMessage =
  | { kind: 'ready'; fileBytes: number }
  | { kind: 'chunk'; bytes: Uint8Array | null }
  | { kind: 'failed'; error: PlainError };

const port = parentPort as MessagePort;
const tell = (message: MergeMessage, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer);

// Serving goes first. On Linux a priority belongs to the thread; elsewhere it would be the whole process's.
if (process.platform === 'linux') setPriority(0, constants.priority.PRIORITY_LOW);

try {
  const merge = await openMerge(workerData as MergeJob);
  port.on('message', async () => {
    try {
      const { value, done } = await merge.chunks.next();
      if (done) {
        tell({ kind: 'chunk', bytes: null });
        await merge.close();
        port.close();
        return;
      }
      // Small buffers share memory with others and cannot be handed over.
      const bytes = value.byteLength === value.buffer.byteLength ? value : Uint8Array.prototype.slice.call(value);
      tell({ kind: 'chunk', bytes }, [bytes.buffer as ArrayBuffer]);
    } catch (error) {
      tell({ kind: 'failed', error: plain(error) });
    }
  });
  tell({ kind: 'ready', fileBytes: merge.fileBytes });
} catch (error) {
  tell({ kind: 'failed', error: plain(error) });
}

/** Known reasons keep their sentence; the others are told by their stack, for the log. */
function plain(error: unknown): PlainError {
  if (error instanceof DaemonError) return error.toPlain();
  if (error instanceof ModelFileError || error instanceof AddonError) {
    return { code: 'adapter_unavailable', message: `the merge failed: ${error.message}`, param: null };
  }
  return {
    code: 'internal_error',
    message: error instanceof Error ? (error.stack ?? error.message) : String(error),
    param: null,
  };
}
