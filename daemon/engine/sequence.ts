import type { SamplerOptions } from '../../addon/types.ts';
import type { AdapterHandle } from './slots.ts';

export type SequenceState = 'waiting' | 'running' | 'done';
/** `score`: the tokens are all there; what is wanted is how likely the model finds them. */
export type SequenceKind = 'generate' | 'embed' | 'score';

export interface SequenceInput {
  job: number;
  choice: number;
  /** Arrival order over all jobs; smaller is older. */
  order: number;
  kind: SequenceKind;
  adapter: AdapterHandle | null;
  /** Whose KV this sequence may read: SHA-256 of the caller. Callers never see each other's prefixes, not even by timing. */
  visibility: string;
  prompt: Int32Array;
  /** Tokens to generate at most; 0 where nothing is generated. */
  maxTokens: number;
  /** Null where nothing is generated. */
  sampler: SamplerOptions | null;
  /** Score: per position, 1 where the prediction of the next token is rated; as long as the prompt. */
  rated?: Uint8Array;
}

/**
 * One running choice of a request: its tokens, and how many of them the KV cache holds.
 * `pending = length − computed` rows are still to be computed: many while the prompt is read (or read again after a
 * preemption), exactly one while it decodes.
 */
export class Sequence {
  readonly job: number;
  readonly choice: number;
  readonly order: number;
  readonly kind: SequenceKind;
  readonly adapter: AdapterHandle | null;
  /** Key of the adapter's queue and counter; '' is the base. */
  readonly adapterKey: string;
  /** Key of the prefix cache: adapter version and visibility. */
  readonly prefixKey: string;
  readonly visibility: string;
  readonly promptLength: number;
  readonly maxTokens: number;
  readonly samplerOptions: SamplerOptions | null;
  readonly rated: Uint8Array | null;
  /** Choices 1 … n − 1 of the same request, queued once this one has read the prompt, which they then share. */
  siblings: Sequence[] = [];

  state: SequenceState = 'waiting';
  /** Engine sequence id, −1 while not admitted. */
  id = -1;
  /** Adapter slot, −1 for the base. */
  slot = -1;
  /** Engine sampler, −1 before the first admission; it outlives preemptions. */
  samplerId = -1;
  /** Positions that the KV cache holds. */
  computed = 0;
  /** Prompt tokens that the first admission found in the prefix cache. */
  cachedTokens = 0;
  admissions = 0;
  /** Requests admitted before this one although it was its turn. */
  overtaken = 0;
  /** Step in which it first found no slot; −1 while it has not. */
  slotWaitSince = -1;
  queuedAtMs = 0;
  admittedAtMs = 0;

  /** Prompt and generated tokens; grows by doubling up to prompt + maxTokens. */
  private buffer: Int32Array;
  length: number;

  constructor(input: SequenceInput) {
    this.job = input.job;
    this.choice = input.choice;
    this.order = input.order;
    this.kind = input.kind;
    this.adapter = input.adapter;
    this.adapterKey = input.adapter === null ? '' : input.adapter.digest;
    this.visibility = input.visibility;
    this.prefixKey = `${this.adapterKey}|${input.visibility}`;
    this.promptLength = input.prompt.length;
    this.maxTokens = input.maxTokens;
    this.samplerOptions = input.sampler;
    this.rated = input.rated ?? null;
    this.buffer = new Int32Array(input.prompt.length + Math.min(input.maxTokens, 64));
    this.buffer.set(input.prompt);
    this.length = input.prompt.length;
  }

  /** All tokens so far, a view (valid until the next `append`). */
  get tokens(): Int32Array {
    return this.buffer.subarray(0, this.length);
  }
  get generated(): number {
    return this.length - this.promptLength;
  }
  /** Rows still to be computed. */
  get pending(): number {
    return this.length - this.computed;
  }
  /** Tokens that it may still generate. */
  get remaining(): number {
    return this.maxTokens - this.generated;
  }
  get decoding(): boolean {
    return this.kind === 'generate' && this.generated > 0 && this.pending === 1;
  }

  append(token: number): void {
    if (this.length === this.buffer.length) {
      const capacity = Math.min(this.buffer.length * 2, this.promptLength + this.maxTokens);
      const grown = new Int32Array(Math.max(capacity, this.length + 1));
      grown.set(this.buffer);
      this.buffer = grown;
    }
    this.buffer[this.length] = token;
    this.length += 1;
  }
}
