/**
 * `npm run bench -- ledger`: how fast receipts become durable in the log (Merkle tree, signed checkpoint, fsync, group commit),
 * against the plainest thing that could stand in its place: the same database and the same durability, one transaction per
 * row, no tree and no signature.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { openDatabase } from '../../daemon/db/database.ts';
import type { Receipt } from '../../daemon/protocol.ts';
import { ReceiptLogClient } from '../../daemon/receipts/client.ts';
import { verifyText } from '../../daemon/receipts/verify.ts';
import { number, type Report, spread } from './report.ts';
import { pairedRatios, quantile, summarize } from './stats.ts';

export interface LedgerOptions {
  rounds: number;
  /** Receipts per round and number of writers. */
  receipts: number;
  writers: readonly number[];
  /** Receipts fetched with their proofs, and verified. */
  proofs: number;
}
export const LEDGER_DEFAULTS = { rounds: 3, receipts: 2000, writers: [1, 8, 64], proofs: 500 } as const;

const HASH = '0123456789abcdef'.repeat(4);

function receiptOf(serial: number): Receipt {
  return {
    version: 1,
    id: `rcpt_bench-${serial}`,
    requestId: `bench-${serial}`,
    kind: 'chat',
    callerHash: HASH,
    baseDigest: HASH,
    adapterDigest: HASH,
    fingerprint: null,
    promptHash: HASH,
    outputHash: HASH,
    promptTokens: 90,
    cachedTokens: 0,
    completionTokens: 64,
    outcome: 'complete',
    price: { inputMicrosPerMillion: 100_000, outputMicrosPerMillion: 400_000, currency: 'USD' },
    costMicros: 35,
    splitRule: 'none',
    attribution: [],
    startedAt: '2026-01-01T00:00:00.000Z',
    finishedAt: '2026-01-01T00:00:01.000Z',
    engineVersion: 'bench',
  };
}

interface Writing {
  side: 'log' | 'plain';
  writers: number;
  perSecond: number;
  latencyP50Ms: number;
  latencyP99Ms: number;
}

/** So many writers, each writing its next receipt when the last one is durable. */
async function write(
  side: Writing['side'],
  writers: number,
  count: number,
  append: () => Promise<unknown>,
): Promise<Writing> {
  const latencies: number[] = [];
  let left = count;
  const begin = performance.now();
  await Promise.all(
    Array.from({ length: writers }, async () => {
      while (left-- > 0) {
        const start = performance.now();
        await append();
        latencies.push(performance.now() - start);
      }
    }),
  );
  const seconds = (performance.now() - begin) / 1000;
  return {
    side,
    writers,
    perSecond: count / seconds,
    latencyP50Ms: quantile(latencies, 0.5),
    latencyP99Ms: quantile(latencies, 0.99),
  };
}

export async function ledger(
  options: LedgerOptions,
  print: (line: string) => void,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const work = mkdtempSync(path.join(os.tmpdir(), 'bench-ledger-'));
  const log = await ReceiptLogClient.open({ dataDir: path.join(work, 'log') });
  const plain = await openDatabase(path.join(work, 'plain.db'));
  try {
    await plain.client.execute(
      'CREATE TABLE receipts (leaf_index INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, entry TEXT NOT NULL)',
    );
    let serial = 0;
    const appendLog = () => log.append(receiptOf(serial++));
    // One connection runs one transaction at a time: further writers wait for it.
    let turn: Promise<unknown> = Promise.resolve();
    const appendPlain = () => {
      const receipt = receiptOf(serial++);
      turn = turn.then(() =>
        plain.client.execute({
          sql: 'INSERT INTO receipts (id, entry) VALUES (?, ?)',
          args: [receipt.id, JSON.stringify(receipt)],
        }),
      );
      return turn;
    };
    const append = { log: appendLog, plain: appendPlain };
    const results: Writing[] = [];
    for (const side of ['log', 'plain'] as const) await write(side, 1, 20, append[side]);
    for (let round = 0; round < options.rounds; round++) {
      for (const writers of options.writers) {
        for (const side of round % 2 === 0 ? (['log', 'plain'] as const) : (['plain', 'log'] as const)) {
          const result = await write(side, writers, options.receipts, append[side]);
          results.push(result);
          print(`round ${round + 1}, ${writers} writers, ${side}: ${number(result.perSecond)} receipts/s`);
        }
      }
    }
    const proofs = await proving(log, options.proofs);
    return { report: ledgerReport(results, proofs, log.size, options), versions: {} };
  } finally {
    await log.close();
    plain.client.close();
    rmSync(work, { recursive: true, force: true });
  }
}

interface Proving {
  fetchMs: number[];
  verifyMs: number[];
}

async function proving(log: ReceiptLogClient, count: number): Promise<Proving> {
  const result: Proving = { fetchMs: [], verifyMs: [] };
  for (let i = 0; i < count; i++) {
    const index = Math.floor((i * log.size) / count);
    const start = performance.now();
    const bundle = await log.getByIndex(index);
    const fetched = performance.now();
    const report = verifyText(JSON.stringify(bundle), { vkey: log.vkey });
    result.fetchMs.push(fetched - start);
    result.verifyMs.push(performance.now() - fetched);
    if (!report.ok) throw new Error(`receipt ${index} does not verify: ${JSON.stringify(report.checks)}`);
  }
  return result;
}

function ledgerReport(results: Writing[], proofs: Proving, size: number, options: LedgerOptions): Report {
  const of = (side: Writing['side'], writers: number, pick: (w: Writing) => number) =>
    results.filter((w) => w.side === side && w.writers === writers).map(pick);
  const rate = (w: Writing) => w.perSecond;
  const proofRow = (name: string, samples: number[]) => {
    const s = summarize(samples);
    return [name, number(s.median), number(s.p99), number(s.max)];
  };
  return {
    name: 'ledger',
    tables: [
      {
        title: `Durable receipts, ${options.rounds} rounds of ${options.receipts}: median (min–max)`,
        columns: [
          'writers',
          'log, receipts/s',
          'log p50 ms',
          'log p99 ms',
          'plain, rows/s',
          'plain p50 ms',
          'plain p99 ms',
          'log ÷ plain',
        ],
        rows: options.writers.map((writers) => [
          String(writers),
          ...(['log', 'plain'] as const).flatMap((side) => [
            spread(summarize(of(side, writers, rate))),
            spread(summarize(of(side, writers, (w) => w.latencyP50Ms))),
            spread(summarize(of(side, writers, (w) => w.latencyP99Ms))),
          ]),
          spread(pairedRatios(of('log', writers, rate), of('plain', writers, rate))),
        ]),
      },
      {
        title: `Proofs in a log of ${size} receipts`,
        columns: ['what', 'p50 ms', 'p99 ms', 'max ms'],
        rows: [
          proofRow('receipt with inclusion proof', proofs.fetchMs),
          proofRow('offline verification', proofs.verifyMs),
        ],
      },
    ],
    checks: [],
    notes: [
      'Plain: the same libSQL with WAL and synchronous=FULL, one INSERT a transaction, without tree, checkpoint or signature. Both write to the temporary folder, so fsync costs what that disk makes it cost.',
    ],
    data: { options, results, proofs },
  };
}
