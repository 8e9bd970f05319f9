import type { ReceiptLogApi } from './api.ts';
import { LogError } from './errors.ts';
import { LOG_LIMITS } from './limits.ts';

export interface AuditReport {
  /** `running` also while it waits for an idle moment. */
  status: 'running' | 'ok' | 'failed';
  /** Receipts whose hashes were computed again. */
  leaves: number;
  /** A sentence; empty unless failed. */
  detail: string;
}

export interface FullAuditOptions {
  log: Pick<ReceiptLogApi, 'audit' | 'size'>;
  /** True if nobody would notice that the disk and a core are busy. */
  idle: () => boolean;
  /** The audit is over, well or not. */
  onEnd?: (report: AuditReport) => void;
  limits?: Partial<Pick<typeof LOG_LIMITS, 'auditSliceLeaves' | 'auditPauseMs' | 'auditWaitMaxMs'>>;
}

/**
 * Audits the whole log once, after the daemon is ready: opening it has looked at the newest receipts only. In small slices
 * in idle moments; on a machine that never is idle, one slice every few seconds.
 */
export class FullAudit {
  private readonly options: FullAuditOptions;
  private readonly limits: Pick<typeof LOG_LIMITS, 'auditSliceLeaves' | 'auditPauseMs' | 'auditWaitMaxMs'>;
  private timer: NodeJS.Timeout | null = null;
  private waitedMs = 0;
  private stopped = false;
  private current: AuditReport = { status: 'running', leaves: 0, detail: '' };

  constructor(options: FullAuditOptions) {
    this.options = options;
    this.limits = { ...LOG_LIMITS, ...options.limits };
    this.later();
  }

  get report(): AuditReport {
    return this.current;
  }

  stop(): void {
    this.stopped = true;
    if (this.timer) clearTimeout(this.timer);
  }

  private later(): void {
    if (this.stopped) return;
    this.timer = setTimeout(() => void this.turn(), this.limits.auditPauseMs);
    this.timer.unref();
  }

  private async turn(): Promise<void> {
    this.waitedMs += this.limits.auditPauseMs;
    if (!this.options.idle() && this.waitedMs < this.limits.auditWaitMaxMs) {
      this.later();
      return;
    }
    this.waitedMs = 0;
    try {
      const { leaves } = await this.options.log.audit(this.current.leaves, this.limits.auditSliceLeaves);
      this.current = { ...this.current, leaves: this.current.leaves + leaves };
      if (leaves < this.limits.auditSliceLeaves) this.end({ ...this.current, status: 'ok' });
      else this.later();
    } catch (error) {
      // Only a finding ends it; a busy or restarting log is asked again.
      if (error instanceof LogError && error.code === 'log_tampered')
        this.end({ ...this.current, status: 'failed', detail: error.message });
      else this.later();
    }
  }

  private end(report: AuditReport): void {
    if (this.stopped) return;
    this.stopped = true;
    this.current = report;
    this.options.onEnd?.(report);
  }
}
