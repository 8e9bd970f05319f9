/** Writes random texts of a GBNF grammar (the form of llama.cpp), without a model: what a grammar admits is what a model may say. */

type Item =
  | { kind: 'literal'; text: string }
  | { kind: 'class'; ranges: [number, number][]; negated: boolean }
  | { kind: 'rule'; name: string }
  | { kind: 'choice'; options: Item[][] }
  | { kind: 'repeat'; item: Item; min: number; max: number };

export class Grammar {
  private readonly rules = new Map<string, Item>();

  constructor(source: string) {
    for (const line of source.split('\n')) {
      const found = /^([A-Za-z0-9-]+) ::= (.*)$/.exec(line);
      if (found === null) {
        if (line !== '') throw new Error(`no rule: ${line}`);
        continue;
      }
      const parser = new RuleParser(found[2] as string);
      this.rules.set(found[1] as string, parser.choice());
      parser.end();
    }
  }

  /** `random`: 0 ≤ x < 1. Beyond `steps` the shortest way out is taken. */
  write(random: () => number, steps = 400): string {
    let left = steps;
    const write = (item: Item, depth: number): string => {
      left -= 1;
      if (depth > 2000) throw new Error('the grammar does not end');
      const hurry = left < 0;
      switch (item.kind) {
        case 'literal':
          return item.text;
        case 'class':
          return character(item, random);
        case 'rule': {
          const rule = this.rules.get(item.name);
          if (rule === undefined) throw new Error(`there is no rule ${item.name}`);
          return write(rule, depth + 1);
        }
        case 'choice': {
          // Later alternatives are tried in turn by their length of description, the plainest first.
          const options = hurry ? [...item.options].sort((a, b) => weight(a) - weight(b)) : item.options;
          const option = options[hurry ? 0 : Math.floor(random() * options.length)] as Item[];
          return option.map((one) => write(one, depth + 1)).join('');
        }
        case 'repeat': {
          const extra = hurry ? 0 : Math.floor(random() * (Math.min(item.max, item.min + 4) - item.min + 1));
          return Array.from({ length: item.min + extra }, () => write(item.item, depth + 1)).join('');
        }
      }
    };
    return write({ kind: 'rule', name: 'root' }, 0);
  }
}

function weight(option: Item[]): number {
  return option.reduce(
    (sum, item) =>
      sum +
      (item.kind === 'literal'
        ? 0
        : item.kind === 'repeat' && item.min === 0
          ? 0
          : item.kind === 'rule' && !/null|boolean/.test(item.name)
            ? 10
            : 1),
    0,
  );
}

/** Of a negated class now and then what hurts: quotes, backslashes, control characters. */
const SHARP = [0x22, 0x5c, 0x0a, 0x00, 0x2f, 0x7f, 0x41, 0x71, 0xe9, 0x1f389, 0x5d, 0x2028];

function character(item: { ranges: [number, number][]; negated: boolean }, random: () => number): string {
  const inside = (code: number) => item.ranges.some(([from, to]) => code >= from && code <= to);
  for (let attempt = 0; attempt < 200; attempt++) {
    const code = SHARP[Math.floor(random() * SHARP.length)] as number;
    if (inside(code) !== item.negated && random() < 0.5) return String.fromCodePoint(code);
    if (!item.negated) {
      const [from, to] = item.ranges[Math.floor(random() * item.ranges.length)] as [number, number];
      const chosen = from + Math.floor(random() * (to - from + 1));
      if (chosen < 0xd800 || chosen > 0xdfff) return String.fromCodePoint(chosen);
    }
  }
  throw new Error('nothing fits a class');
}

class RuleParser {
  private readonly points: string[];
  private at = 0;

  constructor(text: string) {
    this.points = [...text];
  }

  end(): void {
    if (this.at < this.points.length) throw new Error(`left over: ${this.points.slice(this.at).join('')}`);
  }

  choice(): Item {
    const options = [this.sequence()];
    while (this.take('|')) options.push(this.sequence());
    return { kind: 'choice', options };
  }

  private space(): void {
    while (this.points[this.at] === ' ') this.at += 1;
  }

  private take(point: string): boolean {
    this.space();
    if (this.points[this.at] !== point) return false;
    this.at += 1;
    return true;
  }

  private sequence(): Item[] {
    const items: Item[] = [];
    for (;;) {
      this.space();
      const point = this.points[this.at];
      if (point === undefined || point === '|' || point === ')') return items;
      items.push(this.repeated(this.atom()));
    }
  }

  private repeated(item: Item): Item {
    const point = this.points[this.at];
    const counts = { '*': [0, 1e9], '+': [1, 1e9], '?': [0, 1] }[point ?? ''];
    if (counts !== undefined) {
      this.at += 1;
      return { kind: 'repeat', item, min: counts[0] as number, max: counts[1] as number };
    }
    if (point !== '{') return item;
    const end = this.points.indexOf('}', this.at);
    const [min, max] = this.points
      .slice(this.at + 1, end)
      .join('')
      .split(',');
    this.at = end + 1;
    return {
      kind: 'repeat',
      item,
      min: Number(min),
      max: max === undefined ? Number(min) : max === '' ? 1e9 : Number(max),
    };
  }

  private atom(): Item {
    if (this.take('(')) {
      const item = this.choice();
      if (!this.take(')')) throw new Error('a group does not end');
      return item;
    }
    const point = this.points[this.at];
    if (point === '"') {
      this.at += 1;
      let text = '';
      while (this.points[this.at] !== '"') text += String.fromCodePoint(this.code());
      this.at += 1;
      return { kind: 'literal', text };
    }
    if (point === '[') {
      this.at += 1;
      const negated = this.points[this.at] === '^';
      if (negated) this.at += 1;
      const ranges: [number, number][] = [];
      while (this.points[this.at] !== ']') {
        const from = this.code();
        if (this.points[this.at] === '-' && this.points[this.at + 1] !== ']') {
          this.at += 1;
          ranges.push([from, this.code()]);
        } else ranges.push([from, from]);
      }
      this.at += 1;
      return { kind: 'class', ranges, negated };
    }
    if (point === '.') {
      this.at += 1;
      return { kind: 'class', ranges: [[0, 0x10ffff]], negated: false };
    }
    const name = /^[A-Za-z0-9-]+/.exec(this.points.slice(this.at, this.at + 400).join(''))?.[0];
    if (name === undefined) throw new Error(`not understood: ${this.points.slice(this.at).join('')}`);
    this.at += name.length;
    return { kind: 'rule', name };
  }

  private code(): number {
    const point = this.points[this.at++];
    if (point === undefined) throw new Error('a literal or class does not end');
    if (point !== '\\') return point.codePointAt(0) as number;
    const kind = this.points[this.at++] as string;
    const digits = { x: 2, u: 4, U: 8 }[kind];
    if (digits === undefined) return { t: 9, n: 10, r: 13 }[kind] ?? (kind.codePointAt(0) as number);
    const code = Number.parseInt(this.points.slice(this.at, this.at + digits).join(''), 16);
    this.at += digits;
    return code;
  }
}
