/** The real engine under the real scheduler and tiers, driven turn by turn in the test's own thread. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Engine, loadModel, type Model, openVocabulary, type SamplerOptions } from '../../../addon/index.ts';
import { loadAdapterImage } from '../../../daemon/adapters/load-image.ts';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import { TieredAdapters } from '../../../daemon/adapters/tiers.ts';
import { EngineLoop } from '../../../daemon/engine/loop.ts';
import type { Job, SequenceEvent } from '../../../daemon/engine/messages.ts';
import type { SchedulerOptions } from '../../../daemon/engine/scheduler.ts';
import type { AdapterHandle } from '../../../daemon/engine/slots.ts';
import { ENGINE_LIMITS } from '../../../daemon/limits.ts';
import { type PeftAdapterOptions, writePeftAdapter } from '../../support/safetensors-writer.ts';
import { GREEDY as PLAIN_GREEDY } from '../../support/samplers.ts';

/** With the margins that tell near-ties apart, and never ending early. */
export const GREEDY: SamplerOptions = { ...PLAIN_GREEDY, topLogprobs: 2, ignoreEos: true };

export interface Picked {
  token: number;
  logprob: number;
  /** Log-probability of the best and the second best. */
  top: number[];
}

export class NativeBench {
  readonly folder = mkdtempSync(join(tmpdir(), 'mf-engine-'));
  readonly model: Model;
  readonly endTokens: Int32Array;
  private registry: Promise<AdapterRegistry> | null = null;

  constructor(modelPath: string) {
    this.model = loadModel({ path: modelPath, device: 'cpu' });
    const vocabulary = openVocabulary(modelPath);
    this.endTokens = vocabulary.endTokens;
    vocabulary.close();
  }

  async adapter(name: string, options: PeftAdapterOptions): Promise<AdapterHandle> {
    const folder = join(this.folder, name);
    writePeftAdapter(folder, this.model.info, options);
    this.registry ??= AdapterRegistry.open({ root: join(this.folder, 'store'), base: this.model.info });
    const registry = await this.registry;
    await registry.add({ name, source: folder });
    return registry.handle(name);
  }

  run(options: Partial<SchedulerOptions> = {}, size: { kvCells?: number; slots?: number } = {}): NativeRun {
    return new NativeRun(this, { ...ENGINE_LIMITS, ...options }, size.kvCells ?? 4096, size.slots ?? 4);
  }

  close(): void {
    this.model.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export class NativeRun {
  readonly loop: EngineLoop;
  readonly engine: Engine;
  readonly tiers: TieredAdapters;
  readonly events: SequenceEvent[] = [];
  turns = 0;

  constructor(bench: NativeBench, scheduler: SchedulerOptions, kvCells: number, slots: number) {
    this.engine = bench.model.createEngine({
      kvCells,
      sequencesMax: scheduler.sequencesMax,
      batchTokensMax: scheduler.stepTokensMax,
      slots,
      slotRankMax: 256,
    });
    this.tiers = new TieredAdapters(
      {
        loadImage: (adapter) => loadAdapterImage(bench.model, adapter),
        setSlot: (slot, image) => this.engine.setSlot(slot, image),
        clearSlot: (slot) => this.engine.clearSlot(slot),
      },
      { slots, hostBytesMax: 1e9 },
    );
    this.loop = new EngineLoop({
      engine: this.engine,
      slots: this.tiers,
      endTokens: bench.endTokens,
      scheduler,
      emit: (events) => this.events.push(...events),
    });
  }

  /** Turns until nothing is left to do; `before` may submit and abort in between. */
  async finish(before: (turn: number) => void = () => {}): Promise<this> {
    for (;;) {
      before(this.turns);
      if (this.loop.idle) return this;
      this.turns += 1;
      // False: everybody waits for an adapter from disk.
      if (!this.loop.turn()) await sleep(1);
      if (this.turns > 100_000) throw new Error('not finished');
    }
  }

  picked(job: number, choice = 0): Picked[] {
    return this.events.flatMap((e) =>
      e.type === 'token' && e.job === job && e.choice === choice
        ? [{ token: e.token, logprob: e.logprob ?? 0, top: (e.top ?? []).map((t) => t.logprob) }]
        : [],
    );
  }

  close(): void {
    this.tiers.close();
    this.engine.close();
  }
}

export function nativeJob(job: number, prompt: ArrayLike<number>, extra: Partial<Job> = {}): Job {
  return {
    job,
    kind: 'generate',
    adapter: null,
    visibility: 'v',
    prompts: [Int32Array.from(prompt)],
    choices: 1,
    maxTokens: 16,
    sampler: GREEDY,
    ...extra,
  };
}

/**
 * Compares two greedy continuations: the same tokens with nearly the same log-probabilities. Where they part, it must be at
 * a near-tie, which kernels that round differently by batch size may decide either way. Answers the tokens compared.
 */
export function compareGreedy(a: Picked[], b: Picked[], tolerance: number): number {
  for (let i = 0; i < Math.min(a.length, b.length); i += 1) {
    const [x, y] = [a[i] as Picked, b[i] as Picked];
    if (x.token !== y.token) {
      const gap = (x.top[0] ?? 0) - (x.top[1] ?? Number.NEGATIVE_INFINITY);
      if (gap > 4 * tolerance)
        throw new Error(`token ${i} differs (${x.token}, ${y.token}) and is no near-tie: the gap is ${gap}`);
      return i;
    }
    const difference = Math.abs(x.logprob - y.logprob);
    if (!(difference <= tolerance)) throw new Error(`log-probability of token ${i} differs by ${difference}`);
  }
  if (a.length !== b.length) throw new Error(`lengths differ: ${a.length}, ${b.length}`);
  return a.length;
}
