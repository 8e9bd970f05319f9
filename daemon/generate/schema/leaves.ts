/** Strings, numbers and lists of a schema in the form that the grammar keeps to. */
import { isObject, type Json, SchemaRefused } from './merge.ts';
import { PatternRefused, stringPattern } from './string-pattern.ts';

type Cannot = (path: string, what: string) => void;

/** A count that a keyword gives; `fallback` where it is missing. */
function count(node: Json, key: string, path: string, fallback: number): number {
  const value = node[key];
  if (value === undefined) return fallback;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0)
    throw new SchemaRefused(`${path}/${key}`, 'it must be a whole number from 0');
  return value;
}

function counts(node: Json, what: 'Length' | 'Items', path: string): { min: number; max: number } {
  const min = count(node, `min${what}`, path, 0);
  const max = count(node, `max${what}`, path, Number.POSITIVE_INFINITY);
  if (min > max) throw new SchemaRefused(path, `min${what} is greater than max${what}`);
  return { min, max };
}

/** Formats that the grammar has rules for; others are, as JSON schema has it, a remark. */
const FORMATS = ['date', 'time', 'date-time', 'uuid'];

export function stringOf(node: Json, path: string, cannot: Cannot): Json {
  const bounds = counts(node, 'Length', path);
  const bounded = {
    type: 'string',
    ...(bounds.min === 0 ? {} : { minLength: bounds.min }),
    ...(bounds.max === Number.POSITIVE_INFINITY ? {} : { maxLength: bounds.max }),
  };
  if (node.pattern !== undefined) {
    if (typeof node.pattern !== 'string') throw new SchemaRefused(`${path}/pattern`, 'it must be a text');
    try {
      const { pattern } = stringPattern(node.pattern, bounds);
      return pattern === null ? { enum: [''] } : { type: 'string', pattern };
    } catch (error) {
      if (!(error instanceof PatternRefused)) throw error;
      cannot(`${path}/pattern`, `the pattern ${JSON.stringify(node.pattern.slice(0, 128))}: ${error.message}`);
      return bounded;
    }
  }
  if (Object.keys(bounded).length === 1 && FORMATS.includes(String(node.format)))
    return { type: 'string', format: node.format };
  return bounded;
}

export function integerOf(node: Json, path: string, cannot: Cannot): Json {
  if (node.multipleOf !== undefined && node.multipleOf !== 1)
    cannot(`${path}/multipleOf`, '`multipleOf` is not supported; list the values (`enum`)');
  const { low, high } = bounds(node, path);
  const minimum = low === null ? null : low.open ? Math.floor(low.value) + 1 : Math.ceil(low.value);
  const maximum = high === null ? null : high.open ? Math.ceil(high.value) - 1 : Math.floor(high.value);
  if (minimum !== null && maximum !== null && minimum > maximum)
    throw new SchemaRefused(path, 'no whole number lies between the bounds');
  return {
    type: 'integer',
    ...(minimum === null ? {} : { minimum }),
    ...(maximum === null ? {} : { maximum }),
  };
}

export function numberOf(node: Json, path: string, cannot: Cannot): Json {
  if (node.multipleOf !== undefined)
    cannot(`${path}/multipleOf`, '`multipleOf` is not supported; list the values (`enum`)');
  const { low, high } = bounds(node, path);
  if (low !== null || high !== null)
    cannot(
      path,
      'bounds of a `number` are not supported; use `integer`, which may have them, or list the values (`enum`)',
    );
  return { type: 'number' };
}

interface Bound {
  value: number;
  /** The bound itself is not allowed. */
  open: boolean;
}

/** Bounds as draft 4 (a flag) and later ones (a number) give them; the stricter of two. */
function bounds(node: Json, path: string): { low: Bound | null; high: Bound | null } {
  const read = (key: string): number | null => {
    const value = node[key];
    if (value === undefined) return null;
    if (typeof value !== 'number' || !Number.isSafeInteger(Math.trunc(value)))
      throw new SchemaRefused(`${path}/${key}`, 'it must be a number of at most 53 bits');
    return value;
  };
  const side = (plain: string, exclusive: string, stricter: (a: number, b: number) => boolean): Bound | null => {
    const value = read(plain);
    if (typeof node[exclusive] === 'boolean') return value === null ? null : { value, open: node[exclusive] === true };
    const open = read(exclusive);
    if (open === null) return value === null ? null : { value, open: false };
    return value === null || !stricter(value, open) ? { value: open, open: true } : { value, open: false };
  };
  return {
    low: side('minimum', 'exclusiveMinimum', (a, b) => a > b),
    high: side('maximum', 'exclusiveMaximum', (a, b) => a < b),
  };
}

export function arrayOf(node: Json, path: string, cannot: Cannot, child: (node: unknown, path: string) => Json): Json {
  const { min, max } = counts(node, 'Items', path);
  if (node.uniqueItems === true && max > 1) cannot(`${path}/uniqueItems`, '`uniqueItems` is not supported');
  if (node.contains !== undefined) cannot(`${path}/contains`, '`contains` is not supported');
  // Before 2020-12 a list of schemas stood in `items`.
  const first = node.prefixItems ?? (Array.isArray(node.items) ? node.items : undefined);
  const rest = Array.isArray(node.items) ? node.additionalItems : node.items;
  if (first !== undefined) {
    if (!Array.isArray(first)) throw new SchemaRefused(`${path}/prefixItems`, 'it must be a list of schemas');
    const items = first.slice(0, max).map((item, index) => child(item, `${path}/prefixItems/${index}`));
    if (items.length < min) {
      if (rest === false) throw new SchemaRefused(path, 'minItems asks for more items than there may be');
      if (min > 64) throw new SchemaRefused(path, 'minItems is too large beside prefixItems');
      while (items.length < min) items.push(child(rest ?? {}, `${path}/items`));
    }
    if (items.length === 0) return { enum: [[]] };
    return { type: 'array', prefixItems: items };
  }
  if (node.items === false || max === 0) {
    if (min > 0) throw new SchemaRefused(path, 'minItems asks for items that there may not be');
    return { enum: [[]] };
  }
  if (node.items !== undefined && node.items !== true && !isObject(node.items))
    throw new SchemaRefused(`${path}/items`, 'a schema must be an object');
  return {
    type: 'array',
    items: child(node.items ?? {}, `${path}/items`),
    ...(min === 0 ? {} : { minItems: min }),
    ...(max === Number.POSITIVE_INFINITY ? {} : { maxItems: max }),
  };
}
