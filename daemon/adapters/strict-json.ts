/**
 * JSON.parse keeps the last of two equal keys and says nothing; two readers of such a file may see two different adapters.
 * Parses, and refuses text in which any object has a key twice.
 * @throws SyntaxError
 */
export function parseStrictJson(text: string): unknown {
  const value: unknown = JSON.parse(text);
  // From here on the text is known to be well-formed, so the scan only has to find strings, braces and colons.
  const objects: (Set<string> | null)[] = [];
  let at = 0;
  while (at < text.length) {
    const c = text.charCodeAt(at);
    if (c === 0x22 /* " */) {
      const end = endOfString(text, at);
      const keys = objects.at(-1);
      if (keys && isKey(text, end)) {
        const raw = text.slice(at, end);
        const key = raw.includes('\\') ? (JSON.parse(raw) as string) : raw.slice(1, -1);
        if (keys.has(key)) throw new SyntaxError(`the key "${key.slice(0, 128)}" occurs twice in one object`);
        keys.add(key);
      }
      at = end;
      continue;
    }
    if (c === 0x7b /* { */) objects.push(new Set());
    else if (c === 0x5b /* [ */) objects.push(null);
    else if (c === 0x7d || c === 0x5d) objects.pop();
    at++;
  }
  return value;
}

/** Index after the closing quote of the string that begins at `at`. */
function endOfString(text: string, at: number): number {
  for (let i = at + 1; ; i++) {
    const c = text.charCodeAt(i);
    if (c === 0x5c /* \ */) i++;
    else if (c === 0x22) return i + 1;
  }
}

function isKey(text: string, afterString: number): boolean {
  let i = afterString;
  while (i < text.length && text.charCodeAt(i) <= 0x20) i++;
  return text.charCodeAt(i) === 0x3a /* : */;
}
