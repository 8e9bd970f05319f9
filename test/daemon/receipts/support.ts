import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import type { Receipt } from '../../../daemon/protocol.ts';
import type { LogOptions } from '../../../daemon/receipts/api.ts';
import type { LogLimits } from '../../../daemon/receipts/limits.ts';
import { ReceiptLog } from '../../../daemon/receipts/log.ts';

export * from './fixtures.ts';

/** A new folder that goes when the test ends. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'receipts-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** An open log that is closed when the test ends. */
export async function openLog(options: LogOptions & { limits?: Partial<LogLimits> }): Promise<ReceiptLog> {
  const log = await ReceiptLog.open(options);
  onTestFinished(() => log.close());
  return log;
}

export function appendAll(log: Pick<ReceiptLog, 'append'>, receipts: Receipt[]) {
  return Promise.all(receipts.map((receipt) => log.append(receipt)));
}
