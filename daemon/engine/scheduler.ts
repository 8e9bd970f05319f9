import { invariant, type PlainError } from '../errors.ts';
import { FairQueue } from './fair-queue.ts';
import { type KvBooks, KvRoom } from './kv-room.ts';
import { type Plan, type PlanRow, TURNS } from './plan.ts';
import type { PrefixMatch } from './prefix-cache.ts';
import type { Sequence, SequenceKind } from './sequence.ts';
import type { AdapterSlots } from './slots.ts';
import { StepBudget } from './step-budget.ts';

export interface SchedulerOptions {
  runningMax: number;
  sequencesMax: number;
  stepTokensMax: number;
  prefillRowsMin: number;
  prefillRowsAloneMin: number;
  scoreRowsMax: number;
  mixedStepTargetMs: number;
  aloneStepTargetMs: number;
  reserveTokens: number;
  overtakeMax: number;
  slotWaitStepsMax: number;
  prefixTokensMin: number;
  /** 0 switches the prefix cache off. */
  prefixCacheShare: number;
}

export interface SchedulerStats {
  running: number;
  waiting: number;
  preemptions: number;
  yields: number;
  prefixHits: number;
  prefixMisses: number;
  prefixEvictions: number;
}

/**
 * Decides what each step computes; computes nothing itself. Per step: let waiting sequences in (fair between adapters,
 * as far as slots, sequence ids and KV cells go), then one row for everybody who decodes, then prefill chunks.
 *
 * No request is lost and none waits for ever: the oldest running sequence is never preempted, and every request fits
 * the cells alone (the caller checks this), so the oldest always finishes.
 */
export class Scheduler {
  readonly stats: SchedulerStats = {
    running: 0,
    waiting: 0,
    preemptions: 0,
    yields: 0,
    prefixHits: 0,
    prefixMisses: 0,
    prefixEvictions: 0,
  };
  readonly budget: StepBudget;
  private readonly kv: KvBooks;
  private readonly slots: AdapterSlots;
  private readonly options: SchedulerOptions;
  private readonly queue = new FairQueue();
  private readonly room: KvRoom;
  private readonly running = new Set<Sequence>();
  private steps = 0;
  private lastKind: SequenceKind = 'generate';
  private admitted: Sequence[] = [];
  private failed: { sequence: Sequence; error: PlainError }[] = [];

  constructor(kv: KvBooks, slots: AdapterSlots, options: SchedulerOptions) {
    invariant(
      options.sequencesMax > options.runningMax,
      'one more sequence id than running sequences, for the prefix they share',
    );
    invariant(options.runningMax <= options.stepTokensMax, 'a step has a row for every running sequence');
    this.kv = kv;
    this.slots = slots;
    this.options = options;
    this.budget = new StepBudget(options);
    this.room = new KvRoom(kv, options, this.stats);
  }

  get idle(): boolean {
    return this.running.size === 0 && this.queue.size === 0;
  }
  get runningCount(): number {
    return this.running.size;
  }
  get waitingCount(): number {
    return this.queue.size;
  }
  get runningSequences(): Iterable<Sequence> {
    return this.running;
  }

  /** Queues a sequence. It must fit the cells alone: prompt + maxTokens ≤ kvCells. */
  add(sequence: Sequence): void {
    invariant(sequence.promptLength + sequence.maxTokens <= this.kv.kvCells, 'a sequence fits the KV cache alone');
    this.queue.push(sequence);
    if (sequence.adapter !== null) this.slots.prefetch(sequence.adapter);
  }

  /** The next step, or null if there is nothing to compute now (nobody there, or all wait for adapters from disk). */
  schedule(): { plan: Plan | null; admitted: Sequence[]; failed: { sequence: Sequence; error: PlainError }[] } {
    this.steps += 1;
    this.admitted = [];
    this.failed = [];
    this.admit();
    const plan = this.plan();
    this.stats.running = this.running.size;
    this.stats.waiting = this.queue.size;
    return { plan, admitted: this.admitted.filter((sequence) => sequence.state === 'running'), failed: this.failed };
  }

  /** The rows of a plan are computed. */
  advance(plan: Plan): void {
    for (const { sequence, count } of plan.rows) {
      sequence.computed += count;
      if (sequence.siblings.length > 0 && sequence.computed >= sequence.promptLength) this.releaseSiblings(sequence);
    }
  }

  /** A sequence chose its next token. */
  append(sequence: Sequence, token: number): void {
    sequence.append(token);
    this.queue.chargeOutput(sequence.adapterKey);
  }

  /** A sequence ends, for whatever reason and in whatever state; its KV is kept for others as far as there is room. */
  finish(sequence: Sequence): void {
    if (sequence.state === 'done') return;
    if (sequence.state === 'waiting') this.queue.remove(sequence);
    else this.leave(sequence, sequence.kind === 'generate');
    sequence.state = 'done';
    // They have no place of their own yet; whoever ended the leader only wants them gone if they are ended too.
    this.releaseSiblings(sequence);
  }

  /** An adapter version is gone for good: nobody may read its KV any more. */
  forget(adapterKey: string): void {
    this.room.forget(adapterKey);
  }

  // --- admission -------------------------------------------------------------------------------------------------

  private admit(): void {
    while (this.queue.size > 0) {
      if (!this.admitOne()) return;
    }
  }

  /** Lets the next sequence in whose turn it is and that fits; false if there is none. */
  private admitOne(): boolean {
    const heads = this.queue.heads(this.options.overtakeMax);
    const loading = new Set<Sequence>();
    for (const head of heads) {
      if (this.running.size >= this.options.runningMax) return false;
      const verdict = this.tryAdmit(head);
      if (verdict === 'failed') return true;
      if (verdict === 'admitted') {
        for (const other of heads) {
          if (other.order < head.order && !loading.has(other)) other.overtaken += 1;
        }
        return true;
      }
      // Nobody's admission can make a disk faster, so whoever waits for it holds nobody up.
      if (verdict === 'loading') {
        loading.add(head);
        continue;
      }
      if (verdict === 'slots') this.waitForSlot(head);
      // Everything that is freed from now on is for this one.
      if (head.overtaken >= this.options.overtakeMax) return false;
    }
    return false;
  }

  private tryAdmit(sequence: Sequence): 'admitted' | 'failed' | 'loading' | 'slots' | 'memory' {
    const match = this.room.find(sequence);
    const shared = match?.length ?? 0;
    if (!this.canHold(sequence, shared, match)) return 'memory';
    let slot = -1;
    if (sequence.adapter !== null) {
      const acquired = this.slots.acquire(sequence.adapter);
      if (acquired.state === 'loading') return 'loading';
      if (acquired.state === 'full') return 'slots';
      if (acquired.state === 'failed') {
        this.finish(sequence);
        this.failed.push({ sequence, error: acquired.error });
        return 'failed';
      }
      slot = acquired.slot;
    }
    if (!this.makeRoom(this.cellsNeeded(sequence, shared), match) && this.running.size > 0) {
      if (sequence.adapter !== null) this.slots.release(sequence.adapter.digest);
      return 'memory';
    }
    const id = this.room.take(match, shared);
    const first = sequence.admissions === 0;
    sequence.id = id;
    sequence.slot = slot;
    sequence.computed = shared;
    sequence.state = 'running';
    sequence.admissions += 1;
    sequence.slotWaitSince = -1;
    sequence.overtaken = 0;
    if (first) sequence.cachedTokens = Math.min(shared, sequence.promptLength);
    // What a preemption made necessary again is not charged again.
    this.queue.admit(sequence, first ? sequence.length - shared : 0);
    this.running.add(sequence);
    if (sequence.kind === 'generate') this.room.offer(sequence);
    if (shared > 0) this.stats.prefixHits += 1;
    else this.stats.prefixMisses += 1;
    this.admitted.push(sequence);
    return 'admitted';
  }

  private cellsNeeded(sequence: Sequence, shared: number): number {
    return sequence.length - shared + Math.min(sequence.remaining, this.options.reserveTokens);
  }

  /** Cells that the running sequences may still count on. */
  private cellsPromised(): number {
    let sum = 0;
    for (const sequence of this.running)
      sum += sequence.pending + Math.min(Math.max(sequence.remaining, 0), this.options.reserveTokens);
    return sum;
  }

  /** Could it fit if every kept prefix but the one it reads were dropped? An upper bound, as kept prefixes may overlap. */
  private canHold(sequence: Sequence, shared: number, match: PrefixMatch | null): boolean {
    if (this.running.size === 0) return true;
    const kept = this.room.keptTokens - (match?.entry?.tokens.length ?? 0);
    return this.kv.kvCellsFree + kept - this.cellsPromised() >= this.cellsNeeded(sequence, shared);
  }

  /** Drops kept prefixes until `cells` are free beyond what is promised; false if they do not suffice. */
  private makeRoom(cells: number, match: PrefixMatch | null): boolean {
    const promised = this.cellsPromised();
    while (this.kv.kvCellsFree - promised < cells) {
      if (!this.room.evict(match)) return false;
    }
    return true;
  }

  /**
   * All slots are pinned by adapters in use. After a bounded wait, the adapter that has had most of the machine yields:
   * its sequences go back to the queue, their KV stays in the prefix cache, so that little is computed twice.
   */
  private waitForSlot(head: Sequence): void {
    if (head.slotWaitSince < 0) head.slotWaitSince = this.steps;
    if (this.steps - head.slotWaitSince < this.options.slotWaitStepsMax) return;
    let most: string | null = null;
    for (const { adapterKey } of this.running) {
      if (adapterKey === '' || adapterKey === head.adapterKey) continue;
      if (most === null || this.queue.counter(adapterKey) > this.queue.counter(most)) most = adapterKey;
    }
    if (most === null) return;
    // The clock starts again: if the slot goes elsewhere, the next one yields after the same wait.
    head.slotWaitSince = this.steps;
    this.stats.yields += 1;
    for (const sequence of [...this.running]) {
      if (sequence.adapterKey === most) this.putBack(sequence, true);
    }
    // Whoever yielded must not be the first to take it again.
    head.overtaken = this.options.overtakeMax;
  }

  // --- planning --------------------------------------------------------------------------------------------------

  private plan(): Plan | null {
    const kind = this.nextKind();
    if (kind === null) return null;
    if (kind !== 'generate') return this.planPrefill(kind, [], 0);
    const rows: PlanRow[] = [];
    for (const sequence of this.running) {
      if (sequence.decoding) rows.push({ sequence, count: 1 });
    }
    const kept = this.fitDecode(rows);
    return this.planPrefill('generate', kept, kept.length);
  }

  private nextKind(): SequenceKind | null {
    const kinds = new Set<SequenceKind>();
    for (const { kind } of this.running) kinds.add(kind);
    if (kinds.size === 0) return null;
    this.lastKind = TURNS[this.lastKind].find((kind) => kinds.has(kind)) as SequenceKind;
    return this.lastKind;
  }

  /** Every decoding sequence needs one cell: drop kept prefixes, then preempt the youngest, until there are enough. */
  private fitDecode(rows: PlanRow[]): PlanRow[] {
    let kept = rows;
    while (this.kv.kvCellsFree < kept.length) {
      if (this.room.evict(null)) continue;
      const victim = this.youngest();
      invariant(victim !== null && this.running.size > 1, 'the oldest sequence alone always has its cells');
      this.stats.preemptions += 1;
      this.putBack(victim, false);
      kept = kept.filter((row) => row.sequence !== victim);
    }
    return kept;
  }

  private youngest(): Sequence | null {
    let youngest: Sequence | null = null;
    for (const sequence of this.running) {
      if (youngest === null || sequence.order > youngest.order) youngest = sequence;
    }
    return youngest;
  }

  /**
   * Adds prefill chunks within the budget. The oldest prompt gets at least half of it (so it always moves), the rest goes
   * to those with the fewest rows left (so a short prompt does not wait behind a long one).
   */
  private planPrefill(kind: SequenceKind, rows: PlanRow[], decodeRows: number): Plan | null {
    const prompts = [...this.running].filter((s) => s.kind === kind && s.pending > 0 && !s.decoding);
    if (prompts.length > 0) {
      const rowsMax = kind === 'score' ? this.options.scoreRowsMax : this.options.stepTokensMax;
      const budget = Math.min(this.budget.prefillRows(this.decodersOf(kind, decodeRows)), rowsMax);
      this.makeFree(decodeRows, rows, prompts);
      if (prompts.length === 0) return null;
      let left = Math.min(budget, this.kv.kvCellsFree - decodeRows);
      const oldest = prompts.reduce((a, b) => (a.order < b.order ? a : b));
      const shares = new Map<Sequence, number>();
      const give = (sequence: Sequence, most: number) => {
        const count = Math.min(sequence.pending - (shares.get(sequence) ?? 0), most, left);
        if (count <= 0) return;
        shares.set(sequence, (shares.get(sequence) ?? 0) + count);
        left -= count;
      };
      give(oldest, prompts.length === 1 ? left : Math.ceil(left / 2));
      prompts.sort((a, b) => a.pending - b.pending || a.order - b.order);
      for (const sequence of prompts) give(sequence, left);
      for (const [sequence, count] of shares) rows.push({ sequence, count });
    }
    if (rows.length === 0) return null;
    let tokens = 0;
    for (const row of rows) tokens += row.count;
    invariant(tokens <= this.options.stepTokensMax, 'a step stays within its budget');
    invariant(tokens <= this.kv.kvCellsFree, 'a step stays within the free cells');
    return { kind, rows, tokens, decodeRows };
  }

  /** Decoders are what a long step would hold up, also when this step is of another kind. */
  private decodersOf(kind: SequenceKind, decodeRows: number): number {
    if (kind === 'generate') return decodeRows;
    let count = 0;
    for (const sequence of this.running) if (sequence.decoding) count += 1;
    return Math.min(count, this.options.stepTokensMax - this.options.prefillRowsMin);
  }

  /** If prompts can't move at all and nobody decodes who would free cells, cells are made free. */
  private makeFree(decodeRows: number, rows: PlanRow[], prompts: Sequence[]): void {
    while (this.kv.kvCellsFree <= decodeRows) {
      if (this.room.evict(null)) continue;
      if (rows.length > 0) return;
      const victim = this.youngest();
      invariant(victim !== null && this.running.size > 1, 'the oldest sequence alone always has its cells');
      this.stats.preemptions += 1;
      this.putBack(victim, false);
      const at = prompts.indexOf(victim);
      if (at >= 0) prompts.splice(at, 1);
    }
  }

  // --- leaving ---------------------------------------------------------------------------------------------------

  /** Back to the queue, before all that came later; computed again when its turn comes. */
  private putBack(sequence: Sequence, keepKv: boolean): void {
    this.leave(sequence, keepKv && sequence.kind === 'generate');
    sequence.state = 'waiting';
    this.queue.restore(sequence);
  }

  private leave(sequence: Sequence, keepKv: boolean): void {
    this.running.delete(sequence);
    this.room.withdraw(sequence);
    if (sequence.adapter !== null) this.slots.release(sequence.adapter.digest);
    const { id, computed } = sequence;
    sequence.id = -1;
    sequence.slot = -1;
    sequence.computed = 0;
    this.room.giveBack(id, sequence, keepKv ? computed : 0);
  }

  private releaseSiblings(sequence: Sequence): void {
    const siblings = sequence.siblings;
    sequence.siblings = [];
    for (const sibling of siblings) {
      if (sibling.state === 'waiting') this.queue.restore(sibling);
    }
  }
}
