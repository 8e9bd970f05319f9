/** Records of a .parquet file, some rows at a time, decoded in a thread that is ended when it takes too long (see parquet-worker.ts). */
import { Worker } from 'node:worker_threads';
import { limits } from '../../limits.ts';
import type { FromParquet, ToParquet } from './parquet-worker.ts';
import type { ByteSource, RawRecord } from './source.ts';

const HEAP_MB = 768;
/** Magic number at both ends, and the footer's length. */
const BYTES_MIN = 12;

/** @param patienceMs longest time for some rows. */
export async function* parquetRecords(
  source: ByteSource,
  patienceMs: number = limits.parquetRowsMs,
): AsyncGenerator<RawRecord[]> {
  const damaged = (message: string): RawRecord[] => [{ line: row + 1, rule: 'unreadable', message }];
  let row = 0;
  if (source.bytes < BYTES_MIN) {
    yield damaged('The file is too short to be Parquet.');
    return;
  }
  const worker = new Worker(new URL('./parquet-worker-boot.mjs', import.meta.url), {
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MB },
  });
  const send = (message: ToParquet) => worker.postMessage(message);
  type Answer = Exclude<FromParquet, { type: 'ask' }> | { type: 'dead'; why: string };
  let answer: (answer: Answer) => void = () => {};
  let dead: string | null = null;
  const die = (why: string) => {
    dead ??= why;
    answer({ type: 'dead', why: dead });
  };
  worker.on('message', (message: FromParquet) => {
    if (message.type !== 'ask') return answer(message);
    const { ask, start, end } = message;
    // A footer may name any place.
    const inside =
      Number.isSafeInteger(start) && Number.isSafeInteger(end) && start >= 0 && end >= start && end <= source.bytes;
    if (!inside) return send({ type: 'bytes', ask, buffer: null });
    source.slice(start, end).then(
      (buffer) => send({ type: 'bytes', ask, buffer }),
      () => send({ type: 'bytes', ask, buffer: null }),
    );
  });
  worker.on('error', () =>
    die('The file cannot be read as Parquet within the memory there is; write it with smaller row groups.'),
  );
  worker.on('exit', () => die('The file cannot be read as Parquet.'));
  try {
    let request: ToParquet = { type: 'open', bytes: source.bytes };
    for (;;) {
      const got = new Promise<Answer>((resolve) => {
        answer = resolve;
      });
      if (dead !== null) die(dead);
      const timer = setTimeout(() => die('The file takes too long to read as Parquet; it is damaged.'), patienceMs);
      send(request);
      const message = await got;
      clearTimeout(timer);
      if (message.type === 'end') return;
      if (message.type === 'dead') {
        yield damaged(message.why);
        return;
      }
      if (message.type === 'refused') {
        yield [{ line: row + 1, rule: message.rule, message: message.message }];
        return;
      }
      const first = row;
      row += message.rows.length;
      yield message.rows.map((value, index) => ({ line: first + index + 1, value }));
      request = { type: 'next' };
    }
  } finally {
    await worker.terminate();
  }
}
