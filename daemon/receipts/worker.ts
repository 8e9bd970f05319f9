/** The thread in which the receipt log lives, so that an fsync never holds up the daemon's HTTP loop. */
import { parentPort, workerData } from 'node:worker_threads';
import { toLogError } from './errors.ts';
import { ReceiptLog } from './log.ts';
import type { Operation, Reply, Request, WireError, WorkerData } from './messages.ts';

const port = parentPort;
if (!port) throw new Error('daemon/receipts/worker.ts runs as a worker thread of ReceiptLogClient only.');
const send = (reply: Reply) => port.postMessage(reply);

try {
  const log = await ReceiptLog.open(workerData as WorkerData);
  log.onChange = () => send({ kind: 'health', health: log.health() });
  port.on('message', ({ call, operation }: Request) => {
    run(log, operation).then(
      (result) => send({ kind: 'result', call, result }),
      (error) => send({ kind: 'error', call, error: wireError(error) }),
    );
  });
  send({ kind: 'open', vkey: log.vkey, origin: log.origin, health: log.health() });
} catch (error) {
  send({ kind: 'refused', error: wireError(error) });
}

async function run(log: ReceiptLog, operation: Operation): Promise<unknown> {
  switch (operation.name) {
    case 'append':
      return log.appendEntry(operation.entry);
    case 'get':
      return log.get(operation.id);
    case 'getByIndex':
      return log.getByIndex(operation.leafIndex);
    case 'checkpoint':
      return log.checkpoint();
    case 'tile':
      return log.tile(operation.path);
    case 'consistency':
      return log.consistency(operation.oldSize, operation.newSize);
    case 'audit':
      return log.audit(operation.from, operation.leavesMax);
    case 'close':
      return log.close();
  }
}

function wireError(error: unknown): WireError {
  const { code, message } = toLogError(error);
  return { code, message };
}
