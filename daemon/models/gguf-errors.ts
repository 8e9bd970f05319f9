export type ModelFileErrorCode =
  /** No such file, or it cannot be read. */
  | 'unreadable'
  /** Not a GGUF file at all, or of a version that nobody here reads. */
  | 'not_gguf'
  /** Ends before what its header promises. */
  | 'truncated'
  /** Contradicts itself or the format. */
  | 'corrupt'
  /** Claims more than a sane file would. */
  | 'too_large'
  /** A good file, but not of a kind that the engine computes. */
  | 'unsupported';

/** Why a model file is refused; the message names the cause and what to do. */
export class ModelFileError extends Error {
  readonly code: ModelFileErrorCode;
  constructor(code: ModelFileErrorCode, message: string) {
    super(message);
    this.name = 'ModelFileError';
    this.code = code;
  }
}
