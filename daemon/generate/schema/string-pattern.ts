/**
 * The `pattern` of a JSON schema (an ECMA 262 regular expression that is searched for) as one that the grammar keeps to the
 * letter: anchored, only classes of code points, groups, `|` and quantifiers, and nothing that would end or break the JSON
 * string it stands in. Every text the result matches is also matched by the source; not always the other way round: a class
 * that has a quote, a backslash or a control character beside others loses it.
 */
import { SCHEMA_LIMITS } from './limits.ts';

export class PatternRefused extends Error {}

/** Code points from … to, both included. */
type Range = [from: number, to: number];
type Node =
  | { kind: 'set'; ranges: Range[] }
  | { kind: 'sequence'; items: Node[] }
  | { kind: 'choice'; options: Node[] }
  | { kind: 'repeat'; item: Node; min: number; max: number };

export interface StringPattern {
  /** The pattern in the form that the grammar understands; null: only the empty string. */
  pattern: string | null;
  /** Fewest and most characters (code points) of a text that matches; most may be Infinity. */
  lengthMin: number;
  lengthMax: number;
}

export interface LengthBounds {
  min: number;
  max: number;
}

/**
 * `bounds`: `minLength` and `maxLength` beside the pattern. They are kept where the pattern implies them or is one repeated character class.
 * @throws PatternRefused with a clause that says what cannot be kept to.
 */
export function stringPattern(source: string, bounds: LengthBounds = { min: 0, max: Infinity }): StringPattern {
  if (source.length > SCHEMA_LIMITS.patternCharactersMax)
    throw new PatternRefused(`it has more than ${SCHEMA_LIMITS.patternCharactersMax} characters`);
  let tree = new Parser(source).parse();
  let [lengthMin, lengthMax] = lengths(tree);
  if (lengthMin < bounds.min || lengthMax > bounds.max) {
    tree = withLengths(tree, bounds);
    [lengthMin, lengthMax] = lengths(tree);
  }
  const body = write(tree);
  return { pattern: body === '' ? null : `^${body}$`, lengthMin, lengthMax };
}

const LAST = 0x10ffff;
const DIGITS: Range[] = [[0x30, 0x39]];
const WORD: Range[] = [...DIGITS, [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]];
const SPACE: Range[] = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const NO_LINE_END: Range[] = complement([
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
]);
const ANYTHING: Node = { kind: 'repeat', item: { kind: 'set', ranges: [[0, LAST]] }, min: 0, max: Infinity };
const CLASSES: Record<string, Range[]> = {
  d: DIGITS,
  D: complement(DIGITS),
  w: WORD,
  W: complement(WORD),
  s: SPACE,
  S: complement(SPACE),
};
const CONTROLS: Record<string, number> = { t: 0x09, n: 0x0a, v: 0x0b, f: 0x0c, r: 0x0d };

function sorted(ranges: Range[]): Range[] {
  const out: Range[] = [];
  for (const [from, to] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const last = out.at(-1);
    if (last !== undefined && from <= last[1] + 1) last[1] = Math.max(last[1], to);
    else out.push([from, to]);
  }
  return out;
}

function complement(ranges: Range[]): Range[] {
  const out: Range[] = [];
  let next = 0;
  for (const [from, to] of sorted(ranges)) {
    if (from > next) out.push([next, from - 1]);
    next = to + 1;
  }
  if (next <= LAST) out.push([next, LAST]);
  return out;
}

class Parser {
  private readonly points: string[];
  private at = 0;
  private depth = 0;

  constructor(source: string) {
    this.points = [...source];
  }

  /** The whole pattern; each of its alternatives is anchored or searched for by itself. */
  parse(): Node {
    const options: Node[] = [];
    do {
      const begins = this.take('^');
      const items = this.sequence();
      const ends = this.take('$');
      if (!begins) items.unshift(ANYTHING);
      if (!ends) items.push(ANYTHING);
      options.push({ kind: 'sequence', items });
    } while (this.take('|'));
    if (this.at < this.points.length) {
      if (this.peek() === ')') throw new PatternRefused('it has a ")" too many');
      throw new PatternRefused('it has "^" or "$" in its middle');
    }
    return options.length === 1 ? (options[0] as Node) : { kind: 'choice', options };
  }

  private peek(): string | undefined {
    return this.points[this.at];
  }

  private take(point: string): boolean {
    if (this.peek() !== point) return false;
    this.at += 1;
    return true;
  }

  /** Up to `|`, `)`, `$` or the end. */
  private sequence(): Node[] {
    const items: Node[] = [];
    for (;;) {
      const point = this.peek();
      if (point === undefined || point === '|' || point === ')' || point === '$') return items;
      items.push(this.quantified(this.atom()));
    }
  }

  private atom(): Node {
    const point = this.points[this.at++] as string;
    switch (point) {
      case '^':
        throw new PatternRefused('it has "^" or "$" in its middle');
      case '*':
      case '+':
      case '?':
        throw new PatternRefused(`"${point}" has nothing to repeat`);
      case '.':
        return { kind: 'set', ranges: NO_LINE_END };
      case '(':
        return this.group();
      case '[':
        return { kind: 'set', ranges: this.characterClass() };
      case '\\':
        return { kind: 'set', ranges: this.escape(false) };
      default:
        return { kind: 'set', ranges: [single(point)] };
    }
  }

  private group(): Node {
    this.depth += 1;
    if (this.depth > SCHEMA_LIMITS.patternDepthMax)
      throw new PatternRefused(`its groups are nested deeper than ${SCHEMA_LIMITS.patternDepthMax}`);
    if (this.take('?') && !this.take(':')) {
      // A named group is a group.
      const name = /^<[A-Za-z_$][\w$]*>/.exec(this.points.slice(this.at, this.at + 64).join(''))?.[0];
      if (name === undefined) throw new PatternRefused('it looks ahead or behind, or sets flags');
      this.at += name.length;
    }
    const options: Node[] = [];
    do {
      options.push({ kind: 'sequence', items: this.sequence() });
    } while (this.take('|'));
    if (this.peek() === '$') throw new PatternRefused('it has "^" or "$" in its middle');
    if (!this.take(')')) throw new PatternRefused('a group does not end');
    this.depth -= 1;
    return options.length === 1 ? (options[0] as Node) : { kind: 'choice', options };
  }

  private quantified(item: Node): Node {
    let node = item;
    const point = this.peek();
    if (point === '*' || point === '+' || point === '?') {
      this.at += 1;
      node = { kind: 'repeat', item, min: point === '+' ? 1 : 0, max: point === '?' ? 1 : Infinity };
    } else if (point === '{') {
      const found = /^\{(\d{1,6})(,(\d{0,6}))?\}/.exec(this.points.slice(this.at, this.at + 16).join(''));
      if (found === null) throw new PatternRefused('a brace begins no quantifier; write "\\{" for the sign itself');
      const min = Number(found[1]);
      const max = found[2] === undefined ? min : found[3] === '' ? Infinity : Number(found[3]);
      if (max < min) throw new PatternRefused(`${found[0]} is out of order`);
      this.at += found[0].length;
      node = { kind: 'repeat', item, min, max };
    } else return node;
    // Lazy or not: only whether it matches counts.
    this.take('?');
    const next = this.peek();
    if (next === '*' || next === '+' || next === '?') throw new PatternRefused(`"${next}" has nothing to repeat`);
    return node;
  }

  private characterClass(): Range[] {
    const negated = this.take('^');
    const ranges: Range[] = [];
    while (!this.take(']')) {
      const from = this.classAtom();
      if (this.peek() === '-' && this.points[this.at + 1] !== ']' && this.points[this.at + 1] !== undefined) {
        this.at += 1;
        const to = this.classAtom();
        const [low, high] = [from[0]?.[0] ?? 0, to[0]?.[0] ?? 0];
        if (from.length !== 1 || to.length !== 1 || from[0]?.[1] !== low || to[0]?.[1] !== high || high < low)
          throw new PatternRefused('a range of a character class is out of order');
        ranges.push([low, high]);
      } else ranges.push(...from);
    }
    return negated ? complement(ranges) : ranges;
  }

  private classAtom(): Range[] {
    const point = this.points[this.at++];
    if (point === undefined) throw new PatternRefused('a character class does not end');
    return point === '\\' ? this.escape(true) : [single(point)];
  }

  private escape(inClass: boolean): Range[] {
    const point = this.points[this.at++];
    if (point === undefined) throw new PatternRefused('it ends with a backslash');
    const named = CLASSES[point];
    if (named !== undefined) return named;
    const control = CONTROLS[point];
    if (control !== undefined) return [[control, control]];
    if (point === 'x') return this.hex(/^[0-9a-fA-F]{2}/);
    if (point === 'u') return this.hex(this.peek() === '{' ? /^\{[0-9a-fA-F]{1,6}\}/ : /^[0-9a-fA-F]{4}/);
    if (/[A-Za-z0-9]/.test(point) && !(inClass && point === 'b'))
      throw new PatternRefused(`"\\${point}" is not supported`);
    if (point === 'b') return [[0x08, 0x08]];
    return [single(point)];
  }

  private hex(form: RegExp): Range[] {
    const found = form.exec(this.points.slice(this.at, this.at + 8).join(''))?.[0];
    if (found === undefined) throw new PatternRefused('an escape has too few digits');
    this.at += found.length;
    const code = Number.parseInt(found.replace(/[{}]/g, ''), 16);
    if (code > LAST || (code >= 0xd800 && code <= 0xdfff)) throw new PatternRefused('an escape is no character');
    return [[code, code]];
  }
}

function single(point: string): Range {
  const code = point.codePointAt(0) as number;
  return [code, code];
}

function lengths(node: Node): [min: number, max: number] {
  switch (node.kind) {
    case 'set':
      return [1, 1];
    case 'sequence':
      return node.items.map(lengths).reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
    case 'choice': {
      const all = node.options.map(lengths);
      return [Math.min(...all.map(([min]) => min)), Math.max(...all.map(([, max]) => max))];
    }
    case 'repeat': {
      const [min, max] = lengths(node.item);
      return [min * node.min, max === 0 || node.max === 0 ? 0 : max * node.max];
    }
  }
}

/** One repeated character class takes bounds over; anything else would need a counter beside the grammar. */
function withLengths(tree: Node, { min, max }: LengthBounds): Node {
  let node = tree;
  while (node.kind === 'sequence' && node.items.length === 1) node = node.items[0] as Node;
  if (node.kind === 'repeat' && node.item.kind === 'set') {
    const bounded = { ...node, min: Math.max(node.min, min), max: Math.min(node.max, max) };
    if (bounded.min <= bounded.max) return bounded;
  }
  throw new PatternRefused('minLength or maxLength beside it; say lengths in the pattern, as in {2,8}');
}

/** What stands in a JSON string as itself. */
const PLAIN: Range[] = [
  [0x20, 0x21],
  [0x23, 0x5b],
  [0x5d, 0x7e],
  [0x80, 0xd7ff],
  [0xe000, LAST],
];

function write(node: Node): string {
  switch (node.kind) {
    case 'set':
      return writeSet(node.ranges);
    case 'sequence':
      return node.items.map(write).join('');
    case 'choice': {
      const texts = [...new Set(node.options.map(write))];
      const full = texts.filter((text) => text !== '');
      if (full.length === 0) return '';
      return `(${full.join('|')})${full.length < texts.length ? '?' : ''}`;
    }
    case 'repeat': {
      const item = write(node.item);
      if (item === '' || node.max === 0) return '';
      const { min, max } = node;
      if (min === 1 && max === 1) return item;
      const count =
        max === Infinity && min < 2
          ? min === 0
            ? '*'
            : '+'
          : min === 0 && max === 1
            ? '?'
            : `{${min},${max === Infinity ? '' : max}}`;
      return `(${item})${count}`;
    }
  }
}

function writeSet(ranges: Range[]): string {
  const plain: Range[] = [];
  for (const [from, to] of sorted(ranges)) {
    for (const [low, high] of PLAIN) {
      if (from <= high && to >= low) plain.push([Math.max(from, low), Math.min(to, high)]);
    }
  }
  if (plain.length > 0) return `[${plain.map(writeRange).join('')}]`;
  const escapes = new Set<string>();
  for (const [from, to] of ranges) {
    for (let code = from; code <= to && escapes.size < 64; code++) escapes.add(writeEscape(code));
  }
  if (escapes.size === 0) throw new PatternRefused('a character class is empty');
  return `(${[...escapes].join('|')})`;
}

function writeRange([from, to]: Range): string {
  return from === to ? writeCode(from) : `${writeCode(from)}-${writeCode(to)}`;
}

function writeCode(code: number): string {
  const character = String.fromCodePoint(code);
  return /[A-Za-z0-9]/.test(character) ? character : `\\U${code.toString(16).toUpperCase().padStart(8, '0')}`;
}

/** The JSON escape of a character, its backslash escaped for the pattern. */
function writeEscape(code: number): string {
  if (code === 0x22) return '\\\\"';
  if (code === 0x5c) return '\\\\\\\\';
  return `\\\\u${code.toString(16).padStart(4, '0')}`;
}
