/** Engine events → text_completion, streamed and whole. Choice index = prompt × n + choice. */
import type { GenerateEvent, TokenLogprob, Usage } from '../../daemon/protocol.ts';
import { type AnswerHead, usageOf } from './chat-stream.ts';

/** Where each token of a choice begins in its text, in characters as JavaScript counts them. */
export class TextOffsets {
  // Tokens may hold parts of a character: it counts where its first part is.
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  #offset: number;

  /** `start`: characters before the first token, those of a prompt that is repeated. */
  constructor(start: number) {
    this.#offset = start;
  }

  /** @returns where this token begins; the next one begins behind the characters that it completes. */
  next(bytes: readonly number[]): number {
    const at = this.#offset;
    this.#offset += this.#decoder.decode(Uint8Array.from(bytes), { stream: true }).length;
    return at;
  }
}

/** A token's text; one that holds a part of a character is told by its bytes, as OpenAI does. */
function tokenText({ token, bytes }: { token: string; bytes: number[] }): string {
  if (!token.includes('\ufffd') || new TextEncoder().encode(token).length === bytes.length) return token;
  return `bytes:${bytes.map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`;
}

/** The legacy shape: parallel arrays, offsets in characters of the choice's text, the sampled token always in its own top list. */
export class LegacyLogprobs {
  readonly tokens: string[] = [];
  readonly token_logprobs: number[] = [];
  readonly top_logprobs: Record<string, number>[] = [];
  readonly text_offset: number[] = [];

  add(tokens: TokenLogprob[], offsets: TextOffsets): void {
    for (const entry of tokens) {
      const text = tokenText(entry);
      this.tokens.push(text);
      this.token_logprobs.push(entry.logprob);
      const best: Record<string, number> = {};
      for (const other of entry.top) best[tokenText(other)] = other.logprob;
      best[text] = entry.logprob;
      this.top_logprobs.push(best);
      this.text_offset.push(offsets.next(entry.bytes));
    }
  }
}

function finishOf(event: Extract<GenerateEvent, { type: 'finish' }>): 'stop' | 'length' {
  return event.reason === 'length' ? 'length' : 'stop';
}

export class CompletionChunkEncoder {
  readonly #head: string;
  readonly #suffix: string;
  readonly #includeUsage: boolean;
  readonly #n: number;
  readonly #offsets: TextOffsets[] = [];
  #finished = 0;

  constructor(head: AnswerHead, options: { includeUsage: boolean; n: number }) {
    this.#head = `data: {"id":${JSON.stringify(head.id)},"object":"text_completion","created":${head.created},"model":${JSON.stringify(head.model)},"system_fingerprint":${JSON.stringify(head.systemFingerprint)},"choices":[`;
    this.#suffix = options.includeUsage ? '],"usage":null}\n\n' : ']}\n\n';
    this.#includeUsage = options.includeUsage;
    this.#n = options.n;
  }

  get finished(): number {
    return this.#finished;
  }

  /** The prompt itself as the first text of its choices. */
  echo(prompt: number, text: string): string {
    let chunks = '';
    for (let choice = 0; choice < this.#n; choice++) {
      const index = prompt * this.#n + choice;
      this.#offsets[index] = new TextOffsets(text.length);
      chunks += this.#chunk(index, text, 'null', 'null');
    }
    return chunks;
  }

  encode(prompt: number, event: GenerateEvent): string {
    if (event.type !== 'delta' && event.type !== 'finish') return '';
    const index = prompt * this.#n + event.choice;
    if (event.type === 'finish') {
      this.#finished += 1;
      return this.#chunk(index, '', 'null', `"${finishOf(event)}"`);
    }
    let logprobs = 'null';
    if (event.logprobs !== undefined) {
      const legacy = new LegacyLogprobs();
      this.#offsets[index] ??= new TextOffsets(0);
      legacy.add(event.logprobs, this.#offsets[index]);
      logprobs = JSON.stringify(legacy);
    }
    return this.#chunk(index, event.content ?? '', logprobs, 'null');
  }

  #chunk(index: number, text: string, logprobs: string, finish: string): string {
    return `${this.#head}{"text":${JSON.stringify(text)},"index":${index},"logprobs":${logprobs},"finish_reason":${finish}}${this.#suffix}`;
  }

  end(usage: Usage): string {
    return `${this.#includeUsage ? `${this.#head}],"usage":${JSON.stringify(usageOf(usage))}}\n\n` : ''}data: [DONE]\n\n`;
  }
}

export class CompletionAnswerBuilder {
  readonly #choices: {
    text: string;
    logprobs: LegacyLogprobs | null;
    offsets: TextOffsets;
    finish: 'stop' | 'length' | null;
  }[];
  readonly #n: number;

  constructor(prompts: number, options: { n: number; logprobs: boolean }) {
    this.#n = options.n;
    this.#choices = Array.from({ length: prompts * options.n }, () => ({
      text: '',
      logprobs: options.logprobs ? new LegacyLogprobs() : null,
      offsets: new TextOffsets(0),
      finish: null,
    }));
  }

  get finished(): number {
    return this.#choices.filter((choice) => choice.finish !== null).length;
  }

  echo(prompt: number, text: string): void {
    for (const choice of this.#choices.slice(prompt * this.#n, (prompt + 1) * this.#n)) {
      choice.text = text;
      choice.offsets = new TextOffsets(text.length);
    }
  }

  add(prompt: number, event: GenerateEvent): void {
    if (event.type !== 'delta' && event.type !== 'finish') return;
    const choice = this.#choices[prompt * this.#n + event.choice];
    if (choice === undefined) return;
    if (event.type === 'finish') {
      choice.finish = finishOf(event);
      return;
    }
    choice.text += event.content ?? '';
    if (event.logprobs !== undefined && choice.logprobs !== null) choice.logprobs.add(event.logprobs, choice.offsets);
  }

  build(head: AnswerHead, usage: Usage) {
    return {
      id: head.id,
      object: 'text_completion' as const,
      created: head.created,
      model: head.model,
      system_fingerprint: head.systemFingerprint,
      choices: this.#choices.map(({ text, logprobs, finish }, index) => ({
        text,
        index,
        logprobs,
        finish_reason: finish ?? 'stop',
      })),
      usage: usageOf(usage),
    };
  }
}
