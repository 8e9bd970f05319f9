/** Several schemas that must all hold, as one. */

export type Json = Record<string, unknown>;

export class SchemaRefused extends Error {
  /** Where in the schema, as a JSON pointer. */
  readonly path: string;
  constructor(path: string, why: string) {
    super(`${path.slice(0, 256)}: ${why}`);
    this.path = path;
  }
}

/** Words of a refusal that says: the model could not be held to this. */
export function cannotHold(path: string, what: string): SchemaRefused {
  return new SchemaRefused(path, `the answer could not be held to this: ${what}`);
}

export function isObject(value: unknown): value is Json {
  return value !== null && typeof value === 'object' && !Array.isArray(value);
}

export function without(node: Json, keys: string[]): Json {
  return Object.fromEntries(Object.entries(node).filter(([key]) => !keys.includes(key)));
}

const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b);
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : [value]);

/** Keywords of which the stricter of two counts. */
const STRICTER: Record<string, (a: number, b: number) => number> = {
  minimum: Math.max,
  exclusiveMinimum: Math.max,
  minLength: Math.max,
  minItems: Math.max,
  minProperties: Math.max,
  maximum: Math.min,
  exclusiveMaximum: Math.min,
  maxLength: Math.min,
  maxItems: Math.min,
  maxProperties: Math.min,
};

/** @throws SchemaRefused where two parts say different things of the same that cannot be put together. */
export function mergeAll(parts: unknown[], path: string): Json {
  return parts.reduce<Json>((merged, part) => {
    if (part === true) return merged;
    if (!isObject(part)) throw new SchemaRefused(path, 'a schema must be an object');
    return merge(merged, part, path);
  }, {});
}

function merge(a: Json, b: Json, path: string): Json {
  const out: Json = { ...a };
  for (const [key, value] of Object.entries(b)) {
    if (!Object.hasOwn(out, key)) out[key] = value;
    else out[key] = mergeKey(key, out[key], value, path);
  }
  // An object that is closed by one part has only the properties of that part.
  for (const [part, other] of [
    [a, b],
    [b, a],
  ] as const) {
    if (part.additionalProperties !== false || !isObject(other.properties) || !isObject(out.properties)) continue;
    const own = isObject(part.properties) ? part.properties : {};
    const gone = Object.keys(other.properties).filter((name) => !Object.hasOwn(own, name));
    out.properties = without(out.properties, gone);
  }
  return out;
}

function mergeKey(key: string, a: unknown, b: unknown, path: string): unknown {
  if (same(a, b)) return a;
  const stricter = STRICTER[key];
  if (stricter !== undefined && typeof a === 'number' && typeof b === 'number') return stricter(a, b);
  switch (key) {
    case 'title':
    case 'description':
    case 'default':
    case 'examples':
    case '$defs':
    case 'definitions':
      return b;
    case 'type': {
      const both = list(a).flatMap((one) =>
        list(b).includes(one)
          ? [one]
          : one === 'number' && list(b).includes('integer')
            ? ['integer']
            : one === 'integer' && list(b).includes('number')
              ? ['integer']
              : [],
      );
      if (both.length > 0) return both.length === 1 ? both[0] : both;
      break;
    }
    case 'required':
      return [...new Set([...list(a), ...list(b)])];
    case 'enum': {
      const both = list(a).filter((one) => list(b).some((other) => same(one, other)));
      if (both.length > 0) return both;
      break;
    }
    case 'properties':
      if (isObject(a) && isObject(b)) {
        const out: Json = { ...a };
        for (const [name, child] of Object.entries(b))
          out[name] = Object.hasOwn(out, name) ? { allOf: [out[name], child] } : child;
        return out;
      }
      break;
    case 'items':
      return { allOf: [a, b] };
    case 'additionalProperties':
      if (a === false || b === false) return false;
      if (a === true) return b;
      if (b === true) return a;
      return { allOf: [a, b] };
    case 'uniqueItems':
      return a === true || b === true;
  }
  throw new SchemaRefused(path, `two parts that must both hold give \`${key}\` differently; write them as one schema`);
}
