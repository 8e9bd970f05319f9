/** Every limit of the receipt log, in one place. */
export const LOG_LIMITS = {
  /** C2SP entry bundles carry a 16-bit length. */
  entryBytesMax: 65_535,
  /** `rcpt_` and a request id of up to 255. */
  idLengthMax: 260,
  /** Receipts waiting for a commit; beyond it append() pushes back. */
  queueMax: 4_096,
  /** One group commit. */
  batchEntriesMax: 256,
  batchBytesMax: 4 * 1024 * 1024,
  /** How long a commit waits for another program to let go of the database. */
  busyLimitMs: 5_000,
  /** The newest leaves whose hashes are computed again from their entries when the log opens. */
  auditLeavesAtOpen: 20_000,
  auditPageLeaves: 1_000,
  /** The audit of the whole log, after the start: leaves at a time, how long it waits while there is work, and how long at most. */
  auditSliceLeaves: 2_000,
  auditPauseMs: 250,
  auditWaitMaxMs: 10_000,
  /** Pause before a full disk or failed I/O is tried again; doubles up to the maximum. */
  probeFirstMs: 500,
  probeMaxMs: 10_000,
  probeBytes: 64 * 1024,
  /** Far above what fits a disk; keeps every index an exact JavaScript number. */
  treeSizeMax: 2 ** 48,
  noteBytesMax: 1024 * 1024,
  noteSignaturesMax: 64,
  /** A row of a Datanet has up to 4 MB, and as text inside JSON up to twice that. */
  verifyFileBytesMax: 16 * 1024 * 1024,
  /** Restarting a dead log thread. */
  restartFirstMs: 50,
  restartMaxMs: 5_000,
};
export type LogLimits = typeof LOG_LIMITS;
