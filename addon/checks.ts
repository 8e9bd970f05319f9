/** Checks of what goes into C++, and the one error type that comes out. */
import { AddonError, type AddonErrorCode } from './types.ts';

export const INT32_MAX = 0x7fff_ffff;

/** C++ errors carry a code; here they become AddonError. */
export function call<T>(f: () => T): T {
  try {
    return f();
  } catch (error) {
    throw asAddonError(error);
  }
}

export function asAddonError(error: unknown): unknown {
  if (error instanceof AddonError || !(error instanceof Error) || !('code' in error)) return error;
  return new AddonError(error.code as AddonErrorCode, error.message);
}

export function check(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AddonError('argument_invalid', message);
}

export function checkInteger(value: number, low: number, high: number, name: string): void {
  check(Number.isInteger(value) && value >= low && value <= high, `${name} must be an integer from ${low} to ${high}`);
}

export function checkNumber(value: number, low: number, high: number, name: string): void {
  check(Number.isFinite(value) && value >= low && value <= high, `${name} must be a number from ${low} to ${high}`);
}
