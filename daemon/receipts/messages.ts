/** What ReceiptLogClient and its thread say to each other. */
import type { LogHealth, LogOptions } from './api.ts';
import type { Entry } from './entry.ts';
import type { LogErrorCode } from './errors.ts';
import type { LogLimits } from './limits.ts';

export interface WorkerData extends LogOptions {
  limits?: Partial<LogLimits>;
}

export type Operation =
  | { name: 'append'; entry: Entry }
  | { name: 'get'; id: string }
  | { name: 'getByIndex'; leafIndex: number }
  | { name: 'checkpoint' }
  | { name: 'tile'; path: string }
  | { name: 'consistency'; oldSize: number; newSize: number | undefined }
  | { name: 'audit'; from: number; leavesMax: number }
  | { name: 'close' };

export interface Request {
  call: number;
  operation: Operation;
}

export interface WireError {
  code: LogErrorCode;
  message: string;
}
export type Reply =
  /** First message: the log is open. */
  | { kind: 'open'; vkey: string; origin: string; health: LogHealth }
  | { kind: 'refused'; error: WireError }
  | { kind: 'health'; health: LogHealth }
  | { kind: 'result'; call: number; result: unknown }
  | { kind: 'error'; call: number; error: WireError };
