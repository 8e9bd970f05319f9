/** What JSON schema's keywords say about a schema before it is turned into anything. */
import { isObject, type Json, SchemaRefused } from './merge.ts';

/** Keywords that constrain a value; all others say something to people, or nothing at all. */
const CONSTRAINTS = new Set(
  `$ref $dynamicRef $recursiveRef type enum const allOf anyOf oneOf not if properties required additionalProperties
  patternProperties propertyNames minProperties maxProperties dependentRequired dependentSchemas dependencies
  unevaluatedProperties items prefixItems additionalItems contains minItems maxItems uniqueItems pattern minLength maxLength
  format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf`.split(/\s+/),
);

export function isAnnotation(key: string): boolean {
  return !CONSTRAINTS.has(key);
}

/** The types that a schema allows; null: it does not say. */
export function typesOf(node: Json, path: string): string[] | null {
  if (node.type === undefined) return null;
  const types = Array.isArray(node.type) ? node.type : [node.type];
  if (types.length === 0 || types.some((type) => typeof type !== 'string'))
    throw new SchemaRefused(`${path}/type`, 'it must be the name of a type or a list of them');
  // OpenAPI's way to say that null is allowed too; leaving it out admits less, which is right as well.
  return [...new Set(types as string[])];
}

export function alternativesOf(node: Json, path: string): { keyword: 'anyOf' | 'oneOf'; list: unknown[] } | null {
  if (node.anyOf !== undefined && node.oneOf !== undefined)
    throw new SchemaRefused(path, '`anyOf` and `oneOf` in one schema are not supported');
  const keyword = node.oneOf !== undefined ? 'oneOf' : 'anyOf';
  const list = node[keyword];
  if (list === undefined) return null;
  if (!Array.isArray(list) || list.length === 0)
    throw new SchemaRefused(`${path}/${keyword}`, 'it must be a list of schemas');
  return { keyword, list };
}

/** A grammar takes any alternative of `oneOf`: that is exactly one of them only if no value fits two. */
export function checkDisjoint(list: unknown[], path: string, cannot: (path: string, what: string) => void): void {
  for (const [index, a] of list.entries()) {
    for (const b of list.slice(index + 1)) {
      if (isObject(a) && isObject(b) && areDisjoint(a, b)) continue;
      cannot(
        path,
        'a value may fit two of the alternatives of `oneOf`; use `anyOf`, or a property with a `const` of its own in each',
      );
      return;
    }
  }
}

function areDisjoint(a: Json, b: Json): boolean {
  const [values, others] = [valuesOf(a), valuesOf(b)];
  if (values !== null && others !== null) {
    const texts = new Set(values.map((value) => JSON.stringify(value)));
    return !others.some((value) => texts.has(JSON.stringify(value)));
  }
  const [types, otherTypes] = [kindsOf(a), kindsOf(b)];
  if (types !== null && otherTypes !== null && !types.some((type) => otherTypes.includes(type))) return true;
  if (!isObject(a.properties) || !isObject(b.properties)) return false;
  const [required, otherRequired] = [namesOf(a.required), namesOf(b.required)];
  for (const name of required) {
    const mine = a.properties[name];
    const theirs = b.properties[name];
    if (theirs === undefined) {
      if (b.additionalProperties === false) return true;
    } else if (otherRequired.includes(name) && isObject(mine) && isObject(theirs) && areDisjoint(mine, theirs))
      return true;
  }
  return otherRequired.some((name) => (a.properties as Json)[name] === undefined && a.additionalProperties === false);
}

function namesOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((name) => typeof name === 'string') : [];
}

function valuesOf(node: Json): unknown[] | null {
  if (node.const !== undefined) return [node.const];
  return Array.isArray(node.enum) ? node.enum : null;
}

/** Types, integers counted as numbers. */
function kindsOf(node: Json): string[] | null {
  const values = valuesOf(node);
  if (values !== null)
    return values.map((value) => (value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value));
  if (node.type === undefined) return null;
  return (Array.isArray(node.type) ? node.type : [node.type]).map((type) =>
    type === 'integer' ? 'number' : String(type),
  );
}
