import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient } from '@libsql/client';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import type { ReceiptLog } from '../../../daemon/receipts/log.ts';
import { ReceiptLog as Log } from '../../../daemon/receipts/log.ts';
import { ReceiptStore } from '../../../daemon/receipts/store.ts';
import { eventually } from '../../support/eventually.ts';
import { appendAll, makeReceipt, openLog, receiptsFrom, temporaryFolder } from './support.ts';

const PROBE = { probeFirstMs: 20, probeMaxMs: 40 };
/** Fills a disk quickly. */
const bulky = (id: number) => makeReceipt(id, { splitRule: 'x'.repeat(40_000) });

/** Appends until one is refused; returns the ids that were acknowledged, and the refusal. */
async function appendUntilRefused(log: ReceiptLog, from: number): Promise<{ acknowledged: number[]; error: unknown }> {
  const acknowledged: number[] = [];
  for (let id = from; id < from + 1_000; id++) {
    try {
      await log.append(bulky(id));
      acknowledged.push(id);
    } catch (error) {
      return { acknowledged, error };
    }
  }
  throw new Error('the disk never got full');
}

describe('database locked by another program', () => {
  async function lockedLog(busyLimitMs: number) {
    const dataDir = temporaryFolder();
    const log = await openLog({ dataDir, limits: { busyLimitMs } });
    await log.append(makeReceipt(0));
    const other = createClient({ url: `file:${join(dataDir, 'daemon.db')}`, concurrency: 1 });
    const held = await other.transaction('write');
    onTestFinished(() => other.close());
    return { log, held };
  }

  it('appends wait for it and go through once it lets go', async () => {
    const { log, held } = await lockedLog(5_000);
    const appended = appendAll(log, receiptsFrom(1, 10));
    await sleep(60);
    expect(log.size).toBe(1);
    await held.rollback();
    expect((await appended).at(-1)).toEqual({ leafIndex: 10 });
  });

  it('reads go on meanwhile; after the limit appends are refused as log_busy and nothing was written', async () => {
    const { log, held } = await lockedLog(80);
    const appended = log.append(makeReceipt(1));
    appended.catch(() => {});
    expect((await log.get('rcpt_0'))?.leafIndex).toBe(0);
    await expect(appended).rejects.toMatchObject({ code: 'log_busy' });
    expect(await log.get('rcpt_1')).toBeNull();
    expect(log.health().status).toBe('ok');
    await held.rollback();
    expect(await log.append(makeReceipt(1))).toEqual({ leafIndex: 1 });
    expect(await log.audit()).toEqual({ leaves: 2 });
  });

  it('opening waits a while, then says what is wrong', async () => {
    const dataDir = temporaryFolder();
    mkdirSync(dataDir, { recursive: true });
    const other = createClient({ url: `file:${join(dataDir, 'daemon.db')}`, concurrency: 1 });
    onTestFinished(() => other.close());
    const held = await other.transaction('write');
    await held.execute('CREATE TABLE t (x)');
    const opening = Log.open({ dataDir });
    await sleep(100);
    await held.rollback();
    const log = await opening;
    onTestFinished(() => log.close());
    expect(log.size).toBe(0);
  });
});

describe('disk full', () => {
  async function expectLosesNothing(log: ReceiptLog, makeRoom: () => void) {
    await appendAll(log, receiptsFrom(0, 5));
    const { acknowledged, error } = await appendUntilRefused(log, 100);
    expect(error).toMatchObject({ code: 'log_full', message: expect.stringContaining('nothing was written') });
    const size = 5 + acknowledged.length;
    expect(log.health()).toMatchObject({ status: 'degraded', size, detail: expect.stringContaining('full') });
    // Read-only: what was acknowledged is all there and proved.
    for (const id of acknowledged) expect((await log.get(`rcpt_${id}`))?.leafIndex).toBe(5 + id - 100);
    expect(await log.get(`rcpt_${100 + acknowledged.length}`)).toBeNull();
    await expect(log.append(makeReceipt('x'))).rejects.toMatchObject({ code: 'log_full' });
    makeRoom();
    await eventually(() => expect(log.health().status).toBe('ok'));
    expect(await log.append(makeReceipt('x'))).toEqual({ leafIndex: size });
    expect(await log.audit()).toEqual({ leaves: size + 1 });
  }

  it('SQLITE_FULL: refused truthfully, readable meanwhile, goes on by itself when there is room', async () => {
    const log = await openLog({ dataDir: temporaryFolder(), limits: PROBE });
    const { client } = log.store.database;
    await client.execute('PRAGMA max_page_count = 100');
    // The limit holds for one connection; the log's recovery opens another, so room is made by recovering.
    await expectLosesNothing(log, () => {});
  });

  const mountable = (() => {
    if (process.platform !== 'linux' || process.getuid?.() !== 0) return false;
    try {
      execFileSync('mount', ['--version'], { stdio: 'ignore' });
      return true;
    } catch {
      return false;
    }
  })();
  it.skipIf(!mountable)('a real full disk (a small tmpfs; skipped unless root on Linux)', async (context) => {
    const folder = temporaryFolder();
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', folder], { stdio: 'ignore' });
    } catch {
      context.skip('mounting a tmpfs is not allowed here');
    }
    const log = await Log.open({ dataDir: folder, limits: PROBE });
    try {
      writeFileSync(join(folder, 'ballast'), Buffer.alloc(1024 * 1024));
      const stillFull = new Promise<void>((resolve) => setTimeout(resolve, 300));
      const room = async () => {
        await stillFull;
        expect(log.health().status).toBe('degraded');
        rmSync(join(folder, 'ballast'));
      };
      await expectLosesNothing(log, () => void room());
    } finally {
      await log.close();
      execFileSync('umount', ['-l', folder]);
    }
  });

  it('any other failed write refuses everything that waits, then opens the file afresh', async () => {
    const log = await openLog({ dataDir: temporaryFolder(), limits: PROBE });
    await log.append(makeReceipt(0));
    const broken = Object.assign(new Error('disk I/O error'), { code: 'SQLITE_IOERR' });
    vi.spyOn(log.store, 'commit').mockRejectedValueOnce(broken);
    const results = await Promise.allSettled(receiptsFrom(1, 600).map((receipt) => log.append(receipt)));
    for (const result of results) expect(result).toMatchObject({ status: 'rejected', reason: { code: 'log_io' } });
    expect(log.health().status).toBe('degraded');
    await eventually(() => expect(log.health().status).toBe('ok'));
    await appendAll(log, receiptsFrom(1, 600));
    expect(await log.audit()).toEqual({ leaves: 601 });
  });

  it('a commit that did reach the disk though it reported an error is taken in, and repeating its receipts is safe', async () => {
    const log = await openLog({ dataDir: temporaryFolder(), limits: PROBE });
    await log.append(makeReceipt(0));
    const commit = ReceiptStore.prototype.commit.bind(log.store);
    vi.spyOn(log.store, 'commit').mockImplementationOnce(async (...given) => {
      await commit(...given);
      throw Object.assign(new Error('disk I/O error'), { code: 'SQLITE_IOERR' });
    });
    await expect(log.append(makeReceipt(1))).rejects.toMatchObject({ code: 'log_io' });
    await eventually(() => expect(log.health().status).toBe('ok'));
    expect(log.size).toBe(2);
    expect(await appendAll(log, receiptsFrom(1, 2))).toEqual([{ leafIndex: 1 }, { leafIndex: 2 }]);
    expect(await log.audit()).toEqual({ leaves: 3 });
  });
});
