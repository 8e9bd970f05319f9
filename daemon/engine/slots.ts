import type { AdapterTensorPair } from '../../addon/types.ts';
import type { PlainError } from '../errors.ts';
import type { AdapterLoad, AdapterPlace, TierCounters } from './messages.ts';

/** What the engine thread needs to know of an adapter to bring its weights in; plain data, so that it crosses threads. */
export interface AdapterHandle {
  /** SHA-256 of the weights and what scales them, hex: the adapter's identity. Names are the registry's business. */
  digest: string;
  /** Safetensors or GGUF file that was validated when the adapter was added. */
  file: string;
  pairs: AdapterTensorPair[];
}

export type Acquired =
  | { state: 'slot'; slot: number }
  /** On its way from disk; `onChange` tells when to ask again. */
  | { state: 'loading' }
  /** Every slot is pinned by adapters in use. */
  | { state: 'full' }
  | { state: 'failed'; error: PlainError };

/**
 * The scheduler's view of the adapter tiers: slot → host RAM → disk. One `acquire` pins the adapter's slot once;
 * every `acquire` that answered `slot` needs one `release`. Never blocks: disk is read between steps.
 */
export interface AdapterSlots {
  readonly slots: number;
  acquire(adapter: AdapterHandle): Acquired;
  release(digest: string): void;
  /** Starts to bring the adapter to host RAM; called when a request for it is queued. */
  prefetch(adapter: AdapterHandle): void;
  /** True if `acquire` would answer `slot` without reading anything. */
  isResident(digest: string): boolean;
}

/** The tiers as the engine thread drives them: what the scheduler asks, and what people and metrics ask. */
export interface AdapterTiers extends AdapterSlots {
  /** Called whenever `acquire` may answer otherwise than before: something was loaded, evicted, or failed. */
  onChange: () => void;
  /** Rejects with a DaemonError: no room, in use, broken file. */
  move(adapter: AdapterHandle, to: 'slot' | 'host' | 'disk'): Promise<void>;
  /** A pinned adapter is never evicted. */
  pin(digest: string, pinned: boolean): void;
  /** The version is gone: its weights go as soon as nobody uses them. */
  forget(digest: string): void;
  places(): AdapterPlace[];
  counters(): TierCounters;
  /** Loads since the last call. */
  takeLoads(): AdapterLoad[];
}
