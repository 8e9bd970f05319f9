/** Records of .jsonl (one object a line) and .json (an array of objects, or lines after all), without holding the file. */
import { limits } from '../../limits.ts';
import type { ByteSource, RawRecord } from './source.ts';
import { byteLines, encodingOf, isBlank, withoutBom } from './text-lines.ts';

const decoder = new TextDecoder('utf-8', { fatal: true });

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isShallow(value: unknown, depthLeft: number): boolean {
  if (typeof value !== 'object' || value === null) return true;
  if (depthLeft === 0) return false;
  for (const child of Object.values(value)) if (!isShallow(child, depthLeft - 1)) return false;
  return true;
}

/** The first characters of a line, fit for a message. */
export function hintOf(text: string): string {
  const head = [...text.slice(0, 40)].slice(0, 20).join('');
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is to be replaced.
  return text.length > head.length ? `${head.replace(/[\u0000-\u001f\u007f]/g, '?')}...` : head;
}

/** OpenAI's words for a line that is none. */
export function notADictionary(line: number, text: string): string {
  return `Expected file to have JSONL format, where every line is a JSON dictionary. Line ${line} is not a dictionary (HINT: line starts with: "${hintOf(text)}").`;
}

function parseRecord(line: number, bytes: Uint8Array | null, unit: string): RawRecord {
  if (bytes === null) {
    return {
      line,
      rule: 'line_too_long',
      message: `${unit} ${line} is longer than ${limits.datasetLineBytesMax} bytes; split the example.`,
    };
  }
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch {
    return { line, rule: 'not_utf8', message: `${unit} ${line} is not valid UTF-8; save the file as UTF-8.` };
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    const cause = unit === 'Line' ? notADictionary(line, text) : `${unit} ${line} is not valid JSON.`;
    return { line, rule: 'not_a_dictionary', message: cause };
  }
  if (!isRecord(value)) {
    const cause = unit === 'Line' ? notADictionary(line, text) : `${unit} ${line} is not a JSON object.`;
    return { line, rule: 'not_a_dictionary', message: cause };
  }
  if (!isShallow(value, limits.datasetDepthMax)) {
    return {
      line,
      rule: 'too_deep',
      message: `${unit} ${line} is nested deeper than ${limits.datasetDepthMax} levels; flatten it.`,
    };
  }
  return { line, value };
}

export async function* jsonLines(source: ByteSource): AsyncGenerator<RawRecord[]> {
  const head = new Uint8Array(await source.slice(0, Math.min(4, source.bytes)));
  if (encodingOf(head) !== 'utf-8') {
    yield [{ line: 1, rule: 'not_utf8', message: 'The file is UTF-16, not UTF-8; save it as UTF-8.' }];
    return;
  }
  for await (const lines of byteLines(withoutBom(source.stream()), limits.datasetLineBytesMax)) {
    const records: RawRecord[] = [];
    for (const { line, bytes } of lines) {
      if (bytes !== null && isBlank(bytes)) continue;
      records.push(parseRecord(line, bytes, 'Line'));
    }
    if (records.length > 0) yield records;
  }
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const OPENING = new Set([0x5b, 0x7b]);
const CLOSING = new Set([0x5d, 0x7d]);

/** A .json file: an array is cut into its elements by its brackets and quotes alone; each element is parsed by itself. */
export async function* jsonDocument(source: ByteSource): AsyncGenerator<RawRecord[]> {
  const head = new Uint8Array(await source.slice(0, Math.min(4096, source.bytes)));
  const first = new TextDecoder().decode(head).trimStart()[0];
  if (first !== '[') {
    yield* jsonLines(source);
    return;
  }
  let element = 0;
  let depth = 0;
  let inString = false;
  let escaped = false;
  let ended = false;
  let parts: Uint8Array[] = [];
  let held = 0;
  const finish = (out: RawRecord[]) => {
    const bytes = held > limits.datasetLineBytesMax ? null : Buffer.concat(parts);
    parts = [];
    held = 0;
    if (bytes !== null && bytes.toString('latin1').trim() === '') return;
    element += 1;
    out.push(parseRecord(element, bytes, 'Element'));
  };
  const take = (part: Uint8Array) => {
    held += part.byteLength;
    if (held > limits.datasetLineBytesMax) parts = [];
    else if (part.byteLength > 0) parts.push(part.slice());
  };
  for await (const chunk of withoutBom(source.stream())) {
    const out: RawRecord[] = [];
    let from = 0;
    for (let at = 0; at < chunk.byteLength; at++) {
      const byte = chunk[at] as number;
      if (inString) {
        if (escaped) escaped = false;
        else if (byte === BACKSLASH) escaped = true;
        else if (byte === QUOTE) inString = false;
        continue;
      }
      if (byte === QUOTE) inString = true;
      else if (OPENING.has(byte)) {
        depth += 1;
        if (depth === 1) from = at + 1;
      } else if (CLOSING.has(byte)) {
        depth -= 1;
        if (depth === 0) {
          take(chunk.subarray(from, at));
          finish(out);
          ended = true;
          from = at + 1;
        }
      } else if (byte === COMMA && depth === 1) {
        take(chunk.subarray(from, at));
        finish(out);
        from = at + 1;
      }
      if (ended) break;
    }
    if (!ended && depth > 0) take(chunk.subarray(from));
    if (out.length > 0) yield out;
    if (ended) return;
  }
  yield [{ line: element + 1, rule: 'incomplete', message: 'The JSON array does not end; the file is cut off.' }];
}
