import { FAIRNESS } from '../limits.ts';
import type { Sequence } from './sequence.ts';

/**
 * Waiting sequences, one first-in-first-out queue per adapter, and the virtual token counter that says whose turn it is:
 * the adapter that has had the least goes first. Prompt tokens count 1, generated tokens 2. A queue that was empty starts
 * at the lowest counter of the others ("counter lift"), so that idle time earns no credit and a newcomer can't claim it.
 * Source: VTC (arXiv 2401.00588) as S-LoRA (arXiv 2311.03285) applies it to adapters.
 */
export class FairQueue {
  private queues = new Map<string, Sequence[]>();
  private counters = new Map<string, number>();
  /** Counter of whoever was admitted last: where a newcomer to an idle machine starts. */
  private floor = 0;
  private count = 0;

  get size(): number {
    return this.count;
  }

  push(sequence: Sequence): void {
    this.queueOf(sequence, true).push(sequence);
    this.count += 1;
  }

  /** Puts a sequence back where it was: before all that came later. */
  restore(sequence: Sequence): void {
    const queue = this.queueOf(sequence, false);
    let at = 0;
    while (at < queue.length && (queue[at] as Sequence).order < sequence.order) at += 1;
    queue.splice(at, 0, sequence);
    this.count += 1;
  }

  remove(sequence: Sequence): boolean {
    const queue = this.queues.get(sequence.adapterKey);
    const at = queue === undefined ? -1 : queue.indexOf(sequence);
    if (queue === undefined || at < 0) return false;
    queue.splice(at, 1);
    if (queue.length === 0) this.queues.delete(sequence.adapterKey);
    this.count -= 1;
    return true;
  }

  /**
   * First sequences of all queues, in the order in which they are to be admitted: those overtaken `overtakenMax` times
   * by age, then by counter.
   */
  heads(overtakenMax: number): Sequence[] {
    const heads = [...this.queues.values()].map((queue) => queue[0] as Sequence);
    const turn = (s: Sequence) => (s.overtaken >= overtakenMax ? Number.NEGATIVE_INFINITY : this.counter(s.adapterKey));
    return heads.sort((a, b) => {
      const [turnA, turnB] = [turn(a), turn(b)];
      return turnA === turnB ? a.order - b.order : turnA - turnB;
    });
  }

  /** A sequence was admitted: it leaves the queue and its prompt rows are charged. */
  admit(sequence: Sequence, promptTokens: number): void {
    const admitted = this.remove(sequence);
    if (!admitted) throw new Error('invariant broken: only a waiting sequence can be admitted');
    this.floor = Math.max(this.floor, this.counter(sequence.adapterKey));
    this.charge(sequence.adapterKey, promptTokens * FAIRNESS.inputWeight);
  }

  chargeOutput(adapterKey: string): void {
    this.charge(adapterKey, FAIRNESS.outputWeight);
  }

  counter(adapterKey: string): number {
    return this.counters.get(adapterKey) ?? 0;
  }

  *waiting(): Iterable<Sequence> {
    for (const queue of this.queues.values()) yield* queue;
  }

  private charge(adapterKey: string, amount: number): void {
    this.counters.set(adapterKey, this.counter(adapterKey) + amount);
    if (this.counters.size > 4096) this.prune();
  }

  /** `lifted`: somebody arrives. A sequence that comes back was charged already and keeps its place. */
  private queueOf(sequence: Sequence, lifted: boolean): Sequence[] {
    const key = sequence.adapterKey;
    let queue = this.queues.get(key);
    if (queue === undefined) {
      if (lifted) this.counters.set(key, Math.max(this.counter(key), this.lowest()));
      queue = [];
      this.queues.set(key, queue);
    }
    return queue;
  }

  private lowest(): number {
    if (this.queues.size === 0) return this.floor;
    let lowest = Number.POSITIVE_INFINITY;
    for (const key of this.queues.keys()) lowest = Math.min(lowest, this.counter(key));
    return lowest;
  }

  /** Counters of idle adapters at or below the floor say nothing that the lift would not say. */
  private prune(): void {
    for (const [key, counter] of this.counters) {
      if (counter <= this.floor && !this.queues.has(key)) this.counters.delete(key);
    }
  }
}
