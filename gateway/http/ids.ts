/** Random ids and digests, on Web Crypto alone. */

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));

export function hexOf(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += HEX[byte];
  return text;
}

/** 32 hex digits with 122 random bits; runtimes draw these from a buffer, which getRandomValues does not. */
export function randomId(): string {
  return crypto.randomUUID().replaceAll('-', '');
}

export function randomBase64Url(bytes: number): string {
  let binary = '';
  for (const byte of crypto.getRandomValues(new Uint8Array(bytes))) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

const encoder = new TextEncoder();

/** SHA-256 of the UTF-8 bytes, lower-case hex. */
export type Sha256Hex = (text: string) => string | Promise<string>;

/** With Web Crypto: everywhere, but a thread change for each call. Node's own is handed in where there is one. */
export async function webSha256Hex(text: string): Promise<string> {
  return hexOf(new Uint8Array(await crypto.subtle.digest('SHA-256', encoder.encode(text))));
}

/** What a client may name its own request (and what we echo): the safe characters, at most 255. */
const CLIENT_REQUEST_ID = /^[\w\-=]{1,255}$/;

export function isClientRequestId(value: string | undefined): value is string {
  return value !== undefined && CLIENT_REQUEST_ID.test(value);
}
