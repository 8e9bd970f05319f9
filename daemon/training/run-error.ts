export type RunErrorCode =
  | 'invalid_training_file'
  | 'invalid_validation_file'
  | 'insufficient_memory'
  | 'loss_not_finite'
  | 'disk_full'
  | 'base_changed'
  | 'worker_crashed'
  | 'internal_error';

/** Why a run fails; the message is for the person whose run it is. */
export class RunError extends Error {
  readonly code: RunErrorCode;
  readonly param: string | null;
  constructor(code: RunErrorCode, message: string, param: string | null = null) {
    super(message);
    this.name = 'RunError';
    this.code = code;
    this.param = param;
  }

  toPlain(): { code: string; message: string; param: string | null } {
    return { code: this.code, message: this.message, param: this.param };
  }
}
