import { sqliteCode } from '../db/busy.ts';

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

/** What is stored is not what was signed. `what`: a clause that says how it was found out. */
export function tampered(what: string): LogError {
  return new LogError(
    'log_tampered',
    `The receipt log was changed outside the program: ${what}. Nothing more will be signed. Keep daemon.db for examination, and restore a backup that is at least as new as the last published checkpoint.`,
  );
}

/** What happened, for callers, from whatever libSQL or the system threw. */
export function toLogError(error: unknown): LogError {
  if (error instanceof LogError) return error;
  const code = sqliteCode(error);
  const because = { cause: error };
  if (code === 'SQLITE_BUSY' || code === 'SQLITE_LOCKED')
    return new LogError(
      'log_busy',
      'The receipt database is locked by another program: nothing was written. Close what holds it and try again.',
      because,
    );
  if (code === 'SQLITE_FULL' || (error as NodeJS.ErrnoException)?.code === 'ENOSPC')
    return new LogError(
      'log_full',
      'The disk with the receipt database is full: nothing was written. Free some space; the log goes on by itself.',
      because,
    );
  if (code === 'SQLITE_CORRUPT' || code === 'SQLITE_NOTADB')
    return new LogError(
      'log_tampered',
      'The receipt database is damaged (not a valid SQLite file). Keep it for examination and restore a backup.',
      because,
    );
  const what =
    code ??
    (error as NodeJS.ErrnoException)?.code ??
    (error instanceof Error ? `${error.name}: ${error.message}` : 'unknown error');
  return new LogError(
    'log_io',
    `The receipt database can't be read or written (${what}). Check the disk and the folder's permissions.`,
    because,
  );
}
