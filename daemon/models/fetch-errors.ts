export type FetchErrorCode =
  /** No connection, or no answer in time. */
  | 'unreachable'
  /** The source answered that it has no such file, or that we may not have it. */
  | 'refused'
  | 'hash_mismatch'
  /** The connection ended or stalled before the last byte. */
  | 'interrupted'
  | 'disk_full'
  | 'archive_invalid'
  | 'name_unknown'
  | 'no_source';

/** Why a model could not be had. The message is for the person at the terminal and holds no credentials. */
export class FetchError extends Error {
  readonly code: FetchErrorCode;
  constructor(code: FetchErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'FetchError';
    this.code = code;
  }
}
