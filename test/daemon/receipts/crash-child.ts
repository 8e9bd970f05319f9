/**
 * Appends receipts at full speed until it is killed, for crash.test.ts. Arguments: data folder, prefix of the ids.
 * Writes "booted", waits for a line on stdin, opens the log, writes "open", then "<number> <leaf index>" for every acknowledged receipt.
 * Lines go out by a synchronous write, only after the append has resolved.
 */
import { once } from 'node:events';
import { writeSync } from 'node:fs';
import { ReceiptLog } from '../../../daemon/receipts/log.ts';
import { makeReceipt } from './fixtures.ts';

const [dataDir, prefix] = process.argv.slice(2);
if (dataDir === undefined || prefix === undefined) throw new Error('crash-child.ts DATA_FOLDER PREFIX');
const say = (line: string) => writeSync(1, `${line}\n`);

say('booted');
await once(process.stdin, 'data');
const log = await ReceiptLog.open({ dataDir, limits: { auditLeavesAtOpen: 500 } });
say('open');
let next = 0;
await Promise.all(
  // More writers than fit nicely, with pauses, so that batches of many sizes are in flight when the blow falls.
  Array.from({ length: 24 }, async (_, writer) => {
    for (;;) {
      const number = next++;
      const { leafIndex } = await log.append(makeReceipt(`${prefix}-${number}`));
      say(`${number} ${leafIndex}`);
      if (number % 7 === writer % 7) await new Promise((resolve) => setTimeout(resolve, writer % 4));
    }
  }),
);
