/** A long stream that runs in the background, to see whether what others do harms it. */
import type OpenAI from 'openai';
import { until } from './product.ts';

/** Long enough for a whole table of cases, short of the context. */
const TOKENS = 1_500;

export class BackgroundStream {
  readonly #client: OpenAI;
  readonly #model: string;
  readonly #stop = new AbortController();
  #tokens = 0;
  #failure: Error | null = null;
  #run: Promise<void> | null = null;

  constructor(client: OpenAI, model: string) {
    this.#client = client;
    this.#model = model;
  }

  get tokens(): number {
    return this.#tokens;
  }

  async start(): Promise<void> {
    this.#run = this.#keepReading().catch((error: Error) => {
      if (!this.#stop.signal.aborted) this.#failure = error;
    });
    await this.isAlive();
  }

  /** @throws what ended the stream, or that it gives no more tokens. */
  async isAlive(): Promise<void> {
    const before = this.#tokens;
    await until('the stream in the background goes on', () => {
      if (this.#failure !== null) return true;
      return this.#tokens > before + 1;
    });
    if (this.#failure !== null) throw new Error('the stream in the background was harmed', { cause: this.#failure });
  }

  /** Rejects with what ended it. */
  async failure(): Promise<Error> {
    await this.#run;
    if (this.#failure === null) throw new Error('the stream did not fail');
    return this.#failure;
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#run;
  }

  /** One stream after the other; each must end as it should. */
  async #keepReading(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const stream = await this.#client.chat.completions.create(
        {
          model: this.#model,
          messages: [{ role: 'user', content: 'Tell me a story that never ends.' }],
          stream: true,
          max_tokens: TOKENS,
          ...{ ignore_eos: true },
        },
        { signal: this.#stop.signal },
      );
      let finish: string | null = null;
      for await (const chunk of stream) {
        this.#tokens += 1;
        finish = chunk.choices[0]?.finish_reason ?? finish;
      }
      if (finish !== 'length' && !this.#stop.signal.aborted) throw new Error(`the stream ended with ${finish}`);
    }
  }
}
