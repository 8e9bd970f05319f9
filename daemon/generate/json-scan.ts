/** Reads JSON that may end anywhere: what is there so far. Between tokens of JSON, white space is skipped. */
export class JsonScan {
  private readonly text: string;
  private at = 0;

  constructor(text: string) {
    this.text = text;
  }

  /** Is this character next? Then it is behind us. */
  take(character: string): boolean {
    this.space();
    if (this.text[this.at] !== character) return false;
    this.at += 1;
    return true;
  }

  /** A string, decoded as far as it can be; null if something else is next. */
  string(): { value: string; whole: boolean } | null {
    this.space();
    const start = this.at;
    if (this.text[start] !== '"') return null;
    const end = this.stringEnd(start);
    this.at = end ?? this.text.length;
    const body = end === null ? wholeEscapes(this.text.slice(start + 1)) : this.text.slice(start + 1, end - 1);
    try {
      return { value: JSON.parse(`"${body}"`) as string, whole: end !== null };
    } catch {
      return null;
    }
  }

  /** The text of the next value, to its end or that of the text. */
  raw(): string {
    this.space();
    const start = this.at;
    let depth = 0;
    while (this.at < this.text.length) {
      const character = this.text[this.at] as string;
      if (character === '"') {
        this.at = this.stringEnd(this.at) ?? this.text.length;
        if (depth === 0) break;
        continue;
      }
      if (character === '{' || character === '[') depth += 1;
      else if (character === '}' || character === ']') {
        // It closes what the value stands in.
        if (depth === 0) break;
        depth -= 1;
        if (depth === 0) {
          this.at += 1;
          break;
        }
      } else if (depth === 0 && /[,\s]/.test(character)) break;
      this.at += 1;
    }
    return this.text.slice(start, this.at);
  }

  /** Behind the closing quote of the string that begins at `start`; null: it has none yet. */
  private stringEnd(start: number): number | null {
    for (let i = start + 1; i < this.text.length; i++) {
      if (this.text[i] === '\\') i += 1;
      else if (this.text[i] === '"') return i + 1;
    }
    return null;
  }

  private space(): void {
    while (/^[ \t\r\n]$/.test(this.text[this.at] ?? '')) this.at += 1;
  }
}

/** Without an escape at the end that is still being written, or half of a pair of them. */
function wholeEscapes(text: string): string {
  const last = /(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?$/.exec(text);
  if (last === null || last[0] === '') return text;
  // A backslash that another one escapes begins nothing.
  const before = /\\*$/.exec(text.slice(0, last.index))?.[0].length ?? 0;
  return before % 2 === 0 ? text.slice(0, last.index) : text;
}
