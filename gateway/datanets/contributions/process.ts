/** A process that reads contributions (see process-ingester.ts). It ends with the gateway that started it. */
import { createPrivateKey } from 'node:crypto';
import type { Client } from '@libsql/client';
import { openClient } from '../../db/client.ts';
import { limits } from '../../limits.ts';
import type { IngestTask } from './messages.ts';
import { prepareInThread } from './preparer.ts';
import type { FromProcess, IngestDatabase, ToProcess, WireTask } from './process-messages.ts';
import { work } from './work.ts';

const preparer = prepareInThread();
let client: Promise<Client> | null = null;
let abort = new AbortController();
const say = (message: FromProcess) => process.send?.(message);

function opened(database: IngestDatabase): Promise<Client> {
  // Hashes lie all over their index; what is in memory needs no reading (KiB, so 16 MiB).
  const pragmas = ['PRAGMA synchronous = NORMAL', 'PRAGMA cache_size = -16384'];
  // Others hold the database for short moments only; a batch can wait for them.
  return openClient({ ...database, pragmas, busy: { limitMs: 20_000, firstDelayMs: 5, delayMaxMs: 50 } });
}

function unwired(task: WireTask): IngestTask {
  if (task.type !== 'ingest') return task;
  const { keyDer, ...rest } = task;
  const privateKey = createPrivateKey({ key: Buffer.from(keyDer), format: 'der', type: 'pkcs8' });
  return { ...rest, privateKey };
}

async function run(task: WireTask): Promise<void> {
  abort = new AbortController();
  try {
    const connected = await (client as Promise<Client>);
    const outcome = await work(unwired(task), { client: connected, preparer, signal: abort.signal });
    say({ type: 'done', outcome });
  } catch (error) {
    say({ type: 'failed', message: error instanceof Error ? error.message : String(error) });
  }
}

process.on('message', (message: ToProcess) => {
  if (message.type === 'open') {
    client = opened(message.database);
    // Told when the first task asks for it.
    client.catch(() => {});
  } else if (message.type === 'stop') abort.abort();
  else void run(message.task);
});
process.on('disconnect', () => process.exit(0));
setInterval(() => say({ type: 'alive' }), limits.ingestAliveEveryMs);
// Of a terminal's Ctrl-C and of service managers: the gateway says when to stop.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {});
