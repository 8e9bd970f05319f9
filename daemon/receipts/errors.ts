/** The one error type of the receipt log. `code` is for programs, `message` says what happened, why, and what to do. */
export type LogErrorCode =
  /** The stored tree does not match the last signed checkpoint, or an entry does not match its hash. */
  | 'log_tampered'
  | 'log_key_missing'
  | 'log_key_invalid'
  | 'log_key_insecure'
  | 'log_key_mismatch'
  /** Another connection held the database's lock for too long; nothing was written. */
  | 'log_busy'
  /** Disk full; nothing was written. */
  | 'log_full'
  /** Any other failed read or write; whether the last commit reached the disk is not known, appending the same id again is safe. */
  | 'log_io'
  | 'log_queue_full'
  | 'log_closed'
  /** The log's thread died or is not up; as for log_io, appending the same id again is safe. */
  | 'log_unavailable'
  | 'id_conflict'
  | 'entry_invalid'
  | 'entry_too_large'
  | 'not_found'
  | 'out_of_range';

export class LogError extends Error {
  override name = 'LogError';
  readonly code: LogErrorCode;

  constructor(code: LogErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

export function isLogError(error: unknown, code?: LogErrorCode): error is LogError {
  return error instanceof LogError && (code === undefined || error.code === code);
}
