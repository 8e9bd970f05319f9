/** What is wrong with a data set: every problem is counted by its rule, the first hundred are told in full. */
import { limits } from '../../limits.ts';

export interface Problem {
  /** From 1; null: the file as a whole. */
  line: number | null;
  /** Path of the field in the record: messages[1].role. */
  field: string | null;
  rule: string;
  severity: 'error' | 'warning';
  message: string;
}

export class Problems {
  readonly #listed: Record<Problem['severity'], Problem[]> = { error: [], warning: [] };
  readonly #counts: Record<Problem['severity'], number> = { error: 0, warning: 0 };
  readonly #rules = new Map<string, number>();

  add(problem: Problem): void {
    const { severity, rule } = problem;
    this.#counts[severity] += 1;
    this.#rules.set(rule, (this.#rules.get(rule) ?? 0) + 1);
    if (this.#listed[severity].length < limits.datasetProblemsMax) this.#listed[severity].push(problem);
  }

  get errors(): number {
    return this.#counts.error;
  }

  get warnings(): number {
    return this.#counts.warning;
  }

  /** Errors first. */
  list(): Problem[] {
    return [...this.#listed.error, ...this.#listed.warning].slice(0, limits.datasetProblemsMax);
  }

  counts(): Record<string, number> {
    return Object.fromEntries(this.#rules);
  }
}

/** Tells problems of one line; remembers whether one of them was an error. */
export class LineProblems {
  readonly #problems: Problems;
  readonly line: number;
  bad = false;

  constructor(problems: Problems, line: number) {
    this.#problems = problems;
    this.line = line;
  }

  error(field: string | null, rule: string, message: string): void {
    this.bad = true;
    this.#problems.add({ line: this.line, field, rule, severity: 'error', message });
  }

  warn(field: string | null, rule: string, message: string): void {
    this.#problems.add({ line: this.line, field, rule, severity: 'warning', message });
  }
}

export function typeName(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  return value === undefined ? 'nothing' : typeof value;
}

/** A value of the user's in a message: short, quoted, on one line. */
export function quoted(value: unknown): string {
  const text = typeof value === 'string' ? value : typeName(value);
  return JSON.stringify(text.length > 48 ? `${text.slice(0, 48)}…` : text);
}
