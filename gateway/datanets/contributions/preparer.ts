/**
 * Prepares batches of rows, here or in a second thread: judging, comparing and signing takes about as long as storing, so that with two
 * threads one batch is stored while the next is prepared.
 */
import { Worker } from 'node:worker_threads';
import { limits } from '../../limits.ts';
import { loadLanguages } from '../validation/validate.ts';
import { type Canonical, type Context, type Prepared, prepare } from './prepare.ts';
import { type Answer, type Question, unpacked } from './prepare-messages.ts';

export interface Preparer {
  prepare(rows: readonly Canonical[], context: Context): Promise<Prepared[]>;
}

export const prepareHere: Preparer = {
  async prepare(rows, context) {
    await loadLanguages();
    return rows.map((row) => prepare(row, context));
  },
};

/** The thread is started when it is first needed, and does not keep the process alive. */
export function prepareInThread(): Preparer {
  let worker: Worker | null = null;
  let asked = 0;
  const waiting = new Map<number, { resolve: (answer: Answer) => void; reject: (error: Error) => void }>();
  const die = (error: Error) => {
    worker = null;
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  };
  const start = () => {
    const made = new Worker(new URL('./prepare-boot.mjs', import.meta.url), {
      resourceLimits: {
        maxOldGenerationSizeMb: limits.prepareHeapMb,
        maxYoungGenerationSizeMb: limits.prepareYoungMb,
      },
    });
    made.on('message', (answer: Answer) => {
      waiting.get(answer.id)?.resolve(answer);
      waiting.delete(answer.id);
      if (waiting.size === 0) made.unref();
    });
    made.on('error', die);
    made.on('exit', () => die(new Error('the thread that prepares rows has ended')));
    return made;
  };
  return {
    async prepare(rows, context) {
      if (rows.length === 0) return [];
      worker ??= start();
      const thread = worker;
      thread.ref();
      asked += 1;
      const question: Question = {
        id: asked,
        context,
        rows: rows.map(({ line, content, hash }) => ({ line, content, hash })),
      };
      const late = () => {
        // It has nothing to do with the database, so it may be ended wherever it is.
        void thread.terminate();
      };
      const timer = setTimeout(late, limits.prepareMsMax);
      const answer = await new Promise<Answer>((resolve, reject) => {
        waiting.set(question.id, { resolve, reject });
        thread.postMessage(question);
      }).finally(() => clearTimeout(timer));
      if (answer.failure !== null) throw new Error(`rows could not be prepared: ${answer.failure}`);
      return unpacked(question, answer);
    },
  };
}
