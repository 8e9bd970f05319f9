import { createHash } from 'node:crypto';
import { DaemonError } from '../errors.ts';
import type { Receipt } from '../protocol.ts';
import type { Appended } from '../receipts/api.ts';

/** How the fee of an answer is divided; later rules get later names. */
export const SPLIT_RULE = 'operator-only/1';

/** What the daemon needs of the receipt log. */
export interface ReceiptBook {
  append(receipt: Receipt): Promise<Appended>;
  get(id: string): Promise<{ entry: string } | null>;
}

export function sha256Hex(data: string | Uint8Array): string {
  return createHash('sha256').update(data).digest('hex');
}

/** SHA-256 over the UTF-8 of a rendered prompt. */
export function textPromptHash(prompt: string): string {
  return sha256Hex(prompt);
}

/** SHA-256 over token ids as little-endian 32-bit integers. */
export function tokensPromptHash(tokens: Int32Array): string {
  const bytes = Buffer.alloc(tokens.length * 4);
  for (const [i, token] of tokens.entries()) bytes.writeInt32LE(token, i * 4);
  return sha256Hex(bytes);
}

/**
 * SHA-256 over the UTF-8 of what was generated, before any parsing of tool calls or reasoning and without the stop string.
 * One choice: its text, nothing else. Several: their texts in order, a zero byte between two.
 */
export function outputHash(texts: string[]): string {
  return sha256Hex(texts.join('\0'));
}

/** SHA-256 over the SHA-256 digests of all inputs of an embedding, in order. */
export function inputsHash(hashes: string[]): string {
  return sha256Hex(Buffer.from(hashes.join(''), 'hex'));
}

/**
 * Appends a receipt and waits until it is durable. Appending the same receipt again is safe, so a log whose thread was
 * just restarted gets a second try; what does not succeed within `limitMs` is `receipt_log_unavailable`.
 */
export async function appendDurably(book: ReceiptBook, receipt: Receipt, limitMs: number): Promise<Appended> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(unavailable('it did not answer in time')), limitMs);
  });
  try {
    return await Promise.race([appendTwice(book, receipt), late]);
  } finally {
    clearTimeout(timer);
  }
}

async function appendTwice(book: ReceiptBook, receipt: Receipt): Promise<Appended> {
  try {
    return await book.append(receipt);
  } catch (error) {
    if (!isTransient(error)) throw unavailable(messageOf(error));
  }
  try {
    return await book.append(receipt);
  } catch (error) {
    throw unavailable(messageOf(error));
  }
}

function isTransient(error: unknown): boolean {
  const code = (error as { code?: unknown }).code;
  return code === 'log_unavailable' || code === 'log_busy' || code === 'log_io';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function unavailable(why: string): DaemonError {
  return new DaemonError(
    'receipt_log_unavailable',
    `the answer can't be completed because its receipt could not be stored: ${why}`,
  );
}
