import type { TokenLogprob } from '../protocol.ts';

export interface TextStreamOptions {
  /** Strings that end the text; not part of it. */
  stops: string[];
  bytesOf: (token: number) => Uint8Array;
}

/** Text and log-probabilities that are decided since the last `take`. */
export interface TextPiece {
  text: string;
  logprobs: TokenLogprob[];
}

interface Entry {
  /** Where the token's text begins and ends, in UTF-16 units of the whole text. */
  start: number;
  end: number;
  logprob: TokenLogprob;
}

/**
 * Tokens in, text out. Characters that are spread over tokens are put together, and what could be the beginning of a
 * stop string is held back until it is decided, so that nothing ever has to be taken back.
 */
export class TextStream {
  private readonly stops: string[];
  private readonly bytesOf: (token: number) => Uint8Array;
  // A byte-order mark in the middle of an answer is text like any other.
  private readonly decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  private readonly pieces: string[] = [];
  private entries: Entry[] = [];
  /** Decoded and not yet decided. */
  private held = '';
  /** UTF-16 units that are decided. */
  private decided = 0;
  private fresh = '';
  private freshLogprobs: TokenLogprob[] = [];
  private done = false;

  constructor(options: TextStreamOptions) {
    this.stops = options.stops;
    this.bytesOf = options.bytesOf;
  }

  /** True if a stop string is complete: the text has ended, further tokens are ignored. */
  push(token: number, logprob: TokenLogprob | null): boolean {
    if (this.done) return true;
    const start = this.decided + this.held.length;
    this.held += this.decoder.decode(this.bytesOf(token), { stream: true });
    if (logprob !== null) this.entries.push({ start, end: this.decided + this.held.length, logprob });
    return this.settle();
  }

  /** No more tokens come: everything held back is text, half a character becomes U+FFFD. */
  end(): void {
    if (this.done) return;
    this.held += this.decoder.decode();
    if (this.settle()) return;
    this.release(this.held.length);
    this.done = true;
  }

  take(): TextPiece | null {
    if (this.fresh === '' && this.freshLogprobs.length === 0) return null;
    const piece = { text: this.fresh, logprobs: this.freshLogprobs };
    this.fresh = '';
    this.freshLogprobs = [];
    return piece;
  }

  /** All text decided so far. */
  get text(): string {
    if (this.pieces.length > 1) this.pieces.splice(0, this.pieces.length, this.pieces.join(''));
    return this.pieces[0] ?? '';
  }

  private settle(): boolean {
    if (this.stops.length === 0) {
      this.release(this.held.length);
      return false;
    }
    const at = this.firstStop();
    if (at < 0) {
      this.release(this.held.length - this.undecided());
      return false;
    }
    const cut = this.decided + at;
    this.entries = this.entries
      .filter((entry) => entry.start < cut)
      .map((entry) => ({ ...entry, end: Math.min(entry.end, cut) }));
    this.release(at);
    this.held = '';
    this.done = true;
    return true;
  }

  /**
   * Where the stop string begins that is complete first, −1 if none is: a generation ends at the first character that
   * completes any stop string, however tokens are cut. Of several that end there the longest is taken away whole.
   */
  private firstStop(): number {
    let at = -1;
    let end = Number.POSITIVE_INFINITY;
    for (const stop of this.stops) {
      const found = this.held.indexOf(stop);
      if (found < 0) continue;
      const foundEnd = found + stop.length;
      if (foundEnd > end || (foundEnd === end && found > at)) continue;
      at = found;
      end = foundEnd;
    }
    return at;
  }

  /** Length of the longest end of the held text that a stop string begins with. */
  private undecided(): number {
    let longest = 0;
    for (const stop of this.stops) {
      for (let n = Math.min(stop.length - 1, this.held.length); n > longest; n -= 1) {
        if (this.held.endsWith(stop.slice(0, n))) longest = n;
      }
    }
    return longest;
  }

  private release(units: number): void {
    if (units > 0) {
      const text = this.held.slice(0, units);
      this.held = this.held.slice(units);
      this.decided += units;
      this.fresh += text;
      this.pieces.push(text);
    }
    let n = 0;
    while (n < this.entries.length && (this.entries[n] as Entry).end <= this.decided) n += 1;
    for (const entry of this.entries.splice(0, n)) this.freshLogprobs.push(entry.logprob);
  }
}
