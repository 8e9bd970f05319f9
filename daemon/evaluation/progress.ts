import type { EvaluationEvent } from '../protocol.ts';
import { EVALUATION_LIMITS } from './limits.ts';

type Progressed = Extract<EvaluationEvent, { type: 'progress' }>;
export type Phase = Progressed['phase'];

/** How far an evaluation is. Phases differ in speed by orders of magnitude, so each is measured by itself. */
export class Progress {
  private readonly sink: (event: Progressed) => void;
  private readonly now: () => number;
  /** Steps of each phase, of all models. */
  private readonly totals: Record<Phase, number>;
  private readonly done: Record<Phase, number> = { score: 0, generate: 0, grade: 0 };
  private readonly spentMs: Record<Phase, number> = { score: 0, generate: 0, grade: 0 };
  private phase: Phase = 'score';
  private model: string | null = null;
  private since = 0;
  private saidAt = Number.NEGATIVE_INFINITY;
  costMicros = 0;

  constructor(totals: Record<Phase, number>, sink: (event: Progressed) => void, now = () => performance.now()) {
    this.totals = totals;
    this.sink = sink;
    this.now = now;
  }

  begin(phase: Phase, model: string | null): void {
    this.settle();
    this.phase = phase;
    this.model = model;
    this.say(true);
  }

  step(): void {
    this.settle();
    this.done[this.phase] += 1;
    this.say(false);
  }

  /** Time is counted between steps; `begin` closes the phase before. */
  private settle(): void {
    const now = this.now();
    if (this.since > 0) this.spentMs[this.phase] += now - this.since;
    this.since = now;
  }

  say(always: boolean): void {
    const now = this.now();
    if (!always && now - this.saidAt < EVALUATION_LIMITS.progressMs) return;
    this.saidAt = now;
    const sum = (of: Record<Phase, number>) => of.score + of.generate + of.grade;
    const rate = this.rate(this.phase);
    this.sink({
      type: 'progress',
      phase: this.phase,
      done: sum(this.done),
      total: sum(this.totals),
      model: this.model,
      perSecond: rate === null ? null : Math.round(rate * 100) / 100,
      secondsLeft: this.secondsLeft(),
      costMicros: this.costMicros,
    });
  }

  /** Not known before a whole wave is done: those that are computed together also end together. */
  private rate(phase: Phase): number | null {
    const done = this.done[phase];
    const wave = Math.min(EVALUATION_LIMITS.inFlight, this.totals[phase]);
    return done < wave || done === 0 || this.spentMs[phase] === 0 ? null : (done * 1000) / this.spentMs[phase];
  }

  private secondsLeft(): number | null {
    let seconds = 0;
    for (const phase of ['score', 'generate', 'grade'] as const) {
      const left = this.totals[phase] - this.done[phase];
      if (left <= 0) continue;
      const rate = this.rate(phase);
      if (rate === null) return null;
      seconds += left / rate;
    }
    return Math.round(seconds * 10) / 10;
  }
}
