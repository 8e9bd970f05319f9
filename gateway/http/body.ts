/** Reads JSON bodies: bounded, strict UTF-8, an object at the top, bounded depth; each failure names itself. */
import { ApiError, badRequest } from '../errors.ts';
import { limits } from '../limits.ts';

export function tooLarge(bytesMax: number): ApiError {
  const message = `The request body is larger than ${bytesMax} bytes.`;
  // The connection stays open: closed with bytes unread it is reset, and who still sends never sees this answer. The server
  // throws away what comes for a moment and closes then.
  return new ApiError(413, 'invalid_request_error', 'request_too_large', message);
}

/** Of all bodies that are being read now: declared, or arrived so far. */
let bytesUnderWay = 0;

function claim(bytes: number): void {
  if (bytesUnderWay + bytes > limits.bodiesBytesMax) {
    const message = 'The gateway is reading too many large requests at the moment; try again shortly.';
    const headers = { 'retry-after': String(limits.retryAfterSeconds) };
    throw new ApiError(503, 'server_error', 'overloaded', message, { headers });
  }
  bytesUnderWay += bytes;
}

/**
 * The body's bytes. @throws ApiError 413 as soon as the limit is passed, 400 when the client breaks off, 408 when it takes too long,
 * 503 when too much is being read already.
 */
export async function readBytes(request: Request, bytesMax: number): Promise<Uint8Array> {
  const declared = Number(request.headers.get('content-length') ?? 0);
  if (declared > bytesMax) throw tooLarge(bytesMax);
  // Not looked at where a length is declared: on Node it would make a Web stream of what needs none.
  if (declared === 0 && request.body === null) return new Uint8Array(0);
  let claimed = 0;
  const take = (bytes: number) => {
    claim(bytes);
    claimed += bytes;
  };
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(tooSlow()), limits.bodyMs);
  });
  try {
    // A declared length is enforced by the HTTP parser, so the whole body can be taken at once (and cheaply, without a stream).
    if (declared > 0) {
      take(declared);
      const bytes = new Uint8Array(await Promise.race([request.arrayBuffer().catch(broken), late]));
      if (bytes.byteLength > bytesMax) throw tooLarge(bytesMax);
      return bytes;
    }
    return await readParts((request.body as ReadableStream<Uint8Array>).getReader(), bytesMax, late, take);
  } finally {
    clearTimeout(timer);
    bytesUnderWay -= claimed;
  }
}

async function readParts(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  bytesMax: number,
  late: Promise<never>,
  take: (bytes: number) => void,
): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let total = 0;
  try {
    for (;;) {
      const { done, value } = await Promise.race([reader.read().catch(broken), late]);
      if (done) break;
      total += value.byteLength;
      if (total > bytesMax) throw tooLarge(bytesMax);
      take(value.byteLength);
      parts.push(value);
    }
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error;
  }
  const bytes = new Uint8Array(total);
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.byteLength;
  }
  return bytes;
}

function tooSlow(): ApiError {
  const message = `The request body did not arrive within ${limits.bodyMs / 1000} seconds.`;
  return new ApiError(408, 'invalid_request_error', 'request_timeout', message, { headers: { connection: 'close' } });
}

function broken(cause: unknown): never {
  throw new ApiError(400, 'invalid_request_error', 'body_incomplete', 'The request body broke off before its end.', {
    cause,
  });
}

/** What is to be asked again once a request's body is there: it may take long, and what held when it began need not hold then. */
const whenRead = new WeakMap<Request, () => Promise<void>>();

/** @param check throws where the request is not to be carried out any more. */
export function askWhenRead(request: Request, check: () => Promise<void>): void {
  whenRead.set(request, check);
}

const decoder = new TextDecoder('utf-8', { fatal: true });

/** @throws ApiError 400 (not JSON, not UTF-8, not an object, too deep), 413, 415. */
export async function readJsonObject(request: Request): Promise<Record<string, unknown>> {
  const contentType = request.headers.get('content-type');
  if (
    contentType !== null &&
    contentType !== '' &&
    !/^(application\/([\w.+-]*\+)?json|text\/plain)\b/i.test(contentType)
  ) {
    throw new ApiError(415, 'invalid_request_error', 'unsupported_media_type', 'Send the body as application/json.');
  }
  const bytes = await readBytes(request, limits.bodyBytesMax);
  await whenRead.get(request)?.();
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch {
    throw badRequest(null, 'invalid_utf8', 'The request body is not valid UTF-8.');
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw badRequest(null, 'invalid_json', 'We could not parse the JSON body of your request.');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw badRequest(null, 'invalid_type', 'The request body must be a JSON object.');
  }
  if (!isShallow(value, limits.jsonDepthMax))
    throw badRequest(null, 'invalid_json', `The JSON body is nested deeper than ${limits.jsonDepthMax} levels.`);
  return value as Record<string, unknown>;
}

function isShallow(value: object, depthLeft: number): boolean {
  if (depthLeft === 0) return false;
  for (const child of Object.values(value)) {
    if (typeof child === 'object' && child !== null && !isShallow(child, depthLeft - 1)) return false;
  }
  return true;
}
