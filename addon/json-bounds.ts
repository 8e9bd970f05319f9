/**
 * Bounds of the JSON that is handed to libllama's schema converter, templates and parsers. They recurse once per level and
 * would overflow the stack, which ends the process; and they write optional properties out in every combination of a
 * beginning and an end.
 */
import { AddonError } from './types.ts';

/** Levels of nesting; some thousand overflow 8 MB of stack. */
export const JSON_DEPTH_MAX = 128;
/** Sum over the objects of a schema of (optional properties)³, which the converter's time follows: about half a second. */
export const SCHEMA_COST_MAX = 600 ** 3;

const OPEN = new Set(['[', '{']);
const CLOSE = new Set([']', '}']);

/** Levels of nesting of a JSON text. */
export function jsonDepth(text: string): number {
  let depth = 0;
  let deepest = 0;
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i] as string;
    if (quoted) {
      if (c === '\\') i++;
      else if (c === '"') quoted = false;
    } else if (c === '"') quoted = true;
    else if (OPEN.has(c)) deepest = Math.max(deepest, ++depth);
    else if (CLOSE.has(c)) depth--;
  }
  return deepest;
}

/**
 * At least the nesting of any JSON that begins anywhere in what a model wrote. Where quotes stand before it, one can't know
 * which of them open a string, so all readings are followed together, each with the deepest level it may have reached.
 */
export function answerDepth(text: string): number {
  let outside = 0;
  let quoted = -1;
  let escaped = -1;
  let deepest = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text[i] as string;
    const was = escaped;
    escaped = -1;
    if (c === '"') [outside, quoted] = [Math.max(quoted, 0), Math.max(outside, was)];
    else if (c === '\\') [quoted, escaped] = [was, quoted];
    else {
      quoted = Math.max(quoted, was);
      if (OPEN.has(c)) deepest = Math.max(deepest, ++outside);
      else if (CLOSE.has(c)) outside = Math.max(outside - 1, 0);
    }
  }
  return deepest;
}

/** @throws AddonError grammar_invalid where a schema is too much to convert. */
export function checkSchema(json: string): void {
  const excess = excessOf(json);
  if (excess !== null) throw new AddonError('grammar_invalid', `the JSON schema ${excess}`);
}

/** @throws AddonError template_invalid where tools, or the schemas of their parameters, are too much. */
export function checkTools(json: string): void {
  const excess = excessOf(json);
  if (excess !== null) throw new AddonError('template_invalid', `a tool ${excess}`);
}

function excessOf(json: string): string | null {
  if (json === '') return null;
  if (jsonDepth(json) > JSON_DEPTH_MAX) return `is nested deeper than ${JSON_DEPTH_MAX} levels; flatten it`;
  if (costOf(parsed(json)) <= SCHEMA_COST_MAX) return null;
  return 'has objects with too many optional properties; make some of them required, or split the object';
}

/** @throws AddonError template_invalid where messages are nested too deeply, tool calls' arguments (JSON in a string) included. */
export function checkMessages(json: string): void {
  const deep = jsonDepth(json) > JSON_DEPTH_MAX || (json.includes('"arguments"') && deepArguments(parsed(json)));
  if (deep) throw new AddonError('template_invalid', `the messages are nested deeper than ${JSON_DEPTH_MAX} levels`);
}

/** What is no JSON is libllama's to refuse, which it does with a place. */
function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}

function deepArguments(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  return Object.entries(value).some(([key, child]) =>
    key === 'arguments' && typeof child === 'string' ? jsonDepth(child) > JSON_DEPTH_MAX : deepArguments(child),
  );
}

function costOf(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0;
  const { properties, required } = value as { properties?: unknown; required?: unknown };
  let cost = 0;
  if (typeof properties === 'object' && properties !== null) {
    const always = new Set(Array.isArray(required) ? required : []);
    cost = Object.keys(properties).filter((name) => !always.has(name)).length ** 3;
  }
  for (const child of Object.values(value)) cost += costOf(child);
  return cost;
}
