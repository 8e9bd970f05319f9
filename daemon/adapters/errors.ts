import { DaemonError, type DaemonErrorCode } from '../errors.ts';

/** Finer than the code that callers see; for tests, logs and metrics. */
export type AdapterReason =
  /** Not what its name says, contradicts itself, or ends too early. */
  | 'corrupt'
  /** A good adapter that does what the engine does not compute. */
  | 'unsupported'
  /** Made for another model: other layers, other shapes. */
  | 'wrong_base'
  /** One half of a pair, or a whole pair that the configuration names, is missing. */
  | 'incomplete'
  /** Weights that are no finite numbers of half precision's range. */
  | 'weights_invalid'
  | 'too_large'
  | 'not_found'
  | 'exists'
  | 'name_invalid'
  | 'source_invalid'
  | 'source_unreachable'
  | 'disk_full';

const CODES: Record<AdapterReason, DaemonErrorCode> = {
  corrupt: 'adapter_invalid',
  unsupported: 'adapter_invalid',
  wrong_base: 'adapter_invalid',
  incomplete: 'adapter_invalid',
  weights_invalid: 'adapter_invalid',
  too_large: 'request_too_large',
  not_found: 'model_not_found',
  exists: 'adapter_exists',
  name_invalid: 'invalid_request_error',
  source_invalid: 'invalid_request_error',
  source_unreachable: 'adapter_unavailable',
  disk_full: 'adapter_unavailable',
};

/** Why an adapter is refused; the message says what, why, and what to do. */
export class AdapterError extends DaemonError {
  readonly reason: AdapterReason;
  constructor(reason: AdapterReason, message: string, param: string | null = null) {
    super(CODES[reason], message, param);
    this.name = 'AdapterError';
    this.reason = reason;
  }
}

/** Errors of the file system as errors a caller can read; others as they are. */
export function fromFileError(error: unknown, doing: string): unknown {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new AdapterError('disk_full', `the disk is full (${doing}); free some space and try again`);
  }
  return error;
}
