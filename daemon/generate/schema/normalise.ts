/**
 * A JSON schema as its author wrote it → one that the grammar keeps to the letter. libllama's converter leaves out in silence
 * what it has no grammar for, so that "constrained by the schema" would mean "constrained by most of it": here everything that
 * constrains is either put into a form which it does keep, or the schema is refused with the place and the reason. The result
 * may admit less than the source (properties that are not listed are left out where the schema lists others), never more.
 */

import { alternativesOf, checkDisjoint, isAnnotation, typesOf } from './keywords.ts';
import { arrayOf, integerOf, numberOf, stringOf } from './leaves.ts';
import { SCHEMA_LIMITS } from './limits.ts';
import { cannotHold, isObject, type Json, mergeAll, SchemaRefused, without } from './merge.ts';

export interface NormaliseOptions {
  /**
   * False: what cannot be kept to is left to the model, as OpenAI does without `strict`; only a schema that makes no sense is refused.
   */
  strict: boolean;
  /** Begins the names of definitions, so that several schemas can be put into one. */
  prefix?: string;
}

export interface NormalisedSchema {
  schema: Json;
  /** Definitions that `schema` refers to as `#/$defs/NAME`. */
  definitions: Record<string, Json>;
}

/** @throws SchemaRefused */
export function normaliseSchema(source: unknown, options: NormaliseOptions): NormalisedSchema {
  return new Normaliser(source, options).run();
}

/** The whole as one document. */
export function asDocument({ schema, definitions }: NormalisedSchema): Json {
  return Object.keys(definitions).length === 0 ? schema : { ...schema, $defs: definitions };
}

/** What a value of a type may be if nothing else is said. */
const ANY_TYPES = ['object', 'array', 'string', 'number', 'boolean', 'null'];

class Normaliser {
  private readonly source: unknown;
  private readonly strict: boolean;
  private readonly prefix: string;
  private readonly definitions: Record<string, Json> = {};
  private readonly nameOf = new Map<string, string>();
  /** Definition → those that it begins with, without anything in between. */
  private readonly begins = new Map<string, Set<string>>();
  private nodes = 0;

  constructor(source: unknown, { strict, prefix = '' }: NormaliseOptions) {
    this.source = source;
    this.strict = strict;
    this.prefix = prefix;
  }

  run(): NormalisedSchema {
    const schema = this.node(this.source, '#', 0, null);
    this.checkEnds();
    // An empty schema is none for the converter; here it still means JSON.
    return {
      schema: saysNothing(schema) ? { ...schema, type: ANY_TYPES } : schema,
      definitions: this.definitions,
    };
  }

  /** In strict schemas what cannot be kept to ends it here; in others it is left out. */
  private readonly cannot = (path: string, what: string): void => {
    if (this.strict) throw cannotHold(path, what);
  };

  /**
   * `head`: the definition whose text this node begins; null below a property or an item, and in the root.
   * What is said to the reader is kept: templates that know tools show it to the model.
   */
  private node(source: unknown, path: string, depth: number, head: string | null): Json {
    const node = this.constraints(source, path, depth, head);
    if (!isObject(source)) return node;
    for (const key of ['title', 'description']) {
      if (typeof source[key] === 'string') node[key] ??= source[key];
    }
    return node;
  }

  private constraints(source: unknown, path: string, depth: number, head: string | null): Json {
    this.nodes += 1;
    if (this.nodes > SCHEMA_LIMITS.nodesMax)
      throw new SchemaRefused(path, `the schema consists of more than ${SCHEMA_LIMITS.nodesMax} schemas`);
    if (depth > SCHEMA_LIMITS.depthMax)
      throw new SchemaRefused(path, `schemas are nested deeper than ${SCHEMA_LIMITS.depthMax}`);
    if (source === true) return {};
    if (source === false) throw new SchemaRefused(path, 'the schema `false` fits nothing');
    if (!isObject(source)) throw new SchemaRefused(path, 'a schema must be an object');
    let node: Json = source;
    if (node.$ref !== undefined) {
      const rest = without(node, ['$ref']);
      const target = this.reference(node.$ref, path);
      if (Object.keys(rest).every(isAnnotation)) return { $ref: this.define(node.$ref as string, path, depth, head) };
      node = mergeAll([target, rest], path);
      return this.node(node, path, depth + 1, head);
    }
    if (node.allOf !== undefined) return this.node(this.flatten(node, path, 0), path, depth + 1, head);
    const alternatives = alternativesOf(node, path);
    if (alternatives !== null) return this.anyOf(node, alternatives, path, depth, head);
    this.refuseUnsupported(node, path);
    if (node.const !== undefined || node.enum !== undefined) return this.enumeration(node, path);
    const types = typesOf(node, path);
    if (types !== null && types.length > 1)
      return {
        anyOf: types.map((type) => this.node({ ...node, type }, path, depth + 1, head)),
      };
    const type = types === null ? impliedType(node) : (types[0] as string);
    switch (type) {
      case null:
        return {};
      case 'object':
        return this.object(node, path, depth);
      case 'array':
        return arrayOf(node, path, this.cannot, (child, at) => this.node(child, at, depth + 1, null));
      case 'string':
        return stringOf(node, path, this.cannot);
      case 'integer':
        return integerOf(node, path, this.cannot);
      case 'number':
        return numberOf(node, path, this.cannot);
      case 'boolean':
      case 'null':
        return { type };
      default:
        throw new SchemaRefused(path, `there is no type "${String(type).slice(0, 64)}"`);
    }
  }

  // --- references ------------------------------------------------------------------------------------------------

  private reference(ref: unknown, path: string): unknown {
    if (typeof ref !== 'string' || !(ref === '#' || ref.startsWith('#/')))
      throw new SchemaRefused(path, 'a $ref must point into the same schema, as in "#/$defs/name"');
    let target: unknown = this.source;
    for (const part of ref.split('/').slice(1)) {
      let key: string;
      try {
        key = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~');
      } catch {
        key = part;
      }
      if (target === null || typeof target !== 'object' || !Object.hasOwn(target, key))
        throw new SchemaRefused(path, `$ref ${JSON.stringify(ref.slice(0, 128))} points to nothing`);
      target = (target as Record<string, unknown>)[key];
    }
    return target;
  }

  /** The reference to a definition of its own; made when it is first met. */
  private define(ref: string, path: string, depth: number, head: string | null): string {
    let name = this.nameOf.get(ref);
    if (name === undefined) {
      name = `${this.prefix}d${this.nameOf.size}`;
      this.nameOf.set(ref, name);
      this.begins.set(name, new Set());
      const node = this.node(this.reference(ref, path), ref, depth + 1, name);
      this.definitions[name] = saysNothing(node) ? { ...node, type: ANY_TYPES } : node;
    }
    if (head !== null) this.begins.get(head)?.add(name);
    return `#/$defs/${name}`;
  }

  /** A definition that begins with itself has no end. */
  private checkEnds(): void {
    const state = new Map<string, 'open' | 'done'>();
    const visit = (name: string): void => {
      if (state.get(name) === 'done') return;
      if (state.get(name) === 'open') {
        const ref = [...this.nameOf].find(([, known]) => known === name)?.[0] ?? name;
        throw new SchemaRefused(ref, 'it refers to itself without anything in between');
      }
      state.set(name, 'open');
      for (const next of this.begins.get(name) ?? []) visit(next);
      state.set(name, 'done');
    };
    for (const name of this.begins.keys()) visit(name);
  }

  /** `allOf` and what stands beside it as one schema. */
  private flatten(source: Json, path: string, depth: number): Json {
    if (depth > SCHEMA_LIMITS.depthMax)
      throw new SchemaRefused(path, `schemas are nested deeper than ${SCHEMA_LIMITS.depthMax}`);
    if (!Array.isArray(source.allOf) || source.allOf.length === 0)
      throw new SchemaRefused(`${path}/allOf`, 'it must be a list of schemas');
    const parts = source.allOf.map((part: unknown, index) => {
      const at = `${path}/allOf/${index}`;
      let child = part === true ? {} : part;
      for (let hops = 0; isObject(child) && child.$ref !== undefined; hops++) {
        if (hops > SCHEMA_LIMITS.depthMax) throw new SchemaRefused(at, 'it refers to itself without end');
        child = mergeAll([this.reference(child.$ref, at), without(child, ['$ref'])], at);
      }
      if (!isObject(child)) throw new SchemaRefused(at, 'a schema must be an object');
      return child.allOf === undefined ? child : this.flatten(child, at, depth + 1);
    });
    return mergeAll([without(source, ['allOf']), ...parts], path);
  }

  // --- kinds -----------------------------------------------------------------------------------------------------

  private anyOf(
    node: Json,
    { keyword, list }: { keyword: 'anyOf' | 'oneOf'; list: unknown[] },
    path: string,
    depth: number,
    head: string | null,
  ): Json {
    const beside = without(node, [keyword]);
    const constrains = Object.keys(beside).some((key) => !isAnnotation(key));
    const resolve = (child: unknown, at: string): unknown =>
      isObject(child) && child.$ref !== undefined && Object.keys(without(child, ['$ref'])).every(isAnnotation)
        ? this.reference(child.$ref, at)
        : child;
    if (keyword === 'oneOf') {
      const whole = list.map((child, index) => resolve(child, `${path}/oneOf/${index}`));
      checkDisjoint(whole, `${path}/oneOf`, this.cannot);
    }
    const anyOf = list.map((child, index) => {
      const at = `${path}/${keyword}/${index}`;
      // What stands beside alternatives holds for each of them.
      const whole = constrains ? mergeAll([beside, child === true ? {} : resolve(child, at)], at) : child;
      return this.node(whole, at, depth + 1, head);
    });
    if (anyOf.some(saysNothing)) return {};
    return anyOf.length === 1 ? (anyOf[0] as Json) : { anyOf };
  }

  /** Keywords that hold for every type, and that no grammar keeps to. */
  private refuseUnsupported(node: Json, path: string): void {
    for (const key of ['not', 'if', '$dynamicRef', '$recursiveRef']) {
      if (node[key] !== undefined) this.cannot(`${path}/${key}`, `\`${key}\` is not supported`);
    }
  }

  private enumeration(node: Json, path: string): Json {
    const listed = node.enum === undefined ? [node.const] : node.enum;
    if (!Array.isArray(listed) || listed.length === 0)
      throw new SchemaRefused(`${path}/enum`, 'it must be a list of at least one value');
    const types = typesOf(node, path);
    let values = types === null ? listed : listed.filter((value) => types.some((type) => isOfType(value, type)));
    if (node.enum !== undefined && node.const !== undefined)
      values = values.filter((value) => JSON.stringify(value) === JSON.stringify(node.const));
    if (values.length === 0) throw new SchemaRefused(path, 'no value of the list is of the type that is asked for');
    const beside = Object.keys(without(node, ['enum', 'const', 'type'])).filter((key) => !isAnnotation(key));
    if (beside.length > 0) this.cannot(path, `\`${beside[0]}\` beside a list of values is not supported`);
    return { enum: values };
  }

  private object(node: Json, path: string, depth: number): Json {
    const given = node.properties ?? {};
    if (!isObject(given)) throw new SchemaRefused(`${path}/properties`, 'it must be an object of schemas');
    const required = node.required === undefined ? [] : node.required;
    if (!Array.isArray(required) || required.some((name) => typeof name !== 'string'))
      throw new SchemaRefused(`${path}/required`, 'it must be a list of names');
    const additional = node.additionalProperties;
    const closed = additional === false || node.unevaluatedProperties === false;
    const properties: [string, Json][] = [];
    for (const [name, child] of Object.entries(given)) {
      // A property that must not be there is left out.
      if (child === false && !required.includes(name)) continue;
      properties.push([name, this.node(child, `${path}/properties/${name}`, depth + 1, null)]);
    }
    for (const name of new Set(required as string[])) {
      if (Object.hasOwn(given, name)) continue;
      if (closed) throw new SchemaRefused(path, `"${name}" is required and not among the properties`);
      properties.push([name, this.node(additional ?? {}, `${path}/additionalProperties`, depth + 1, null)]);
    }
    for (const key of ['patternProperties', 'propertyNames', 'dependentRequired', 'dependentSchemas', 'dependencies']) {
      if (isObject(node[key]) && Object.keys(node[key] as Json).length > 0)
        this.cannot(`${path}/${key}`, `\`${key}\` is not supported`);
    }
    const open = properties.length === 0 && !closed;
    const names = new Set(required);
    if (typeof node.minProperties === 'number' && node.minProperties > names.size)
      this.cannot(
        `${path}/minProperties`,
        'more properties than are `required` cannot be counted; list them as required',
      );
    if (typeof node.maxProperties === 'number' && (open || node.maxProperties < properties.length))
      this.cannot(`${path}/maxProperties`, 'properties cannot be counted; list them and close the object');
    if (properties.length - names.size > SCHEMA_LIMITS.optionalPropertiesMax)
      throw new SchemaRefused(
        path,
        `it has more than ${SCHEMA_LIMITS.optionalPropertiesMax} optional properties; make some of them required`,
      );
    return {
      type: 'object',
      properties: Object.fromEntries(properties),
      required: [...names],
      additionalProperties:
        open && additional !== undefined && additional !== true
          ? this.node(additional, `${path}/additionalProperties`, depth + 1, null)
          : open,
    };
  }
}

function saysNothing(node: Json): boolean {
  return Object.keys(node).every(isAnnotation);
}

function isOfType(value: unknown, type: string): boolean {
  switch (type) {
    case 'null':
      return value === null;
    case 'integer':
      return Number.isInteger(value);
    case 'array':
      return Array.isArray(value);
    case 'object':
      return isObject(value);
    default:
      return { string: 'string', number: 'number', boolean: 'boolean' }[type] === typeof value;
  }
}

/** The type whose keywords a schema without `type` has: what is not of that type would fit as well, and is left out. */
function impliedType(node: Json): string | null {
  const has = (...keys: string[]) => keys.some((key) => node[key] !== undefined);
  if (
    has(
      'properties',
      'required',
      'additionalProperties',
      'patternProperties',
      'minProperties',
      'maxProperties',
      'propertyNames',
    )
  )
    return 'object';
  if (has('items', 'prefixItems', 'minItems', 'maxItems', 'uniqueItems', 'contains')) return 'array';
  if (has('pattern', 'minLength', 'maxLength') || typeof node.format === 'string') return 'string';
  if (has('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf')) return 'number';
  return null;
}
