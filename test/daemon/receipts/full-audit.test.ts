import { join } from 'node:path';
import { createClient } from '@libsql/client';
import { describe, expect, it, onTestFinished } from 'vitest';
import { LogError } from '../../../daemon/receipts/errors.ts';
import { type AuditReport, FullAudit, type FullAuditOptions } from '../../../daemon/receipts/full-audit.ts';
import { ReceiptLog } from '../../../daemon/receipts/log.ts';
import { appendAll, openLog, receiptsFrom, temporaryFolder } from './support.ts';

const LIMITS = { auditSliceLeaves: 7, auditPauseMs: 1, auditWaitMaxMs: 1_000_000 };

function begin(options: Omit<FullAuditOptions, 'onEnd'>): { audit: FullAudit; ended: Promise<AuditReport> } {
  let tell: (report: AuditReport) => void = () => {};
  const ended = new Promise<AuditReport>((resolve) => {
    tell = resolve;
  });
  const audit = new FullAudit({ limits: LIMITS, ...options, onEnd: tell });
  onTestFinished(() => audit.stop());
  return { audit, ended };
}

/** Notes how much each slice was to look at. */
function slicesOf(log: ReceiptLog): { log: FullAuditOptions['log']; slices: number[] } {
  const slices: number[] = [];
  return {
    slices,
    log: {
      get size() {
        return log.size;
      },
      audit: async (from, leavesMax) => {
        const { leaves } = await log.audit(from, leavesMax);
        slices.push(leaves);
        return { leaves };
      },
    },
  };
}

describe('the audit of the whole log', () => {
  it.each([0, 5, 7, 50])('looks at each of %i receipts once, in small slices', async (count) => {
    const log = await openLog({ dataDir: temporaryFolder() });
    await appendAll(log, receiptsFrom(0, count));
    const watched = slicesOf(log);
    const { audit, ended } = begin({ log: watched.log, idle: () => true });
    expect(audit.report.status).toBe('running');
    expect(await ended).toEqual({ status: 'ok', leaves: count, detail: '' });
    expect(Math.max(...watched.slices)).toBeLessThanOrEqual(7);
    expect(watched.slices.length).toBe(Math.floor(count / 7) + 1);
  });

  it('finds an old receipt that was changed in the file, which opening the log does not', async () => {
    const dataDir = temporaryFolder();
    const log = await ReceiptLog.open({ dataDir });
    await appendAll(log, receiptsFrom(0, 50));
    await log.close();
    const attacker = createClient({ url: `file:${join(dataDir, 'daemon.db')}` });
    await attacker.execute('DROP TRIGGER receipts_no_update');
    await attacker.execute("UPDATE receipts SET entry = replace(entry, '12', '13') WHERE leaf_index = 16");
    attacker.close();
    const opened = await openLog({ dataDir, limits: { auditLeavesAtOpen: 10 } });
    const { ended } = begin({ log: opened, idle: () => true });
    expect(await ended).toMatchObject({ status: 'failed', leaves: 14, detail: expect.stringContaining('leaf 16') });
  });

  it('waits while there is work, but not for ever', async () => {
    const log = await openLog({ dataDir: temporaryFolder() });
    await appendAll(log, receiptsFrom(0, 20));
    let busy = true;
    const watched = slicesOf(log);
    const { ended } = begin({ log: watched.log, idle: () => !busy });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(watched.slices).toEqual([]);
    busy = false;
    expect((await ended).status).toBe('ok');
    const patient = begin({ log, idle: () => false, limits: { ...LIMITS, auditWaitMaxMs: 5 } });
    expect(await patient.ended).toMatchObject({ status: 'ok', leaves: 20 });
  });

  it('asks again when the log is busy or being restarted', async () => {
    let calls = 0;
    const { ended } = begin({
      log: {
        size: 3,
        audit: async () => {
          calls += 1;
          if (calls < 4) throw new LogError('log_unavailable', 'being restarted');
          return { leaves: 3 };
        },
      },
      idle: () => true,
    });
    expect(await ended).toMatchObject({ status: 'ok', leaves: 3 });
  });
});
