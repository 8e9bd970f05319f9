/** Asks the provider: only trusted addresses, no redirects, bounded time and bytes. */
import type { Fetch } from '../../daemons/client.ts';
import { limits } from '../../limits.ts';
import { isTrustedUrl } from './settings.ts';

export interface Answer {
  status: number;
  contentType: string;
  bytes: Uint8Array<ArrayBuffer>;
}

export class DocumentError extends Error {}

/** @throws DocumentError if it does not come, or is too large; the message names the address, and nothing that was sent. */
export async function fetchDocument(fetch: Fetch, url: string, init: RequestInit = {}): Promise<Answer> {
  if (!isTrustedUrl(url)) throw new DocumentError(`${url.slice(0, 256)} is not https`);
  const timeout = AbortSignal.timeout(limits.oidcTimeoutMs);
  const signal = init.signal == null ? timeout : AbortSignal.any([init.signal, timeout]);
  try {
    const response = await fetch(url, { ...init, redirect: 'error', signal });
    return {
      status: response.status,
      contentType: response.headers.get('content-type') ?? '',
      bytes: await read(response, url),
    };
  } catch (cause) {
    if (cause instanceof DocumentError) throw cause;
    throw new DocumentError(`${url} did not answer`, { cause });
  }
}

async function read(response: Response, url: string): Promise<Uint8Array<ArrayBuffer>> {
  const most = limits.oidcDocumentBytesMax;
  const parts: Uint8Array[] = [];
  let total = 0;
  const reader = response.body?.getReader();
  while (reader !== undefined) {
    const { done, value } = await reader.read();
    if (done) break;
    total += value.byteLength;
    if (total > most) {
      reader.cancel().catch(() => {});
      throw new DocumentError(`the answer of ${url} is larger than ${most} bytes`);
    }
    parts.push(value);
  }
  const bytes = new Uint8Array(total);
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.byteLength;
  }
  return bytes;
}

/** @throws DocumentError if it is not a JSON object. */
export function jsonOf(answer: Answer, url: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(answer.bytes));
  } catch {
    throw new DocumentError(`the answer of ${url} is not JSON`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new DocumentError(`the answer of ${url} is not a JSON object`);
  return value as Record<string, unknown>;
}
