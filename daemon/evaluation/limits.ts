/** Every bound of evaluations, in one place. Units last. */
export const EVALUATION_LIMITS = {
  /** Resamples of the bootstrap; the interval's own error is then about a tenth of its width. */
  resamples: 1000,
  /** Examples that are scored or answered at the same time: as many as the engine computes together. */
  inFlight: 32,
  /** Examples of one evaluation; more are refused, `examplesMax` takes a sample. */
  examplesMax: 20_000,
  /** Evaluations at the same time, of everybody. */
  underWayMax: 4,
  /** Examples that a report shows with all answers, and how much of each text. */
  samplesShown: 20,
  sampleCharactersMax: 2_000,
  /** Reports that are kept; the oldest of the base alone goes first, then the oldest. */
  reportsMax: 5_000,
  reportBytesMax: 4 * 1024 * 1024,
  /** Time between two events of progress. */
  progressMs: 250,
  /** Tokens that a judge may write; it is held to a number. */
  judgeTokensMax: 24,
  /** Characters of one side of a comparison; longer texts are cut, since subsequences cost their product. */
  comparedCharactersMax: 65_536,
} as const;
