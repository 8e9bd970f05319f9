/** A receipt as the bytes of a leaf: canonical JSON (RFC 8785). */
import canonicalizeModule from 'canonicalize';
import { type Receipt, receipt as receiptSchema } from '../protocol.ts';
import { isWellFormed } from './encoding.ts';
import { LogError } from './errors.ts';
import { LOG_LIMITS } from './limits.ts';

// The package is CommonJS; its types claim a default export.
const canonicalize = canonicalizeModule as unknown as (value: unknown) => string | undefined;

export interface Entry {
  id: string;
  text: string;
}

export const RECEIPT_ID = new RegExp(`^[A-Za-z0-9_.:-]{1,${LOG_LIMITS.idLengthMax}}$`);

/** Canonical JSON, or null for what has none (NaN, lone surrogates, undefined). */
export function canonicalJson(value: unknown): string | null {
  try {
    const text = canonicalize(value);
    if (typeof text !== 'string') return null;
    // JSON.stringify hides a lone surrogate behind an escape; RFC 8785 §3.2.2.2 wants an error.
    if (text.includes('\\ud') && !hasOnlyWellFormedText(value)) return null;
    return text;
  } catch {
    return null;
  }
}

function hasOnlyWellFormedText(value: unknown): boolean {
  if (typeof value === 'string') return isWellFormed(value);
  if (typeof value !== 'object' || value === null) return true;
  return Object.entries(value).every(([key, item]) => isWellFormed(key) && hasOnlyWellFormedText(item));
}

/** Checks a receipt and writes it down. Throws LogError `entry_invalid` or `entry_too_large`. */
export function receiptEntry(value: Receipt): Entry {
  const parsed = receiptSchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new LogError(
      'entry_invalid',
      `The receipt is malformed at "${issue?.path.join('.') ?? ''}": ${issue?.message ?? 'unknown'}.`,
    );
  }
  const { id } = parsed.data;
  if (!RECEIPT_ID.test(id))
    throw new LogError(
      'entry_invalid',
      `A receipt id is 1 to ${LOG_LIMITS.idLengthMax} characters of letters, digits, _ . : -.`,
    );
  const text = canonicalJson(parsed.data);
  if (text === null)
    throw new LogError('entry_invalid', 'The receipt has no canonical JSON: a text in it is not valid Unicode.');
  const bytes = Buffer.byteLength(text);
  if (bytes > LOG_LIMITS.entryBytesMax)
    throw new LogError(
      'entry_too_large',
      `The receipt has ${bytes} bytes, an entry of the log at most ${LOG_LIMITS.entryBytesMax}: shorten its attribution.`,
    );
  return { id, text };
}
