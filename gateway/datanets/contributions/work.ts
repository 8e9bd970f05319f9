/** One task of the process that reads contributions; errors come back as data, since their class does not survive the way between processes. */
import type { ContributionProblem } from '../../db/datanet-schema.ts';
import type { Chunk } from '../documents/read.ts';
import { cleanWords } from '../erasures/clean.ts';
import { eraseContents } from '../erasures/erase.ts';
import { type IngestDeps, ingest } from './ingest.ts';
import { IngestFailure, type IngestResult, IngestStopped, type IngestTask } from './messages.ts';
import { chunksOf } from './records.ts';
import { removeRows } from './store.ts';

export type Outcome<T> =
  | { ok: T }
  | { failure: { code: string; message: string; problems: ContributionProblem[] } }
  | { stopped: true };

export async function work(
  task: IngestTask,
  deps: IngestDeps,
): Promise<Outcome<IngestResult> | Outcome<Chunk[]> | Outcome<null>> {
  try {
    switch (task.type) {
      case 'ingest':
        return { ok: await ingest(task, deps) };
      case 'chunks': {
        const chunks: Chunk[] = [];
        for await (const chunk of chunksOf(task.path, task.filename, task.chunkCharacters, task.chunksMax, deps.signal))
          chunks.push(chunk);
        return { ok: chunks };
      }
      case 'remove':
        await removeRows(deps.client, task.contributionId, task.datanetSeq);
        return { ok: null };
      case 'erase':
        await eraseContents(deps.client, task.datanetSeq, task.rows);
        return { ok: null };
      case 'clean':
        await cleanWords(deps.client);
        return { ok: null };
    }
  } catch (error) {
    if (error instanceof IngestStopped) return { stopped: true };
    if (!(error instanceof IngestFailure)) throw error;
    const { code, message, problems } = error;
    return { failure: { code, message, problems } };
  }
}

export function opened<T>(outcome: Outcome<T>): T {
  if ('ok' in outcome) return outcome.ok;
  if ('stopped' in outcome) throw new IngestStopped();
  const { code, message, problems } = outcome.failure;
  throw new IngestFailure(code, message, problems);
}
