/** Splits a byte stream into parsed NDJSON lines; bytes of a half line (or half a character) wait for the next chunk. */
export class NdjsonParser<T> {
  readonly #decoder = new TextDecoder('utf-8');
  readonly #lineCharactersMax: number;
  #rest = '';

  constructor(lineCharactersMax: number) {
    this.#lineCharactersMax = lineCharactersMax;
  }

  /** The lines completed by this chunk. @throws Error on a line that is not JSON or too long. */
  push(chunk: Uint8Array): T[] {
    const text = this.#rest + this.#decoder.decode(chunk, { stream: true });
    const values: T[] = [];
    let from = 0;
    for (let end = text.indexOf('\n'); end !== -1; end = text.indexOf('\n', from)) {
      if (end > from) values.push(JSON.parse(text.slice(from, end)) as T);
      from = end + 1;
    }
    this.#rest = from === 0 ? text : text.slice(from);
    if (this.#rest.length > this.#lineCharactersMax) throw new Error('a line of the daemon is longer than allowed');
    return values;
  }
}
