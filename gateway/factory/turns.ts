/** Lets a few do heavy work at the same time; the others wait, first come, first served. */
export class Turns {
  readonly #most: number;
  #busy = 0;
  readonly #waiting = new Set<() => void>();

  constructor(most: number) {
    this.#most = most;
  }

  /** Does the work once it is its turn. @throws the signal's reason if that comes first */
  async take<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    // Whoever ends hands its turn on, so that nobody comes in between.
    if (this.#busy < this.#most) this.#busy += 1;
    else await this.#wait(signal);
    try {
      return await work();
    } finally {
      const [next] = this.#waiting;
      if (next === undefined) this.#busy -= 1;
      else next();
    }
  }

  #wait(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const called = () => {
        this.#waiting.delete(called);
        signal.removeEventListener('abort', left);
        resolve();
      };
      const left = () => {
        this.#waiting.delete(called);
        reject(signal.reason);
      };
      this.#waiting.add(called);
      signal.addEventListener('abort', left, { once: true });
    });
  }
}
