/** The thread that prepares rows (see preparer.ts). */
import { parentPort } from 'node:worker_threads';
import { loadLanguages } from '../validation/validate.ts';
import { prepare } from './prepare.ts';
import { type Answer, packed, type Question } from './prepare-messages.ts';

const port = parentPort;
if (port === null) throw new Error('prepare-worker.ts runs as a worker thread');

await loadLanguages();
port.on('message', ({ id, context, rows }: Question) => {
  let answer: Answer;
  try {
    answer = packed(
      id,
      rows.map((row) => prepare(row, context)),
    );
  } catch (error) {
    const failure = error instanceof Error ? error.message : String(error);
    answer = { id, failure, rows: [], signatures: new Uint8Array(0), leafHashes: new Uint8Array(0) };
  }
  port.postMessage(answer, [answer.signatures.buffer as ArrayBuffer, answer.leafHashes.buffer as ArrayBuffer]);
});
