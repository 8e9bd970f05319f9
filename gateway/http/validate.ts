/** Turns zod's issues into OpenAI's errors: 400, `param` as a path (`messages[0].content`), and OpenAI's code words. */
import { z } from '@hono/zod-openapi';
import { type ApiError, badRequest } from '../errors.ts';

type Issue = z.core.$ZodIssue;
type Path = readonly PropertyKey[];

export function parseWith<S extends z.ZodType>(schema: S, value: unknown): z.output<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw issueError(value, result.error.issues);
}

export function issueError(input: unknown, issues: readonly Issue[]): ApiError {
  const { issue, path } = deepest(issues[0] as Issue, []);
  const param = paramOf(path);
  const given = at(input, path);
  if (given === undefined && issue.code !== 'unrecognized_keys' && issue.code !== 'custom') {
    return badRequest(param, 'missing_required_parameter', `Missing required parameter: '${param}'.`);
  }
  return badRequest(param, codeOf(issue), `Invalid '${param}': ${messageOf(issue, given)}`);
}

/** A union fails with one list of issues per alternative; the alternative that got furthest is the one that was meant. */
function deepest(issue: Issue, prefix: Path): { issue: Issue; path: Path } {
  const path = [...prefix, ...issue.path];
  if (issue.code !== 'invalid_union') return { issue, path };
  // A discriminated union that knows no such member fails at the discriminator, without alternatives.
  if (issue.errors.length === 0) return { issue, path };
  let best: { issue: Issue; path: Path; rank: number } | null = null;
  for (const branch of issue.errors) {
    if (branch[0] === undefined) continue;
    const found = deepest(branch[0] as Issue, path);
    // An alternative that failed on its own bounds was of the right type; otherwise the deeper failure is the nearer miss.
    const rank = (isOfAnother(found.issue) ? 0 : 1000) + found.path.length;
    if (best === null || rank > best.rank) best = { ...found, rank };
  }
  if (best === null || (best.path.length === path.length && isOfAnother(best.issue))) return { issue, path };
  return best;
}

/** The value is of another type than this alternative, or not one of its words. */
const isOfAnother = ({ code }: Issue) => code === 'invalid_type' || code === 'invalid_value';

/** The name of integers in OpenAI's codes (integer_above_max_value); zod's own issues do not tell them from decimals. */
const INTEGER = 'integer';

export function integer(min: number, max: number): z.ZodInt {
  return z.int(INTEGER).min(min, INTEGER).max(max, INTEGER);
}

export function paramOf(path: readonly PropertyKey[]): string {
  let text = '';
  for (const part of path)
    text += typeof part === 'number' ? `[${part}]` : text === '' ? String(part) : `.${String(part)}`;
  return text === '' ? 'body' : text.slice(0, 256);
}

function at(value: unknown, path: Path): unknown {
  let current = value;
  for (const part of path) {
    if (typeof current !== 'object' || current === null) return undefined;
    current = (current as Record<PropertyKey, unknown>)[part];
  }
  return current;
}

function codeOf(issue: Issue): string {
  switch (issue.code) {
    case 'invalid_type':
      return 'invalid_type';
    case 'too_big':
      return `${kind(issue)}_above_max_${issue.origin === 'string' || issue.origin === 'array' ? 'length' : 'value'}`;
    case 'too_small':
      if (issue.origin === 'array' && Number(issue.minimum) === 1) return 'empty_array';
      return `${kind(issue)}_below_min_${issue.origin === 'string' || issue.origin === 'array' ? 'length' : 'value'}`;
    case 'invalid_union':
      // Where words are among what it can be, it is one that is not known.
      return issue.errors.length === 0 || issue.errors.some(([first]) => first?.code === 'invalid_value')
        ? 'invalid_value'
        : 'invalid_type';
    default:
      return 'invalid_value';
  }
}

function kind(issue: { origin: string; message: string }): string {
  if (issue.origin === 'number' || issue.origin === 'int') return issue.message === INTEGER ? 'integer' : 'decimal';
  return issue.origin;
}

/** What an alternative takes, in words; null: that cannot be said in a few. */
function formOf(issue: Issue | undefined): string | null {
  if (issue?.code === 'invalid_value') return issue.values.map((value) => JSON.stringify(value)).join(', ');
  if (issue?.code !== 'invalid_type') return null;
  const integral = issue.expected === 'int' || issue.message === INTEGER;
  return integral ? 'an integer' : `${/^[aeiou]/.test(issue.expected) ? 'an' : 'a'} ${issue.expected}`;
}

function messageOf(issue: Issue, given: unknown): string {
  const got =
    given === null
      ? 'null'
      : Array.isArray(given)
        ? 'an array'
        : typeof given === 'number'
          ? String(given)
          : `a value of type ${typeof given}`;
  switch (issue.code) {
    case 'invalid_type':
      return `expected ${issue.expected}, but got ${got}.`;
    case 'invalid_union': {
      const forms = issue.errors.map(([first]) => formOf(first));
      if (forms.length > 0 && forms.every((form) => form !== null))
        return `expected ${forms.join(' or ')}, but got ${got}.`;
      return issue.message === 'Invalid input' ? `none of the accepted forms fits ${got}.` : `${issue.message}.`;
    }
    case 'too_big':
      return issue.origin === 'array' || issue.origin === 'string'
        ? `at most ${issue.maximum} long.`
        : issue.inclusive === false
          ? `must be less than ${issue.maximum}.`
          : `must be at most ${issue.maximum}.`;
    case 'too_small':
      return issue.origin === 'array' || issue.origin === 'string'
        ? `at least ${issue.minimum} long.`
        : issue.inclusive === false
          ? `must be greater than ${issue.minimum}.`
          : `must be at least ${issue.minimum}.`;
    case 'invalid_value':
      return `must be one of ${issue.values.map((value) => JSON.stringify(value)).join(', ')}.`;
    default:
      return issue.message.endsWith('.') ? issue.message : `${issue.message}.`;
  }
}
