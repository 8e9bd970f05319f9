import type { DaemonErrorBody } from './protocol.ts';

export type DaemonErrorCode =
  | 'invalid_request_error'
  | 'unauthorized'
  | 'not_found'
  | 'method_not_allowed'
  | 'request_too_large'
  | 'context_length_exceeded'
  | 'model_not_found'
  | 'adapter_invalid'
  | 'adapter_exists'
  | 'adapter_unavailable'
  | 'grammar_invalid'
  | 'request_id_in_use'
  | 'rate_limit_exceeded'
  | 'overloaded'
  | 'cancelled'
  | 'client_too_slow'
  | 'shutting_down'
  | 'engine_failed'
  | 'receipt_log_unavailable'
  | 'dataset_in_use'
  | 'dataset_invalid'
  | 'run_exists'
  | 'run_not_ready'
  | 'disk_full'
  | 'training_unavailable'
  | 'internal_error';

/** Status and OpenAI `type` of every code; one place, so that a code always means the same. */
const TABLE: Record<DaemonErrorCode, { status: number; type: string }> = {
  invalid_request_error: { status: 400, type: 'invalid_request_error' },
  unauthorized: { status: 401, type: 'authentication_error' },
  not_found: { status: 404, type: 'invalid_request_error' },
  method_not_allowed: { status: 405, type: 'invalid_request_error' },
  request_too_large: { status: 413, type: 'invalid_request_error' },
  context_length_exceeded: { status: 400, type: 'invalid_request_error' },
  model_not_found: { status: 404, type: 'invalid_request_error' },
  adapter_invalid: { status: 400, type: 'invalid_request_error' },
  adapter_exists: { status: 409, type: 'invalid_request_error' },
  adapter_unavailable: { status: 503, type: 'server_error' },
  grammar_invalid: { status: 400, type: 'invalid_request_error' },
  request_id_in_use: { status: 409, type: 'invalid_request_error' },
  rate_limit_exceeded: { status: 429, type: 'rate_limit_error' },
  overloaded: { status: 503, type: 'server_error' },
  cancelled: { status: 499, type: 'cancelled' },
  client_too_slow: { status: 499, type: 'cancelled' },
  shutting_down: { status: 503, type: 'server_error' },
  engine_failed: { status: 503, type: 'server_error' },
  receipt_log_unavailable: { status: 503, type: 'server_error' },
  dataset_in_use: { status: 409, type: 'invalid_request_error' },
  dataset_invalid: { status: 400, type: 'invalid_request_error' },
  run_exists: { status: 409, type: 'invalid_request_error' },
  run_not_ready: { status: 409, type: 'invalid_request_error' },
  disk_full: { status: 507, type: 'server_error' },
  training_unavailable: { status: 503, type: 'server_error' },
  internal_error: { status: 500, type: 'server_error' },
};

/** An operating error with a sentence that a caller may read. Broken invariants are plain `Error`s (see `invariant`) and never reach a caller. */
export class DaemonError extends Error {
  readonly code: DaemonErrorCode;
  readonly status: number;
  readonly type: string;
  readonly param: string | null;

  constructor(code: DaemonErrorCode, message: string, param: string | null = null) {
    super(message);
    this.name = 'DaemonError';
    this.code = code;
    this.status = TABLE[code].status;
    this.type = TABLE[code].type;
    this.param = param;
  }

  body(): DaemonErrorBody {
    return {
      error: { status: this.status, code: this.code, type: this.type, message: this.message, param: this.param },
    };
  }

  /** Errors cross the thread boundary as plain data. */
  toPlain(): PlainError {
    return { code: this.code, message: this.message, param: this.param };
  }

  static fromPlain(plain: PlainError): DaemonError {
    return new DaemonError(plain.code, plain.message, plain.param);
  }
}

export interface PlainError {
  code: DaemonErrorCode;
  message: string;
  param: string | null;
}

/** Unknown errors become `internal_error` with a sentence that gives nothing away; what happened goes to the log. */
export function toDaemonError(error: unknown): DaemonError {
  if (error instanceof DaemonError) return error;
  return new DaemonError(
    'internal_error',
    'the daemon failed to answer this request; its log has the cause under the request id',
  );
}

/** Asserts what must always hold. A broken invariant is a bug: the caller stops rather than goes on with a wrong state. */
export function invariant(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`invariant broken: ${message}`);
}
