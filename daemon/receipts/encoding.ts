/** Standard base64 with padding; null unless `text` is exactly what encoding gives back (no whitespace, no URL alphabet, no slack bits). */
export function decodeBase64(text: unknown): Buffer | null {
  if (typeof text !== 'string') return null;
  const bytes = Buffer.from(text, 'base64');
  return bytes.toString('base64') === text ? bytes : null;
}

/** No lone surrogates: the text survives UTF-8. (String.isWellFormed is not in the language level we compile for.) */
export function isWellFormed(text: string): boolean {
  return Buffer.from(text).toString() === text;
}
