export interface StepBudgetOptions {
  stepTokensMax: number;
  prefillRowsMin: number;
  prefillRowsAloneMin: number;
  mixedStepTargetMs: number;
  crowdedStepTargetMs: number;
  aloneStepTargetMs: number;
}

/** What a prefill row costs before anything was measured, in µs. */
const ROW_MICROS_START = 1500;
/** Weight of a new measurement in the running means. */
const BLEND = 0.2;

/**
 * How many prefill rows a step may take so that nobody's stream stalls long: from the measured time of decode steps and
 * of prefill rows on this machine. Running means forget slowly; a machine that gets busy gets smaller chunks.
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

  /** Prefill rows that the next step may take, for `prompts` sequences that wait for their first token. */
  prefillRows(decodeRows: number, prompts: number): number {
    const { stepTokensMax, prefillRowsMin, prefillRowsAloneMin, aloneStepTargetMs } = this.options;
    if (decodeRows === 0) {
      return clamp(
        Math.floor((aloneStepTargetMs * 1000) / this.rowMicros),
        Math.min(prefillRowsAloneMin, stepTokensMax),
        stepTokensMax,
      );
    }
    const room = Math.max(stepTokensMax - decodeRows, 0);
    const targetMs = prompts > decodeRows ? this.options.crowdedStepTargetMs : this.options.mixedStepTargetMs;
    const rows = Math.floor((targetMs * 1000 - this.decodeMicros) / this.rowMicros);
    return clamp(rows, Math.min(prefillRowsMin, room), room);
  }
}

function blend(mean: number, value: number): number {
  return mean + (value - mean) * BLEND;
}

function clamp(value: number, low: number, high: number): number {
  return Math.max(low, Math.min(high, value));
}
