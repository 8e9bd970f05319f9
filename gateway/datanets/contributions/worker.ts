/** What runs in a thread that reads contributions; piscina calls `run` with one task at a time. */
import { type Client, createClient } from '@libsql/client';
import { workerData } from 'piscina';
import type { IngestTask } from './messages.ts';
import { work } from './work.ts';
import type { WorkerDatabase } from './worker-ingester.ts';

let client: Client | null = null;

async function connected(): Promise<Client> {
  if (client !== null) return client;
  const { url, authToken } = workerData as WorkerDatabase;
  const local = url.startsWith('file:');
  const made = createClient({
    url,
    ...(local ? { concurrency: 1 } : {}),
    ...(authToken === undefined ? {} : { authToken }),
  });
  if (local) {
    await made.execute('PRAGMA synchronous = NORMAL');
    // Others hold the database for short moments only; a batch can wait for them.
    await made.execute('PRAGMA busy_timeout = 10000');
    // Bands and hashes lie all over their indexes; what is in memory needs no reading (KiB, so 48 MiB).
    await made.execute('PRAGMA cache_size = -49152');
  }
  client = made;
  return made;
}

export async function run(task: IngestTask): ReturnType<typeof work> {
  return work(task, await connected());
}
