/** Lines of bytes out of chunks of bytes; a line longer than allowed is passed over, never held. */

export interface ByteLine {
  /** From 1. */
  line: number;
  /** Without the line feed; null: longer than allowed. */
  bytes: Uint8Array | null;
}

const LF = 0x0a;

export async function* byteLines(chunks: AsyncIterable<Uint8Array>, bytesMax: number): AsyncGenerator<ByteLine[]> {
  let line = 1;
  let parts: Uint8Array[] = [];
  let held = 0;
  let tooLong = false;
  const take = (part: Uint8Array) => {
    held += part.byteLength;
    if (held > bytesMax) {
      tooLong = true;
      parts = [];
    } else if (part.byteLength > 0) parts.push(part);
  };
  const finish = (): ByteLine => {
    const done = { line, bytes: tooLong ? null : joined(parts, held) };
    line += 1;
    parts = [];
    held = 0;
    tooLong = false;
    return done;
  };
  for await (const chunk of chunks) {
    const lines: ByteLine[] = [];
    let from = 0;
    for (let end = chunk.indexOf(LF); end !== -1; end = chunk.indexOf(LF, from)) {
      take(chunk.subarray(from, end));
      lines.push(finish());
      from = end + 1;
    }
    // Copied: the reader may use its buffer again.
    if (from < chunk.byteLength) take(chunk.slice(from));
    if (lines.length > 0) yield lines;
  }
  if (held > 0) yield [finish()];
}

function joined(parts: Uint8Array[], bytes: number): Uint8Array {
  if (parts.length === 1) return parts[0] as Uint8Array;
  const all = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.byteLength;
  }
  return all;
}

/** A byte order mark at the start of a file is no part of it. */
export async function* withoutBom(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let head = new Uint8Array(0);
  let begun = false;
  for await (const chunk of chunks) {
    if (begun) {
      yield chunk;
      continue;
    }
    const joinedHead = new Uint8Array(head.byteLength + chunk.byteLength);
    joinedHead.set(head);
    joinedHead.set(chunk, head.byteLength);
    head = joinedHead;
    if (head.byteLength < 3) continue;
    begun = true;
    yield head[0] === 0xef && head[1] === 0xbb && head[2] === 0xbf ? head.subarray(3) : head;
  }
  if (!begun && head.byteLength > 0) yield head;
}

/** The encoding that a byte order mark of UTF-16 tells; else UTF-8. */
export function encodingOf(head: Uint8Array): 'utf-8' | 'utf-16le' | 'utf-16be' {
  if (head[0] === 0xff && head[1] === 0xfe) return 'utf-16le';
  if (head[0] === 0xfe && head[1] === 0xff) return 'utf-16be';
  return 'utf-8';
}

export function isBlank(bytes: Uint8Array): boolean {
  for (const byte of bytes) if (byte !== 0x20 && byte !== 0x09 && byte !== 0x0d) return false;
  return true;
}
