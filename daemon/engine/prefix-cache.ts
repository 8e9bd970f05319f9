import type { Sequence } from './sequence.ts';

/** A finished sequence whose KV is kept for prompts that begin like it. */
export interface CacheEntry {
  /** Engine sequence id that holds the cells. */
  id: number;
  key: string;
  tokens: Int32Array;
  lastUsed: number;
}

export interface PrefixMatch {
  id: number;
  /** Tokens that both have in common. */
  length: number;
  /** The cache entry to keep from eviction, if the match is one. */
  entry: CacheEntry | null;
}

/**
 * Prefix cache: finds the longest common token prefix among the KV of finished (kept) and running sequences.
 * Only sequences with the same key are looked at: same adapter *version* and same visibility, so that replaced weights
 * never meet old KV and tenants never share. Least recently used entries go first.
 */
export class PrefixCache {
  private entries = new Map<string, Set<CacheEntry>>();
  private running = new Map<string, Set<Sequence>>();
  private all = new Set<CacheEntry>();
  private clock = 0;

  get size(): number {
    return this.all.size;
  }
  /** Cells that the entries hold at most (prefixes shared with others count in each). */
  get tokens(): number {
    let sum = 0;
    for (const entry of this.all) sum += entry.tokens.length;
    return sum;
  }

  addRunning(sequence: Sequence): void {
    let set = this.running.get(sequence.prefixKey);
    if (set === undefined) {
      set = new Set();
      this.running.set(sequence.prefixKey, set);
    }
    set.add(sequence);
  }

  removeRunning(sequence: Sequence): void {
    const set = this.running.get(sequence.prefixKey);
    if (set?.delete(sequence) && set.size === 0) this.running.delete(sequence.prefixKey);
  }

  /** Keeps the KV of a finished sequence; answers the ids of entries that it makes superfluous. */
  insert(key: string, id: number, tokens: Int32Array): number[] {
    const set = this.entries.get(key) ?? new Set<CacheEntry>();
    const superfluous: number[] = [];
    for (const entry of set) {
      if (
        entry.tokens.length <= tokens.length &&
        commonPrefix(entry.tokens, tokens, entry.tokens.length) === entry.tokens.length
      ) {
        this.remove(entry);
        superfluous.push(entry.id);
      }
    }
    this.entries.set(key, set);
    this.clock += 1;
    const entry = { id, key, tokens, lastUsed: this.clock };
    set.add(entry);
    this.all.add(entry);
    return superfluous;
  }

  /** The best match of at most `max` tokens, or null. */
  find(key: string, tokens: Int32Array, max: number): PrefixMatch | null {
    let best: PrefixMatch | null = null;
    for (const entry of this.entries.get(key) ?? []) {
      const length = commonPrefix(entry.tokens, tokens, max);
      if (length > (best?.length ?? 0)) best = { id: entry.id, length, entry };
    }
    for (const sequence of this.running.get(key) ?? []) {
      const length = commonPrefix(sequence.tokens, tokens, Math.min(max, sequence.computed));
      if (length > (best?.length ?? 0)) best = { id: sequence.id, length, entry: null };
    }
    return best;
  }

  touch(entry: CacheEntry): void {
    this.clock += 1;
    entry.lastUsed = this.clock;
  }

  /** Takes out the least recently used entry (but `except`) and answers its sequence id, or −1 if there is none. */
  evict(except: CacheEntry | null): number {
    let oldest: CacheEntry | null = null;
    for (const entry of this.all) {
      if (entry !== except && (oldest === null || entry.lastUsed < oldest.lastUsed)) oldest = entry;
    }
    if (oldest === null) return -1;
    this.remove(oldest);
    return oldest.id;
  }

  /** Takes out every entry of an adapter version; answers the sequence ids. */
  forget(adapterKey: string): number[] {
    const ids: number[] = [];
    for (const entry of [...this.all]) {
      if (!entry.key.startsWith(`${adapterKey}|`)) continue;
      this.remove(entry);
      ids.push(entry.id);
    }
    return ids;
  }

  private remove(entry: CacheEntry): void {
    this.all.delete(entry);
    const set = this.entries.get(entry.key);
    if (set?.delete(entry) && set.size === 0) this.entries.delete(entry.key);
  }
}

/** Length of the common prefix of two token lists, at most `max`. */
export function commonPrefix(a: Int32Array, b: Int32Array, max: number): number {
  const end = Math.min(a.length, b.length, max);
  let i = 0;
  while (i < end && a[i] === b[i]) i += 1;
  return i;
}
