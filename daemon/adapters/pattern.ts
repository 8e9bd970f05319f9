/**
 * The regular expressions of adapter configurations, matched in time linear in text × pattern: they come from strangers,
 * and a backtracking engine can be made to hang by them. Thompson's construction, simulated state set by state set
 * (Russ Cox, "Regular Expression Matching Can Be Simple And Fast"). The subset: literals, `.`, classes, `\d \w \s \b`,
 * groups, `|`, `* + ? {m,n}` (lazy or not: only whether it matches counts), `^` and `$`. What is beyond (look-around,
 * back-references, inline flags) is refused.
 */
import { ADAPTER_LIMITS } from './limits.ts';

export class PatternError extends Error {}

type Test = (code: number) => boolean;
type Node =
  | { kind: 'char'; test: Test }
  | { kind: 'assert'; what: '^' | '$' | 'b' | 'B' }
  | { kind: 'sequence'; items: Node[] }
  | { kind: 'choice'; options: Node[] }
  | { kind: 'repeat'; item: Node; min: number; max: number };

type Instruction =
  | { op: 'char'; test: Test }
  | { op: 'assert'; what: '^' | '$' | 'b' | 'B' }
  | { op: 'split'; left: number; right: number }
  | { op: 'jump'; to: number }
  | { op: 'match' };

export interface Pattern {
  /** Like Python's `re.fullmatch`. */
  matchesAll(text: string): boolean;
  /** Like `re.match(r"(.*\.)?(PATTERN)$", text)`: PEFT's way to find a module by the end of its name. */
  matchesModule(text: string): boolean;
}

/** @throws PatternError with a clause that says what is wrong. */
export function compilePattern(source: string): Pattern {
  if (source.length > ADAPTER_LIMITS.patternLengthMax) {
    throw new PatternError(`it has more than ${ADAPTER_LIMITS.patternLengthMax} characters`);
  }
  const compiler = new Compiler();
  compiler.emit(new Parser(source).parse());
  compiler.push({ op: 'match' });
  const program = compiler.program;
  const from = (text: string, start: number): boolean => run(program, text, start);
  return {
    matchesAll: (text) => from(text, 0),
    matchesModule(text) {
      for (let start = 0; start >= 0; ) {
        if (from(text, start)) return true;
        const dot = text.indexOf('.', start);
        start = dot < 0 ? -1 : dot + 1;
      }
      return false;
    },
  };
}

const isDigit: Test = (c) => c >= 0x30 && c <= 0x39;
const isWord: Test = (c) => isDigit(c) || (c >= 0x41 && c <= 0x5a) || (c >= 0x61 && c <= 0x7a) || c === 0x5f;
const isSpace: Test = (c) => c === 0x20 || (c >= 0x09 && c <= 0x0d);
const not =
  (test: Test): Test =>
  (c) =>
    !test(c);
const CLASSES: Record<string, Test> = {
  d: isDigit,
  D: not(isDigit),
  w: isWord,
  W: not(isWord),
  s: isSpace,
  S: not(isSpace),
};

class Parser {
  private readonly source: string;
  private at = 0;
  private depth = 0;

  constructor(source: string) {
    this.source = source;
  }

  parse(): Node {
    const node = this.choice();
    if (this.at < this.source.length) throw new PatternError('it has a ")" too many');
    return node;
  }

  private peek(): string {
    return this.source.charAt(this.at);
  }

  private choice(): Node {
    const options = [this.sequence()];
    while (this.peek() === '|') {
      this.at++;
      options.push(this.sequence());
    }
    return options.length === 1 ? (options[0] as Node) : { kind: 'choice', options };
  }

  private sequence(): Node {
    const items: Node[] = [];
    while (this.at < this.source.length && this.peek() !== '|' && this.peek() !== ')') items.push(this.repeated());
    return { kind: 'sequence', items };
  }

  private repeated(): Node {
    const item = this.atom();
    const bounds = this.quantifier();
    if (!bounds) return item;
    if (item.kind === 'assert') throw new PatternError('it repeats an anchor');
    if (this.peek() === '?') this.at++;
    if (this.quantifier()) throw new PatternError('it repeats a repetition');
    return { kind: 'repeat', item, ...bounds };
  }

  private quantifier(): { min: number; max: number } | null {
    const simple: Record<string, { min: number; max: number }> = {
      '*': { min: 0, max: Number.POSITIVE_INFINITY },
      '+': { min: 1, max: Number.POSITIVE_INFINITY },
      '?': { min: 0, max: 1 },
    };
    const found = simple[this.peek()];
    if (found) {
      this.at++;
      return found;
    }
    // Fixed and anchored, on at most a few digits: nothing here can backtrack.
    const counted = /^\{(\d{0,4})(,(\d{0,4}))?\}/.exec(this.source.slice(this.at, this.at + 12));
    if (!counted || counted[0] === '{}' || counted[0] === '{,}') return null;
    this.at += counted[0].length;
    const min = Number(counted[1] || 0);
    const max = counted[2] === undefined ? min : counted[3] ? Number(counted[3]) : Number.POSITIVE_INFINITY;
    if (max < min) throw new PatternError('it repeats at most less than at least');
    return { min, max };
  }

  private atom(): Node {
    const c = this.peek();
    this.at++;
    if (c === '(') return this.group();
    if (c === '[') return { kind: 'char', test: this.set() };
    if (c === '.') return { kind: 'char', test: (code) => code !== 0x0a };
    if (c === '^' || c === '$') return { kind: 'assert', what: c };
    if (c === '\\') return this.escape();
    if (c === '*' || c === '+' || c === '?') throw new PatternError(`it has a "${c}" with nothing before it`);
    return literal(c);
  }

  private group(): Node {
    if (this.peek() === '?') {
      const rest = this.source.slice(this.at, this.at + 80);
      const plain = /^\?:|^\?P<[A-Za-z_]\w{0,63}>/.exec(rest);
      if (!plain) throw new PatternError(`it uses "(${rest.slice(0, 3)}", which is not supported`);
      this.at += plain[0].length;
    }
    if (++this.depth > ADAPTER_LIMITS.patternDepthMax) throw new PatternError('its groups are nested too deeply');
    const node = this.choice();
    this.depth--;
    if (this.peek() !== ')') throw new PatternError('it has a "(" that is not closed');
    this.at++;
    return node;
  }

  private escape(): Node {
    const c = this.peek();
    this.at++;
    if (c === 'b' || c === 'B') return { kind: 'assert', what: c };
    if (c === 'A') return { kind: 'assert', what: '^' };
    if (c === 'Z') return { kind: 'assert', what: '$' };
    return { kind: 'char', test: escaped(c) };
  }

  private set(): Test {
    const negated = this.peek() === '^';
    if (negated) this.at++;
    const tests: Test[] = [];
    for (let first = true; first || this.peek() !== ']'; first = false) {
      if (this.at >= this.source.length) throw new PatternError('it has a "[" that is not closed');
      const low = this.setItem();
      if (low.code !== null && this.peek() === '-' && !['', ']'].includes(this.source.charAt(this.at + 1))) {
        this.at++;
        const high = this.setItem();
        if (high.code === null || high.code < low.code) throw new PatternError('it has a range that is none');
        const [from, to] = [low.code, high.code];
        tests.push((code) => code >= from && code <= to);
      } else {
        tests.push(low.test);
      }
    }
    this.at++;
    const any: Test = (code) => tests.some((test) => test(code));
    return negated ? not(any) : any;
  }

  /** `code` is null for classes such as \d, which can't begin or end a range. */
  private setItem(): { test: Test; code: number | null } {
    let c = this.peek();
    this.at++;
    if (c === '\\') {
      c = this.peek();
      this.at++;
      const test = escaped(c);
      return { test, code: CLASSES[c] ? null : c.charCodeAt(0) };
    }
    const code = c.charCodeAt(0);
    return { test: (other) => other === code, code };
  }
}

function literal(c: string): Node {
  const code = c.charCodeAt(0);
  return { kind: 'char', test: (other) => other === code };
}

function escaped(c: string): Test {
  const known = CLASSES[c];
  if (known) return known;
  if (c === '' || /[A-Za-z0-9]/.test(c)) throw new PatternError(`it uses "\\${c}", which is not supported`);
  const code = c.charCodeAt(0);
  return (other) => other === code;
}

/** Turns the tree into instructions; both their number and the work are bounded, so that counted repetition of nothing ends too. */
class Compiler {
  readonly program: Instruction[] = [];
  private work = 0;

  emit(node: Node): void {
    if (++this.work > 4 * ADAPTER_LIMITS.patternStatesMax) throw new PatternError('it is too large');
    if (node.kind === 'char') this.push({ op: 'char', test: node.test });
    else if (node.kind === 'assert') this.push({ op: 'assert', what: node.what });
    else if (node.kind === 'sequence') for (const item of node.items) this.emit(item);
    else if (node.kind === 'choice') this.choice(node.options);
    else this.repeat(node);
  }

  push(instruction: Instruction): number {
    if (this.program.length >= ADAPTER_LIMITS.patternStatesMax) throw new PatternError('it is too large');
    return this.program.push(instruction) - 1;
  }

  /** A split whose right side is still to be set; its left side is what comes next. */
  private split(): { op: 'split'; left: number; right: number } {
    const split = { op: 'split' as const, left: this.program.length + 1, right: 0 };
    this.push(split);
    return split;
  }

  private choice(options: readonly Node[]): void {
    const jumps: { op: 'jump'; to: number }[] = [];
    for (const [i, option] of options.entries()) {
      if (i === options.length - 1) {
        this.emit(option);
        break;
      }
      const split = this.split();
      this.emit(option);
      const jump = { op: 'jump' as const, to: 0 };
      this.push(jump);
      jumps.push(jump);
      split.right = this.program.length;
    }
    for (const jump of jumps) jump.to = this.program.length;
  }

  private repeat(node: { item: Node; min: number; max: number }): void {
    for (let i = 0; i < node.min; i++) this.emit(node.item);
    if (node.max === Number.POSITIVE_INFINITY) {
      const at = this.program.length;
      const split = this.split();
      this.emit(node.item);
      this.push({ op: 'jump', to: at });
      split.right = this.program.length;
      return;
    }
    const splits: { right: number }[] = [];
    for (let i = node.min; i < node.max; i++) {
      splits.push(this.split());
      this.emit(node.item);
    }
    for (const split of splits) split.right = this.program.length;
  }
}

/** True if the program matches `text` from `start` to its end. */
function run(program: readonly Instruction[], text: string, start: number): boolean {
  const seen = new Int32Array(program.length).fill(-1);
  let current = follow(program, [0], text, start, seen);
  for (let at = start; at < text.length; at++) {
    const next: number[] = [];
    for (const pc of current.chars) {
      const instruction = program[pc];
      if (instruction?.op === 'char' && instruction.test(text.charCodeAt(at))) next.push(pc + 1);
    }
    if (next.length === 0) return false;
    current = follow(program, next, text, at + 1, seen);
  }
  return current.matched;
}

/** All `char` instructions reachable from `starts` without reading; `seen` is stamped with the position. */
function follow(
  program: readonly Instruction[],
  starts: number[],
  text: string,
  at: number,
  seen: Int32Array,
): { chars: number[]; matched: boolean } {
  const chars: number[] = [];
  let matched = false;
  const stack = starts;
  for (let pc = stack.pop(); pc !== undefined; pc = stack.pop()) {
    if (seen[pc] === at) continue;
    seen[pc] = at;
    const instruction = program[pc] as Instruction;
    if (instruction.op === 'char') chars.push(pc);
    else if (instruction.op === 'match') matched = true;
    else if (instruction.op === 'jump') stack.push(instruction.to);
    else if (instruction.op === 'split') stack.push(instruction.left, instruction.right);
    else if (holds(instruction.what, text, at)) stack.push(pc + 1);
  }
  return { chars, matched };
}

function holds(what: '^' | '$' | 'b' | 'B', text: string, at: number): boolean {
  if (what === '^') return at === 0;
  if (what === '$') return at === text.length;
  const before = at > 0 && isWord(text.charCodeAt(at - 1));
  const after = at < text.length && isWord(text.charCodeAt(at));
  return (before !== after) === (what === 'b');
}
