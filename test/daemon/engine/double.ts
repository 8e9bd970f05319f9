/**
 * A deterministic stand-in for the native engine, for property tests of the scheduler only: "logits" are a hash of
 * everything a real model would depend on (each token before, under which weights its KV was made, the slot's weights
 * now, the sampler's seed and history). Whatever the scheduler gets wrong changes some token.
 */
import type {
  AdapterImage,
  Engine,
  EngineOptions,
  SamplerOptions,
  StepBatch,
  StepResult,
} from '../../../addon/types.ts';
import { AddonError } from '../../../addon/types.ts';
import type { Acquired, AdapterHandle, AdapterSlots } from '../../../daemon/engine/slots.ts';

export const VOCABULARY = 97;
export const END_TOKEN = 0;
export const WIDTH = 4;

function mix(a: number, b: number): number {
  let h = Math.imul(a ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(b + 0x7f4a7c15, 0xc2b2ae35);
  h ^= h >>> 15;
  h = Math.imul(h, 0x2c1b3c6d);
  return (h ^ (h >>> 13)) >>> 0;
}

interface Cell {
  state: number;
  users: number;
}

export class DoubleImage implements AdapterImage {
  readonly bytes = 1;
  readonly rankMax = 8;
  readonly identity: number;
  constructor(identity: number) {
    this.identity = identity;
  }
  release(): void {}
}

export class DoubleEngine implements Engine {
  readonly kvCells: number;
  readonly options: EngineOptions;
  steps = 0;
  rowsMaxSeen = 0;
  rowsTotal = 0;
  samplersOpen = 0;
  private cells: Cell[][];
  private used = 0;
  private slotWeights: number[];
  private samplers = new Map<number, { seed: number; history: number; ignoreEos: boolean }>();
  private samplerIds = 0;

  loadPrefix(): void {
    throw new Error('the scheduler does not use prefixes');
  }

  constructor(options: EngineOptions) {
    this.options = options;
    this.kvCells = options.kvCells;
    this.cells = Array.from({ length: options.sequencesMax }, () => []);
    this.slotWeights = new Array(options.slots).fill(0);
  }

  get kvCellsFree(): number {
    return this.kvCells - this.used;
  }
  setSlot(slot: number, image: AdapterImage): void {
    this.slotWeights[slot] = (image as DoubleImage).identity;
  }
  clearSlot(slot: number): void {
    this.slotWeights[slot] = 0;
  }
  trimSequence(sequence: number, length: number): void {
    const cells = this.of(sequence);
    while (cells.length > length) {
      const cell = cells.pop() as Cell;
      cell.users -= 1;
      if (cell.users === 0) this.used -= 1;
    }
  }
  shareSequence(source: number, destination: number, length: number): void {
    const to = this.of(destination);
    if (to.length > 0) throw new AddonError('argument_invalid', 'destination is not empty');
    const from = this.of(source);
    if (length > from.length) throw new AddonError('argument_invalid', 'source is shorter');
    for (const cell of from.slice(0, length)) {
      cell.users += 1;
      to.push(cell);
    }
  }
  sequenceLength(sequence: number): number {
    return this.of(sequence).length;
  }
  createSampler(options: SamplerOptions): number {
    if (options.grammar === 'bad') throw new AddonError('grammar_invalid', 'bad grammar');
    this.samplerIds += 1;
    this.samplers.set(this.samplerIds, {
      seed: options.temperature === 0 ? 0 : options.seed,
      history: 0,
      ignoreEos: options.ignoreEos,
    });
    this.samplersOpen += 1;
    return this.samplerIds;
  }
  acceptTokens(sampler: number, tokens: Int32Array): void {
    const s = this.samplers.get(sampler);
    if (s === undefined) throw new AddonError('argument_invalid', 'no such sampler');
    for (const token of tokens) s.history = mix(s.history, token);
  }
  freeSampler(sampler: number): void {
    if (!this.samplers.delete(sampler)) throw new AddonError('argument_invalid', 'sampler freed twice');
    this.samplersOpen -= 1;
  }
  step(batch: StepBatch): StepResult {
    const rows = batch.tokens.length;
    if (rows === 0 || rows > this.options.batchTokensMax)
      throw new AddonError('argument_invalid', `a step of ${rows} rows`);
    if (rows > this.kvCellsFree) throw new AddonError('kv_full', 'no cells left');
    this.steps += 1;
    this.rowsTotal += rows;
    this.rowsMaxSeen = Math.max(this.rowsMaxSeen, rows);
    const states: number[] = [];
    for (let t = 0; t < rows; t += 1) {
      const cells = this.of(batch.sequences[t] as number);
      if (cells.length !== batch.positions[t])
        throw new AddonError('argument_invalid', `row ${t} is not the next position of its sequence`);
      const slot = batch.slots[t] as number;
      const weights = slot < 0 ? 1 : (this.slotWeights[slot] as number);
      if (weights === 0) throw new AddonError('argument_invalid', `slot ${slot} is empty`);
      const state = mix(mix(cells.at(-1)?.state ?? 7, batch.tokens[t] as number), weights);
      cells.push({ state, users: 1 });
      this.used += 1;
      states.push(state);
    }
    const choices = [...batch.samplers].map((id, o) => {
      const state = states[batch.outputs[o] as number] as number;
      if (id < 0) return { token: -1, logprob: 0, top: [] };
      const sampler = this.samplers.get(id);
      if (sampler === undefined) throw new AddonError('argument_invalid', 'no such sampler');
      let token = mix(mix(state, sampler.seed), sampler.history) % VOCABULARY;
      if (token === END_TOKEN && sampler.ignoreEos) token = 1;
      sampler.history = mix(sampler.history, token);
      return { token, logprob: -1, top: [] };
    });
    if (!batch.wantHidden) return { choices, computeMicros: rows * 10 };
    const hidden = new Float32Array(batch.outputs.length * WIDTH);
    for (const [o, t] of [...batch.outputs].entries()) {
      for (let k = 0; k < WIDTH; k += 1) hidden[o * WIDTH + k] = (mix(states[t] as number, k) % 1000) / 1000;
    }
    return { choices: [], hidden, computeMicros: rows * 10 };
  }
  close(): void {}

  private of(sequence: number): Cell[] {
    const cells = this.cells[sequence];
    if (cells === undefined) throw new AddonError('argument_invalid', `no sequence ${sequence}`);
    return cells;
  }
}

export function handle(name: string): AdapterHandle {
  return { digest: name, file: `/nowhere/${name}`, pairs: [] };
}

export function identityOf(digest: string): number {
  let h = 17;
  for (const c of digest) h = mix(h, c.charCodeAt(0));
  return h | 2;
}

/** Slots with a disk that takes `loadTicks` calls of `tick`; refuses to replace what is pinned. */
export class DoubleSlots implements AdapterSlots {
  readonly slots: number;
  readonly pins = new Map<string, number>();
  loads = 0;
  private engine: DoubleEngine;
  private loadTicks: number;
  private table: (string | null)[];
  private used: number[];
  private host = new Set<string>();
  private loading = new Map<string, number>();
  private broken: Set<string>;
  private clock = 0;

  constructor(engine: DoubleEngine, slots: number, loadTicks: number, broken: string[] = []) {
    this.engine = engine;
    this.slots = slots;
    this.loadTicks = loadTicks;
    this.table = new Array(slots).fill(null);
    this.used = new Array(slots).fill(0);
    this.broken = new Set(broken);
  }

  tick(): void {
    for (const [digest, left] of this.loading) {
      if (left > 1) this.loading.set(digest, left - 1);
      else {
        this.loading.delete(digest);
        this.host.add(digest);
      }
    }
  }
  prefetch({ digest }: AdapterHandle): void {
    if (this.broken.has(digest) || this.host.has(digest) || this.table.includes(digest) || this.loading.has(digest))
      return;
    if (this.loadTicks === 0) this.host.add(digest);
    else this.loading.set(digest, this.loadTicks);
  }
  isResident(digest: string): boolean {
    return this.table.includes(digest);
  }
  acquire(adapter: AdapterHandle): Acquired {
    const { digest } = adapter;
    if (this.broken.has(digest))
      return { state: 'failed', error: { code: 'adapter_unavailable', message: 'broken', param: 'model' } };
    this.clock += 1;
    let slot = this.table.indexOf(digest);
    if (slot < 0) {
      if (!this.host.has(digest)) {
        this.prefetch(adapter);
        if (!this.host.has(digest)) return { state: 'loading' };
      }
      for (let s = 0; s < this.slots; s += 1) {
        const held = this.table[s];
        if (held !== null && held !== undefined && (this.pins.get(held) ?? 0) > 0) continue;
        if (slot < 0 || (this.used[s] as number) < (this.used[slot] as number)) slot = s;
      }
      if (slot < 0) return { state: 'full' };
      this.table[slot] = digest;
      this.loads += 1;
      this.engine.setSlot(slot, new DoubleImage(identityOf(digest)));
    }
    this.used[slot] = this.clock;
    this.pins.set(digest, (this.pins.get(digest) ?? 0) + 1);
    return { state: 'slot', slot };
  }
  release(digest: string): void {
    const pins = this.pins.get(digest) ?? 0;
    if (pins <= 0) throw new Error(`released ${digest} more often than acquired`);
    this.pins.set(digest, pins - 1);
  }
}
