export interface StepBudgetOptions {
  stepTokensMax: number;
  prefillRowsMin: number;
  prefillRowsAloneMin: number;
  mixedStepTargetMs: number;
  aloneStepTargetMs: number;
}

/** What a prefill row costs before anything was measured, in µs. */
const ROW_MICROS_START = 1500;
/** Weight of a new measurement in the running means: a step that took long may have been held up by something else. */
const BLEND_SLOWER = 0.2;
const BLEND_FASTER = 0.4;
/** A measurement counts as at most so many times the mean; one step that stood still must not shrink the next dozen. */
const OUTLIER = 2;

/**
 * How many prefill rows a step may take so that nobody's stream stalls long: from the measured time of decode steps and
 * of prefill rows on this machine. A machine that gets busy gets smaller chunks after some steps, not after one; one that is
 * free again gets large ones sooner, because small chunks make all first tokens late.
 */
export class StepBudget {
  private options: StepBudgetOptions;
  private rowMicros = ROW_MICROS_START;
  private decodeMicros = 0;

  constructor(options: StepBudgetOptions) {
    this.options = options;
  }

  observe(decodeRows: number, prefillRows: number, micros: number): void {
    if (prefillRows === 0) {
      this.decodeMicros = this.decodeMicros === 0 ? micros : blend(this.decodeMicros, micros);
      return;
    }
    // A few rows say more about the fixed cost of a step than about a row.
    if (prefillRows < 8) return;
    const rest = Math.max(micros - (decodeRows > 0 ? this.decodeMicros : 0), micros * 0.1);
    this.rowMicros = blend(this.rowMicros, rest / prefillRows);
  }

  /** Prefill rows that the next step may take. */
  prefillRows(decodeRows: number): number {
    const { stepTokensMax, prefillRowsMin, prefillRowsAloneMin, mixedStepTargetMs, aloneStepTargetMs } = this.options;
    if (decodeRows === 0) {
      return clamp(
        Math.floor((aloneStepTargetMs * 1000) / this.rowMicros),
        Math.min(prefillRowsAloneMin, stepTokensMax),
        stepTokensMax,
      );
    }
    const room = Math.max(stepTokensMax - decodeRows, 0);
    const rows = Math.floor((mixedStepTargetMs * 1000 - this.decodeMicros) / this.rowMicros);
    return clamp(rows, Math.min(prefillRowsMin, room), room);
  }
}

function blend(mean: number, value: number): number {
  return mean + (Math.min(value, OUTLIER * mean) - mean) * (value > mean ? BLEND_SLOWER : BLEND_FASTER);
}

function clamp(value: number, low: number, high: number): number {
  return Math.max(low, Math.min(high, value));
}
