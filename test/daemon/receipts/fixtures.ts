/** Receipts for tests; free of the test runner, so that child processes can use it. */
import { createHash } from 'node:crypto';
import type { Receipt } from '../../../daemon/protocol.ts';

export function sha256Hex(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** A receipt that is the same for the same id. */
export function makeReceipt(id: string | number, changes: Partial<Receipt> = {}): Receipt {
  return {
    version: 1,
    id: `rcpt_${id}`,
    requestId: String(id),
    kind: 'chat',
    callerHash: sha256Hex('caller'),
    baseDigest: sha256Hex('base'),
    adapterDigest: sha256Hex('adapter'),
    fingerprint: null,
    promptHash: sha256Hex(`prompt ${id}`),
    outputHash: sha256Hex(`output ${id}`),
    promptTokens: 12,
    cachedTokens: 4,
    completionTokens: 34,
    outcome: 'complete',
    price: { inputMicrosPerMillion: 150_000, outputMicrosPerMillion: 600_000, currency: 'USD' },
    costMicros: 23,
    splitRule: 'none',
    attribution: [{ contributor: 'Zoë', weightPpm: 1_000_000 }],
    startedAt: '2026-01-02T03:04:05.000Z',
    finishedAt: '2026-01-02T03:04:06.000Z',
    engineVersion: 'test',
    ...changes,
  };
}

export function receiptsFrom(from: number, count: number): Receipt[] {
  return Array.from({ length: count }, (_, i) => makeReceipt(from + i));
}
