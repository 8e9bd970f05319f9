import type { Engine } from '../../addon/types.ts';
import { invariant } from '../errors.ts';
import { PrefixCache, type PrefixMatch } from './prefix-cache.ts';
import type { Sequence } from './sequence.ts';

/** The part of the engine that keeps books of KV cells; nothing in it computes. */
export type KvBooks = Pick<Engine, 'kvCells' | 'kvCellsFree' | 'trimSequence' | 'shareSequence'>;

export interface KvRoomOptions {
  sequencesMax: number;
  prefixTokensMin: number;
  /** Share of the cells that prefixes of ended sequences may keep; 0 switches the prefix cache off. */
  prefixCacheShare: number;
}

/**
 * Who has which engine sequence id, and which ended sequences keep their KV as prefixes for later ones. An id is free, of a
 * running sequence, or of a kept prefix; what a running sequence needs is taken from the prefixes that were used longest ago.
 */
export class KvRoom {
  private readonly kv: KvBooks;
  private readonly options: KvRoomOptions;
  private readonly stats: { prefixEvictions: number };
  private readonly cache = new PrefixCache();
  private readonly freeIds: number[];

  /** `stats`: evictions are counted there. */
  constructor(kv: KvBooks, options: KvRoomOptions, stats: { prefixEvictions: number }) {
    this.kv = kv;
    this.options = options;
    this.stats = stats;
    this.freeIds = Array.from({ length: options.sequencesMax }, (_, i) => options.sequencesMax - 1 - i);
  }

  /** Cells of kept prefixes; an upper bound, as they may overlap. */
  get keptTokens(): number {
    return this.cache.tokens;
  }

  /** The longest prefix of a sequence that is there already. */
  find(sequence: Sequence): PrefixMatch | null {
    if (sequence.kind !== 'generate' || this.options.prefixCacheShare === 0) return null;
    // The last token is always computed: its row yields the logits.
    const match = this.cache.find(sequence.prefixKey, sequence.tokens, sequence.length - 1);
    return match === null || match.length < this.options.prefixTokensMin ? null : match;
  }

  /** An id that begins with the first `shared` cells of `match`. */
  take(match: PrefixMatch | null, shared: number): number {
    if (this.freeIds.length === 0) this.evict(match);
    const id = this.freeIds.pop();
    invariant(id !== undefined, 'there are more sequence ids than running sequences');
    if (match !== null) {
      this.kv.shareSequence(match.id, id, shared);
      if (match.entry !== null) this.cache.touch(match.entry);
    }
    return id;
  }

  /** Others may read what this running sequence has computed, until `withdraw`. */
  offer(sequence: Sequence): void {
    this.cache.addRunning(sequence);
  }
  withdraw(sequence: Sequence): void {
    this.cache.removeRunning(sequence);
  }

  /** A sequence leaves its id: its first `kept` cells stay as a prefix if there is room, the others are free. */
  giveBack(id: number, sequence: Sequence, kept: number): void {
    if (kept === 0 || !this.keep(sequence, id, kept)) this.free(id);
  }

  /** Drops the prefix that was used longest ago, but not the one that `match` reads; false if there is none. */
  evict(match: PrefixMatch | null): boolean {
    const id = this.cache.evict(match?.entry ?? null);
    if (id < 0) return false;
    this.stats.prefixEvictions += 1;
    this.free(id);
    return true;
  }

  forget(adapterKey: string): void {
    for (const id of this.cache.forget(adapterKey)) this.free(id);
  }

  private keep(sequence: Sequence, id: number, computed: number): boolean {
    const room = Math.floor(this.kv.kvCells * this.options.prefixCacheShare);
    if (computed < this.options.prefixTokensMin || computed > room) return false;
    for (const superfluous of this.cache.insert(sequence.prefixKey, id, sequence.tokens.slice(0, computed)))
      this.free(superfluous);
    while (this.cache.tokens > room) this.evict(null);
    return true;
  }

  private free(id: number): void {
    this.kv.trimSequence(id, 0);
    this.freeIds.push(id);
  }
}
