/** Reads JSON bodies: bounded, strict UTF-8, an object at the top, bounded depth; each failure names itself. */
import { ApiError, badRequest } from '../errors.ts';
import { limits } from '../limits.ts';

export function tooLarge(bytesMax: number): ApiError {
  const message = `The request body is larger than ${bytesMax} bytes.`;
  // The rest of the body is not read; the connection cannot be used again.
  return new ApiError(413, 'invalid_request_error', 'request_too_large', message, { headers: { connection: 'close' } });
}

/** The body's bytes. @throws ApiError 413 as soon as the limit is passed, 400 when the client breaks off. */
export async function readBytes(request: Request, bytesMax: number): Promise<Uint8Array> {
  const declared = Number(request.headers.get('content-length') ?? 0);
  if (declared > bytesMax) throw tooLarge(bytesMax);
  // A declared length is enforced by the HTTP parser, so the whole body can be taken at once (and cheaply, without a stream).
  if (declared > 0) {
    const bytes = new Uint8Array(await request.arrayBuffer().catch(broken));
    if (bytes.byteLength > bytesMax) throw tooLarge(bytesMax);
    return bytes;
  }
  if (request.body === null) return new Uint8Array(0);
  const parts: Uint8Array[] = [];
  let total = 0;
  const reader = request.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(broken);
    if (done) break;
    total += value.byteLength;
    if (total > bytesMax) {
      reader.cancel().catch(() => {});
      throw tooLarge(bytesMax);
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

function broken(cause: unknown): never {
  throw new ApiError(400, 'invalid_request_error', 'body_incomplete', 'The request body broke off before its end.', {
    cause,
  });
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
