/** Uploads that are on their way, by user: they have no rows in the database yet, but fill the disk. */
export class Receiving {
  readonly #counts = new Map<string, number>();

  /** @returns what ends it, once; null: the user has `most` on their way already. */
  begin(userId: string, most: number): (() => void) | null {
    const count = this.#counts.get(userId) ?? 0;
    if (count >= most) return null;
    this.#counts.set(userId, count + 1);
    return () => {
      const left = (this.#counts.get(userId) ?? 1) - 1;
      if (left === 0) this.#counts.delete(userId);
      else this.#counts.set(userId, left);
    };
  }
}
