/** A merge in a thread of its own, as a stream for the thread that serves. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { DaemonError } from '../../errors.ts';
import type { MergeMessage } from './merge-worker.ts';
import type { Merge, MergeJob } from './merged.ts';

/** Resolves when both files are open and everything was checked. @throws DaemonError */
export async function startMerge(job: MergeJob): Promise<Merge> {
  const worker = new Worker(new URL('./merge-boot.mjs', import.meta.url), { workerData: job, name: 'merge' });
  // A thread that dies without a word says so here.
  const dead = new Promise<MergeMessage>((resolve) => {
    const said = (message: string) =>
      resolve({ kind: 'failed', error: { code: 'internal_error', message, param: null } });
    worker.once('error', (error) => said(error.stack ?? error.message));
    worker.once('exit', (code) => said(`the merging thread ended with code ${code}`));
  });
  const next = async (): Promise<MergeMessage> => {
    const message = await Promise.race([once(worker, 'message').then(([one]) => one as MergeMessage), dead]);
    if (message.kind === 'failed') {
      await worker.terminate();
      if (message.error.code === 'internal_error') throw new Error(message.error.message);
      throw DaemonError.fromPlain(message.error);
    }
    return message;
  };
  const ready = (await next()) as Extract<MergeMessage, { kind: 'ready' }>;
  // `next` listens before the thread is asked.
  const ask = (): Promise<MergeMessage> => {
    const answer = next();
    worker.postMessage('next');
    return answer;
  };

  async function* chunks(): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      let coming = ask();
      for (;;) {
        const { bytes } = (await coming) as Extract<MergeMessage, { kind: 'chunk' }>;
        if (bytes === null) return;
        // The thread computes the next piece while this one is on its way.
        coming = ask();
        coming.catch(() => {});
        yield bytes;
      }
    } finally {
      await worker.terminate();
    }
  }
  return {
    fileBytes: ready.fileBytes,
    chunks: chunks(),
    close: async () => {
      await worker.terminate();
    },
  };
}
